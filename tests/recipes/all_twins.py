"""Every tiny twin, not one of each architecture alone: `make test-recipes`."""

from __future__ import annotations

from pathlib import Path

import pytest
from twins import TWINS, assert_learns_and_lives


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_learns_and_lives(twin: str, tmp_path: Path) -> None:
    assert_learns_and_lives(twin, tmp_path)
