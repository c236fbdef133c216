"""Any language model that transformers knows, as a teacher: its features are what meets its output embedding.

They are caught by a hook on the output embedding, so no architecture has to be known here. What was caught is not
believed but proved when the model is loaded: on a probe, logits made again of features and head are the model's own.
Axes: B rows, T positions, D features, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from corpora.batch import PADDING_SEGMENT, Objective
from corpora.errors import Damaged, Diverged, InputRefused
from students.head import Head
from students.language_model import LanguageModel

ANY_LENGTH = 1 << 30  # tokens; of models that say no length, such as recurrent ones
PROBE_LENGTH = 8  # tokens
PROBE_PADDING = 3  # of them, in the second row
TOLERANCE = 1e-4  # of the largest logit: fp32, another order of the same products

# who loads a model, and the classes that it knows by model_type
LOADERS: dict[Objective, tuple[Any, Mapping[Any, Any]]] = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
}


@dataclass(frozen=True)
class PretrainedSizes:
    """What the toolkit asks of a model whose architecture it does not know."""

    feature_size: int  # width of the features
    max_positions: int  # longest row in tokens


class Pretrained(LanguageModel):
    """A causal or a masked language model of transformers, listened to in that view alone.

    It reads rows of one document each, which may be padded at their end: that is how caches are made and candidates
    scored. Its own attention knows no documents.
    """

    config: PretrainedSizes

    def __init__(self, network: PreTrainedModel, objective: Objective, place: str) -> None:
        """Takes a network in evaluation mode; raises InputRefused when its logits cannot be made of features."""
        super().__init__()
        self.network = network
        self.objective: Objective = objective
        self._place = place
        self._caught_BTD: Tensor | None = None
        weight = getattr(network.get_output_embeddings(), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise InputRefused(
                f"{place}: {type(network).__name__} has no output embedding of one matrix, which a teacher's features "
                "must meet; choose another model"
            )
        self.config = PretrainedSizes(weight.shape[1], _max_positions(network))
        network.config.use_cache = False
        _prove(self, place)

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """What meets the output embedding, [B, T, D]; raises InputRefused for rows that it cannot read rightly."""
        self._require_readable(segments_BT, causal)
        catching = self._embedding.register_forward_pre_hook(self._catch)
        try:
            self.network(input_ids=input_ids_BT, attention_mask=(segments_BT != PADDING_SEGMENT).long())
        finally:
            catching.remove()
        features_BTD, self._caught_BTD = self._caught_BTD, None
        if features_BTD is None or features_BTD.shape != (*input_ids_BT.shape, self.config.feature_size):
            found = "nothing" if features_BTD is None else f"shape {tuple(features_BTD.shape)}"
            raise InputRefused(
                f"{self._place}: {found} meets the output embedding of {type(self.network).__name__}, expected "
                f"{(*input_ids_BT.shape, self.config.feature_size)}; choose another model"
            )
        return features_BTD

    def head(self) -> Head:
        """Output embedding, bias, soft-cap and scale, as the configuration says."""
        config = self.network.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(self._embedding.weight, self._bias(), softcap, scale)

    @property
    def _embedding(self) -> nn.Linear:
        # not an attribute: a module of this one as well as of the network would be stored twice
        return self.network.get_output_embeddings()  # type: ignore[return-value]

    def _bias(self) -> Tensor | None:
        """The embedding's bias; some architectures keep it beside the embedding."""
        if self._embedding.bias is not None:
            return self._embedding.bias
        [name] = (name for name, module in self.network.named_modules() if module is self._embedding)
        beside = getattr(self.network.get_submodule(name.rpartition(".")[0]), "bias", None)
        return beside if isinstance(beside, Tensor) and beside.shape == self._embedding.weight.shape[:1] else None

    def _catch(self, module: nn.Module, met: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Keep what meets the embedding; one position of it goes on, so that no row is projected."""
        self._caught_BTD = met[0]
        return (met[0][:, :1],)

    def _require_readable(self, segments_BT: Tensor, causal: bool) -> None:
        asked = "causal" if causal else "masked"
        if asked != self.objective:
            raise InputRefused(
                f"{self._place}: a {self.objective} model was asked to read {asked} rows; set its view to "
                f"{self.objective}"
            )
        length = segments_BT.shape[1]
        if length > self.config.max_positions:
            raise InputRefused(
                f"{self._place}: a row of {length} tokens, the model reads at most {self.config.max_positions}; "
                "shorten cache.window"
            )
        real_BT = segments_BT != PADDING_SEGMENT
        one_document = (segments_BT == segments_BT[:, :1]) | ~real_BT
        padded_at_end = real_BT[:, :-1] | ~real_BT[:, 1:]
        if not (one_document.all() and padded_at_end.all() and real_BT[:, :1].all()):
            raise InputRefused(
                f"{self._place}: rows of several documents, which the attention of {type(self.network).__name__} would "
                "mix; cache this teacher, whose windows hold one document each"
            )


def load_pretrained(folder: Path, described: dict[str, Any]) -> Pretrained:
    """The model of a Hugging Face folder, fp32, on the CPU in evaluation mode; `described` is its config.json.

    Runs no code of the folder and fetches nothing. Raises InputRefused, Damaged.
    """
    path = folder / "config.json"
    objective = _objective(described, path)
    try:
        with _without_progress_bar():
            network, loading = LOADERS[objective][0].from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except safetensors.SafetensorError as error:
        raise Damaged(f"{folder}: not safetensors files ({error}); fetch or save the model again") from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise InputRefused(f"{folder}: transformers cannot load it ({told[:300]}); save the model again") from error
    if made_up := sorted(loading["missing_keys"]) + sorted(name for name, *_ in loading["mismatched_keys"]):
        raise InputRefused(
            f"{folder}: no weights for {', '.join(made_up[:3])}{' and others' if len(made_up) > 3 else ''}, which "
            f"{path.name} means; save the model together with its head"
        )
    return Pretrained(network.float().eval(), objective, str(folder)).eval()


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Loading takes a moment, and the terminal belongs to the run."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _objective(described: dict[str, Any], path: Path) -> Objective:
    """What the class that a configuration names was made for."""
    kind, named = described.get("model_type"), described.get("architectures") or []
    classes: dict[Objective, tuple[str, ...]] = {
        objective: _names(known.get(kind)) for objective, (_, known) in LOADERS.items()
    }
    if not any(classes.values()):
        raise InputRefused(
            f"{path}: model_type {kind!r} has no language model in transformers {transformers.__version__}; choose "
            "another model (code that lies in the folder is not run)"
        )
    if described.get("is_encoder_decoder"):
        raise InputRefused(f"{path}: {kind!r} is an encoder with a decoder; choose a causal or a masked model")
    for objective, names in classes.items():
        if set(names) & set(named):
            return objective
    expected = " or ".join(name for names in classes.values() for name in names)
    raise InputRefused(
        f"{path}: architectures is {', '.join(named) or 'missing'}, expected {expected}; save the model with its head"
    )


def _names(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if classes is None else (classes,) if isinstance(classes, str) else tuple(classes)


def _max_positions(network: PreTrainedModel) -> int:
    """Longest row that a network reads."""
    stated = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if not stated:
        return ANY_LENGTH
    # RoBERTa and its kin have one table for padding and positions: the first position follows the padding's row
    taken = [
        module.padding_idx + 1
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        and module.padding_idx is not None
        and module.num_embeddings == stated
        and module is not network.get_input_embeddings()
    ]
    return stated - max(taken, default=0)


def _prove(model: Pretrained, place: str) -> None:
    """Raise InputRefused unless features and head give the network's own logits, and nothing is read that must not be.

    Raises Diverged when the logits are not finite.

    The probe has one whole row and a padded one; the padded one must mean what it means alone. Of a causal model no
    output may change with a later token.
    """
    name, length = type(model.network).__name__, min(PROBE_LENGTH, model.config.max_positions)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(model.head().weight_VD.shape[0], (2, length), generator=generator)
    segments_BT = torch.zeros_like(ids_BT)
    ids_BT[1, length - PROBE_PADDING :], segments_BT[1, length - PROBE_PADDING :] = 0, PADDING_SEGMENT
    real_BT = segments_BT != PADDING_SEGMENT
    causal = model.objective == "causal"
    with torch.no_grad():
        own_NV = model.network(input_ids=ids_BT, attention_mask=real_BT.long()).logits[real_BT]
        features_BTD = model.features(ids_BT, segments_BT, causal)
        made_NV = model.head().logits(features_BTD[real_BT])
        alone = slice(1, 2), slice(0, length - PROBE_PADDING)
        alone_TD = model.features(ids_BT[alone], segments_BT[alone], causal)[0]
        later_BT = ids_BT.clone()
        later_BT[:, -1] = (later_BT[:, -1] + 1) % len(model.head().weight_VD)
        before_BTD = model.features(later_BT, segments_BT, causal)[:, :-1]
    remedy = "choose another model"
    if not own_NV.isfinite().all():
        raise Diverged(f"{place}: {name} gives logits that are no numbers; expected numbers; it is invalid, {remedy}")
    if not _alike(made_NV, own_NV):
        difference = (made_NV - own_NV).abs().max().item() if made_NV.shape == own_NV.shape else float("nan")
        raise InputRefused(
            f"{place}: logits made of the features and the head of {name} differ from its own by {difference:.3g}, "
            f"expected none: its head does more than a product, a bias, a scale and a soft-cap; {remedy}"
        )
    if not _alike(alone_TD, features_BTD[1, : length - PROBE_PADDING]):
        raise InputRefused(f"{place}: what {name} says about a row changes with the padding after it; {remedy}")
    if causal and not _alike(before_BTD, features_BTD[:, :-1]):
        raise InputRefused(
            f"{place}: {name} reads tokens that come later, so it is no causal model; {remedy}, or mend its config.json"
        )


def _alike(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1)
    )
