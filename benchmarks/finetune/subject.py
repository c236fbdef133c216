"""Who is fine-tuned: a trained model, the objective it is read with, and its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash

from benchmarks.scoring_tokenizer import FILE, read_scoring_tokenizer
from corpora.batch import Objective
from corpora.storage import digest
from students.language_model import LanguageModel
from students.run_folder import load_model, saved_objective

_NOT_SETTINGS = ("transformers_version", "_name_or_path")  # of a configuration: who wrote it, and where it lay


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A candidate as fine-tuning needs it. Its model is never changed: each run trains a copy."""

    name: str
    model: LanguageModel
    objective: Objective  # causal: read from the left, classified at its end; masked: at its beginning
    tokenizer_json: str
    begin_id: int | None  # the tokenizer's begin token; None where it has none

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What its results depend on: every weight and setting, how it is read, and its tokenizer."""
        hasher = xxhash.xxh3_128()
        for name, weight in sorted(self.model.network.state_dict().items()):
            hasher.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            hasher.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        settings = self.model.network.config.to_dict()
        for name in _NOT_SETTINGS:
            settings.pop(name, None)
        return {
            "model": type(self.model.network).__name__,
            "weights": hasher.hexdigest(),
            # dropout is one of them; types and the like have no JSON of their own
            "settings": digest(json.dumps(settings, sort_keys=True, default=str).encode()),
            "objective": self.objective,
            "tokenizer": digest(self.tokenizer_json.encode()),
            "begin_id": self.begin_id,
        }


def read_subject(folder: Path, objective: Objective | None = None) -> Subject:
    """The candidate of a run folder or of a Hugging Face folder, with the tokenizer beside it.

    `objective`: what a run was trained for; None: causal for a model of a causal class, else masked. Raises whatever
    `load_model` and `read_scoring_tokenizer` raise.
    """
    model = load_model(folder)
    begin_id = read_scoring_tokenizer(folder).begin_id  # which verifies the file that is read here
    tokenizer_json = (folder / FILE).read_text("utf-8")
    return Subject(
        name=folder.name,
        model=model,
        objective=objective or saved_objective(model),
        tokenizer_json=tokenizer_json,
        begin_id=begin_id,
    )
