"""The speed suite `score`: pairs per second against lm-eval and minicons, and what whole commands take.

Random networks of 6 layers of width 384 with 16,384 rows of vocabulary score two paradigms: those of BLiMP where
`--blimp` names its folder, else generated ones of the same lengths. Peers answer from processes of their own that hold
their models, so that sides take turns; only scoring counts, in seconds of the processor, which no neighbour lengthens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from benchmarks.agreement import verdict_agreement
from benchmarks.choices import ChoiceTask
from benchmarks.minimal_pairs import blimp_tasks
from benchmarks.peers import Peer, peer_environment, peer_python, require_peer
from benchmarks.plain_scores import plain_scores
from benchmarks.protocol import PROTOCOLS
from benchmarks.scorer import Precision, candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import read_scoring_tokenizer
from benchmarks.speed_figures import Figure, Goal, Table
from benchmarks.speed_models import (
    FIVE_MILLION,
    PAIRS_OF_PARADIGM,
    PARADIGMS,
    RandomModel,
    generated_pairs,
    save_random_model,
    write_pairs,
)
from benchmarks.speed_prefixes import PrefixSizes, prefix_table
from benchmarks.speed_timing import Setting, work_folder
from benchmarks.speed_turns import in_turns, processor_seconds
from corpora.batch import Objective
from corpora.errors import InputRefused, ProcessLost
from corpora.storage import make_folder, write_file
from students.run_folder import load_model

GOALS = {
    goal.name: goal
    for goal in (
        Goal(
            name="causal_fp32",
            measure="causal, fp32: pairs per second / of the better of lm-eval (scoring only) and minicons",
            unit="x",
            target=1.25,
            comparison=">=",
        ),
        Goal(
            name="causal_bf16",
            measure="causal, our network in bf16: pairs per second / of the better of the two, in their fp32",
            unit="x",
            target=2.5,
            comparison=">=",
        ),
        Goal(
            name="masked_fp32",
            measure="masked, fp32: pairs per second / of minicons",
            unit="x",
            target=1.9,
            comparison=">=",
        ),
        Goal(
            name="masked_bf16",
            measure="masked, our network in bf16: pairs per second / of minicons, in its fp32",
            unit="x",
            target=4.0,
            comparison=">=",
        ),
        Goal(
            name="whole_command_ratio",
            measure="process start to table, causal, two paradigms: `cuvee score` / `lm_eval`",
            unit="x",
            target=0.5,
        ),
        Goal(
            name="blimp_minutes",
            measure="all paradigms, causal, a model of 5M parameters, process start to table, two threads",
            unit="minutes",
            target=4.0,
        ),
        Goal(
            name="rerun_ratio",
            measure="the same on one thread a second time, which finds its scores stored / the first time",
            unit="x",
            target=0.05,
        ),
    )
}
PARADIGMS_HERE = ("anaphor_number_agreement", "wh_island")  # of BLiMP
MAX_TOKENS = 4096  # in a forward pass of ours, as on the command line
CORES = 2  # of the whole of BLiMP
OURS: dict[Precision, str] = {"fp32": "ours", "bf16": "ours, bf16"}
AGREEMENT_ITEMS = 100  # of each paradigm


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    model: RandomModel = RandomModel()
    small_model: RandomModel = FIVE_MILLION
    pairs: dict[str, int] = field(default_factory=lambda: {"causal": 40, "masked": 10, "command": 100})  # of a paradigm
    paradigms: int = PARADIGMS
    pairs_of_paradigm: int = PAIRS_OF_PARADIGM
    # texts that a peer gets at once, as BabyLM's pipelines do; of several numbers the best one stands for it
    batches: tuple[int, ...] = (64,)


def conditions(setting: Setting) -> dict[str, str]:
    """Sizes, the pairs, and which peers are there."""
    missing = [name for name in ("lm-eval", "minicons") if peer_python(name) is None]
    peers = f"{', '.join(missing)} not installed: `make peers`; plain code stands for minicons" if missing else "both"
    native = "native" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "emulated"
    return {
        "sizes": f"{RandomModel()}",
        "pairs": str(setting.blimp or "generated"),
        "peers": peers,
        "bf16": native,
        "scoring": "one thread, seconds of the processor",
    }


def figures(setting: Setting, names: Collection[str]) -> list[Figure]:
    """The named figures, in the order of their names."""
    return measured(names, Sizes(), setting)


def tables(setting: Setting, figures: Sequence[Figure], *, everything: bool) -> Iterator[Table | str]:
    """How often bf16 gives the verdict of fp32, where it was measured; what trees of texts save."""
    for objective in ("causal", "masked"):
        if any(figure.goal.name == f"{objective}_bf16" for figure in figures):
            with work_folder(setting) as folder:
                agreement = bf16_agreement(_Bench(Sizes(), folder, setting), objective)
            yield f"{objective}, bf16 against fp32: {agreement}"
    if everything:
        with work_folder(setting) as folder:
            yield prefix_table(folder, PrefixSizes(), repetitions=min(5, setting.repetitions))


def measured(names: Collection[str], sizes: Sizes, setting: Setting) -> list[Figure]:
    """The named figures at some sizes."""
    with work_folder(setting) as folder:
        bench = _Bench(sizes, folder, setting)
        ways: Mapping[str, Callable[[], Figure]] = {
            "causal_fp32": lambda: bench.scoring("causal", "fp32"),
            "causal_bf16": lambda: bench.scoring("causal", "bf16"),
            "masked_fp32": lambda: bench.scoring("masked", "fp32"),
            "masked_bf16": lambda: bench.scoring("masked", "bf16"),
            "whole_command_ratio": bench.whole_command_ratio,
            "blimp_minutes": bench.blimp_minutes,
            "rerun_ratio": bench.rerun_ratio,
        }
        return [ways[name]() for name in names]


def bf16_agreement(bench: _Bench, objective: Objective) -> str:
    """On a sample, in words."""
    one, other = (bench.scorer(objective, precision) for precision in OURS)
    return str(verdict_agreement(one, other, bench.tasks(AGREEMENT_ITEMS), items=AGREEMENT_ITEMS))


class _Bench:
    """The figures by name; those of one objective are measured together."""

    def __init__(self, sizes: Sizes, folder: Path, setting: Setting) -> None:
        self._sizes, self._folder, self._setting = sizes, folder, setting
        self._speeds: dict[str, dict[str, float]] = {}

    def scoring(self, objective: Objective, precision: Precision) -> Figure:
        """Ours against the best of the others."""
        if objective not in self._speeds:
            self._speeds[objective] = self._pairs_per_second(objective)
        speeds = self._speeds[objective]
        others = {side: speed for side, speed in speeds.items() if side not in OURS.values()}
        compared = {OURS[precision]: speeds[OURS[precision]], **others}
        value = speeds[OURS[precision]] / max(others.values())
        return GOALS[f"{objective}_{precision}"].reached(value, compared, "pairs/s")

    def whole_command_ratio(self) -> Figure:
        """Both sides start anew each time; on one thread."""
        folder, pairs = self._model("causal"), self._pairs_folder(self._sizes.pairs["command"])
        sides = {
            "ours": lambda: _run(self._our_command(folder, pairs), threads=1),
            "lm-eval": lambda: _run(_lm_eval_command(folder, pairs, self._folder), threads=1, peer=True),
        }
        require_peer("lm-eval")
        seconds = in_turns(sides, repetitions=min(3, self._setting.repetitions), warm_up=1)
        medians = {side: statistics.median(taken) for side, taken in seconds.items()}
        return GOALS["whole_command_ratio"].reached(medians["ours"] / medians["lm-eval"], medians, "s")

    def blimp_minutes(self) -> Figure:
        """Once: minutes are long enough."""
        seconds = _run(self._our_command(*self._whole_blimp), threads=CORES)
        return GOALS["blimp_minutes"].reached(seconds / 60, {"ours": seconds}, "s")

    def rerun_ratio(self) -> Figure:
        """On one thread; the first run's scores are on the disk."""
        command = [*self._our_command(*self._whole_blimp), "--out", str(self._folder / "out")]
        first, again = (_run(command, threads=1) for _ in range(2))
        return GOALS["rerun_ratio"].reached(again / first, {"first run": first, "second run": again}, "s")

    def scorer(self, objective: Objective, precision: Precision) -> Scorer:
        """Our side under the protocol of minicons, which reads and counts as many tokens as its own."""
        folder = self._model(objective)
        candidate = candidate_from_model("ours", load_model(folder), objective, precision=precision)
        return Scorer("ours", (candidate,), read_scoring_tokenizer(folder), PROTOCOLS["minicons"], MAX_TOKENS)

    def tasks(self, pairs: int) -> list[ChoiceTask]:
        """The two paradigms, so many pairs of each."""
        return blimp_tasks(self._pairs_folder(None), pairs, seed=1)

    def _pairs_per_second(self, objective: Objective) -> dict[str, float]:
        pairs = self._sizes.pairs[objective]
        tasks = self.tasks(pairs)
        requests = [option for task in tasks for item in task.items for option in item.options]
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            sides: dict[str, Callable[[], float]] = {}
            for precision, side in OURS.items():
                scorer = self.scorer(objective, precision)
                sides[side] = partial(processor_seconds, partial(scorer.scores, requests))
            for name in ("lm-eval", "minicons") if objective == "causal" else ("minicons",):
                if peer_python(name) is not None:
                    peer = stack.enter_context(Peer(name, objective, self._model(objective)))
                    for batch in self._sizes.batches:
                        sides[f"{name} ({batch} at once)"] = lambda peer=peer, batch=batch: float(
                            peer.scores(requests, batch=batch)["seconds"]
                        )
                elif name == "minicons":
                    plain = plain_scores(objective, self._model(objective))
                    for batch in self._sizes.batches:
                        sides[f"minicons, plain code ({batch} at once)"] = partial(
                            processor_seconds, partial(plain, requests, batch)
                        )
            seconds = in_turns(sides, repetitions=self._setting.repetitions, warm_up=1)
        return {side: len(requests) / 2 / statistics.median(taken) for side, taken in seconds.items()}

    @cached_property
    def _whole_blimp(self) -> tuple[Path, Path]:
        """The small model, and all paradigms."""
        sizes = self._sizes
        pairs = self._setting.blimp or write_pairs(
            self._folder / "blimp", generated_pairs(sizes.paradigms, sizes.pairs_of_paradigm)
        )
        return save_random_model(self._folder / "small", "causal", sizes.small_model, _texts(pairs)), pairs

    def _our_command(self, folder: Path, pairs: Path) -> list[str]:
        return [sys.executable, "-m", _command_line(), "score", str(folder), "--blimp", str(pairs)]

    def _model(self, objective: Objective) -> Path:
        folder = self._folder / objective
        if not folder.exists():
            save_random_model(folder, objective, self._sizes.model, _texts(self._pairs_folder(None)))
        return folder

    def _pairs_folder(self, pairs: int | None) -> Path:
        """The two paradigms in a folder of their own, cut to so many pairs; None: all."""
        folder = self._folder / f"pairs-{pairs or 'all'}"
        if not folder.exists():
            source = self._setting.blimp
            if source is None:
                rows = generated_pairs(2, PAIRS_OF_PARADIGM)
                write_pairs(folder, {uid: of_paradigm[:pairs] for uid, of_paradigm in rows.items()})
            else:
                make_folder(folder)
                for path in (source / f"{uid}.jsonl" for uid in PARADIGMS_HERE):
                    if not path.exists():
                        raise InputRefused(f"{path}: missing, expected BLiMP's files; name their folder with --blimp")
                    write_file(folder / path.name, b"".join(path.read_bytes().splitlines(keepends=True)[:pairs]))
        return folder


def _run(command: Sequence[str], *, threads: int, peer: bool = False) -> float:
    """Seconds of a whole process. Raises ProcessLost with the last line that a failed one wrote."""
    environment = peer_environment(threads) if peer else os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if finished.returncode:
        told = (finished.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ProcessLost(f"{' '.join(command)}: exit code {finished.returncode}, told {told!r}; run it by hand")
    return seconds


def _lm_eval_command(folder: Path, pairs: Path, work: Path) -> list[str]:
    """Lm-eval's own BLiMP task, for the paradigms of a folder."""
    tasks = work / "tasks"
    if not tasks.exists():
        make_folder(tasks)
        for path in pairs.glob("*.jsonl"):
            named = {"name": path.stem, "path": json.dumps(str(path)), "cache": json.dumps(str(work / "datasets"))}
            write_file(tasks / f"{path.stem}.yaml", _LM_EVAL_TASK.format(**named).encode())
    names = ",".join(f"pairs_{path.stem}" for path in sorted(pairs.glob("*.jsonl")))
    model = f"pretrained={folder},dtype=float32"
    asked = ["--model", "hf", "--model_args", model, "--tasks", names, "--include_path", str(tasks)]
    return [str(require_peer("lm-eval")), "-m", "lm_eval", "run", *asked, "--device", "cpu", "--batch_size", "64"]


_LM_EVAL_TASK = """\
task: pairs_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {path}}}, cache_dir: {cache}}}
output_type: multiple_choice
validation_split: train
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def _command_line() -> str:
    """The room of the command line, which this one must not import and only starts as a program."""
    name = "distill"
    if importlib.util.find_spec(name) is None:
        raise InputRefused(f"{name}: not found, expected the package of the command line; install this toolkit whole")
    return name


def _texts(pairs: Path) -> list[str]:
    tasks = blimp_tasks(pairs, None, seed=1)
    return [option.text for task in tasks for item in task.items for option in item.options]
