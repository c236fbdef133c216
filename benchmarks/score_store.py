"""Scores on disk, one by one, so that what is interrupted or repeated scores only what is missing.

A store belongs to one candidate under one protocol. It is a folder of parts, each committed whole and never changed;
several processes add parts of their own. A request is known by a digest of its texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.request import Request
from corpora.errors import Damaged
from corpora.storage import fingerprint_digest, new_folder, read_manifest, remove_folder

KEY_BYTES = 16


class ScoreStore:
    """Scores of requests in nats; `identity` is all that they depend on."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Lies below `folder`, in a folder named by the identity."""
        self.folder = folder / fingerprint_digest(identity)
        self._identity = identity
        self._read: set[Path] = set()  # parts whose scores are in `_known`
        self._known: dict[bytes, float] = {}

    def find(self, requests: Iterable[Request]) -> dict[Request, float]:
        """The scores of those requests that are here. A damaged part counts as missing, and is deleted."""
        for part in sorted(set(self.folder.glob("*")) - self._read):
            if (manifest := read_manifest(part)) is None:
                continue  # somebody is writing it, or was interrupted
            manifest.require("scores of requests", self._identity)
            try:
                keys, scores = manifest.array("keys.npy"), manifest.array("scores.npy")
            except Damaged:
                remove_folder(part)
                continue
            self._read.add(part)
            self._known |= zip((bytes(key) for key in keys.view(f"V{KEY_BYTES}")[:, 0]), scores.tolist(), strict=True)
        found = ((request, self._known.get(key_of(request))) for request in requests)
        return {request: score for request, score in found if score is not None}

    def add(self, scores: Mapping[Request, float]) -> None:
        """Commit a part. Raises NoRoom when it does not fit."""
        keys = np.frombuffer(b"".join(map(key_of, scores)), np.uint8).reshape(-1, KEY_BYTES)
        part = self.folder / xxhash.xxh3_128_hexdigest(keys.tobytes())
        with new_folder(part, kind="scores of requests", fingerprint=self._identity) as writer:
            writer.write_array("keys.npy", keys)
            writer.write_array("scores.npy", np.array(list(scores.values()), np.float64))


def key_of(request: Request) -> bytes:
    """A digest of what is asked."""
    text = f"{request.apart + 2 * request.mean + 4 * request.masks}\0{request.context}\0{request.text}"
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
