"""Any language model that transformers knows, as a teacher, by its folder. Axes: B rows, T positions, D features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from corpora.batch import Objective
from corpora.errors import Damaged, InputRefused
from students.listening import Listening, max_positions, prove, require_embedding

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


class Pretrained(Listening):
    """A model of transformers that is listened to in one view.

    It reads rows of one document each, which may be padded at their end: that is how caches are made and candidates
    scored. Its own attention knows no documents.
    """

    config: PretrainedSizes

    def __init__(self, network: PreTrainedModel, objective: Objective, place: str) -> None:
        """Takes a network in evaluation mode; raises InputRefused when its logits cannot be made of features."""
        super().__init__()
        self.network = network
        self.objective, self.place = objective, place
        self.config = PretrainedSizes(require_embedding(network, place).shape[1], max_positions(network))
        network.config.use_cache = False
        prove(self)


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
