"""Reads a recipe's YAML into a plain tree that remembers the file and line of every key.

`extends: NAME` at the top of a file and `use: NAME` at any mapping take in another file, found beside the one that
names it or among the packaged recipes; the mapping's own keys win over it. Mappings merge, lists and scalars replace,
and `null` sets None. Dotted overrides come last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from corpora.errors import RecipeError

COMMAND_LINE = "command line"
MAX_BYTES = 1 << 20  # a recipe is a page of text; more is another kind of file
MAX_DEPTH = 32  # mappings and lists inside each other
MAX_FILES = 16  # files that take each other in

Keys = tuple[str | int, ...]  # keys and list indices, from the root

LAUNCHERS = "accelerate"  # the folder of a launcher's files, which are no recipes


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value and the place of its key: a scalar, a mapping of nodes or a list of nodes."""

    value: Any
    place: str  # "file:line", or "command line"

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def at(self, keys: Keys) -> Node:
        """The node at `keys`, or the deepest one on the way there."""
        node = self
        for key in keys:
            if isinstance(node.value, dict) and key in node.value:
                node = node.value[key]
            elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
            else:
                break
        return node


def from_plain(value: Any, place: str) -> Node:
    """A tree of mappings and scalars that stands at one place."""
    if isinstance(value, dict):
        value = {key: from_plain(child, place) for key, child in value.items()}
    return Node(value=value, place=place)


def merged(under: Node, over: Node) -> Node:
    """`over` laid over `under`: mappings merge key by key, everything else replaces."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    both = {key: merged(under.value[key], child) for key, child in over.value.items() if key in under.value}
    return replace(over, value={**under.value, **over.value, **both})


def packaged_folder() -> Path:
    """The folder of the recipes that come with the toolkit."""
    return Path(str(resources.files("configs")))


def find_file(name: str, beside: Path) -> Path:
    """The file `name` in the folder `beside` or among the packaged recipes; `.yaml` may be left out.

    Raises RecipeError that lists what is packaged.
    """
    packaged = packaged_folder()
    # "configs/x.yaml" is what one types in a checkout; it means the same anywhere else
    folders = [beside, packaged, *([packaged.parent] if Path(name).parts[:1] == (packaged.name,) else [])]
    for candidate in (folder / f"{name}{ending}" for folder in folders for ending in ("", ".yaml")):
        if os.path.isfile(candidate):  # where Path.is_file raises for names that no file can have, this says no
            return candidate
    found = (path.relative_to(packaged) for path in packaged.rglob("*.yaml"))
    offered = ", ".join(sorted(path.as_posix() for path in found if path.parts[0] != LAUNCHERS))
    raise RecipeError(f"{name!r}: no such recipe in {beside.absolute()}; give a file, or one of ours: {offered}")


def take_in(node: Node, beside: Path, files: tuple[Path, ...] = ()) -> Node:
    """The tree with `extends` at its top and every `use` replaced by the files they name.

    `beside` is the folder in which names are looked up first; `files` are those that are being read.
    """
    return _taken_in(node, beside, files, takes=("extends", "use"))


def read_file(path: Path, files: tuple[Path, ...] = (), asked_at: str = "") -> Node:
    """The tree of one file and everything it takes in; raises RecipeError, also when it takes itself in."""
    resolved = path.resolve()
    if resolved in files or len(files) == MAX_FILES:
        chain = " -> ".join(file.name for file in (*files, resolved))
        raise RecipeError(f"{asked_at}: files take each other in without end ({chain}); remove this `extends` or `use`")
    return take_in(compose_file(path), path.parent, (*files, resolved))


def _taken_in(node: Node, beside: Path, files: tuple[Path, ...], *, takes: tuple[str, ...]) -> Node:
    if isinstance(node.value, list):
        return replace(node, value=[_taken_in(child, beside, files, takes=("use",)) for child in node.value])
    if not isinstance(node.value, dict):
        return node
    own = {key: child for key, child in node.value.items() if key not in takes}
    result = Node(value={}, place=node.place)
    for key in takes:
        if key in node.value:
            result = merged(result, _named_file(key, node.value[key], beside, files))
    own = {key: _taken_in(child, beside, files, takes=("use",)) for key, child in own.items()}
    return merged(result, replace(node, value=own))


def _named_file(key: str, name: Node, beside: Path, files: tuple[Path, ...]) -> Node:
    if not isinstance(name.value, str):
        raise RecipeError(f"{name.place}: {key}: expected the name of a file, found {shown(name.plain())}")
    try:
        path = find_file(name.value, beside)
    except RecipeError as error:
        raise RecipeError(f"{name.place}: {key}: {error}") from error
    return read_file(path, files, asked_at=name.place)


def override(tree: Node, text: str) -> Node:
    """The tree with one `a.b.1.c=value` laid over it; the value is YAML and missing keys are made.

    Raises RecipeError when the text is not of this form or leads through a number or past the end of a list.
    """
    name, equals, value = text.partition("=")
    keys = name.split(".")
    if not equals or not all(key and key.isprintable() for key in keys):
        raise RecipeError(f"{COMMAND_LINE}: {text!r}: expected key=value, such as students.baby_llama.train.lr=3e-4")
    try:
        laid = _compose(value, COMMAND_LINE)
    except RecipeError as error:
        raise RecipeError(f"{error} (in {text!r})") from error
    if keys[-1] == "use":
        keys, laid = keys[:-1], Node(value={"use": laid}, place=COMMAND_LINE)
    return _laid_over(tree, keys, _taken_in(laid, Path("."), (), takes=("use",)), name)


def _laid_over(node: Node, keys: Sequence[str], value: Node, name: str) -> Node:
    if not keys:
        return merged(node, value)
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        indices = {str(index): index for index in range(len(node.value))}
        if key not in indices:
            raise RecipeError(
                f"{COMMAND_LINE}: {name}: {key!r} in a list of {len(node.value)} ({node.place}); "
                "give an index, from 0, of an entry that is there"
            )
        items = list(node.value)
        items[indices[key]] = _laid_over(items[indices[key]], rest, value, name)
        return replace(node, value=items)
    if not (node.value is None or isinstance(node.value, dict)):
        raise RecipeError(
            f"{COMMAND_LINE}: {name}: nothing can stand below {shown(node.value)} ({node.place}); "
            f"leave out {'.'.join(keys)!r}, or replace the whole value"
        )
    children = node.value or {}
    child = _laid_over(children.get(key, Node(value=None, place=COMMAND_LINE)), rest, value, name)
    return replace(node, value={**children, key: child})


def compose_file(path: Path) -> Node:
    """The tree of one file as it stands there; raises RecipeError."""
    file = _shown_path(path)
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{file}: {error.strerror or error}; give a YAML file that can be read") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{file}: more than {MAX_BYTES:,} bytes; a recipe is smaller, give another file")
    node = _compose(text, file)
    if not isinstance(node.value, dict):
        raise RecipeError(f"{node.place}: expected a mapping of keys, found {shown(node.plain())}; write `key: value`")
    return node


def shown(value: Any) -> str:
    """A plain value in few words, for messages."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown_path(path: Path) -> str:
    """A path as short as it can be said from here."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


class _Loader(yaml.SafeLoader):
    """The safe loader without anchors, and of bounded depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        # ten lines of aliases can stand for gigabytes
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(None, None, "anchors are refused; write the value out", event.start_mark)
        if self.depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH}", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# YAML 1.1 takes 3e-4 for text because it has no point; everybody who writes it means a number
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


def _compose(text: str, file: str) -> Node:
    """The tree of a YAML text; every key's place is `file` and its line."""
    try:
        loader = _Loader(text)
        document = loader.get_single_node()
        return Node(value=None, place=file) if document is None else _node(document, loader, file, document)
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{file}: character {error.character!r} is not allowed in YAML; remove it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.problem or error.context}".split())
        raise RecipeError(f"{_place(file, mark)}: not a recipe in YAML: {problem}") from error


def _place(file: str, mark: Any) -> str:
    return file if file == COMMAND_LINE or mark is None else f"{file}:{mark.line + 1}"


def _node(node: yaml.Node, loader: _Loader, file: str, key: yaml.Node) -> Node:
    """A composed node as ours; `key` is where it is said to stand."""
    place = _place(file, key.start_mark)
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return Node(value=_mapping(node, loader, file), place=place)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return Node(value=[_node(child, loader, file, child) for child in node.value], place=place)
    if isinstance(node, yaml.ScalarNode):
        return Node(value=_scalar(node, loader, file), place=place)
    raise yaml.MarkedYAMLError(None, None, f"tag {node.tag!r} is refused; write plain values", node.start_mark)


def _mapping(node: yaml.MappingNode, loader: _Loader, file: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
        name = key.value  # as it is written: `no` and `1` are names like any other
        if name in found:
            problem = f"key {name!r} stands here and at {found[name].place}; remove one"
            raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
        found[name] = _node(value, loader, file, key)
    return found


def _scalar(node: yaml.ScalarNode, loader: _Loader, file: str) -> Any:
    if node.tag == f"{_TAG}timestamp":
        return node.value  # a date is text here
    if node.tag not in _SCALAR_TAGS:
        raise yaml.MarkedYAMLError(None, None, f"tag {node.tag!r} is refused; write plain values", node.start_mark)
    try:
        value = loader.construct_object(node)
        text = value.encode() if isinstance(value, str) else b""  # a lone surrogate cannot be encoded
    except (ValueError, KeyError, IndexError) as error:
        raise yaml.MarkedYAMLError(None, None, f"{shown(node.value)} cannot be read", node.start_mark) from error
    if b"\0" in text:
        raise yaml.MarkedYAMLError(None, None, "a NUL character is refused; remove it", node.start_mark)
    if isinstance(value, float) and "." not in node.value and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 1e6 is the whole number it looks like
    return value
