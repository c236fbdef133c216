"""A stranger's config.json, rebuilt key by key: what is not on the list of its family never reaches transformers.

transformers reads many keys that name code, files or kernels, and learns more with every version. So nothing is
searched for that is bad; only what is known to be a size, a rate or a switch is copied, within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.strangers.families import COMMON, FAMILIES, Family
from benchmarks.strangers.files import CONFIG
from benchmarks.strangers.refusal import refuse, shown
from benchmarks.strangers.strict_json import read_json_object
from corpora.errors import suggestion

MAX_CONFIG_BYTES = 1 << 20  # labels of classifiers can be many
MAX_DEPTH = 8
_REMEDY = "mend the file, or save the model again with a released transformers"

# known to reach code, files or kernels; every other unknown key is refused too, but with less to say
_REACHING: dict[str, str] = {
    "auto_map": "names Python code",
    "custom_pipelines": "names Python code",
    "trust_remote_code": "asks to run code",
    "attn_implementation": "names a kernel, which may be fetched",
    "experts_implementation": "names a kernel, which may be fetched",
    "quantization_config": "describes quantised weights",
    "base_model_name_or_path": "points to another model",
    "peft_type": "describes an adapter",
    "adapters": "describes adapters",
    "adapter_config": "describes an adapter",
    "model_name_or_path": "points to another model",
}
_REACHING_PREFIX = "_attn_implementation"

# without effect on what a language model answers to a text: read by nobody here, and not copied
_WITHOUT_EFFECT = frozenset(
    """
    _name_or_path architectures model_type transformers_version dtype torch_dtype tokenizer_class prefix
    initializer_range init_std initializer_factor use_cache gradient_checkpointing torchscript use_bfloat16
    output_attentions output_hidden_states return_dict output_past tf_legacy_loss n_ctx directionality tie_weights_
    id2label label2id num_labels problem_type finetuning_task task_specific_params classifier_dropout
    classifier_dropout_prob qa_dropout seq_classif_dropout sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens begin_suppress_tokens
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    output_scores return_dict_in_generate remove_invalid_values exponential_decay_length_penalty
    """.split()
)
_WITHOUT_EFFECT_PREFIXES = ("summary_", "pooler_")  # heads of classifiers


@dataclass(frozen=True)
class NetworkDescription:
    """A family, and the values that a stranger gives to some of its keys; all are within bounds."""

    family: Family
    model_type: str
    values: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return self.values["vocab_size"]


def read_description(folder: Path) -> NetworkDescription:
    """What the folder's config.json says, as far as a family's list goes. Raises InputRefused."""
    path = folder / CONFIG
    described = read_json_object(path, str(path), max_bytes=MAX_CONFIG_BYTES, max_depth=MAX_DEPTH, remedy=_REMEDY)
    return checked_description(described, str(path))


def checked_description(described: Mapping[str, Any], place: str) -> NetworkDescription:
    """The description in a parsed config.json; raises InputRefused that begins with `place`."""
    model_type = described.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not isinstance(model_type, str):
        refuse(
            f"{place}: model_type",
            shown(model_type),
            expected=f"one of {', '.join(FAMILIES)}",
            remedy="other architectures need code of their own: cuvee score --allow-code runs it in a sandbox",
        )
    if described.get("architectures") not in [[network] for network in (family.network, *family.also)]:
        refuse(
            f"{place}: architectures",
            shown(described.get("architectures")),
            expected=" or ".join(f"[{network!r}]" for network in (family.network, *family.also)),
            remedy="save the model together with its language-model head",
        )
    rules = {**COMMON, **family.keys}
    values = {}
    for key, value in described.items():
        if key in rules and value is not None:  # null is a key that is not there
            values[key] = _checked(value, key, rules, place)
        elif key not in rules:
            _check_ignored(key, value, family, place)
    if "vocab_size" not in values:
        refuse(f"{place}: vocab_size", "missing", expected=rules["vocab_size"].says, remedy=_REMEDY)
    if values.get("pad_token_id", 0) >= values["vocab_size"]:
        refuse(
            f"{place}: pad_token_id", shown(values["pad_token_id"]), expected="an id below vocab_size", remedy=_REMEDY
        )
    for key in ("bos_token_id", "eos_token_id"):
        # GPT-2's defaults, which transformers saves with smaller vocabularies; no network looks at them
        if values.get(key, 0) >= values["vocab_size"]:
            del values[key]
    return NetworkDescription(family, model_type, values)


def _checked(value: Any, key: str, rules: Mapping[str, Any], place: str) -> Any:
    rule = rules[key]
    if not rule.holds(value):
        refuse(f"{place}: {key}", shown(value), expected=rule.says, remedy=_REMEDY)
    return value


def _check_ignored(key: str, value: Any, family: Family, place: str) -> None:
    """Raise InputRefused for a key that is not copied, unless it is known to change nothing."""
    if key in _WITHOUT_EFFECT or key.startswith(_WITHOUT_EFFECT_PREFIXES):
        return
    if key == "pruned_heads" and value == {}:
        return
    # an older version of ours named fewer classes; nothing is loaded by these names here
    if key == "auto_map" and isinstance(value, dict) and value.items() <= family.auto_map.items():
        return
    if why := "names a kernel, which may be fetched" if key.startswith(_REACHING_PREFIX) else _REACHING.get(key):
        refuse(f"{place}: {key}", why, expected="sizes, rates and switches alone", remedy="remove the key")
    near = suggestion(key, [*COMMON, *family.keys])
    refuse(
        place,
        f"unknown key {shown(key)}{near if len(key) < 60 else ''}",
        expected=f"keys of {family.network}",
        remedy="remove it if the model means the same without it",
    )
