"""The optimisers: which weights each has, and which of them decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from corpora.errors import RecipeError
from distill.config import TrainConfig
from distill.lamb import Lamb
from distill.objective import Objective
from students.language_model import LanguageModel

Trained = Objective | LanguageModel


class Joined(Optimizer):
    """Several optimisers, each with weights of its own, as one: groups and state are counted through all of them."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._share_out()

    def step(self, closure: None = None) -> None:
        """Let each take its step."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share_out()

    def _share_out(self) -> None:
        """The parts work on the joined state and groups themselves, so that there is nothing to keep in step."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]


def make_optimizer(model: Trained, config: TrainConfig) -> Optimizer:
    """The optimiser that `config` names, with the trainable weights of a model or of a whole objective.

    Each group says with `lr_share` how its peak stands to `config.lr`, for `set_learning_rate`. All state is tensors.
    Made of a module that FSDP2 shards, it must be made after that. Raises RecipeError as `without_decay` does.
    """
    return OPTIMIZERS[config.optimizer](model, config)


def without_decay(model: Trained, no_decay: Iterable[str]) -> set[Parameter]:
    """The weights that do not decay: "vectors", "embeddings" (input embedding and output table), or patterns of names.

    Names are those in the folder of the saved model, and patterns are fnmatch's; tied weights have either name.
    Weights are only looked at, so a model on the meta device serves. Raises RecipeError for a pattern that matches
    nothing.
    """
    names = _names(model)
    found: set[Parameter] = set()
    for pattern in no_decay:
        if pattern == "vectors":
            found |= {parameter for _, parameter in names if parameter.ndim < 2}
        elif pattern == "embeddings":
            found |= _tables(model)
        elif matches := {parameter for name, parameter in names if fnmatchcase(name, pattern)}:
            found |= matches
        else:
            near = ", ".join(get_close_matches(pattern, dict(names), n=3, cutoff=0.0))
            raise RecipeError(
                f"train.no_decay: {pattern!r} matches no weights, expected vectors, embeddings or a pattern of names "
                f"such as {near}; correct it or leave it out"
            )
    return found


def _adamw(model: Trained, config: TrainConfig) -> Optimizer:
    return _fused_adamw(_groups(_trained(model), model, config, peak=config.lr), config)


def _muon(model: Trained, config: TrainConfig) -> Optimizer:
    """Muon for matrices that are multiplied, AdamW for tables, of which rows are looked up, and for everything else."""
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)} | _tables(model)
    matrices = [weight for weight in _trained(model) if weight.ndim == 2 and weight not in looked_up]
    others = [weight for weight in _trained(model) if weight.ndim != 2 or weight in looked_up]
    parts: list[Optimizer] = []
    if groups := _groups(matrices, model, config, peak=config.muon.lr):
        muon = config.muon
        parts.append(
            Muon(
                groups,
                lr=muon.lr,
                momentum=muon.momentum,
                nesterov=muon.nesterov,
                ns_steps=muon.ns_steps,
                adjust_lr_fn=muon.scale,
            )
        )
    if groups := _groups(others, model, config, peak=config.lr):  # adapters are matrices alone
        parts.append(_fused_adamw(groups, config))
    return Joined(*parts)


def _lamb(model: Trained, config: TrainConfig) -> Optimizer:
    groups = _groups(_trained(model), model, config, peak=config.lr)
    return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps)


OPTIMIZERS: dict[str, Callable[[Trained, TrainConfig], Optimizer]] = {"adamw": _adamw, "muon": _muon, "lamb": _lamb}


def _fused_adamw(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _groups(weights: list[Parameter], model: Trained, config: TrainConfig, *, peak: float) -> list[dict[str, Any]]:
    """What decays and what does not, where there is any."""
    exempt = without_decay(model, config.no_decay)
    decaying = [weight for weight in weights if weight not in exempt]
    others = [weight for weight in weights if weight in exempt]
    return [
        {"params": params, "weight_decay": decay, "lr_share": peak / config.lr}
        for params, decay in ((decaying, config.weight_decay), (others, 0.0))
        if params
    ]


def _trained(model: Trained) -> list[Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _names(model: Trained) -> list[tuple[str, Parameter]]:
    """Every weight by its name in the saved model, the objective's own by theirs; tied ones once for each name."""
    inside = "model.network." if isinstance(model, Objective) else "network."
    named = model.named_parameters(remove_duplicate=False)
    return [(name.removeprefix(inside), parameter) for name, parameter in named]


def _tables(model: Trained) -> set[Parameter]:
    """The input embedding and the output table, which may be one."""
    network = (model.model if isinstance(model, Objective) else model).network
    modules = (network.get_input_embeddings(), network.get_output_embeddings())
    return {weight for module in modules if isinstance(weight := getattr(module, "weight", None), Parameter)}
