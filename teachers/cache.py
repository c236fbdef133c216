"""The verified cache of one teacher over one stream, read by target position.

A cache is a folder of shards of fixed stride (`teachers/layout.py`), with one record of the codec for each position and
round of masks, and the head where the codec needs it. `teachers/capture.py` makes it. Axes: N positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from corpora.addressed import address
from corpora.batch import Batch, Objective, View, causal_view, masked_view
from corpora.errors import Damaged, InputRefused, describe_differences
from corpora.masking import corruption
from corpora.prepare import Corpus
from corpora.storage import Manifest, read_manifest
from students.head import Head
from teachers.codecs import CODECS
from teachers.codecs.codec import Codec
from teachers.config import CacheConfig
from teachers.layout import HEAD, coverage_file, places, records_file, rounds_of, shard_bounds
from teachers.signal import MemberSignal

CPU = torch.device("cpu")
CACHE_FORMAT = 2  # of the files; another one is refused
MOST_SPANS = 4  # of missing positions that an error lists


def cached_view(config: CacheConfig, objective: str, *, shift: int = 0) -> View:
    """The view in which a teacher is read; for a masked one, fold 0 of the first round that is cached.

    `shift`: of a masked view, the teacher's `masked_shift`.
    """
    if objective == "causal":
        return causal_view()
    return masked_view(
        mask_seed=config.mask_seed,
        fold=0,
        num_folds=config.num_folds,
        mean_span=config.mean_span,
        keep_share=config.keep_share,
        random_share=config.random_share,
        shift=shift,
    )


@dataclass(frozen=True)
class CacheKey:
    """Everything that a cache depends on; `config.rows` and the machine decide no more than the rounding."""

    corpus: Corpus
    stream: str
    teacher: str  # digest of the teacher's weights
    view: View  # of the first round
    config: CacheConfig

    @property
    def rounds(self) -> tuple[View, ...]:
        """The view of each round of masks; a causal view has one."""
        return rounds_of(self.view, self.config.rounds if self.view.objective == "masked" else 1)

    def codec(self, hidden_size: int) -> Codec:
        """What turns the teacher's features into records."""
        return CODECS[self.config.codec](self.config, hidden_size=hidden_size, vocab_size=self.corpus.vocab_size)

    def draw_seed(self, round: int) -> int:
        """Seed of what a codec draws: another one for every teacher and round, whose draws are then independent."""
        return address(0, "cache draws", self.teacher, round)

    def fingerprint(self) -> dict[str, Any]:
        """For the manifest: a cache made from anything else is refused, and the differing field is named."""
        settings = {field: getattr(self.config, field) for field in CODECS[self.config.codec].settings}
        return {
            "format": CACHE_FORMAT,
            "stream": self.stream,
            "corpus": self.corpus.identity(self.stream),
            "teacher": self.teacher,
            "precision": self.config.precision,
            "view": self.view.scheme(),
            "rounds": len(self.rounds),
            "window": self.config.window,
            "codec": {"name": self.config.codec, **settings},
            "shard_positions": self.config.shard_positions,
        }


class CachedTeacher:
    """Reads a cache by position; answers batches of any view, since a record is found by the token it predicts."""

    def __init__(
        self,
        name: str,
        folder: Path,
        expected: dict[str, Any] | None = None,
        *,
        config: CacheConfig | None = None,
    ) -> None:
        """Open a finished cache; raises InputRefused when it was made from other inputs than `expected`.

        `config` says how it is read, where a codec leaves a choice: how many of the stored draws a student hears.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise Damaged(f"{folder}: not finished; run the same command again")
        made = manifest.fingerprint
        expected = made | {"format": CACHE_FORMAT} if expected is None else expected
        self.manifest: Manifest = manifest.require("cache", expected)
        self.name = name
        self.stream: str = made["stream"]
        self.rounds = rounds_of(View(**made["view"]), made["rounds"])
        self.objective: Objective = self.rounds[0].objective
        self.hidden_size: int = manifest.facts["hidden_size"]
        self.vocab_size: int = manifest.facts["vocab_size"]
        self.codec = CODECS[made["codec"]["name"]](
            config or _config_of(made["codec"]), hidden_size=self.hidden_size, vocab_size=self.vocab_size
        )
        self._stride: int = made["shard_positions"]
        self._bounds = shard_bounds(manifest.facts["positions"], self._stride)
        self._raw = np.dtype((np.void, self.codec.record.itemsize))  # without fields, records are copied as bytes
        self._heads: dict[tuple[torch.device, torch.dtype], Head] = {}
        # each shard's are made at first touch and kept
        self._records = cache(self._map_records)
        self._coverage = cache(self._read_coverage)
        self._places = cache(self._find_places)
        self._clean = cache(self._find_clean)

    # what teachers are asked

    def answer(
        self, batch: Batch, device: torch.device = CPU, *, draw: int = 0, dtype: torch.dtype = torch.float32
    ) -> MemberSignal:
        """What the teacher said about the batch's targets; raises InputRefused for another stream or other masks.

        `draw` numbers the visit: rows of another view hear the rounds of masks in turn, and of stored draws other ones.
        The head is held in `dtype`.
        """
        return self._signal(batch.target_positions_N, self._round(batch, draw), device, draw, dtype)

    def heard(self, batch: Batch, *, draw: int = 0) -> Tensor | None:
        """Which of the batch's targets it has something to say about, bool [N]; None: all of them.

        Where the teacher's mask noise kept or replaced a token, it saw the answer or junk. Rows of its own view saw the
        same; what it said is not for rows of another view.
        """
        view = self.rounds[draw % len(self.rounds)]
        if batch.view.objective == self.objective or not (view.keep_share or view.random_share):
            return None
        positions_N = batch.target_positions_N.numpy()
        clean = self._gathered(positions_N, lambda number: self._clean(draw % len(self.rounds), number))
        return torch.from_numpy(clean)

    def signal(self, positions_N: Tensor) -> MemberSignal:
        """What the teacher said about some positions in the first round, on the CPU, its head in fp32."""
        return self._signal(positions_N, 0, CPU, 0, torch.float32)

    def covered_positions(self) -> Tensor:
        """Every position with a record, in order; int64 [N]."""
        covered = [np.flatnonzero(self._coverage(number)) + start for number, (start, _) in enumerate(self._bounds)]
        return torch.from_numpy(np.concatenate(covered or [np.empty(0, np.int64)]))

    @cached_property
    def head(self) -> Head:
        """The head that turns this cache's features into logits, fp32; codecs that need none store none."""
        with safe_open(self.manifest.verified(HEAD), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            described = json.loads(file.metadata()["head"])
        return Head(tensors["weight"].float(), tensors.get("bias"), described["softcap"], described["scale"])

    # how it is found

    def records(self, positions_N: Tensor | np.ndarray, round: int = 0) -> np.ndarray:
        """The stored records of some positions in a round of masks, structured [N].

        Raises InputRefused for positions without one.
        """
        positions_N = np.asarray(positions_N)
        pieces = self._pieces(positions_N)
        if len(pieces) > 1 + len(positions_N) // 16 and (np.diff(positions_N) < 0).any():
            # scattered ones are looked up in order, a shard at a time
            order_N = np.argsort(positions_N, kind="stable")
            records_N = np.empty(len(positions_N), self.codec.record)
            records_N[order_N] = self.records(positions_N[order_N], round)
            return records_N
        self._require_covered(positions_N)
        raw_N = np.empty(len(positions_N), self._raw)
        for number, rows in pieces:
            inside_n = positions_N[rows] - number * self._stride
            places_n = inside_n if self.objective == "causal" else self._places(round, number)[inside_n]
            # all of them are there: "clip" only spares numpy a buffer of its own
            np.take(self._records(round, number), places_n, out=raw_N[rows], mode="clip")
        return raw_N.view(self.codec.record)

    def _signal(
        self, positions_N: Tensor, round: int, device: torch.device, draw: int, dtype: torch.dtype
    ) -> MemberSignal:
        records_N = self.records(positions_N, round)
        head = self._head_on(device, dtype) if self.codec.needs_head else None
        return self.codec.decode(records_N, head, positions_N.numpy(), device=device, draw=draw)

    def _round(self, batch: Batch, draw: int) -> int:
        """The round of masks in which a batch's targets are looked up."""
        if batch.stream != self.stream:
            raise InputRefused(f"{self.manifest.folder}: holds the stream '{self.stream}', not '{batch.stream}'")
        if batch.view.objective != self.objective:
            return draw % len(self.rounds)  # another objective meets by position
        # records are found by the token that they predict, wherever a model's output for it stands
        asked = replace(batch.view, fold=0, shift=self.rounds[0].shift)
        if asked in self.rounds:
            return self.rounds.index(asked)
        # the same one must have seen the same masks
        seeds = [view.mask_seed for view in self.rounds]
        known = asked.mask_seed in seeds
        cached = self.rounds[seeds.index(asked.mask_seed) if known else 0].scheme()
        if not known and len(seeds) > 1:
            cached["mask_seed"] = seeds
        raise InputRefused(
            f"{self.manifest.folder}: made in another view: {describe_differences(cached, asked.scheme())}; "
            "train with the cache's masks, or cache again in another run_dir"
        )

    def _head_on(self, device: torch.device, dtype: torch.dtype) -> Head:
        """The head on a device and in a type, in which it is kept: it travels once."""
        if (device, dtype) not in self._heads:
            weight_VD, bias_V, softcap, scale = self.head
            bias_V = None if bias_V is None else bias_V.to(device)
            self._heads[device, dtype] = Head(weight_VD.to(device, dtype), bias_V, softcap, scale)
        return self._heads[device, dtype]

    def _pieces(self, positions_N: np.ndarray) -> list[tuple[int, slice]]:
        """Neighbours that lie in one shard, as (its number, where they are)."""
        shards_N = positions_N // self._stride
        edges = [0, *(np.flatnonzero(np.diff(shards_N)) + 1).tolist(), len(positions_N)]
        return [(int(shards_N[first]), slice(first, last)) for first, last in pairwise(edges) if first < last]

    def _gathered(self, positions_N: np.ndarray, of_shard: Callable[[int], np.ndarray]) -> np.ndarray:
        """The flag of each position, from the flags of each shard's positions; bool [N]."""
        flags_N = np.empty(len(positions_N), bool)
        for number, rows in self._pieces(positions_N):
            flags_N[rows] = of_shard(number)[positions_N[rows] - number * self._stride]
        return flags_N

    def _require_covered(self, positions_N: np.ndarray) -> None:
        covered_N = self._gathered(positions_N, self._coverage)
        if not covered_N.all():
            missing = np.unique(positions_N[~covered_N])
            spans = np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1)
            listed = ", ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans)
            few = f" (in all {listed})" if len(spans) <= MOST_SPANS else ""
            raise InputRefused(
                f"{self.manifest.folder}: {int((~covered_N).sum())} of {len(positions_N)} positions have no record, "
                f"the first is {missing[0]}{few}; cache the whole stream again"
            )

    # the parts of a shard

    def _map_records(self, round: int, number: int) -> np.ndarray:
        return np.asarray(self.manifest.array(records_file(round, number))).view(self._raw)

    def _read_coverage(self, number: int) -> np.ndarray:
        """For each place of the stride; nothing is covered outside the stream."""
        covered = np.zeros(self._stride, bool)
        if 0 <= number < len(self._bounds):
            start, stop = self._bounds[number]
            covered[: stop - start] = np.unpackbits(self.manifest.array(coverage_file(number)))[: stop - start]
        return covered

    def _find_places(self, round: int, number: int) -> np.ndarray:
        found = places(*self._bounds[number], self.rounds[round])
        return found.astype(np.min_scalar_type(self._stride - 1))  # there are as many as records

    def _find_clean(self, round: int, number: int) -> np.ndarray:
        """Where the hidden token was replaced by the mask token, as a teacher should have seen it."""
        return corruption(*self._bounds[number], self.rounds[round]) == 0


def _config_of(codec: dict[str, Any]) -> CacheConfig:
    """The settings that a fingerprint names; of stored draws a student hears the usual number, or all."""
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in codec.items()
    }
    config = CacheConfig(codec=settings.pop("name"), **settings)
    return replace(config, tail_draws=min(config.tail_draws, config.tail_pool))
