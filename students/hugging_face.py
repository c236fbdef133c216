"""Any causal or masked language model of transformers, born from a recipe: a body of that library and its head.

The generic model of github.com/cangozpi/BabyLM-project, for every architecture that the library knows. Its attention
knows no documents, so documents of one row are read as rows of their own. Axes: B rows, T positions, D features, N
documents.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from corpora.batch import PADDING_SEGMENT
from corpora.errors import CuveeError, InputRefused, RecipeError, suggestion
from corpora.token_ids import TokenIds
from students.buildable import Buildable, ForwardFlops, all_fields_but, default_if_none
from students.config import ModelConfig
from students.listening import PROBE_LENGTH, Listening, max_positions, one_document_each, prove, require_embedding
from students.pretrained import LOADERS

# a field of ModelConfig, and what architectures of transformers call it; all that a configuration has are set
NAMES = {
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "dropout": ("hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "dropout", "hidden_dropout", "embedding_dropout"),
    "attention_dropout": ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"),
    "norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rms_norm_eps"),
    "embedding_size": ("embedding_size", "word_embed_proj_dim"),
    "tie_word_embeddings": ("tie_word_embeddings",),
}
# what transformers raises where it cannot build a model
ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    AttributeError,
    ImportError,
    AssertionError,
    StrictDataclassError,
)


class HuggingFace(Listening, Buildable):
    """A network of transformers with random weights, in the one view that its head is for."""

    config: ModelConfig
    unused_fields = all_fields_but("num_kv_heads", "dropout", "embedding_size", "model_type", "view", "settings")

    def __init__(self, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> None:
        """Weights are drawn from torch's global generator; raises RecipeError when features cannot be told."""
        super(Buildable, self).__init__()
        assert config.view is not None, "checked"
        self.config, self.vocab_size, self.token_ids = config, vocab_size, token_ids
        self.objective, self.place = config.view, f"model.model_type {config.model_type}"
        self.causal_head = config.view == "causal"
        self.network = new_network(config, vocab_size, token_ids)
        if not require_embedding(self.network, self.place).is_meta:
            self.eval()
            try:
                prove(self)
                self._freeze_idle()
            except CuveeError:
                raise
            except ERRORS as error:
                raise _refused(config, error) from error
            self.train()

    def _freeze_idle(self) -> None:
        """Leave what no output depends on as it is (a pooler, a bias beside the one that is used): DDP waits for it."""
        ids_BT = torch.zeros(1, min(PROBE_LENGTH, self.config.max_positions), dtype=torch.long)
        parameters = list(self.network.parameters())
        with torch.enable_grad():
            features_BTD = self.features(ids_BT, torch.zeros_like(ids_BT), self.causal_head)
            total = self.head().logits(features_BTD[0]).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """What meets the output embedding, [B, T, D]; of padding it means nothing.

        Documents of a row are read side by side, padded to the longest, so that none sees another.
        """
        if one_document_each(segments_BT):
            return super().features(input_ids_BT, segments_BT, causal)
        self.require_view(causal)
        documents = [
            (row, start, stop) for row, segments_T in enumerate(segments_BT) for start, stop in _documents(segments_T)
        ]
        if not documents:
            return self.head().weight_VD.new_zeros(*input_ids_BT.shape, self.config.feature_size)
        ids_NT = pad_sequence(
            [input_ids_BT[row, start:stop] for row, start, stop in documents],
            batch_first=True,
            padding_value=self.token_ids.pad,
        )
        lengths_N = torch.tensor([stop - start for _, start, stop in documents], device=ids_NT.device)
        positions_T = torch.arange(ids_NT.shape[1], device=ids_NT.device)
        segments_NT = torch.where(positions_T < lengths_N[:, None], 0, PADDING_SEGMENT)
        features_NTD = super().features(ids_NT, segments_NT, causal)
        # every position of a row finds its own among the documents'; padding finds the first one
        found_BT = torch.zeros_like(input_ids_BT)
        for number, (row, start, stop) in enumerate(documents):
            found_BT[row, start:stop] = number * ids_NT.shape[1] + positions_T[: stop - start]
        return features_NTD.flatten(0, 1)[found_BT]

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> PretrainedConfig:
        """The configuration of transformers; raises RecipeError for what it has no name for."""
        assert config.model_type is not None, "checked"
        config_class = CONFIG_MAPPING[config.model_type]
        known = _defaults(config)
        values: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "max_position_embeddings": config.max_positions,
            "pad_token_id": token_ids.pad,
            "bos_token_id": token_ids.begin,
            "eos_token_id": token_ids.end,
            "use_cache": False,  # training has no use for it
        }
        for field, names in NAMES.items():
            value, present = getattr(config, field), [name for name in names if name in known]
            if value is None:
                continue
            if value and not present:
                raise RecipeError(
                    f"model.{field}: found {value}, but {config.model_type} of transformers calls it by another name; "
                    "remove it, or write it in model.settings"
                )
            values |= dict.fromkeys(present, value)
        if "num_key_value_heads" in known:
            values["num_key_value_heads"] = default_if_none(config.num_kv_heads, config.num_heads)
        elif config.num_kv_heads is not None:
            raise RecipeError(
                f"model.num_kv_heads: found {config.num_kv_heads}, but {config.model_type} has none; remove it"
            )
        own_names = {ours: theirs for theirs, ours in config_class.attribute_map.items()}
        for name in config.settings:
            said = own_names.get(name, name)
            if said in values and said != "max_position_embeddings":
                raise RecipeError(
                    f"model.settings.{name}: is said by a field of model, or by the tokenizer; remove it from settings"
                )
            if name not in known and name not in config_class.attribute_map:
                raise RecipeError(
                    f"model.settings.{name}: {config.model_type} of transformers has no such field"
                    f"{suggestion(name, known)}"
                )
        try:
            return config_class(**values | config.settings)
        except ERRORS as error:
            raise _refused(config, error) from error

    @classmethod
    def model_config(cls, network_config: Any) -> ModelConfig:
        """No configuration of transformers is read back: a folder of its own says what it is in `cuvee.json`."""
        raise InputRefused(f"config.json: {network_config.model_type} is not described by a ModelConfig")

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """The library has such a language model, with these sizes, whose features are as wide as is said."""
        if config.view is None or config.model_type is None:
            missing = "view" if config.view is None else "model_type"
            expected = "causal or masked" if config.view is None else "a name of transformers, such as bert or opt"
            raise RecipeError(f"model.{missing}: missing, and hugging_face needs it; expected {expected}")
        known = [name for name in LOADERS[config.view][1] if name in CONFIG_MAPPING]
        if config.model_type not in known:
            raise RecipeError(
                f"model.model_type: found {config.model_type!r}, of which transformers has no {config.view} language "
                f"model{suggestion(config.model_type, known)}"
            )
        network = _without_memory(config, config.vocab_size or len(TokenIds().special))
        width = require_embedding(network, "model.model_type").shape[1]
        if width != config.feature_size:
            raise RecipeError(
                f"model.embedding_size: {config.model_type} meets its output embedding with {width} features, not "
                f"{config.feature_size}; set it to {width}"
            )
        if (longest := max_positions(network)) < config.max_positions:
            kept = network.config.max_position_embeddings - longest
            why = f"; its first {kept} are kept for padding, so set" if kept else "; set"
            raise RecipeError(
                f"model.max_positions: {config.model_type} reads {longest} of {config.max_positions} positions{why} "
                f"model.settings.max_position_embeddings to {config.max_positions + kept}"
            )

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """As a network without memory has them."""
        return sum(parameter.numel() for parameter in _without_memory(config, vocab_size).parameters())

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight of a matrix but the tables, and for attention 2 T D twice.

        An estimate: an architecture may use a matrix twice, or attend to less.
        """
        network = _without_memory(config, vocab_size)
        tables = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)}
        tables.add(id(require_embedding(network, "model")))
        matrices = sum(p.numel() for p in network.parameters() if p.ndim == 2 and id(p) not in tables)
        attention = config.num_layers * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * matrices + attention, 2 * vocab_size * config.feature_size)


def new_network(config: ModelConfig, vocab_size: int, token_ids: TokenIds) -> PreTrainedModel:
    """A network of random weights, fp32; raises RecipeError when transformers cannot build it."""
    assert config.view is not None, "checked"
    network_config = HuggingFace.network_config(config, vocab_size=vocab_size, token_ids=token_ids)
    try:
        return LOADERS[config.view][0].from_config(network_config)
    except CuveeError:
        raise
    except ERRORS as error:
        raise _refused(config, error) from error


def _defaults(config: ModelConfig) -> dict[str, Any]:
    """What a configuration of this kind has, with the library's own values."""
    assert config.model_type is not None, "checked"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # of the ids that it has by default, which are replaced
    try:
        return CONFIG_MAPPING[config.model_type]().to_dict()
    except ERRORS as error:
        raise _refused(config, error) from error
    finally:
        logging.set_verbosity(verbosity)


def _without_memory(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    return _on_meta(json.dumps(asdict(config), sort_keys=True), vocab_size)


@functools.lru_cache(maxsize=8)
def _on_meta(described: str, vocab_size: int) -> PreTrainedModel:
    with torch.device("meta"):
        return new_network(ModelConfig(**json.loads(described)), vocab_size, TokenIds())


def _refused(config: ModelConfig, error: Exception) -> RecipeError:
    told = " ".join(str(error).split())
    return RecipeError(f"model.settings: transformers builds no {config.model_type} of these sizes ({told[:300]})")


def _documents(segments_T: Tensor) -> list[tuple[int, int]]:
    """First position of each document of a row, and the one after its last; padding is none."""
    borders = (segments_T[1:] != segments_T[:-1]).nonzero()[:, 0] + 1
    edges = [0, *borders.tolist(), len(segments_T)]
    return [
        (start, stop) for start, stop in zip(edges, edges[1:], strict=False) if segments_T[start] != PADDING_SEGMENT
    ]
