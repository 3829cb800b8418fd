"""Parameters, gradients and optimizer states spread over processes (FSDP2), and tensors made whole again.

Functions marked as collective must be called by all processes in the same order, and wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .network import Network


def spread(network: Network) -> Network:
    """Spread the network over the processes of the default group, block by block; in place. Collective.

    A text encoder that is not trained stays whole everywhere: it is used once per step, and may have another precision.
    """
    mesh = init_device_mesh(network.transformer.device.type, (dist.get_world_size(),))
    encoder = [] if network.text_encoder is None else list(network.text_encoder.parameters())
    whole = set() if any(each.requires_grad for each in encoder) else set(encoder)
    for block in network.transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh, ignored_params=whole)
    return network


def whole(value: Any) -> Any:
    """A spread tensor as one on the CPU of the first process, as an empty one elsewhere: eight processes of a machine
    do not hold eight copies. Anything else as it is. Collective."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def as_parameter(value: Any, parameter: torch.Tensor) -> Any:
    """A whole tensor of a parameter's shape placed as that parameter is; anything else as it is. Collective."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def everywhere(norm: torch.Tensor) -> torch.Tensor:
    """A number that may be spread, on every process. Collective."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather(network: torch.nn.Module) -> None:
    """Keep all parameters whole, so that any part of the network runs by itself, and often: to edit, a pipeline calls
    parts of blocks many times, and gathering them each time would take longer than the edit. Collective."""
    for module in _spread(network):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def forget(network: torch.nn.Module) -> None:
    """Let go of what is whole: parameters are about to change, or have been."""
    for module in _spread(network):
        module.set_reshard_after_forward(module is not network, recurse=False)
        module.reshard()


def _spread(network: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def agreed(value: bool) -> bool:
    """What the first process says. Collective."""
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def same_everywhere(find: Callable[[], Any], what: str) -> None:
    """Raises ValueError where processes do not find the same once all have come here. Collective."""
    dist.barrier()
    value, found = find(), [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    if any(each != value for each in found):
        raise ValueError(f"processes found different {what}: {found}; let all nodes mount the same folder")
