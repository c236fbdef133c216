"""The n-grams where models run: as a candidate, on a stream, and in a folder of their own.

They are the baseline that every model has to beat. Axes as in `ngram`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ngram import NgramModel, count_ngrams
from benchmarks.scorer import Candidate
from benchmarks.stream import StreamResult, stream_result
from corpora.errors import Damaged
from corpora.prepare import Corpus
from corpora.storage import new_folder, read_manifest
from corpora.stream import Stream

FORMAT = 1  # of the counts and of what is made of them; scores of another one are other scores
_TARGETS_AT_ONCE = 1 << 18  # of a stream


def ngram_candidate(model: NgramModel, name: str) -> Candidate:
    """The n-grams as a causal candidate, which reads at most order - 1 tokens of a row's segment."""

    def contexts(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> np.ndarray:
        return model.contexts(input_ids_BT.cpu().numpy(), segments_BT.cpu().numpy())[wanted_BT.cpu().numpy()]

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        return torch.from_numpy(model.probs(contexts(input_ids_BT, segments_BT, wanted_BT))).log_()

    def token_log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor, targets_N: Tensor) -> Tensor:
        contexts_NC = contexts(input_ids_BT, segments_BT, wanted_BT)
        # fp32: sums of them are exact, so that texts of the same n-grams in another order tie
        return torch.from_numpy(model.token_log_probs(contexts_NC, targets_N.numpy())).float()

    return Candidate(name, "causal", log_probs, token_log_probs=token_log_probs)


def ngram_stream_result(model: NgramModel, stream: Stream) -> StreamResult:
    """What each token of a stream costs, with all of its document before it at hand; raises as `stream_result`."""
    positions, nats = [np.empty(0, np.int64)], [np.empty(0)]
    for start in range(1, len(stream), _TARGETS_AT_ONCE):
        first, stop = max(start - model.order, 0), min(start + _TARGETS_AT_ONCE, len(stream))
        tokens_P = stream.tokens(first, stop)
        documents_P = stream.document_of(np.arange(first, stop))
        contexts_PC = model.contexts(tokens_P[None], documents_P[None])[0]
        targets = np.flatnonzero(~np.isin(tokens_P, model.special))
        targets = targets[targets >= start - first]
        positions.append(first + targets)
        nats.append(-model.token_log_probs(contexts_PC[targets - 1], tokens_P[targets]))
    return stream_result(
        "causal",
        np.concatenate(positions),
        np.concatenate(nats),
        offsets_D1=stream.document_offsets,
        bytes_D=stream.document_bytes,
    )


def ngram_identity(stream_identity: Mapping[str, str], order: int) -> dict[str, Any]:
    """What an n-gram model and its scores depend on; `stream_identity` is `Corpus.identity` of what was counted."""
    return {"format": FORMAT, "order": order, "stream": dict(stream_identity)}


def save_ngrams(model: NgramModel, folder: Path, identity: dict[str, Any]) -> None:
    """Commit a model as a folder, under `ngram_identity`; raises NoRoom."""
    with new_folder(folder, kind="n-grams", fingerprint=identity) as writer:
        writer.facts |= {"vocab_size": model.vocab_size, "special": model.special, "discounts": model.discounts}
        for number, keys_G in enumerate(model.keys, start=2):
            writer.write_array(f"keys-{number}.npy", keys_G)
        for number, counts_G in enumerate(model.counts, start=1):
            writer.write_array(f"counts-{number}.npy", counts_G)


def load_ngrams(folder: Path, identity: dict[str, Any]) -> NgramModel:
    """A committed model, memory-mapped. Raises Damaged, and InputRefused when it was made from other inputs."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise Damaged(f"{folder}: not finished; run the same command again")
    manifest.require("n-grams", identity)
    order = identity["order"]
    return NgramModel(
        order,
        manifest.facts["vocab_size"],
        tuple(manifest.facts["special"]),
        tuple(np.asarray(manifest.array(f"keys-{number}.npy")) for number in range(2, order + 1)),
        tuple(np.asarray(manifest.array(f"counts-{number}.npy")) for number in range(1, order + 1)),
    )


def stored_ngrams(corpus: Corpus, folder: Path, *, order: int, stream: str = "train") -> NgramModel:
    """The model of a stream from `folder`, counted and committed there first when it is not there.

    Raises what `count_ngrams`, `save_ngrams` and `load_ngrams` raise.
    """
    identity = ngram_identity(corpus.identity(stream), order)
    if read_manifest(folder) is None:
        model = count_ngrams(corpus.streams[stream], order, vocab_size=corpus.vocab_size, token_ids=corpus.token_ids)
        save_ngrams(model, folder, identity)
    return load_ngrams(folder, identity)
