"""What makes a student impossible is said before the first teacher is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_end_to_end import cuvee

from corpora.errors import InputRefused, RecipeError
from distill.foresight import require_trainable
from distill.project import Project
from distill.recipe import load_recipe

SMOKE = str(Path(__file__).parent.parent / "configs" / "smoke.yaml")
STUDENT = "students.baby_llama.train"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The twin's corpus."""
    place = f"run_dir={tmp_path_factory.mktemp('prepared') / 'run'}"
    assert cuvee("prepare", SMOKE, place)[0] == 0
    return place


@pytest.mark.parametrize(
    ("override", "world_size", "said"),
    [
        (f"{STUDENT}.batch_size=1", 2, "train.batch_size: 1 rows for 2 processes"),
        (f"{STUDENT}.parallel=fsdp", 1, "train.parallel: fsdp divides a model among processes, found 1"),
        (f"{STUDENT}.no_decay=['*nothere*']", 1, "train.no_decay: '*nothere*' matches no weights"),
        (f"{STUDENT}.phases=[{{share: 0.97}}, {{share: 0.03}}]", 1, "1 of 2 phases are shorter than one of the"),
        (f"{STUDENT}.phases=[{{share: 1, sources: [nowhere]}}]", 1, "is from nowhere"),
    ],
)
def test_it_names_the_student_before_anything_is_trained(
    prepared: str, override: str, world_size: int, said: str
) -> None:
    project = Project(load_recipe(SMOKE, [prepared, override]))
    with pytest.raises((RecipeError, InputRefused)) as refused:
        require_trainable(project, world_size)
    assert str(refused.value).startswith("students.baby_llama.") and said in str(refused.value)
    if world_size == 1:
        code, lines = cuvee("run", SMOKE, prepared, override)
        assert code in (2, 3) and said in lines[0] and not (project.folder / "teachers").exists()


def test_the_twin_itself_is_possible(prepared: str) -> None:
    require_trainable(Project(load_recipe(SMOKE, [prepared])), 8)


def test_a_model_is_built_with_the_corpus_vocabulary(prepared: str) -> None:
    """ShareBERT's matrices are carved from it: they fit 512 types, and not the special tokens alone."""
    sizes = "{architecture: share_bert, num_layers: 2, hidden_size: 32, num_heads: 2, max_positions: 64}"
    overrides = [prepared, f"students.elc_bert.model={sizes}", "students.elc_bert.train.no_decay=['*_norm*', '*bias']"]
    require_trainable(Project(load_recipe(SMOKE, overrides)), 1)
