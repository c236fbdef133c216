"""The house keeps its shape: imports run downward, the engine needs no command line, one module writes files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "corpora": set(),
    "students": {"corpora"},
    "teachers": {"corpora", "students"},
    "benchmarks": {"corpora", "students"},
    "distill": {"corpora", "students", "teachers", "benchmarks"},
    "configs": set(),
}
MODULES = sorted(path for room in MAY_IMPORT for path in (HOUSE / room).rglob("*.py"))
# the command line and the reading of recipes; everything else is the engine
DOORS = {"distill/cli.py", "distill/__main__.py", "distill/recipe.py", "distill/yaml_tree.py", "distill/doctor.py"}
NOT_THE_ENGINES = ("pydantic", "rich", "tensorboard", "typer", "wandb", "zstandard")
WRITER = "corpora/storage.py"


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            room = name.partition(".")[0]
            if room in MAY_IMPORT:
                yield room, node.lineno


def test_the_rooms_are_those_of_the_distribution() -> None:
    import tomllib

    listed = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(name for name in listed if "." not in name) == sorted(MAY_IMPORT)
    # a folder of modules that the list does not name would be missing from a wheel
    folders = {name_of(path.parent).replace("/", ".") for path in MODULES}
    assert folders <= set(listed)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downward(path: Path) -> None:
    room = name_of(path).partition("/")[0]
    upward = [f"line {line}: {other}" for other, line in imported_rooms(path) if other not in MAY_IMPORT[room] | {room}]
    assert not upward


def test_the_engine_needs_no_command_line() -> None:
    engine = [
        name_of(path)[:-3].replace("/", ".").removesuffix(".__init__") for path in MODULES if name_of(path) not in DOORS
    ]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({NOT_THE_ENGINES}))  # as if they were not installed
for module in {engine}:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        sys.exit(f"{{module}}: {{error}}")
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]


def writing_calls(path: Path) -> Iterator[str]:
    """Calls that put bytes on the disk, or move them, as `line: call`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        short = function.rpartition(".")[2]
        dotted = function in {
            *("torch.save", "np.save", "np.savez", "numpy.save", "os.rename", "os.replace", "shutil.move"),
            *("json.dump", "yaml.dump", "pickle.dump", "safetensors.torch.save_file"),
        }
        method = short in {"write_text", "write_bytes", "save_file", "tofile"}
        if dotted or method or _opens_for_writing(node, function):
            yield f"line {node.lineno}: {function}"


def _opens_for_writing(call: ast.Call, function: str) -> bool:
    if function.rpartition(".")[2] != "open":
        return False
    given = call.args[1:2] if function in ("open", "io.open", "os.open") else call.args[:1]  # else a path's method
    given += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return any(set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) != WRITER], ids=name_of)
def test_one_module_writes_files(path: Path) -> None:
    assert not list(writing_calls(path))


def test_the_writing_calls_are_seen(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "import os, torch\ntorch.save(1, 'x')\nopen('x', 'w')\npath.open(mode='ab')\nos.replace('a', 'b')\n"
        "path.write_text('x')\nopen('x')\npath.open('rb')\n'x'.replace('a', 'b')\n"
    )
    assert [call.partition(":")[0] for call in writing_calls(sample)] == [f"line {number}" for number in range(2, 7)]
