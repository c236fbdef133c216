"""What a run learned from: its own text, the models that it listened to or began with, and what stands behind those.

Everything is read from folders: manifests say which weights and which tokens a run was made from, the recipe beside it
where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.submission.submitted_run import Teacher, Text
from corpora.errors import InputRefused
from corpora.sources import source_name
from corpora.storage import Manifest, canonical_json, digest, read_json, read_manifest
from distill.config import Recipe
from distill.project import Project, weights_and_tokenizer
from students.run_folder import NETWORK_CONFIG, weight_files

UNKNOWN = "unknown"
_CARD = "README.md"  # of a model on a hub: its front matter names the licence
_FRONT_MATTER = re.compile(r"\ufeff?---\s*\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run folder, or weights that it kept, and the run_dir around it."""

    folder: Path  # absolute

    @property
    def run_folder(self) -> Path:
        """Of the run that the weights belong to."""
        return self.folder.parent.parent if self.folder.parent.name == "snapshots" else self.folder

    @property
    def run_dir(self) -> Path:
        """Where the corpus, the teachers and the students of its project lie."""
        return self.run_folder.parent.parent

    @cached_property
    def manifest(self) -> Manifest:
        """Of the weights; raises InputRefused for a folder that no run of this toolkit finished."""
        manifest = read_manifest(self.folder)
        if manifest is None or manifest.kind != "run":
            found = f"a {manifest.kind}" if manifest else "nothing finished"
            raise InputRefused(
                f"{self.folder}: {found}; expected a run folder of this toolkit, RUN_DIR/students/NAME-... or "
                "RUN_DIR/teachers/NAME; check its name"
            )
        return manifest

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What the weights depend on; of a mean of several snapshots, what their run does."""
        if "mean_of" not in self.manifest.fingerprint:
            return self.manifest.fingerprint
        name = self.manifest.facts["name"]
        config = self.recipe.teachers.get(name)
        if config is None or config.of is None:
            raise self._other_recipe(f"no teacher {name!r} that is taken of another one")
        return TrainedRun(self.project.teacher_folder(config.of)).made_from

    @cached_property
    def corpus(self) -> Manifest | None:
        """The prepared corpus that it was trained on; None where the run_dir holds another one, or none."""
        corpus = read_manifest(self.run_dir / "corpus")
        if corpus is None or corpus.facts["streams"]["train"]["digest"] != self.made_from["corpus"]["tokens"]:
            return None
        return corpus

    @property
    def texts(self) -> tuple[Text, ...]:
        """The corpus source by source, all of its streams; empty where it is not known."""
        if self.corpus is None:
            return ()
        streams = self.corpus.facts["streams"].values()
        names = sorted({name for stream in streams for name in stream["words_by_source"]})
        return tuple(
            Text(
                name=name,
                words=sum(stream["words_by_source"].get(name, 0) for stream in streams),
                digest=_text_digest(self.corpus.fingerprint, name),
            )
            for name in names
        )

    @property
    def epochs(self) -> float:
        """Passes over the text that was trained on, to two places: a last step may be filled from the next pass."""
        assert self.corpus is not None, "the run's text is known"
        return round(self.manifest.facts["words"] / self.corpus.facts["streams"]["train"]["words"], 2)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe beside the run, which names the places of its teachers."""
        from distill.recipe import load_recipe

        path = self.run_dir / "recipe.yaml"
        if not path.exists():
            raise InputRefused(f"{path}: missing; expected the recipe of {self.folder.name}, beside it; run it again")
        return replace(load_recipe(path), run_dir=str(self.run_dir))

    @cached_property
    def project(self) -> Project:
        """The recipe's folders."""
        return Project(self.recipe)

    def auxiliaries(self) -> Iterator[tuple[str, Path, str]]:
        """Models that it learned from directly: name, folder, and digest of the weights that it used.

        Raises InputRefused when the recipe beside the run does not name one of them.
        """
        start = self.made_from.get("start")
        if start is not None:
            yield "start", self._start(), start
        heard = {
            name: key["teacher"]
            for term in self.made_from.get("terms", ())
            for name, key in term.get("caches", {}).items()
        }
        for name, weights in heard.items():
            if name not in self.recipe.teachers:
                raise self._other_recipe(f"no teacher {name!r}, which the run listened to")
            yield name, self.project.teacher_folder(name), weights

    def _start(self) -> Path:
        name = self.manifest.facts["name"].partition(".")[0]  # a control begins as its student does
        config = self.recipe.students.get(name) or self.recipe.teachers.get(name)
        if config is None or config.start is None:
            raise self._other_recipe(f"no weights that {name!r} begins with")
        return Path(config.start)

    def _other_recipe(self, lacking: str) -> InputRefused:
        return InputRefused(
            f"{self.run_dir / 'recipe.yaml'}: names {lacking}; expected the recipe that {self.folder.name} was made "
            "by; run `cuvee train` with that one again, which trains nothing anew"
        )


def auxiliary_models(run: TrainedRun, *, licence: str) -> tuple[Teacher, ...]:
    """Every model that a run learned from and those behind them, each once; `licence` is of those in its run_dir.

    Raises InputRefused when a model was made anew since, or cannot be found.
    """
    found: dict[str, Teacher] = {}
    _gather(run, "", licence, run.run_dir, found)
    return tuple(found.values())


def _gather(run: TrainedRun, prefix: str, licence: str, home: Path, found: dict[str, Teacher]) -> None:
    for name, folder, weights in run.auxiliaries():
        if weights in found:
            continue
        folder = folder.absolute()
        manifest = read_manifest(folder)
        of_run = manifest is not None and manifest.kind == "run"
        if (there := weights_and_tokenizer(folder, foreign=True)[0]) != weights:
            raise InputRefused(
                f"teachers.{name} ({folder}): its weights are {there[:8]}; expected {weights[:8]}, which "
                f"{run.folder.name} learned from; train the run again"
            )
        own = folder.is_relative_to(home)
        said = licence if own else _licence_of(folder)
        if of_run:
            behind = TrainedRun(folder)
            found[weights] = _trained_teacher(prefix + name, behind, said)
            _gather(behind, f"{prefix}{name}/", licence, home, found)
        else:
            found[weights] = _foreign_teacher(prefix + name, folder, said)


def _trained_teacher(name: str, run: TrainedRun, licence: str) -> Teacher:
    facts = run.manifest.facts
    return Teacher(
        name=name,
        architecture=run.made_from["model"]["architecture"],
        parameters=facts["parameters"],
        data=run.texts,
        words_seen=facts["words"],
        licence=licence,
    )


def _foreign_teacher(name: str, folder: Path, licence: str) -> Teacher:
    """What a folder of transformers says of itself: nothing about its text."""
    described = read_json(folder / NETWORK_CONFIG)
    return Teacher(
        name=name,
        architecture=str(described.get("model_type", UNKNOWN)),
        parameters=_parameters(folder),
        data=(),
        words_seen=None,
        licence=licence,
    )


def _parameters(folder: Path) -> int:
    """Numbers in the files of weights, by their headers."""
    import safetensors

    total = 0
    for path in weight_files(folder):
        with safetensors.safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def _licence_of(folder: Path) -> str:
    """What a model's card says in its front matter, which is YAML; a licence of no common name is called "other"."""
    import yaml

    card = folder / _CARD
    matter = _FRONT_MATTER.match(card.read_text("utf-8", errors="replace")) if card.is_file() else None
    try:
        told: Any = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:
        return UNKNOWN
    if not isinstance(told, dict):
        return UNKNOWN
    said = told.get("license")
    if said == "other":
        said = told.get("license_name") or said
    named = [text for text in (said if isinstance(said, list) else [said]) if isinstance(text, str) and text.strip()]
    return ", ".join(named) or UNKNOWN


def _text_digest(made_from: dict[str, Any], source: str) -> str:
    """Of what a source's text depends on: equal for every split and every tokenizer of the same text."""
    config, files = made_from["corpus"], made_from["files"]
    embedded = config["source"] == "synthetic"
    own = sorted(digest for name, digest in files.items() if embedded or source_name(Path(name)) == source)
    text: dict[str, Any] = {"files": own, "part": source if embedded else None}
    if embedded or config["words"] is not None or source in config["budget"]:  # a part of it, drawn by the seed
        text |= {"of": sorted(files.values()), "words": config["words"], "seed": made_from["seed"]}
        text["budget"] = config["budget"].get(source)
    return digest(canonical_json(text).encode())
