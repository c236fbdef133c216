"""LAMB: Adam whose steps are as large as the weights that they change (arXiv 1904.00962), as ELC-BERT was trained."""

# torch's own optimisers call the foreach operations by their underscores too
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


class Lamb(torch.optim.Optimizer):
    """Adam with a trust ratio for each parameter that decays.

    With Adam's corrected moments m and v, u = m / (sqrt(v) + eps). Where weight_decay > 0, u gains weight_decay * p and
    is scaled by |p| / |u|, the norms of the whole parameter; elsewhere the step is Adam's. Then p loses lr * u.

    This is what the published runs did, not the paper's listing: the ratio is not clipped, it does not touch what does
    not decay, and gradients are not normalised together. Parameters may be DTensors, as FSDP2 makes them.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step with the gradients that there are; a parameter without one stays."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._state_of(parameter) for parameter in parameters]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

        for state in states:
            state["step"] += 1
        done = [float(state["step"]) for state in states]
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, [(1 - beta2**count) ** 0.5 for count in done])
        torch._foreach_add_(divisors, group["eps"])
        updates = torch._foreach_div(means, divisors)
        torch._foreach_div_(updates, [1 - beta1**count for count in done])
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, trust_ratios(parameters, updates))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            # on the CPU, as in torch's optimisers: it is read in every step, which must not wait for a GPU
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def trust_ratios(parameters: Tensors, updates: Tensors) -> tuple[Tensor, ...]:
    """|p| / |u| of each pair, a scalar tensor; 1 where either norm is 0."""
    # stacked first: one exchange between processes for all norms, and no waiting for a GPU
    of_parameters, of_updates = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
    known = (of_parameters > 0) & (of_updates > 0)
    return torch.where(known, of_parameters / of_updates, 1.0).unbind()
