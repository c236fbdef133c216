"""Features of any network of transformers: they are what meets its output embedding, where a hook catches them.

No architecture has to be known for this. What was caught is not believed but proved: on a probe, logits made again of
features and head are the network's own. Axes: B rows, T positions, D features, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from corpora.batch import PADDING_SEGMENT, Objective
from corpora.errors import Diverged, InputRefused
from students.head import Head
from students.language_model import LanguageModel

ANY_LENGTH = 1 << 30  # tokens; of models that say no length, such as recurrent ones
PROBE_LENGTH = 8  # tokens
PROBE_PADDING = 3  # of them, in the second row
TOLERANCE = 1e-4  # of the largest logit: fp32, another order of the same products


class Listening(LanguageModel):
    """A causal or a masked language model of transformers, read in that view alone, in rows of one document each."""

    network: PreTrainedModel
    objective: Objective
    place: str  # what errors begin with

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """What meets the output embedding, [B, T, D]; raises InputRefused for rows that it cannot read rightly."""
        self.require_readable(segments_BT, causal)
        caught: list[Tensor] = []

        def catch(module: nn.Module, met: tuple[Tensor, ...]) -> tuple[Tensor]:
            """Keep what meets the embedding; one position of it goes on, so that no row is projected."""
            caught.append(met[0])
            return (met[0][:, :1],)

        catching = self.embedding.register_forward_pre_hook(catch)
        try:
            self.network(input_ids=input_ids_BT, attention_mask=(segments_BT != PADDING_SEGMENT).long())
        finally:
            catching.remove()
        expected = (*input_ids_BT.shape, self.config.feature_size)
        if not caught or caught[0].shape != expected:
            found = f"shape {tuple(caught[0].shape)}" if caught else "nothing"
            raise InputRefused(
                f"{self.place}: {found} meets the output embedding of {type(self.network).__name__}, expected "
                f"{expected}; choose another model"
            )
        return caught[0]

    def head(self) -> Head:
        """Output embedding, bias, soft-cap and scale, as the configuration says."""
        config = self.network.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(self.embedding.weight, self._bias(), softcap, scale)

    @property
    def embedding(self) -> nn.Linear:
        """The output embedding."""
        # not an attribute: a module of this one as well as of the network would be stored twice
        return self.network.get_output_embeddings()  # type: ignore[return-value]

    def _bias(self) -> Tensor | None:
        """The embedding's bias; some architectures keep it beside the embedding."""
        if self.embedding.bias is not None:
            return self.embedding.bias
        [name] = (name for name, module in self.network.named_modules() if module is self.embedding)
        beside = getattr(self.network.get_submodule(name.rpartition(".")[0]), "bias", None)
        return beside if isinstance(beside, Tensor) and beside.shape == self.embedding.weight.shape[:1] else None

    def require_view(self, causal: bool) -> None:
        """Raise InputRefused when rows of the other view are to be read."""
        asked = "causal" if causal else "masked"
        if asked != self.objective:
            raise InputRefused(
                f"{self.place}: a {self.objective} model was asked to read {asked} rows; set its view to "
                f"{self.objective}"
            )

    def require_readable(self, segments_BT: Tensor, causal: bool) -> None:
        """Raise InputRefused for rows that are too long, of the other view, or of several documents."""
        self.require_view(causal)
        length = segments_BT.shape[1]
        if length > self.config.max_positions:
            raise InputRefused(
                f"{self.place}: a row of {length} tokens, the model reads at most {self.config.max_positions}; "
                "shorten cache.window"
            )
        if not one_document_each(segments_BT):
            raise InputRefused(
                f"{self.place}: rows of several documents, which the attention of {type(self.network).__name__} would "
                "mix; cache this teacher, whose windows hold one document each"
            )


def one_document_each(segments_BT: Tensor) -> bool:
    """Whether every row is one document, padded at its end if at all."""
    real_BT = segments_BT != PADDING_SEGMENT
    one_document = (segments_BT == segments_BT[:, :1]) | ~real_BT
    padded_at_end = real_BT[:, :-1] | ~real_BT[:, 1:]
    return bool(one_document.all() and padded_at_end.all() and real_BT[:, :1].all())


def require_embedding(network: PreTrainedModel, place: str) -> Tensor:
    """The matrix of the output embedding [V, D]; raises InputRefused for a network that has no such one."""
    weight = getattr(network.get_output_embeddings(), "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputRefused(
            f"{place}: {type(network).__name__} has no output embedding of one matrix, which a model's features must "
            "meet; choose another model"
        )
    return weight


def max_positions(network: PreTrainedModel) -> int:
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


def prove(model: Listening) -> None:
    """Raise InputRefused unless features and head give the network's own logits, and nothing is read that must not be.

    Raises Diverged when the logits are not finite. The model is in evaluation mode.

    The probe has one whole row and a padded one; the padded one must mean what it means alone. Of a causal model no
    output may change with a later token.
    """
    place, name, length = model.place, type(model.network).__name__, min(PROBE_LENGTH, model.config.max_positions)
    padding = min(PROBE_PADDING, length - 1)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(model.head().weight_VD.shape[0], (2, length), generator=generator)
    segments_BT = torch.zeros_like(ids_BT)
    ids_BT[1, length - padding :], segments_BT[1, length - padding :] = 0, PADDING_SEGMENT
    real_BT = segments_BT != PADDING_SEGMENT
    causal = model.objective == "causal"
    with torch.no_grad():
        own_NV = model.network(input_ids=ids_BT, attention_mask=real_BT.long()).logits[real_BT]
        features_BTD = model.features(ids_BT, segments_BT, causal)
        made_NV = model.head().logits(features_BTD[real_BT])
        alone = slice(1, 2), slice(0, length - padding)
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
    if not _alike(alone_TD, features_BTD[1, : length - padding]):
        raise InputRefused(f"{place}: what {name} says about a row changes with the padding after it; {remedy}")
    if causal and not _alike(before_BTD, features_BTD[:, :-1]):
        raise InputRefused(
            f"{place}: {name} reads tokens that come later, so it is no causal model; {remedy}, or mend its config.json"
        )


def _alike(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1)
    )
