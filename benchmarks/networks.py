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

from torch import Tensor, nn

from students.attention import additive_mask
from students.language_model import LanguageModel

# model types of transformers whose blocks have BERT's parts: attention.output(attended, read), then the rest
LIKE_BERT = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# causal model types whose body takes `position_ids` and a mask [B, 1, T, T], and answers what meets the head
TREE_READERS = ("gpt2", "gpt_neox", "gptj", "llama")


def reads_trees(model: LanguageModel) -> bool:
    """Whether `tree_features` knows the network."""
    return getattr(model.network.config, "model_type", None) in TREE_READERS


def tree_features(model: LanguageModel, input_ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor) -> Tensor:
    """Features [B, T, D] of tokens at given positions that see those which `sees_BTT` says."""
    body: Any = model.network.base_model
    # GPT-J adds the mask to its scores, so one of True and False would hide nothing
    mask_B1TT = additive_mask(sees_BTT[:, None]).to(next(body.parameters()).dtype)
    return body(input_ids_BT, position_ids=positions_BT, attention_mask=mask_B1TT, use_cache=False).last_hidden_state


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
