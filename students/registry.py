"""Every architecture of ours by name, any other of transformers, and the one way to build a model."""

from __future__ import annotations

import torch

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.buildable import Activations, Buildable, ForwardFlops
from students.config import ModelConfig
from students.elc_bert import ElcBert
from students.gpt2 import Gpt2
from students.gpt_bert import GptBert
from students.gptj import GptJ
from students.hugging_face import HuggingFace
from students.llama import Llama
from students.ltg_bert import LtgBert
from students.lv_bert import LvBert
from students.share_bert import ShareBert

ARCHITECTURES: dict[str, type[Buildable]] = {
    "llama": Llama,
    "gptj": GptJ,
    "gpt2": Gpt2,
    "elc_bert": ElcBert,
    "ltg_bert": LtgBert,
    "gpt_bert": GptBert,
    "lv_bert": LvBert,
    "share_bert": ShareBert,
}
ANY: dict[str, type[Buildable]] = {**ARCHITECTURES, "hugging_face": HuggingFace}  # and whatever transformers has


def check_model(config: ModelConfig) -> type[Buildable]:
    """The class that `config` is for; raises RecipeError, in one line, when no model can be built from it."""
    if config.architecture not in ANY:
        raise RecipeError(f"model.architecture: found {config.architecture!r}, expected one of {', '.join(ANY)}")
    architecture = ANY[config.architecture]
    architecture.check(config)
    return architecture


def build_model(config: ModelConfig, *, vocab_size: int, token_ids: TokenIds, seed: int) -> Buildable:
    """A new model in training mode, fp32, on the CPU; `seed` alone decides its weights.

    torch's global generator is left as it was. Raises RecipeError when the sizes do not fit one another.
    """
    architecture = check_model(config)
    if config.vocab_size not in (None, vocab_size):
        raise RecipeError(
            f"model.vocab_size: found {config.vocab_size}, the tokenizer has {vocab_size} types; "
            "remove it, or train the tokenizer with that size"
        )
    if max(token_ids.special) >= vocab_size:
        raise RecipeError(f"model: a vocabulary of {vocab_size} does not hold the special ids {token_ids.special}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture(config, vocab_size=vocab_size, token_ids=token_ids)


def parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """Number of trainable parameters, tied ones once, without building the model."""
    return check_model(config).parameter_count(config, vocab_size)


def forward_flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
    """Operations of one forward pass for each token of rows of `seq_len`; a backward pass takes twice as many."""
    return check_model(config).forward_flops(config, vocab_size, seq_len)


def activations_per_token(config: ModelConfig, seq_len: int) -> Activations:
    """Bytes of activations in bf16 that are kept for the backward pass, for each token of rows of `seq_len`."""
    return check_model(config).activations(config, seq_len)
