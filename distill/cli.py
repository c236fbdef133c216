"""The command line `cuvee`, also `python -m distill` and `torchrun ... -m distill`.

A command imports what it needs when it runs: help answers before torch could be loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from distill.doctor import facts, misplaced_rooms, version

REFUSED = 3  # InputRefused.exit_code, for when `corpora` is someone else's
PREEMPTED = 75  # Preempted.exit_code


class _Reporting(TyperGroup):
    """Runs a command; an error that the user can mend becomes its lines and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        if lines := misplaced_rooms():
            raise typer.Exit(_report(lines, REFUSED))
        from corpora.errors import CuveeError

        try:
            return super().invoke(ctx)
        except CuveeError as error:
            _trace(ctx)
            raise typer.Exit(_report(str(error).splitlines(), error.exit_code)) from error
        except OSError as error:
            if error.filename is None:  # a closed pipe, a network: nothing that a path would explain
                raise
            _trace(ctx)
            line = f"{error.filename}: {error.strerror}; mend it or its permissions, then the same command goes on"
            raise typer.Exit(_report([line], REFUSED)) from error
        except KeyboardInterrupt as error:
            _trace(ctx)
            raise typer.Exit(
                _report(["interrupted; the same command goes on from what is saved"], PREEMPTED)
            ) from error


app = typer.Typer(
    cls=_Reporting,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Many processes: torchrun --nproc_per_node N -m distill run RECIPE. Exit codes: 2 command line or recipe, "
    "3 input refused, 4 damaged file, 5 no room, 6 diverged, 71 a process was lost, 75 stopped and resumable.",
)
RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Laid over the recipe: students.baby_llama.train.lr=3e-4"),
]
AnyFolder = Annotated[Path, typer.Argument(metavar="PATH", help="A folder that a recipe made, or one above it.")]


def main() -> None:
    """Entry point."""
    app(prog_name="cuvee")


def _version(on: bool) -> None:
    if on:
        typer.echo(f"cuvee {version()}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Distil an ensemble of small language models into one student, and show what it kept."""


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Everything a recipe needs, in order, skipping what is already there and valid.

    A comma list, as in seed=1,2,3, makes a run of each value in RUN_DIR/sweep
    and a summary over seeds; several lists make all combinations. What stands
    in brackets, braces or quotes is one value.
    """
    from distill.sweep import run_sweep, value_lists

    if value_lists(overrides or ()):
        run_sweep(recipe, overrides or ())
    else:
        _stage("run", recipe, overrides)


@app.command()
def prepare(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Up to the corpus and the tokenizer."""
    _stage("prepare", recipe, overrides)


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Up to trained teachers, students and controls."""
    _stage("train", recipe, overrides)


@app.command()
def cache(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Up to the caches of what teachers say, and the fitted weights."""
    _stage("cache", recipe, overrides)


@app.command()
def score(
    target: Annotated[str, typer.Argument(metavar="RECIPE|FOLDER", help="A recipe, or the folder of one model.")],
    overrides: Overrides = None,
    blimp: Annotated[Path | None, typer.Option(help="With a FOLDER: score it on the .jsonl files in here.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="With a FOLDER: pairs of each phenomenon.")] = None,
    out: Annotated[Path | None, typer.Option(help="With a FOLDER: where the report goes.")] = None,
) -> None:
    """Up to the scores of all that a recipe trains; of a FOLDER, the scores of that model alone."""
    from corpora.errors import RecipeError

    if os.path.isdir(target):
        if overrides:
            raise RecipeError(
                f"command line: {overrides[0]!r}: keys belong to a RECIPE, {target} is a folder; leave it out"
            )
        from distill import stages

        stages.score_candidate(Path(target), _candidate_benchmarks(blimp, pairs), out)
    elif blimp or pairs or out:
        raise RecipeError(
            f"command line: {target}: no such folder, which --blimp, --pairs and --out are for; "
            "give one, or write benchmarks.blimp.root=DIR after a recipe"
        )
    else:
        _stage("score", target, overrides)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rate: Annotated[
        float | None, typer.Option(min=1, metavar="FLOPS", help="Operations in a second, instead of measuring them.")
    ] = None,
) -> None:
    """What a recipe costs in bytes, FLOPs, time and memory, before anything is built."""
    from distill.plan import plan as planned
    from distill.plan_table import print_plan

    print_plan(planned(_read(recipe, overrides), rate=rate))


@app.command()
def verify(
    path: AnyFolder,
    spot: Annotated[int, typer.Option(min=0, help="Recompute so many positions of each cache by its teacher.")] = 0,
) -> None:
    """Read every file of a cache, a run folder or a run_dir, and name those that are damaged."""
    from distill import maintenance

    maintenance.verify(path, spots=spot)


@app.command()
def repair(path: AnyFolder) -> None:
    """Make again what is damaged in a cache, or in all caches of a run_dir, and nothing else."""
    from distill import maintenance

    maintenance.repair(path)


@app.command()
def doctor() -> None:
    """Versions, processors, memory, disk and launcher, and whether our packages are the ones that Python finds."""
    for name, value in facts():
        typer.echo(f"{name:<13} {value}")


def _stage(name: str, recipe: str, overrides: list[str] | None) -> None:
    read = _read(recipe, overrides)
    from distill import stages  # after the recipe: a misspelt key need not wait for torch

    getattr(stages, name)(read)


def _read(recipe: str, overrides: list[str] | None) -> Any:
    """The one recipe that is asked for."""
    from distill.recipe import load_recipe
    from distill.sweep import refuse_lists

    refuse_lists(overrides or ())
    return load_recipe(recipe, overrides or ())


def _candidate_benchmarks(blimp: Path | None, pairs: int | None) -> Any:
    """The benchmarks of a candidate: the folder of pairs that was named, else those of the embedded corpus."""
    from benchmarks.config import BenchmarksConfig, BlimpConfig, MinimalPairsConfig

    if blimp:
        return BenchmarksConfig(blimp=BlimpConfig(root=str(blimp), pairs=pairs or BlimpConfig.pairs))
    return BenchmarksConfig(minimal_pairs=MinimalPairsConfig(pairs=pairs or MinimalPairsConfig.pairs))


def _report(lines: list[str], exit_code: int) -> int:
    """Print an error, a line for each problem, and hand back its exit code."""
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    prefix = f"cuvee [rank {os.environ.get('RANK', '?')}]" if many else "cuvee"
    sys.stderr.write("".join(f"{prefix}: {line}\n" for line in lines))  # in one piece: ranks share the terminal
    return exit_code


def _trace(ctx: Any) -> None:
    if ctx.params.get("debug"):
        traceback.print_exc()
