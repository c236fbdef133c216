"""Scores on disk: what a candidate got on each item, so that systems can be compared long after they were scored.

OUT/NAME-BACKEND-PROTOCOL/scores.md, scores.json     for readers
OUT/NAME-BACKEND-PROTOCOL/items/                     verdicts of every choice, committed as a whole
OUT/answers/                                         scores of requests and sums of documents, found again by later runs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.choices import ChoiceTask
from benchmarks.compare import Verdicts
from benchmarks.evaluation import Evaluation
from benchmarks.evaluation_report import write_evaluations
from corpora.errors import InputRefused
from corpora.storage import canonical_json, digest, new_folder, read_json, read_manifest

ITEMS, PARADIGMS = "items", "paradigms.json"
KIND = "verdicts"


def write_evaluation(out: Path, evaluation: Evaluation, identity: dict[str, Any]) -> Path:
    """Commit reports and verdicts; `identity` is what the scores depend on. Returns the folder."""
    folder = out / "-".join([_plain(evaluation.candidate), evaluation.backend, identity["protocol"]["name"]])
    results = [(name, result) for name, found in evaluation.choices.items() for result in found.tasks]
    with new_folder(folder / ITEMS, kind=KIND, fingerprint=identity) as writer:
        writer.write_json(
            PARADIGMS,
            [
                {
                    "benchmark": name,
                    "uid": result.task.uid,
                    "term": result.task.term or result.task.field,
                    "items": items_digest(result.task),
                    "ties": result.ties,
                }
                for name, result in results
            ],
        )
        for number, (_, result) in enumerate(results):
            writer.write_array(f"wins-{number:04d}.npy", result.wins)
        writer.facts["system"] = evaluation.candidate
    write_evaluations(folder, [evaluation])
    return folder


def read_verdicts(system: str, folders: Sequence[Path]) -> Verdicts:
    """The verdicts of one system, a folder for each of its seeds.

    Raises InputRefused for a folder without verdicts, and for seeds that were scored on different items or under
    different protocols.
    """
    seeds, ties, groups, items, protocols = [], [], {}, [], []
    for folder in folders:
        manifest = read_manifest(folder / ITEMS)
        if manifest is None or manifest.kind != KIND:
            raise InputRefused(
                f"{folder}: holds no verdicts; expected one that `cuvee score CANDIDATE --out OUT` made below OUT; "
                "score the candidate first"
            )
        paradigms = read_json(manifest.verified(PARADIGMS))
        names = [f"{each['benchmark']}/{each['uid']}" for each in paradigms]
        seeds.append({name: np.array(manifest.array(f"wins-{n:04d}.npy")) for n, name in enumerate(names)})
        ties.append({name: each["ties"] for name, each in zip(names, paradigms, strict=True)})
        groups |= {name: each["term"] for name, each in zip(names, paradigms, strict=True) if each["term"]}
        asked = [[name, each["items"]] for name, each in zip(names, paradigms, strict=True)]
        items.append(digest(canonical_json(asked).encode()))
        if items[-1] != items[0]:
            raise InputRefused(
                f"{folder}: was scored on other items than {folders[0]}; expected the same for all seeds of a system; "
                "score both on the same items"
            )
        protocols.append(manifest.fingerprint["protocol"]["name"])
        if protocols[-1] != protocols[0]:
            raise InputRefused(
                f"{folder}: was scored under {protocols[-1]}, {folders[0]} under {protocols[0]}; expected one protocol "
                "for all seeds of a system; score both under one"
            )
    return Verdicts(system, tuple(seeds), groups, items[0], tuple(ties), protocols[0])


def items_digest(task: ChoiceTask) -> str:
    """Digest of what is asked."""
    asked = [[[option.context, option.text] for option in item.options] for item in task.items]
    return digest(canonical_json(asked).encode())


def _plain(name: str) -> str:
    """A candidate's name as a folder's."""
    return "".join(character if character.isalnum() or character in "._+=" else "_" for character in name)
