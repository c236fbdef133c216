"""What README tells a newcomer to type is right: recipes and overrides are read, files and make targets are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from distill.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"cuvee (?:run|plan) configs/[^`\n]+", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_a_recipe_is_read(command: str) -> None:
    _, _, recipe, *overrides = shlex.split(command)
    load_recipe(ROOT / recipe, overrides)


def test_there_are_such_commands() -> None:
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_a_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", re.findall(r"(?:^|`(?:time )?)make (\w+)", README, re.M))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_commands_of_the_screen_are_those_of_the_program() -> None:
    listed = re.search(r"cuvee prepare \| (.+?) RECIPE", README)
    assert listed is not None
    source = (ROOT / "distill" / "cli.py").read_text()
    for name in ("run", "prepare", *listed[1].split(" | "), "plan", "doctor"):
        assert f"def {name}(" in source
