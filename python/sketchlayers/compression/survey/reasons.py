"""Why a layer cannot be replaced, or is not."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sketchlayers import methods
from sketchlayers.methods import Method
from sketchlayers.methods._method import Init
from sketchlayers.nn._geometry import CONVOLUTIONS
from sketchlayers.nn.plain import PlainForm, form_of
from sketchlayers.surgery.forms import form_refusal

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_READ_THROUGH_WEIGHT = {
    "torch.nn.modules.transformer.TransformerEncoderLayer": ("linear1", "linear2"),
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ("qkv", "proj"),
}
"""Classes that hand the weights of some children to functions instead of calling them."""


_BASES: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, nn.Embedding)

_REGISTER = "sketchlayers.register_layer makes it known"

COMPRESSED = "compressed"
"""The kind of the reason of layers that are compressed already."""


REFUSED = "refused"
"""The kind of the reason of plain layers of their own that the method does not take."""


@dataclass(frozen=True)
class Reason:
    """Why a layer stays as it is.

    Attributes:
        text: for people.
        kind: for programs; that of a refusal which nothing else asks for is "other".
    """

    text: str
    kind: str = "other"

    NEVER_CALLED: ClassVar[Reason]
    NOT_CHOSEN: ClassVar[Reason]
    EXCLUDED: ClassVar[Reason]
    FIRST_KEPT: ClassVar[Reason]
    STAYS_DENSE: ClassVar[Reason]
    LAZY: ClassVar[Reason]

    def __str__(self) -> str:
        return self.text


Reason.NEVER_CALLED = Reason("never called on the calibration data", "never_called")
Reason.NOT_CHOSEN = Reason("not among the chosen layers", "not_chosen")
Reason.EXCLUDED = Reason("excluded (exclude=)", "excluded")
Reason.FIRST_KEPT = Reason("the first layer is kept (keep_first=False takes it too)", "first_kept")
Reason.STAYS_DENSE = Reason("stays dense at this rate", "stays_dense")
Reason.LAZY = Reason("lazy: its shape is known only after a first forward call", "lazy")


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
        self.model = model
        self.method = method
        self.init = init
        self.called = called
        self.places = _places(model)
        self.holders = _holders(model)
        self.readers = _readers(model)

    def of(self, name: str, module: nn.Module) -> Reason | None:
        """Says why a layer cannot be replaced; None if it can."""
        if isinstance(module, methods.compressed_layers()):
            kind = type(module).__name__
            return Reason(f"already compressed ({kind}); fold(model) makes it plain", COMPRESSED)
        reason = unusual_layer(module)
        if reason is not Reason.LAZY and form_of(module) is not None:
            return Reason(form_refusal(self.model, module) or "inside another layer")
        if reason is None:
            text = (
                self._unknown(module)
                or self.method.refusal(module)
                or self._used_elsewhere(name, module)
                or self._out_of_reach(module)
            )
            if text is not None:
                alone = not (self._unknown(module) or self._used_elsewhere(name, module))
                reason = Reason(text, REFUSED if alone else "other")
        return reason

    def _unknown(self, module: nn.Module) -> str | None:
        """Says that a module computes from the weights that it holds itself in a way of its own."""
        if isinstance(module, nn.RNNBase):
            return "a fused kernel computes all steps from its dense matrices"
        kinds = (kind for kind in type(module).__mro__ if kind is not nn.Module)
        if any(kind.__module__.startswith("torch.nn.") for kind in kinds):
            return None
        return f"{type(module).__name__} holds its weights itself ({_REGISTER})"

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


def unusual_layer(layer: nn.Module) -> Reason | None:
    """Says what makes the layer more than a plain one with a weight and a bias of its own."""
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return Reason.LAZY
    text = _unusual(layer)
    return None if text is None else Reason(text)


def _unusual(layer: nn.Module) -> str | None:
    kind = type(layer).__name__
    base = next((one for one in _BASES if isinstance(layer, one)), None)
    if base is None:
        return None
    names = ("weight",) if base is nn.Embedding else ("weight", "bias")
    computed = [key for key in names if key not in layer._parameters]
    if computed:
        return f"parametrised: its {' and '.join(computed)} is computed{_sources(layer)}"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "used through its weight (an attention layer's projection)"
    if any(
        getattr(type(layer), name, None) is not getattr(base, name, None)
        for name in ("forward", "_conv_forward", "__call__")
    ):
        return f"{kind} has a forward of its own ({_REGISTER})"
    if "forward" in vars(layer):
        return "its forward has been replaced"
    if len(layer._parameters) > len(names) or layer._buffers or layer._modules:
        return f"{kind} holds more than a {' and a '.join(names)}"
    if isinstance(layer, nn.Embedding):
        for option in ("sparse", "max_norm", "scale_grad_by_freq"):
            if getattr(layer, option):
                return f"its option {option} needs the whole table"
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
        if isinstance(getattr(module, "self_attn", None), PlainForm):
            continue  # an encoder layer of PyTorch then calls all of its children
        for kind in type(module).__mro__:
            for child in _READ_THROUGH_WEIGHT.get(f"{kind.__module__}.{kind.__qualname__}", ()):
                readers[f"{prefix}.{child}" if prefix else child] = type(module).__name__
    return readers
