"""Reads a recipe: YAML and overrides in, one validated `Recipe` out, every problem said with file and line at once.

pydantic checks keys and types of the plain dataclasses, `distill/checks.py` what they mean. This module alone knows
pydantic, and asks for it only to read: the engine, which writes resolved recipes, runs without it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from corpora.errors import RecipeError, suggestion
from distill.checks import problems
from distill.config import Recipe, as_plain
from distill.members import expanded
from distill.yaml_tree import Keys, Node, find_file, from_plain, merged, override, read_file, shown, take_in

# What a pydantic error expects, in words of the recipe; other errors keep pydantic's words.
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
# Names that people bring from other toolkits, and ours.
ELSEWHERE = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "train_batch_size": "batch_size",
    "max_length": "seq_len",
    "sequence_length": "seq_len",
    "warmup_ratio": "warmup_share",
    "warmup_steps": "warmup_share",
    "max_grad_norm": "grad_clip",
    "objective": "view",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "layer_norm_eps": "norm_eps",
    "output_dir": "run_dir",
    "teacher_weights": "members",
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The validated recipe of a file, or of a packaged one by name, with overrides `a.b.1.c=value` laid over it.

    A file that holds one model (see `configs/teachers`) stands for the recipe that trains it alone.
    Raises RecipeError with one line for each problem: place, key, what was found, what is expected, what to do.
    """
    tree = read_recipe_tree(find_file(str(path), Path(".")))
    for text in overrides:
        tree = override(tree, text)
    return validated(tree)


def read_recipe_tree(path: Path) -> Node:
    """The tree of a recipe file, everything it takes in included."""
    tree = read_file(path)
    return _alone(path, tree) if "model" in tree.value else tree


def _alone(path: Path, fragment: Node) -> Node:
    """The recipe that holds one fragment and nothing else; its tokenizer has the model's published size."""
    name, place = path.stem.replace(".", "_"), fragment.place
    role = "students" if "terms" in fragment.value else "teachers"
    frame = from_plain({"extends": "base.yaml", "run_dir": f"runs/{name}"}, place)
    vocab_size = fragment.at(("model", "vocab_size"))
    if isinstance(vocab_size.value, int):
        frame = merged(frame, from_plain({"tokenizer": {"vocab_size": vocab_size.value}}, vocab_size.place))
    tree = take_in(frame, path.parent)
    return merged(tree, Node(value={role: Node(value={name: fragment}, place=place)}, place=place))


def validated(tree: Node) -> Recipe:
    """The recipe that a tree says, every teacher a single one; raises RecipeError with one line for each problem."""
    from pydantic import ValidationError

    try:
        # by way of JSON, which strict mode reads into nested dataclasses and tuples
        recipe = _adapter().validate_json(json.dumps(tree.plain()))
    except ValidationError as error:
        told = (problem for problem in error.errors(include_url=False) if not _was_not_meant(problem))
        raise RecipeError("\n".join(_line(tree, problem) for problem in told)) from error
    if found := problems(recipe):
        raise RecipeError("\n".join(_at(tree, keys, message) for keys, message in found))
    return expanded(recipe)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors: nothing is required, because files take each other in."""
    schema = _adapter().json_schema()
    name = {"type": "string", "description": "a file that is taken in here; the keys beside it win"}
    for mapping in (schema, *schema.get("$defs", {}).values()):
        if "properties" in mapping:
            mapping["properties"] |= {"use": name}
            mapping.pop("required", None)
    schema["properties"] |= {"extends": name}
    return schema


def resolved_yaml(recipe: Recipe) -> str:
    """Every field of a recipe as YAML that reads back as the same recipe."""
    return yaml.safe_dump(as_plain(recipe), sort_keys=False, allow_unicode=True)


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


def _at(tree: Node, keys: Keys, message: str) -> str:
    return f"{tree.at(keys).place}: {'.'.join(str(key) for key in keys) or 'recipe'}: {message}"


def _option(problem: Any) -> str | None:
    """Where a field may be a list or a word: the option that an error of pydantic is about."""
    options = [key for key in problem["loc"] if isinstance(key, str) and key.startswith(("list[", "literal["))]
    return options[0] if options else None


def _was_not_meant(problem: Any) -> bool:
    """Every option complains of a value that fits none; of a list the words say nothing, of anything else the list."""
    option = _option(problem)
    if option is None:
        return False
    return isinstance(problem["input"], list) if option.startswith("literal[") else problem["type"] == "list_type"


def _line(tree: Node, problem: Any) -> str:
    """One line for one error of pydantic."""
    option = _option(problem)
    keys = tuple(key for key in problem["loc"] if key not in ("[key]", option))
    kind, found = problem["type"], problem["input"]
    if kind == "unexpected_keyword_argument" or "[key]" in problem["loc"]:
        return _at(tree, keys, f"unknown key{_nearest_key(keys)}")
    if kind == "missing":
        return _at(tree, keys, "missing; give it")
    if kind == "literal_error":
        expected = ("a list, " if option else "") + problem["ctx"]["expected"]
        near = suggestion(found, _choices(keys)) if isinstance(found, str) else ""
        return _at(tree, keys, f"expected {expected}, found {shown(found)}{near}")
    return _at(tree, keys, f"expected {EXPECTED.get(kind) or problem['msg']}, found {shown(found)}")


def _nearest_key(keys: Keys) -> str:
    """A suggestion among the keys that are valid at this place, or all of them when none is near."""
    hint = _type_at(keys[:-1])
    known = [field.name for field in fields(hint)] if is_dataclass(hint) else list(get_args(get_args(hint)[0]))
    ours = {name: name for name in known} | {name: key for name, key in ELSEWHERE.items() if key in known}
    near = get_close_matches(str(keys[-1]), ours, n=1)
    return f"; did you mean {ours[near[0]]!r}?" if near else f"; expected one of {', '.join(known)}"


def _choices(keys: Keys) -> list[str]:
    return [choice for choice in get_args(_type_at(keys)) if isinstance(choice, str)]


def _type_at(keys: Keys) -> Any:
    """The declared type at `keys`, without `None`."""
    hint: Any = Recipe
    for key in keys:
        inner = get_args(hint)
        hint = get_type_hints(hint)[str(key)] if is_dataclass(hint) else inner[-1]
        if get_origin(hint) in (Union, UnionType):
            hint = next(option for option in get_args(hint) if option is not type(None))
    return hint
