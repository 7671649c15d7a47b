"""One network in several processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sketchlayers._runtime.parallel import is_sharded
from sketchlayers._runtime.processes import Processes
from sketchlayers.nn._seeded import SeededModule


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Gives all processes the network of the first one, the signs of its seeds included.

    For networks that were made from other random numbers in every process. Call it in all
    processes, before ``fully_shard`` or ``DistributedDataParallel``; the latter does the same
    unless it is told to leave buffers alone. Parameters that are sharded already, and those on the
    meta device, are left as they are; seeds are shared in any case. Without ``torch.distributed``
    nothing is done.

    Args:
        model: any module, of the same layers in all processes.

    Raises:
        RuntimeError: another process has failed.
        TypeError: ``model`` is no module.
        ValueError: the networks differ in the names, shapes or types of their tensors.

    Example:
        >>> model = nn.Sequential(sketchlayers.SKConv2d(8, 16, 3, rate=0.2), nn.ReLU())
        >>> sketchlayers.broadcast_model(model)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"broadcast_model: model must be an nn.Module (got {type(model).__name__})")
    processes = Processes("broadcast_model", join=True)
    with processes.together("sharing the network"):
        state = model.state_dict(keep_vars=True)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        here = [name for name, x in tensors.items() if not (x.is_meta or is_sharded(x))]
        described = [(name, tuple(x.shape), x.dtype, name in here) for name, x in tensors.items()]
        if not processes.agree(repr(described)):
            raise ValueError(
                "broadcast_model: all processes must have the same network (got other names, "
                "shapes or types of tensors)"
            )
        for name in here:
            processes.take_first(tensors[name])
        for module in model.modules():
            if isinstance(module, SeededModule):
                if module.seed_bits.is_meta:
                    module._seed = processes.first(module._seed)
                module.reset_signs()
