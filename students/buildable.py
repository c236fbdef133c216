"""What an architecture of ours owes beyond features and a head: it is built, counted and saved from a ModelConfig.

Axes: T positions, D hidden, H heads, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel

from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.config import ModelConfig
from students.language_model import LanguageModel

# fields of ModelConfig that every architecture reads
FIELDS_OF_ALL = (
    "architecture",
    "num_layers",
    "hidden_size",
    "num_heads",
    "intermediate_size",
    "vocab_size",
    "max_positions",
    "tie_word_embeddings",
    "attention_dropout",
    "norm_eps",
)


class ForwardFlops(NamedTuple):
    """Floating-point operations of a forward pass, a multiplication and an addition counted as two."""

    body: int  # for each token read
    head: int  # for each position whose logits are computed


class Activations(NamedTuple):
    """Bytes of activations in bf16 that the backward pass needs, for each token of a row."""

    blocks: list[int]  # of each block that activation checkpointing wraps
    states: int  # what blocks hand on to later ones: kept even where the rest is worked out again


class Buildable(LanguageModel):
    """A language model that a ModelConfig describes completely; one subclass for each architecture."""

    config: ModelConfig
    network_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PretrainedConfig]]
    causal_head: bool  # whether the Hugging Face class is a causal language model that can generate
    unused_fields: ClassVar[tuple[str, ...]]  # fields of ModelConfig that mean nothing here: only their defaults fit
    source_files: ClassVar[tuple[str, ...]] = ()  # modelling files that travel with a saved model
    default_masked_shift: ClassVar[Literal[0, 1]] = 0  # where the recipe says null
    auto_map: ClassVar[dict[str, str]] = {}  # Auto class of transformers: module and class in the files above

    def __init__(self, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> None:
        """Build the network with weights drawn from torch's global generator; `build_model` seeds it."""
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.token_ids = token_ids
        self.network = self.network_class(self.network_config(config, vocab_size=vocab_size, token_ids=token_ids))

    @classmethod
    @abstractmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> PretrainedConfig:
        """The configuration of transformers that means the same."""

    @classmethod
    @abstractmethod
    def model_config(cls, network_config: Any) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""

    @classmethod
    def masked_shift_of(cls, config: ModelConfig) -> Literal[0, 1]:
        """`LanguageModel.masked_shift` of a model that `config` describes."""
        return default_if_none(config.masked_shift, cls.default_masked_shift)

    @property
    def masked_shift(self) -> Literal[0, 1]:
        """As the recipe says, or the architecture's own."""
        return self.masked_shift_of(self.config)

    @classmethod
    @abstractmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Raise RecipeError when the sizes do not fit this architecture; `check` has seen the common ones."""

    @classmethod
    @abstractmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Number of trainable parameters, tied ones once, in closed form."""

    @classmethod
    @abstractmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Operations of matrix products for rows of `seq_len` tokens; attention counts every pair of positions."""

    @classmethod
    def activations(cls, config: ModelConfig, seq_len: int) -> Activations:
        """Layers of attention and of a feed-forward network of 4 D: 34 D + 5 H T, each reading the one before it.

        An estimate: what dropout and the kernels of a device keep moves it by half either way.
        """
        layer = attention_activations(config, seq_len) + 21 * config.hidden_size
        return Activations(config.num_layers * [layer], config.num_layers * 2 * config.hidden_size)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raise RecipeError, in one line, when no model can be built from `config`."""
        for name in ("num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size", "max_positions"):
            value = getattr(config, name)
            if value is not None and value < 1:
                raise RecipeError(f"model.{name}: found {value}, needs at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(config, name) < 1:
                raise RecipeError(f"model.{name}: found {getattr(config, name)}, needs a probability below 1")
        if config.hidden_size % config.num_heads:
            raise RecipeError(
                f"model.hidden_size: {config.hidden_size} is not divisible by num_heads {config.num_heads}; "
                f"take a multiple of {config.num_heads}"
            )
        defaults = {field.name: {} if field.default is MISSING else field.default for field in fields(ModelConfig)}
        for name in cls.unused_fields:
            if getattr(config, name) != defaults[name]:
                raise RecipeError(
                    f"model.{name}: found {getattr(config, name)}, but {config.architecture} has none; remove it"
                )
        cls.check_shape(config)


def attention_activations(config: ModelConfig, seq_len: int) -> int:
    """13 D + 5 H T bytes for each token: attention, its norm and dropout in bf16 (arXiv 2205.05198, eq. 2)."""
    return 13 * config.hidden_size + 5 * config.num_heads * seq_len


def all_fields_but(*used: str) -> tuple[str, ...]:
    """Fields of ModelConfig that mean nothing to an architecture that reads only these, beside those that all read."""
    return tuple(field.name for field in fields(ModelConfig) if field.name not in (*FIELDS_OF_ALL, *used))


def require_known(architecture: str, settings: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise InputRefused for a setting of a configuration that ModelConfig cannot say: by name, found and known."""
    for name, (found, known) in settings.items():
        if found != known:
            raise InputRefused(f"config.json: {architecture} with {name} {found!r} is not supported, only {known!r}")


def default_if_none(value: Any, default: Any) -> Any:
    """`value`, or the architecture's own rule where the recipe says null."""
    return default if value is None else value


def gated_ffn_width(config: ModelConfig) -> int:
    """Width F of a gated feed-forward layer; null is 8/3 D up to a multiple of 8: as many weights as 4 D ungated."""
    return default_if_none(config.intermediate_size, -(-8 * config.hidden_size // 24) * 8)
