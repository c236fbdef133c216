"""The command line: help is light, errors are lines with exit codes, doctor refuses foreign packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.config import EvaluationConfig
from corpora import errors
from corpora.errors import CuveeError, Damaged, RecipeError
from distill.cli import app

HOUSE = Path(__file__).resolve().parent.parent
STAGES = ("run", "prepare", "train", "cache", "score")
COMMANDS = (*STAGES, "compare", "finetune", "submit", "import", "export", "plan", "verify", "repair", "doctor")


def called(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="cuvee")


def python(*arguments: str, path: tuple[Path, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with `path` before the house, in a folder that holds nothing of ours."""
    search = os.pathsep.join(str(folder) for folder in (*path, HOUSE))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": search, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the stages that records its calls."""
    import distill

    fake: Any = ModuleType("distill.stages")
    fake.calls = []
    for name in ("run", "prepare", "train", "cache", "score"):
        setattr(fake, name, lambda *given, name=name: fake.calls.append((name, *given)))
    monkeypatch.setitem(sys.modules, "distill.stages", fake)
    monkeypatch.setattr(distill, "stages", fake, raising=False)
    return fake


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    # where a command has arguments, typer itself looks at pydantic
    heavy = {"torch", "transformers", "scipy", "wandb", "accelerate", *(["pydantic"] if len(arguments) == 1 else [])}
    code = (
        "import sys\nfrom distill.cli import app\n"
        f"try:\n    app({arguments!r}, prog_name='cuvee')\nexcept SystemExit as left:\n    assert left.code == 0\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert "cuvee" in finished.stdout


@pytest.mark.parametrize("command", ["run", "prepare", "train", "cache", "score"])
def test_commands_hand_the_recipe_to_their_stage(command: str, stages: Any) -> None:
    result = called(command, "smoke", "seed=5")
    assert result.exit_code == 0, result.output
    ((name, recipe),) = stages.calls
    assert name == command and recipe.seed == 5 and recipe.run_dir == "runs/smoke"


def test_score_of_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import distill

    fake: Any = ModuleType("distill.candidates")
    fake.calls = []
    fake.score_folder = lambda *given, **named: fake.calls.append((*given, named))
    monkeypatch.setitem(sys.modules, "distill.candidates", fake)
    monkeypatch.setattr(distill, "candidates", fake, raising=False)
    options = ["--blimp", "B", "--items", "7", "--out", "o", "--tasks", "ewok_filtered,comps", "--data", "D"]
    assert called("score", str(tmp_path), *options, "--backend", "mntp", "--precision", "bf16").exit_code == 0
    assert called("score", str(tmp_path), "--checkpoints").exit_code == 0
    config = EvaluationConfig(
        blimp="B",
        items=7,
        benchmarks=("ewok_filtered", "comps"),
        data="D",
        backend="mntp",
        precision="bf16",
    )
    assert fake.calls == [
        (tmp_path, config, {"out": Path("o"), "checkpoints": False, "allow_code": None}),
        (tmp_path, EvaluationConfig(), {"out": None, "checkpoints": True, "allow_code": None}),
    ]
    assert called("score", str(tmp_path), "seed=1").exit_code == 2
    assert called("score", "smoke", "--items", "7").exit_code == 2
    wrong = called("score", str(tmp_path), "--backend", "casual")
    assert wrong.exit_code == 2 and "did you mean 'causal'?" in wrong.stderr


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (kind, kind.exit_code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CuveeError)
    ],
)
def test_every_error_has_its_line_and_exit_code(
    error: type[CuveeError], exit_code: int, stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "run", _raising(error("here: found this; do that")))
    result = called("run", "smoke")
    assert (result.exit_code, result.stderr) == (exit_code, "cuvee: here: found this; do that\n")


def test_exit_codes_that_are_known_before_the_errors_are() -> None:
    from distill import cli

    assert (cli.REFUSED, cli.PREEMPTED) == (errors.InputRefused.exit_code, errors.Preempted.exit_code)


def test_an_interrupt_is_resumable(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run", _raising(KeyboardInterrupt()))
    result = called("run", "smoke")
    assert result.exit_code == 75 and result.stderr.startswith("cuvee: interrupted; ")


def test_a_file_that_cannot_be_read_is_one_line(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run", _raising(PermissionError(13, "Permission denied", "runs/x/corpus")))
    result = called("run", "smoke")
    assert result.exit_code == 3
    assert result.stderr.startswith("cuvee: runs/x/corpus: Permission denied; ") and result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run", _raising(Damaged("x: bad")))
    result = called("--debug", "run", "smoke")
    assert result.exit_code == 4 and "Traceback" in result.stderr and result.stderr.endswith("cuvee: x: bad\n")


def test_ranks_are_told_apart(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run", _raising(RecipeError("one\ntwo")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert called("run", "smoke").stderr == "cuvee [rank 1]: one\ncuvee [rank 1]: two\n"


def test_a_wrong_recipe_ends_with_2_and_a_line_for_each_problem() -> None:
    result = called("run", "quickstart", "seed=one", "students.elc_bert.train.larning_rate=1")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "cuvee: command line: seed: expected a whole number, found 'one'",
        "cuvee: command line: students.elc_bert.train.larning_rate: unknown key; did you mean 'lr'?",
    ]


@pytest.mark.parametrize(
    "arguments", [["run"], ["runn", "x"], ["run", "x", "--no-such"], ["score", "x", "--items", "0"]]
)
def test_usage_errors_end_with_2(arguments: list[str]) -> None:
    result = called(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_doctor_says_where_it_is() -> None:
    result = called("doctor")
    assert result.exit_code == 0
    for expected in ("torch", "python", "memory", "disk", "CUDA", "launcher", f"all 6 in {HOUSE}"):
        assert expected in result.output


@pytest.mark.parametrize("room", ["configs", "corpora"])
def test_a_foreign_package_of_our_name_is_refused(room: str, tmp_path: Path) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").touch()
    for command in ("doctor", "run"):
        finished = python("-m", "distill", command, *(["smoke"] if command == "run" else []), path=(tmp_path,))
        assert finished.returncode == 3
        (line,) = finished.stderr.splitlines()
        assert line.startswith(f"cuvee: package {room}: resolves to {tmp_path / room}, expected {HOUSE / room}; ")


def test_a_plain_folder_of_our_name_is_no_danger(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    finished = python("-m", "distill", "plan", "smoke", "--rate", "1e9", path=(tmp_path,))
    assert finished.returncode == 0, finished.stderr


def _raising(error: BaseException) -> Callable[..., None]:
    def stage(*_: Any) -> None:
        raise error

    return stage
