"""What scoring saves where the inside of a network is known; everywhere else nothing is assumed.

Of a masked copy one output is wanted, a twelfth of a BLiMP sentence. Behind the attention of the last block every
position goes its own way, so the other ones can stop there: an eighth of the operations of 6 blocks. And causal
networks that take positions and a mask of their own read rows that begin alike as one tree.

Axes: B rows, T positions, N wanted positions, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from students.attention import SDPA, additive_mask
from students.language_model import LanguageModel

# model types of transformers whose blocks have BERT's parts: attention.output(attended, read), then the rest
LIKE_BERT = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# causal model types whose body takes `position_ids` and a mask [B, 1, T, T], and answers what meets the head
TREE_READERS = ("gpt2", "gpt_neox", "gptj", "llama")
ADDING_MASKS = ("eager", "sdpa", SDPA)  # ways to work attention out that add any mask to the scores
# its angles are those of the longest row: of a row that is read beside a longer one they are others than alone
ANGLES_OF_LONGEST = "longrope"


def reads_trees(model: LanguageModel) -> bool:
    """Whether `tree_features` gives what the network says of each row alone."""
    config: Any = model.network.config
    rotary = getattr(config, "rope_parameters", None) or {}
    return (
        getattr(config, "model_type", None) in TREE_READERS
        and config._attn_implementation in ADDING_MASKS
        and rotary.get("rope_type") != ANGLES_OF_LONGEST
    )


def tree_features(model: LanguageModel, input_ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor) -> Tensor:
    """Features [B, T, D] of tokens at given positions that see those which `sees_BTT` says."""
    body: Any = model.network.base_model
    read: dict[str, Any] = {"position_ids": positions_BT, "use_cache": False}
    if (positions_BT == torch.arange(positions_BT.shape[1], device=positions_BT.device)).all():
        # each token follows the one before it: rows that share nothing, whose attention is causal without a mask
        return body(input_ids_BT, attention_mask=torch.ones_like(input_ids_BT), **read).last_hidden_state
    # GPT-J adds the mask to its scores, so one of True and False would hide nothing
    mask_B1TT = additive_mask(sees_BTT[:, None]).to(next(body.parameters()).dtype)
    return body(input_ids_BT, attention_mask=mask_B1TT, **read).last_hidden_state


@contextlib.contextmanager
def only_wanted(model: LanguageModel, wanted_BT: Tensor) -> Iterator[None]:
    """While it lasts, features of other positions than the wanted ones are junk; they are right where they are wanted.

    Of a model whose blocks are not known to be like BERT's, all positions are computed.
    """
    if getattr(model.network.config, "model_type", None) not in LIKE_BERT:
        yield
        return
    body: Any = model.network.base_model
    block: Any = body.encoder.layer[-1]

    def narrow(module: nn.Module, met: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each_BTD[wanted_BT][None] for each_BTD in met)

    def widen(module: nn.Module, met: tuple[Any, ...], made_1ND: Tensor) -> Tensor:
        made_BTD = made_1ND.new_zeros(*wanted_BT.shape, made_1ND.shape[-1])
        made_BTD[wanted_BT] = made_1ND[0]
        return made_BTD

    hooks = [block.attention.output.register_forward_pre_hook(narrow), block.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
