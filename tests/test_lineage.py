"""Whom a run learned from, what these read, and under which licence, as far as its folders say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_submitting
from test_submitting import recount, student

from corpora.errors import InputRefused
from distill.lineage import TrainedRun, auxiliary_models
from distill.project import weights_and_tokenizer

scaled_years, run_dir, copy = test_submitting.scaled_years, test_submitting.run_dir, test_submitting.copy


@dataclass(frozen=True)
class Listening(TrainedRun):
    """A run that listened to these folders."""

    teachers: dict[str, Path]

    def auxiliaries(self) -> Iterator[tuple[str, Path, str]]:
        for name, folder in self.teachers.items():
            yield name, folder, weights_and_tokenizer(folder, foreign=True)[0]


def test_a_teacher_from_elsewhere_is_known_as_far_as_its_folder_says(copy: Path, tmp_path: Path) -> None:
    hub = Path(shutil.copytree(copy / "teachers" / "llama", tmp_path / "hub"))
    for name in ("manifest.json", "cuvee.json", "metrics.jsonl", "timings.jsonl"):
        (hub / name).unlink()
    (hub / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\nA model.\n")
    run = Listening(student(copy), {"guest": hub, "llama": copy / "teachers" / "llama"})
    found = {teacher.name: teacher for teacher in auxiliary_models(run, licence="MIT")}
    guest, llama = found["guest"], found["llama"]
    assert (guest.licence, guest.data, guest.words_seen, guest.architecture) == ("cc-by-4.0", (), None, "llama")
    assert guest.parameters == llama.parameters and (llama.licence, llama.words_seen) != (guest.licence, None)
    assert llama.data == run.texts


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, "unknown"),
        ("A model.\nlicense: mit\n", "unknown"),
        ("---\nlicense:\nlanguage: en\n---\n", "unknown"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        ('---\nlicense: other\nlicense_name: "Llama 3 Community"\n---\n', "Llama 3 Community"),
        ("---\nlicense: [mit\n---\n", "unknown"),
        ("---\nlanguage: en\n---\nlicense: mit\n---\n", "unknown"),
    ],
)
def test_a_licence_is_what_the_card_says_in_front(
    run_dir: Path, tmp_path: Path, card: str | None, licence: str
) -> None:
    hub = Path(shutil.copytree(run_dir / "teachers" / "llama", tmp_path / "hub"))
    for name in ("manifest.json", "cuvee.json"):
        (hub / name).unlink()
    if card is not None:
        (hub / "README.md").write_text(card)
    (teacher,) = auxiliary_models(Listening(student(run_dir), {"guest": hub}), licence="MIT")
    assert teacher.licence == licence


def test_a_run_of_another_project_brings_its_text_and_those_behind_it(run_dir: Path, copy: Path) -> None:
    """A student is a teacher somewhere else: what it listened to stands behind it."""

    run = Listening(student(run_dir), {"tutor": student(copy)})
    found = auxiliary_models(run, licence="MIT")
    assert [teacher.name for teacher in found] == ["tutor", "tutor/llama"]
    assert all(teacher.data == run.texts for teacher in found), "the same text in two folders"
    assert [teacher.licence for teacher in found] == ["unknown", "unknown"], "its licence is not ours to say"


def test_a_teacher_that_was_made_anew_is_refused(copy: Path) -> None:
    folder = copy / "teachers" / "llama"
    recount(folder, 1, **{"model.safetensors": {"size": 1, "digest": "f" * 32}})
    with pytest.raises(InputRefused, match=r"its weights are ffffffff; expected [0-9a-f]{8}, which baby_llama-"):
        auxiliary_models(TrainedRun(student(copy)), licence="MIT")
