"""Networks inside of what PyTorch wraps around them."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Their state dicts have other names than the network's, which fit no other network.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _is_compiled(model: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # expensive to import
    return compiler is not None and isinstance(model, compiler.OptimizedModule)
