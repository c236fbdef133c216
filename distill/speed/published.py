"""The published models in training on a GPU: tokens per second and the share of its matrix products, compiled or not.

Weights and tokens are random, and rows hold parts of two documents, as a corpus's do; all else is as the recipes say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.speed_figures import Table
from benchmarks.speed_timing import Setting, interleaved, work_folder
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.recipe import load_recipe
from distill.speed.data import Shapes, random_corpus
from distill.speed.whole_step import OurTraining, flops_per_token
from distill.throughput import comparable_rate
from students.config import ModelConfig

SIDES = {"as it is": False, "compiled": True}  # train.compile
COLUMNS = ("model", "network", "rows", "at once", "ms", "tokens/s", "of matmul rate", "peak extra MiB")
CORPUS_STEPS = 2  # in an epoch


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how it is trained."""

    model: ModelConfig
    train: TrainConfig
    vocab_size: int
    rows: int  # of a step


def published() -> dict[str, Case]:
    """The models of the packaged recipes; their rows fill a GPU of 80 GB."""
    return {
        "Llama-360M": _packaged("teachers", "llama_360m", rows=128),
        "GPT-J-705M": _packaged("teachers", "gptj_705m", rows=128),
        "ELC-BERT base": _packaged("teachers", "elc_bert_base", rows=256),
        "Baby-Llama 58M": _packaged("students", "baby_llama_58m", rows=256),
    }


def small_ones() -> dict[str, Case]:
    """A small model of every architecture, as the packaged recipes have it; 2,048 tokens in a step."""
    students = ("baby_llama_58m", "elc_bert_small", "ltg_bert_small", "gpt_bert_small", "lv_bert_small")
    cases = {name: _packaged("students", name, rows=16) for name in (*students, "share_bert_small")}
    llama = cases["baby_llama_58m"]
    sizes = {"num_layers": 8, "hidden_size": 512, "num_heads": 8, "vocab_size": None}
    cases |= {
        name: replace(llama, model=ModelConfig(architecture=name, **sizes))  # type: ignore[arg-type]
        for name in ("gpt2", "gptj")
    }
    return cases


def models_table(cases: Mapping[str, Case], setting: Setting, *, compiled: bool = True) -> Table:
    """How fast each model is trained on the device that training chooses; compiled or not takes turns."""
    sides = SIDES if compiled else {side: False for side, asked in SIDES.items() if not asked}
    rows = [row for name, case in cases.items() for row in _rows(name, case, setting, sides)]
    return Table("training the published models", COLUMNS, rows)


def _packaged(role: str, name: str, *, rows: int) -> Case:
    recipe = load_recipe(f"{role}/{name}")
    trained = recipe.teachers[name] if role == "teachers" else recipe.students[name]
    assert trained.model is not None and trained.train is not None, "a fragment holds both"
    return Case(model=trained.model, train=trained.train, vocab_size=recipe.tokenizer.vocab_size, rows=rows)


def _rows(name: str, case: Case, setting: Setting, sides: Mapping[str, bool]) -> Iterator[tuple[str, ...]]:
    processes = Processes()
    device = processes.device
    with work_folder(setting) as folder:
        trainings = _trainings(case, setting, folder, processes, sides)
        steps = {side: training.step for side, training in trainings.items()}
        timings = interleaved(steps, repetitions=setting.repetitions, device=device)
    flops = flops_per_token(case.model, case.train, vocab_size=case.vocab_size)
    for side, timing in timings.items():
        rate = comparable_rate(trainings[side].learner.precision, device)
        learner, speed = trainings[side].learner, case.rows * case.train.seq_len / timing.median
        yield (
            name,
            side,
            str(case.rows),
            str(learner.micro_batch or case.rows),
            f"{1000 * timing.median:,.0f}",
            f"{speed:,.0f}",
            "-" if rate is None else f"{100 * flops * speed / rate:.1f} %",
            "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:,.0f}",
        )
    # what was compiled for one model would be tried on the next, and found not to fit
    torch.compiler.reset()


def _trainings(
    case: Case, setting: Setting, folder: Path, processes: Processes, sides: Mapping[str, bool]
) -> dict[str, OurTraining]:
    seq_len = case.train.seq_len
    shapes = Shapes(
        student=case.model,
        teachers={},
        vocab_size=case.vocab_size,
        rows=case.rows,
        seq_len=seq_len,
        corpus_rows=CORPUS_STEPS * case.rows + 1,  # an offset takes a part of a row
        read_positions=seq_len,
    )
    corpus = random_corpus(folder, shapes)
    config = replace(
        case.train,
        # a run of whole steps that are all alike
        **dict.fromkeys(("epochs", "words", "minutes"), None),  # type: ignore[arg-type]
        steps=CORPUS_STEPS,
        phases=[],
        batch_size=case.rows,
        micro_batch_size=None,
        random_offsets=True,
        precision=setting.precision,
    )
    return {
        side: OurTraining(case.model, replace(config, compile=compiled), corpus=corpus, processes=processes)
        for side, compiled in sides.items()
    }
