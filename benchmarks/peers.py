"""Other people's evaluation tools, each in an environment of its own, asked for scores and for their time.

Their requirements contradict each other and ours, so `make peers` installs them apart; a peer runs as a child process
that keeps its model and answers one question after another, so that it can take turns with our side.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.request import Request
from corpora.batch import Objective
from corpora.errors import InputRefused, ProcessLost

ENVIRONMENTS = "CUVEE_PEERS"  # names the folder of the environments; otherwise `.venv-peers` of the checkout
CHILD = Path(__file__).with_name("peer_child.py")


def peer_python(name: str) -> Path | None:
    """The Python of a peer (`lm-eval`, `minicons`); None where `make peers` has not installed it."""
    folder = Path(os.environ.get(ENVIRONMENTS) or CHILD.parent.parent / ".venv-peers")
    python = folder / name / "bin" / "python"
    return python if python.exists() else None


def require_peer(name: str) -> Path:
    """The Python of a peer. Raises InputRefused, which says how to install it."""
    python = peer_python(name)
    if python is None:
        raise InputRefused(f"{name}: not installed; expected an environment of its own; run `make peers`")
    return python


def peer_environment(threads: int) -> dict[str, str]:
    """Environment variables of a process of a peer: so many threads, and no look at any network."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return kept | offline | quiet | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Peer:
    """A peer with one model, until it is closed."""

    def __init__(self, name: str, objective: Objective, folder: Path, *, threads: int = 1) -> None:
        """`folder` holds the model. Raises InputRefused where the peer is not installed."""
        self.name = name
        # -P: the files beside the child's are ours and no modules of the peer's
        command = [str(require_peer(name)), "-P", str(CHILD), name, objective, str(folder)]
        self._told = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen(
            command,
            env=peer_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def scores(self, requests: Sequence[Request], *, batch: int = 64, pll: str = "original") -> dict[str, Any]:
        """`scores` of requests in nats, by the peer's defaults, and the processor's `seconds` for scoring alone."""
        asked = [(request.context, request.text) for request in requests]
        assert all(Request(*texts) == request for texts, request in zip(asked, requests, strict=True)), "as peers read"
        return self._ask({"requests": asked, "batch": batch, "pll": pll})

    def pair_scores(self, pairs: Path, *, batch: int = 64) -> dict[str, Any]:
        """The same of lm-eval's own BLiMP task on a file of pairs, with the `requests` that it made of them."""
        return self._ask({"pairs": str(pairs), "batch": batch})

    def close(self) -> None:
        """End the child; nothing is lost."""
        self._child.communicate()  # its stdin ends, so it does
        self._told.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it has ended before it was asked
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        if not answer:
            self._child.wait()
            self._told.seek(0)
            told = (self._told.read().strip().splitlines() or ["nothing"])[-1]
            raise ProcessLost(
                f"{self.name}: ended without an answer, told {told!r}; expected scores; mend that, or run `make peers` "
                "again"
            )
        return json.loads(answer)
