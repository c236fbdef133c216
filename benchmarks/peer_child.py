"""A peer answers questions: lm-eval or minicons, run by the Python of an environment of its own.

Each line of stdin is a question in JSON and each line of stdout its answer; what the peer prints goes to stderr. This
file imports nothing of ours, because the peer's environment does not have it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Question = dict[str, Any]
# scores of requests, each a context and a text
Scores = Callable[[Question, Sequence[tuple[str, str]]], list[float]]


def main(peer: str, objective: str, folder: str) -> None:
    """Answer until stdin ends. `objective` is causal or masked; `folder` holds the model.

    A question has `requests`, or `pairs`: a file in BLiMP's format, of which the peer itself makes the requests. The
    answer has `requests`, their `scores` in nats, and the processor's `seconds` that scoring took.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    scores = PEERS[peer](objective, folder)
    for line in sys.stdin:
        question = json.loads(line)
        asked = question["requests"] if "requests" in question else _requests_of_lm_eval(question["pairs"])
        requests = [(context, text) for context, text in asked]
        started = time.process_time()
        found = scores(question, requests)
        seconds = time.process_time() - started
        answers.write(json.dumps({"requests": requests, "scores": found, "seconds": seconds}) + "\n")
        answers.flush()


def _lm_eval(objective: str, folder: str) -> Scores:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    assert objective == "causal", "lm-eval scores no masked models"
    model = HFLM(pretrained=folder, device="cpu", dtype="float32")

    def scores(question: Question, requests: Sequence[tuple[str, str]]) -> list[float]:
        model.batch_size_per_gpu = question["batch"]
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=request, idx=number)
            for number, request in enumerate(requests)
        ]
        return [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]

    return scores


def _requests_of_lm_eval(pairs: str) -> list[tuple[str, str]]:
    """What its own BLiMP task asks of a model, for other pairs than it would fetch; nothing is kept of them."""
    import yaml
    from lm_eval import tasks  # pyright: ignore[reportMissingImports]
    from lm_eval.api.task import ConfigurableTask  # pyright: ignore[reportMissingImports]

    template = Path(tasks.__path__[0]) / "blimp" / "_template_yaml"
    with tempfile.TemporaryDirectory() as cache:
        config = yaml.safe_load(template.read_text()) | {
            "task": "pairs",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"train": pairs}, "cache_dir": cache},
        }
        task = ConfigurableTask(config=config)
        task.build_all_requests(rank=0, world_size=1)
        return [instance.args for instance in task.instances]


def _minicons(objective: str, folder: str) -> Scores:
    from minicons import scorer  # pyright: ignore[reportMissingImports]

    made = scorer.IncrementalLMScorer if objective == "causal" else scorer.MaskedLMScorer
    model = made(folder, "cpu")

    def scores(question: Question, requests: Sequence[tuple[str, str]]) -> list[float]:
        named = {"PLL_metric": question.get("pll", "original")} if objective == "masked" else {}
        found: list[float] = []
        for batch in _batches(requests, question["batch"]):
            contexts, texts = [context for context, _ in batch], [text for _, text in batch]
            if any(contexts):
                # it puts the space between the two itself, so that it can be asked for nothing else
                texts = [text.removeprefix(" ") for text in texts]
                asked = [f"{context} {text}" for context, text in zip(contexts, texts, strict=True)]
                assert asked == [context + text for context, text in batch], "one space stands after every context"
                found += model.conditional_score(contexts, texts, **named)
            else:
                found += model.sequence_score(texts, **named)
        return found

    return scores


def _batches(requests: Sequence[tuple[str, str]], size: int) -> Iterator[Sequence[tuple[str, str]]]:
    for first in range(0, len(requests), size):
        yield requests[first : first + size]


PEERS: dict[str, Callable[[str, str], Scores]] = {"lm-eval": _lm_eval, "minicons": _minicons}

if __name__ == "__main__":
    main(*sys.argv[1:])
