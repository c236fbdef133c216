"""A batch carries everything that a model or a cache needs, and is aligned once (house contract 1).

Axes: B rows, T positions in a row, N target rows (the positions of the batch that have a target, row by row).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

NO_TARGET = -100  # in targets: nothing is predicted here
NO_POSITION = -1  # in target_positions: the target is not a token of the stream
PADDING_SEGMENT = -1  # in segments: padding, which is a segment of its own

Objective = Literal["causal", "masked"]


@dataclass(frozen=True, kw_only=True)
class View:
    """How a row of the stream was turned into a task."""

    objective: Objective
    shift: int  # output t predicts the token at index t + shift: 1 causal and masked next-token, 0 masked
    isolated: bool = True  # attention stays inside documents
    mask_seed: int = 0  # masked views: names one round of complementary folds
    fold: int = 0  # masked views: the fold whose spans are masked here
    num_folds: int = 1  # masked views: folds in a round; each masks 1 / num_folds of the positions
    mean_span: float = 1.0  # masked views: mean span length in tokens
    keep_share: float = 0.0  # masked views: share of the spans whose tokens are left as they are
    random_share: float = 0.0  # masked views: share of the spans whose tokens become random ones

    def scheme(self) -> dict[str, Any]:
        """The view without the fold: what a cache of all folds was made with."""
        fields = asdict(self)
        del fields["fold"]
        return fields


def causal_view(*, isolated: bool = True) -> View:
    """Every token predicts the next one of its document."""
    return View(objective="causal", shift=1, isolated=isolated)


def masked_view(
    *,
    mask_seed: int,
    fold: int,
    num_folds: int,
    mean_span: float = 1.0,
    isolated: bool = True,
    keep_share: float = 0.0,
    random_share: float = 0.0,
    shift: int = 0,
) -> View:
    """The spans of one fold are replaced by mask tokens, or as the noise says, and predicted where they stand, or with
    a shift of 1 by the output before."""
    return View(
        objective="masked",
        shift=shift,
        isolated=isolated,
        mask_seed=mask_seed,
        fold=fold,
        num_folds=num_folds,
        mean_span=mean_span,
        keep_share=keep_share,
        random_share=random_share,
    )


@dataclass(frozen=True)
class Batch:
    """Rows of one view.

    `input_ids_BT`: int64, what the model reads. `targets_BT`: int64, the token that output t predicts, or NO_TARGET;
    nobody shifts anything after this point. `target_positions_BT`: int64, absolute position of that target in its
    stream, or NO_POSITION. `segments_BT`: int64, the number of the document inside the row, or PADDING_SEGMENT.
    """

    input_ids_BT: Tensor
    targets_BT: Tensor
    target_positions_BT: Tensor
    segments_BT: Tensor
    view: View
    stream: str = ""  # name of the stream that the positions belong to

    def __len__(self) -> int:
        return self.input_ids_BT.shape[0]

    @property
    def has_target_BT(self) -> Tensor:
        """Where the batch has a target."""
        return self.targets_BT != NO_TARGET

    @property
    def target_positions_N(self) -> Tensor:
        """Positions of the targets, row by row."""
        return self.target_positions_BT[self.has_target_BT]

    def silent(self) -> Batch:
        """The same rows without a target."""
        return replace(
            self,
            targets_BT=torch.full_like(self.targets_BT, NO_TARGET),
            target_positions_BT=torch.full_like(self.target_positions_BT, NO_POSITION),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            target_positions_BT=self.target_positions_BT.to(device, non_blocking=True),
            segments_BT=self.segments_BT.to(device, non_blocking=True),
        )
