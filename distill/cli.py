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
FLOATS = ("fp32", "bf16")


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
    data: Annotated[Path | None, typer.Option(help="The challenge's folder of data, or one above it.")] = None,
    tasks: Annotated[str, typer.Option(help="Benchmarks, with commas between; left out: all that --data holds.")] = "",
    fast: Annotated[bool, typer.Option("--fast", help="The challenge's smaller sets.")] = False,
    year: Annotated[
        int | None, typer.Option(help="As in that year: its benchmarks, whole by its table, and its protocol.")
    ] = None,
    blimp: Annotated[Path | None, typer.Option(help="A folder of .jsonl files in BLiMP's format.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Own minimal pairs: a .jsonl or .csv file.")] = None,
    good: Annotated[str, typer.Option(help="Its column of right sentences.")] = "sentence_good",
    bad: Annotated[str, typer.Option(help="Its column of wrong sentences.")] = "sentence_bad",
    group: Annotated[str | None, typer.Option(help="Its column that names the paradigm.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Items drawn of each paradigm; left out: all.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="A .txt, .jsonl, .jsonl.zst or .train file, or a folder: bits per byte of it.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="The same of a run's own held-out text: test or tune.")] = None,
    ngrams: Annotated[
        str | None, typer.Option(help="RUN_DIR whose text the baseline counts; left out: the run's own; none: none.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="cuvee, babylm2025, babylm2024, babylm2023, lm-eval, minicons; else the year's, or cuvee."),
    ] = None,
    pll: Annotated[str | None, typer.Option(help="Masked models: original or within_word_l2r.")] = None,
    backend: Annotated[str | None, typer.Option(help="causal, masked, mntp or hybrid; left out: as trained.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the network.")] = "fp32",
    canaries: Annotated[bool, typer.Option("--canaries", help="Also score what knows nothing.")] = False,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Also snapshots/chck_* of a run.")] = False,
    aoa: Annotated[
        Path | None, typer.Option(help="With --checkpoints: the folder of cdi_childes.json and cdi_human.csv.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where reports, verdicts and single scores are kept.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the FOLDER's own code, in a sandbox without network.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="With --allow-code: most for each benchmark.")] = 60.0,
    memory: Annotated[float, typer.Option(help="With --allow-code: most, in GiB.")] = 8.0,
) -> None:
    """Up to the scores of all that a recipe trains; of a FOLDER, the scores of that model alone.

    A FOLDER that this toolkit did not make is a stranger's: safetensors and
    JSON are read, nothing of it is run. The options are for a FOLDER.
    """
    from corpora.errors import RecipeError

    given = {
        "benchmarks": tuple(name for name in tasks.split(",") if name),
        "data": data and str(data),
        "fast": fast,
        "year": year,
        "blimp": blimp and str(blimp),
        "pairs": pairs and str(pairs),
        "good": good,
        "bad": bad,
        "group": group,
        "items": items,
        "text": text and str(text),
        "stream": _one_of("--stream", stream, "test", "tune"),
        "ngrams": ngrams,
        "protocol": protocol,
        "pll": _one_of("--pll", pll, "original", "within_word_l2r"),
        "backend": _one_of("--backend", backend, "causal", "masked", "mntp", "hybrid"),
        "precision": _one_of("--precision", precision, *FLOATS),
        "canaries": canaries,
        "aoa": aoa and str(aoa),
    }
    from benchmarks.config import EvaluationConfig

    config = EvaluationConfig(**given)
    if os.path.isdir(target):
        if overrides:
            raise RecipeError(
                f"command line: {overrides[0]!r}: keys belong to a RECIPE, {target} is a folder; leave it out"
            )
        from distill import candidates
        from distill.own_code import Limits

        limits = Limits(60 * minutes, round(memory * 2**30)) if allow_code else None
        candidates.score_folder(Path(target), config, out=out, checkpoints=checkpoints, allow_code=limits)
    elif config != EvaluationConfig() or checkpoints or out or allow_code:
        raise RecipeError(
            f"command line: {target}: no such folder, which the options of this command are for; "
            "give one, or write benchmarks.blimp.root=DIR after a recipe"
        )
    else:
        _stage("score", target, overrides)


@app.command()
def compare(
    systems: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FOLDER[,FOLDER]", help="What `score --out` made; a folder a seed.")
    ],
    baseline: Annotated[str | None, typer.Option(help="The system that all others are compared with.")] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Every system with every other.")] = False,
    alpha: Annotated[float, typer.Option(help="Chance of any false positive among the rows of one level.")] = 0.05,
    out: Annotated[Path | None, typer.Option(help="Where the comparison is written.")] = None,
) -> None:
    """What differs between systems that were scored on the same items, and what cannot be told apart."""
    from distill import candidates

    candidates.compare_folders(systems, baseline=baseline, all_pairs=all_pairs, alpha=alpha, out=out, resamples=10_000)


@app.command()
def finetune(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder, or a Hugging Face folder.")],
    data: Annotated[Path, typer.Option(help="The challenge's folder of data, or the one with the tasks.")],
    out: Annotated[Path, typer.Option(help="Where results and predictions are kept and found again.")],
    tasks: Annotated[str, typer.Option(help="Such as boolq,rte; left out: all of the year's.")] = "",
    preset: Annotated[str, typer.Option(help="cuvee, babylm2025, babylm2024, babylm2024_lora, babylm2023")] = "cuvee",
    seeds: Annotated[str, typer.Option(help="Such as 1,2,3; left out: the preset's.")] = "",
    objective: Annotated[str | None, typer.Option(help="causal or masked, of a model that does both.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Low-rank adapters instead of all weights.")] = False,
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    official: Annotated[
        bool, typer.Option("--official", help="Refuse files of other lengths than the year's.")
    ] = False,
) -> None:
    """Fine-tune one model on (Super)GLUE or MSGS tasks, for each seed, and tell the medians.

    The checkpoint is chosen on rows carved out of the training set; the years'
    presets choose it on the rows that they report, and say so.
    """
    from corpora.errors import RecipeError

    numbers = [seed for seed in seeds.split(",") if seed]
    if wrong := [seed for seed in numbers if not seed.isdecimal()]:
        raise RecipeError(f"command line: --seeds: found {wrong[0]!r}, expected whole numbers with commas between")
    reads, arithmetic = (
        _one_of("--objective", objective, "causal", "masked"),
        _one_of("--precision", precision, *FLOATS),
    )
    from distill import candidates

    candidates.finetune_folder(
        folder,
        data,
        out=out,
        preset=preset,
        tasks=[name for name in tasks.split(",") if name],
        seeds=[int(seed) for seed in numbers],
        objective=reads,  # type: ignore[arg-type]
        lora=lora,
        precision=arithmetic,  # type: ignore[arg-type]
        official=official,
    )


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, RUN_DIR/students/NAME-... and so on.")],
    track: Annotated[str, typer.Option(help="strict-small or strict.")],
    year: Annotated[int, typer.Option(help="2024, 2025 or 2026.")],
    out: Annotated[Path, typer.Option(help="Where the submission is written.")],
    data: Annotated[Path | None, typer.Option(help="The challenge's folder of data, or one above it.")] = None,
    backend: Annotated[str | None, typer.Option(help="causal, mlm or mntp; left out: as trained.")] = None,
    finetuned: Annotated[Path | None, typer.Option(help="What `finetune` made of RUN: TASK/seed_N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of fine-tuning; left out: the first of the year's preset.")] = None,
    aoa: Annotated[Path | None, typer.Option(help="Folder of cdi_childes.json and cdi_human.csv.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; left out: the run folder's.")] = None,
    licence: Annotated[str, typer.Option(help="Of the weights of the teachers that the run_dir trained.")] = "",
    answers: Annotated[
        Path | None, typer.Option(help="Where single scores are kept and found again; left out: beside OUT.")
    ] = None,
) -> None:
    """Score a run and its checkpoints, and write a year's submission, with every teacher's text, words and licence.

    What is missing or too much is told before anything is scored.
    """
    known = _one_of("--backend", backend, "causal", "mlm", "mntp")
    from distill import submitting

    config = submitting.SubmissionConfig(
        track=track,
        year=year,
        out=out,
        data=data,
        backend=known,  # type: ignore[arg-type]
        finetuned=finetuned,
        seed=seed,
        aoa=aoa,
        name=name,
        licence=licence,
        answers=answers,
    )
    submitting.submit(folder, config)


@app.command("import")
def import_(
    architecture: Annotated[str, typer.Argument(metavar="ARCHITECTURE", help="elc_bert_zero, gpt_bert and so on.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The original's weights: safetensors.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder.")],
    config: Annotated[
        Path | None, typer.Option(help="The original's sizes, JSON; left out: `config` in FILE's metadata.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The original's tokenizer.json.")] = None,
    objective: Annotated[str, typer.Option(help="masked, or of gpt_bert causal.")] = "masked",
    pickle: Annotated[
        bool, typer.Option("--pickle", help="FILE was written by torch.save; tensors alone are read.")
    ] = False,
) -> None:
    """Make a published checkpoint a folder that transformers and this toolkit read.

    Every tensor and size that does not fit is named. Another process has
    loaded the folder by every Auto class before it is there.
    """
    reads = _one_of("--objective", objective, "masked", "causal")
    from distill import importing

    importing.import_checkpoint(
        architecture,
        file,
        out,
        config=config,
        tokenizer=tokenizer,
        objective=reads,  # type: ignore[arg-type]
        allow_pickle=pickle,
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one of its snapshots.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder.")],
) -> None:
    """Make a run a plain Hugging Face folder, for transformers 4.51.3 and later.

    Another process, which cannot import this toolkit, has loaded it by every
    Auto class, with the same answers and token ids, before it is there.
    """
    from distill import exporting

    exporting.export_run(run, out)


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


def _one_of(option: str, value: str | None, *known: str) -> str | None:
    """The value, if it is known or not given."""
    from corpora.errors import RecipeError, suggestion

    if value is not None and value not in known:
        raise RecipeError(
            f"command line: {option}: found {value!r}, expected {' or '.join(known)}{suggestion(value, known)}"
        )
    return value


def _report(lines: list[str], exit_code: int) -> int:
    """Print an error, a line for each problem, and hand back its exit code."""
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    prefix = f"cuvee [rank {os.environ.get('RANK', '?')}]" if many else "cuvee"
    sys.stderr.write("".join(f"{prefix}: {line}\n" for line in lines))  # in one piece: ranks share the terminal
    return exit_code


def _trace(ctx: Any) -> None:
    if ctx.params.get("debug"):
        traceback.print_exc()
