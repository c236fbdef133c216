"""Models as they were published: an original's weights, under its names and with its sizes, become a network of ours.

Architectures go by the names of the golden files. Nothing is guessed: a key of the configuration or a tensor that is
missing, too much or of another shape is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from corpora.batch import Objective
from corpora.errors import InputRefused, RecipeError, suggestion
from students import lv_bert_names, share_bert_names
from students.buildable import Buildable
from students.configuration_elc_bert import VARIANTS
from students.elc_bert import ElcBert
from students.gpt_bert import GptBert
from students.ltg_bert import LtgBert
from students.ltg_names import TABLE, from_original, gpt_bert_form
from students.lv_bert import LvBert
from students.modeling_gpt_bert import GptBertForCausalLM
from students.modeling_lv_bert import LvBertModel
from students.share_bert import ShareBert

State = Mapping[str, Tensor]
Rule = tuple[Callable[[Any], bool], str]  # whether a value fits, and what does

_SIZE: Rule = (lambda value: type(value) is int and value > 0, "a whole number above 0")
_TOKEN: Rule = (lambda value: value is None or (type(value) is int and value >= 0), "a token id or null")
_REAL: Rule = (lambda value: type(value) in (int, float) and 0 <= value < math.inf, "a number of at least 0")
_SWITCH: Rule = (lambda value: type(value) is bool, "true or false")
_WORD: Rule = (lambda value: isinstance(value, str), "a string")

_SIZES = dict.fromkeys(
    (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ),
    _SIZE,
)
_LTG = _SIZES | {"position_bucket_size": _SIZE, "layer_norm_eps": _REAL}
_LV = _SIZES | {"embedding_size": _SIZE, "layers": _WORD}
_SHARE = _SIZES | {"factor_size": _SIZE, "encoder_ln_mode": _WORD, "layer_norm_type": _WORD}
# what may be left out, for no answer depends on it or the published models have it all alike
_OPTIONAL = {
    "hidden_dropout_prob": _REAL,
    "attention_probs_dropout_prob": _REAL,
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
}
_SEGMENTS_AND_EPS = {"type_vocab_size": _SIZE, "layer_norm_eps": _REAL}
_SHARE_OPTIONAL = _SEGMENTS_AND_EPS | {
    "num_labels": _SIZE,  # of a classifier
    "hidden_act": _WORD,
    "layernorm_embedding": _SWITCH,
    "sparse_mask_prediction": _SWITCH,
    "useLN": _SWITCH,
}
# what says nothing about the answers of a model that has been trained
WITHOUT_EFFECT = frozenset(
    """
    _name_or_path architectures auto_map dtype fused_linear_layer initializer_range model_type
    output_all_encoded_layers torch_dtype transformers_version
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published model is read as."""

    architecture: type[Buildable]
    read: Callable[[Published, State, dict[str, Any], Objective, str], tuple[PreTrainedModel, State]]
    required: Mapping[str, Rule]  # keys of its configuration
    optional: Mapping[str, Rule] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)  # of our configuration: what the name alone tells
    causal_class: type[PreTrainedModel] | None = None


def from_published(
    architecture: str,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    objective: Objective = "masked",
    *,
    place: str | None = None,
) -> PreTrainedModel:
    """The network of a published checkpoint, fp32, in evaluation mode; it shares no memory with `state_dict`.

    `architecture`: a name of `PUBLISHED`. `state_dict` and `config` have the original's names, layouts and sizes (of
    LV-BERT TensorFlow's). `objective`: GPT-BERT's weights are read as a masked or as a causal model. The network
    answers `(input_ids=[B, T], attention_mask=[B, T], 1 where real)` with `.logits` [B, T, V]; an encoder of LV-BERT
    with `.last_hidden_state` and `.hidden_states`, the embedding's output first.

    Raises InputRefused, in one line that begins with `place` (the architecture by default): for an unknown
    architecture, an objective that it has not, keys that are unknown or missing, sizes that do not fit one another,
    tensors that are missing, too many, of another shape or not finite, with all of them by name.
    """
    place = place or architecture
    if architecture not in PUBLISHED:
        raise InputRefused(
            f"{place}: architecture {architecture!r}, expected one of {', '.join(PUBLISHED)}"
            f"{suggestion(architecture, PUBLISHED)}"
        )
    published = PUBLISHED[architecture]
    _require_objective(objective, published, place)
    sizes = _checked_config(config, published, place)
    _require_numbers(state_dict, place)
    network, loaded = published.read(published, state_dict, sizes, objective, place)
    weights = {name: _own_copy(tensor) for name, tensor in loaded.items()}
    network.load_state_dict(weights, assign=True)
    network.tie_weights()
    return network.eval()


def _read_ltg(
    published: Published, state: State, sizes: dict[str, Any], objective: Objective, place: str
) -> tuple[PreTrainedModel, State]:
    """LTG-BERT, ELC-BERT or GPT-BERT; only of the last the tensors say which form it has."""
    own = dict(published.own) or (gpt_bert_form(state) if published.architecture is GptBert else {})
    config = _new_config(published.architecture.config_class, sizes | own, place)
    _require_buildable(published.architecture, config, place)
    network_class = published.causal_class if objective == "causal" else published.architecture.network_class
    network: Any = _without_memory(network_class, config)
    return network, from_original(state, network, place=place)


def _read_lv_bert(
    published: Published, state: State, sizes: dict[str, Any], objective: Objective, place: str
) -> tuple[PreTrainedModel, State]:
    """LV-BERT: an encoder alone or with a head, or the discriminator of a pre-training checkpoint."""
    if any(name.startswith("generator/") for name in state):
        state = lv_bert_names.discriminator_part(state)
    config = _new_config(LvBert.config_class, sizes, place)
    _require_buildable(LvBert, config, place)
    network: Any = _without_memory(lv_bert_names.network_class(state), config)
    if isinstance(network, LvBertModel):  # an encoder's states are all that it answers
        network.config.output_hidden_states = True
    return network, lv_bert_names.from_original(state, network, place=place)


def _read_share_bert(
    published: Published, state: State, sizes: dict[str, Any], objective: Objective, place: str
) -> tuple[PreTrainedModel, State]:
    """ShareBERT: a pre-trained model, a classifier, or a body alone."""
    config = share_bert_names.original_config(sizes, place=place)
    _require_buildable(ShareBert, config, place)
    network: Any = _without_memory(share_bert_names.network_class(state), config)
    return network, share_bert_names.from_original(state, network, place=place)


PUBLISHED: dict[str, Published] = {
    "ltg_bert": Published(architecture=LtgBert, read=_read_ltg, required=_LTG),
    # without a suffix the configuration has to say the variant: no tensor does
    "elc_bert": Published(architecture=ElcBert, read=_read_ltg, required=_LTG | {"variant": _WORD}),
    **{
        f"elc_bert_{variant}": Published(architecture=ElcBert, read=_read_ltg, required=_LTG, own={"variant": variant})
        for variant in VARIANTS
    },
    "gpt_bert": Published(architecture=GptBert, read=_read_ltg, required=_LTG, causal_class=GptBertForCausalLM),
    "gpt_bert_extra": Published(
        architecture=GptBert,
        read=_read_ltg,
        required=_LTG,
        own={"attention_gate": True, "layer_average": True},
        causal_class=GptBertForCausalLM,
    ),
    **dict.fromkeys(
        ("lv_bert", "lv_bert_encoder"),
        Published(architecture=LvBert, read=_read_lv_bert, required=_LV, optional=_SEGMENTS_AND_EPS),
    ),
    "share_bert": Published(
        architecture=ShareBert,
        read=_read_share_bert,
        required=_SHARE,
        optional=_SHARE_OPTIONAL,
    ),
}


def _require_objective(objective: str, published: Published, place: str) -> None:
    known = ("masked", "causal") if published.causal_class else ("masked",)
    if objective not in known:
        name = published.architecture.config_class.model_type
        raise InputRefused(
            f"{place}: objective {objective!r}, expected {' or '.join(known)}, which is how {name} reads"
            f"{suggestion(objective, known)}"
        )


def _checked_config(config: Mapping[str, Any], published: Published, place: str) -> dict[str, Any]:
    """The keys that mean something, each with a value that it may have."""
    sizes = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    rules = {**published.required, **published.optional, **_OPTIONAL}
    known = [*rules, *published.own]
    unknown = [key for key in sizes if key not in known]
    missing = [key for key in published.required if key not in sizes]
    if unknown or missing:
        kinds = (("unknown keys", unknown), ("no", missing))
        found = "; ".join(f"{kind} {', '.join(keys)}" for kind, keys in kinds if keys)
        near = suggestion(unknown[0], known) if unknown else ""
        raise InputRefused(f"{place}: configuration has {found}; expected the sizes as the original stores them{near}")
    for key, value in sizes.items():
        if key in published.own:
            fits, expected = value == published.own[key], f"{published.own[key]!r}, as the architecture's name says"
        else:
            fits, expected = rules[key][0](value), rules[key][1]
        if not fits:
            raise InputRefused(f"{place}: {key}: found {value!r}, expected {expected}; correct the configuration")
    return sizes


def _require_numbers(state: State, place: str) -> None:
    """Every tensor holds finite floating-point numbers, but for tables of positions and counters of steps."""
    strange = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise InputRefused(f"{place}: no tensors: {', '.join(strange)}; expected a tensor under each name")
    weights = {name: tensor for name, tensor in state.items() if tensor.ndim and not name.endswith(TABLE)}
    whole = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
    if whole:
        raise InputRefused(f"{place}: tensors of whole numbers: {', '.join(whole)}; expected floating-point ones")
    broken = [name for name, tensor in weights.items() if not tensor.float().isfinite().all()]
    if broken:
        raise InputRefused(f"{place}: tensors not finite: {', '.join(broken)}; expected numbers; save the model again")


def _new_config(config_class: type[PretrainedConfig], sizes: dict[str, Any], place: str) -> PretrainedConfig:
    try:
        return config_class(**sizes)
    except ValueError as error:
        raise InputRefused(f"{place}: {error}") from error


def _require_buildable(architecture: type[Buildable], config: PretrainedConfig, place: str) -> None:
    try:
        architecture.check(architecture.model_config(config))
    except (RecipeError, InputRefused) as error:  # the names of a recipe's fields, which are near the original's
        raise InputRefused(f"{place}: {str(error).removeprefix('model.')}") from error


def _without_memory(network_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """A network whose weights have shapes alone: a checkpoint of other sizes is told before it costs anything."""
    with torch.device("meta"):
        return network_class(config)


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
