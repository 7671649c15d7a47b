"""Why a layer cannot be replaced."""

from __future__ import annotations

from collections.abc import Container
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sketchlayers import methods
from sketchlayers.compression.survey.weight_reads import weights_read
from sketchlayers.methods import Method
from sketchlayers.methods._method import Init

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Reasons:
    """Why layers of a model cannot be replaced."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        init: Init,
        called: Container[str] | None,
    ) -> None:
        """Takes the names of the layers that were called on the example inputs, None without."""
        self.method = method
        self.init = init
        self.called = called
        self.places = _places(model)
        self.holders = _holders(model)
        self.readers = _readers(model)

    def of(self, name: str, module: nn.Module) -> str | None:
        """Says in a few words why a layer cannot be replaced; None if it can."""
        if isinstance(module, methods.compressed_layers()):
            return f"already compressed ({type(module).__name__})"
        return (
            _unusual_layer(module)
            or self.method.refusal(module)
            or self._used_elsewhere(name, module)
            or self._out_of_reach(module)
        )

    def _used_elsewhere(self, name: str, module: nn.Module) -> str | None:
        path = name.split(".")
        for depth in range(len(path)):
            outer = ".".join(path[: depth + 1])
            others = [place for place in self.places.get(outer, ()) if place != outer]
            if others:
                what = "shared" if outer == name else "inside a shared module"
                return f"{what}: also registered as {others[0]!r}"
        for key, parameter in module._parameters.items():
            if parameter is not None:
                own = f"{name}.{key}" if name else key
                others = [held for held in self.holders[_identity(parameter)] if held != own]
                if others:
                    return f"tied: its {key} is also {others[0]!r}"
        if name in self.readers:
            return f"used through its weight by {self.readers[name]}"
        if self.called is not None and name not in self.called:
            return "not called on the example inputs"
        return None

    def _out_of_reach(self, module: nn.Module) -> str | None:
        weight = module.get_parameter("weight")
        if weight.is_meta and self.init == "fit":
            return "nothing to fit: its weight is on the meta device"
        if not self.method.ranks(module):
            return "would grow, even at the smallest rank"
        return None


def _unusual_layer(layer: nn.Module) -> str | None:
    """What makes the layer more than a plain one with a weight and a bias of its own."""
    kind = type(layer).__name__
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return "lazy: its shape is known only after a first forward call"
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return None
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    computed = [key for key in ("weight", "bias") if key not in layer._parameters]
    if computed:
        return f"parametrised: its {' and '.join(computed)} is computed{_sources(layer)}"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "used through its weight (an attention layer's projection)"
    if any(
        getattr(type(layer), name, None) is not getattr(base, name, None)
        for name in ("forward", "_conv_forward", "__call__")
    ):
        return f"{kind} has a forward of its own"
    if "forward" in vars(layer):
        return "its forward has been replaced"
    if len(layer._parameters) > 2 or layer._buffers or layer._modules:
        return f"{kind} holds more than a weight and a bias"
    weight = layer._parameters["weight"]
    if weight is None or type(weight) is not nn.Parameter or weight.layout != torch.strided:
        return f"its weight is no plain dense parameter ({type(weight).__name__})"
    if weight.dtype not in _DTYPES:
        return f"its dtype is {str(weight.dtype).removeprefix('torch.')}"
    return None


def _sources(layer: nn.Module) -> str:
    """What a computed weight or bias is made by, or from: " (_WeightNorm)", " (weight_orig)"."""
    if parametrize.is_parametrized(layer):
        lists = cast(nn.ModuleDict, layer.parametrizations).values()
        names = [type(step).__name__ for steps in lists for step in cast(nn.ModuleList, steps)]
    else:
        names = sorted(layer._parameters.keys() - {"weight", "bias"})
    return f" ({', '.join(names)})" if names else ""


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Where each module is registered, by its first name; so are its parents called."""
    names = {module: name for name, module in model.named_modules()}
    places: dict[str, list[str]] = {}
    for parent, prefix in names.items():
        for key, child in parent._modules.items():
            if child is not None:
                places.setdefault(names[child], []).append(f"{prefix}.{key}" if prefix else key)
    return places


def _holders(model: nn.Module) -> dict[object, list[str]]:
    """Names under which distinct modules hold the same tensor."""
    holders: dict[object, list[str]] = {}
    for prefix, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{key}" if prefix else key
                holders.setdefault(_identity(tensor), []).append(name)
    return holders


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that begin at the same place of the same storage."""
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.numel() == 0:
        return id(tensor)
    try:
        return tensor.untyped_storage()._cdata, tensor.storage_offset()
    except (NotImplementedError, RuntimeError):  # tensor subclasses without a storage
        return id(tensor)


def _readers(model: nn.Module) -> dict[str, str]:
    """Layers that a module around them uses through their weight: name -> class of that module."""
    readers: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for path in weights_read(type(module)):  # type: ignore[arg-type]
            readers[f"{prefix}.{path}" if prefix else path] = type(module).__name__
    return readers
