"""What runs in the sandbox when a stranger's own code is allowed: requests in, log-likelihoods out.

`python -m benchmarks.strangers.answer FILE`: FILE names the folder and how to score, and holds the texts; the answer is
one JSON object, with null for what is no number. Which text is right never comes here.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any


def main(file: Path) -> None:
    """Print the scores of the requests in `file`."""
    os.environ |= {"HF_HOME": "/tmp/hf", "HF_HUB_OFFLINE": "1"}  # before transformers asks: nothing else is writable
    asked = json.loads(file.read_text("utf-8"))
    speaks = os.dup(1)  # what the stranger's code prints is no answer
    os.dup2(2, 1)
    scores = answers(asked)
    answer = json.dumps({"scores": [score if math.isfinite(score) else None for score in scores]})
    with os.fdopen(speaks, "w") as parent:
        parent.write(answer)


def answers(asked: dict[str, Any]) -> list[float]:
    """Scores of the requests under the protocol that is asked for."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from benchmarks.protocol import Protocol
    from benchmarks.request import Request
    from benchmarks.scorer import candidate_from_model
    from benchmarks.scoring import Scorer
    from benchmarks.scoring_tokenizer import read_scoring_tokenizer
    from students.pretrained import Pretrained

    folder, backend = Path(asked["folder"]), asked["backend"]
    loader = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    network = loader.from_pretrained(folder, trust_remote_code=True, local_files_only=True, use_safetensors=True)
    objective = "causal" if backend == "causal" else "masked"
    model = Pretrained(network.float().eval(), objective, str(folder))
    candidate = candidate_from_model(folder.name, model, objective, shift=1 if backend == "mntp" else 0)
    tokenizer, protocol = read_scoring_tokenizer(folder), Protocol(**asked["protocol"])
    scorer = Scorer(folder.name, (candidate,), tokenizer, protocol, asked["max_tokens"])
    requests = [Request(*request) for request in asked["requests"]]
    return scorer.scores(requests).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
