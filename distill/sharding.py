"""FSDP2: a model divided among the processes, and what its shards mean as one (house contract 3).

Every block of the network is a group that is gathered while it computes. The root group (embedding, final norm, head,
projections) stays gathered until the loss returns, because the loss reads the head's weights outside any block.
Parameters and gradients are fp32, so that sharding changes the place of numbers and not the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """The same module, its parameters divided among all processes; every process must hold the same weights before.

    The parameters are other objects afterwards: optimisers are made later, copies of the module earlier. A moving
    average of it is sharded by a call of its own.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in transformer_blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)  # in place
    module.register_forward_hook(_divide_again)
    return module


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of the network inside: of the outermost lists of modules the one with the most parameters.

    ELC-BERT's layers read the outputs of all earlier ones, never their weights, so each is a group here too.
    """
    lists = list(_outermost_lists(module))
    return list(max(lists, key=_num_parameters)) if lists else []


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to at most this norm together; returns the norm before, of the whole model in every process."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole(get_total_norm([parameter.grad for parameter in parameters]))  # type: ignore[misc]
    found = float(norm)
    if not found + 1e-6 <= max_norm:  # else torch would multiply all gradients by 1
        clip_grads_with_norm_(parameters, max_norm, norm)
    return found


def is_sharded(module: nn.Module) -> bool:
    """Whether its parameters are divided among processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor that shards are of, in every process; each must ask. A plain tensor is whole already."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; of a plain tensor all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like_shards(part: Tensor, of: Tensor) -> Tensor:
    """A part of this process as what it is a part of: a tensor divided as `of` is."""
    if not isinstance(of, DTensor):
        return part
    return DTensor.from_local(
        part.to(of.device), of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
    )


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole and on the CPU, in the first process; empty in the others. Every one must ask.

    A module that is not divided answers from what it has.
    """
    if not is_sharded(module):
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}
    state: dict[str, Any] = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def _divide_again(root: nn.Module, inputs: Any, outputs: Any) -> None:
    """The root stays gathered for the backward pass; where none comes nothing else would divide it again."""
    assert isinstance(root, FSDPModule), "fully_shard has made it one"
    if not torch.is_grad_enabled():
        root.reshard()


def _outermost_lists(module: nn.Module) -> Iterable[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
