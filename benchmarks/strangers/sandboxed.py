"""A stranger whose own code is allowed: it answers from a sandbox without network, within time and memory."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np

from benchmarks.protocol import Protocol
from benchmarks.request import Request
from benchmarks.sandbox import TORCH_BYTES, run_sandboxed_json
from benchmarks.strangers.refusal import refuse, shown
from corpora.batch import Objective
from corpora.storage import write_file

BYTES_PER_SCORE = 32  # of JSON, at most
LEAST_SCORE, MOST_SCORE = -1e12, 1e-3  # nats: whole numbers of JSON may be too long for a float; rounding exceeds 0
REMEDY = "ask who made it"


@dataclass(frozen=True)
class SandboxedScorer:
    """Answers requests as a `Scorer` does; each call starts the stranger's code anew."""

    name: str
    folder: Path
    backend: str  # causal, masked or mntp
    protocol: Protocol
    max_tokens: int  # in a forward pass
    seconds: float  # of each call
    memory_bytes: int  # beside what torch itself maps

    @property
    def objective(self) -> Objective:
        """What the backend predicts."""
        return "causal" if self.backend == "causal" else "masked"

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        """Log-likelihoods in nats, float64 [requests].

        Raises InputRefused when the code fails, passes a limit, or answers anything but as many numbers. Of what is no
        number the judgement makes an invalid candidate.
        """
        asked = {
            "folder": str(self.folder.resolve()),
            "backend": self.backend,
            "protocol": asdict(self.protocol),
            "max_tokens": self.max_tokens,
            "requests": [astuple(request) for request in requests],
        }
        with tempfile.TemporaryDirectory(prefix="cuvee-asked-") as folder:
            file = Path(folder) / "asked.json"
            write_file(file, json.dumps(asked).encode())
            answer = run_sandboxed_json(
                [sys.executable, "-m", "benchmarks.strangers.answer", str(file)],
                readable=[self.folder.resolve(), file],
                seconds=self.seconds,
                memory_bytes=TORCH_BYTES + self.memory_bytes,
                output_bytes=BYTES_PER_SCORE * len(requests) + 1_000,
            )
        return _numbers(answer.get("scores"), len(requests), str(self.folder))


def _numbers(scores: object, number: int, place: str) -> np.ndarray:
    if not isinstance(scores, list) or len(scores) != number:
        found = f"{len(scores)} scores" if isinstance(scores, list) else type(scores).__name__
        refuse(place, f"its code answered {found}", expected=f"{number} scores", remedy=REMEDY)
    for score in scores:
        if score is not None and not (type(score) in (int, float) and LEAST_SCORE <= score <= MOST_SCORE):
            refuse(
                place, f"its code answered {shown(score)}", expected="log-likelihoods in nats, at most 0", remedy=REMEDY
            )
    return np.array([math.nan if score is None else score for score in scores], np.float64)
