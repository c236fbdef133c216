"""One tiny twin of each architecture; `make test-recipes` has all of them (tests/recipes/all_twins.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from twins import TWINS, architecture_of, assert_learns_and_lives

from distill.yaml_tree import packaged_folder
from students.registry import ARCHITECTURES

ONE_OF_EACH = {architecture_of(twin): twin for twin in TWINS}


def test_every_published_recipe_has_a_twin() -> None:
    published = {
        path.relative_to(packaged_folder()).with_suffix("").as_posix()
        for room in ("teachers", "students")
        for path in (packaged_folder() / room).glob("*.yaml")
    }
    assert {f"{name}_tiny" for name in published if not name.endswith("_tiny")} == set(TWINS)
    assert set(ONE_OF_EACH) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ONE_OF_EACH)
def test_a_twin_learns_and_lives(architecture: str, tmp_path: Path) -> None:
    assert_learns_and_lives(ONE_OF_EACH[architecture], tmp_path)
