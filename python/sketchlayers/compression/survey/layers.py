"""Every layer of a model, its size, and the reason if it cannot be replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from sketchlayers import methods
from sketchlayers.compression.survey.reasons import Reason, Reasons
from sketchlayers.methods import Method
from sketchlayers.methods._method import Init
from sketchlayers.nn._geometry import CONVOLUTIONS
from sketchlayers.reports.rows import OtherParameter
from sketchlayers.surgery.calls import Call, Shapes, record_calls

_MATRIX_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear)
_OTHER_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)

_NOTED_SHARE = 0.01
"""Of the model's parameters, from which on a module that is no known layer is listed."""


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        name: qualified name; the first one where the layer has several; "" for the model itself.
        module: the layer.
        kind: name of its class.
        shape: shape of its weight; () where it has none or none yet.
        parameters: how many parameters it brings; one that an earlier layer has too is not counted.
        bytes: what a checkpoint holds of it: parameters and persistent buffers.
        calls: its calls on the examples; None without examples.
        multiply_adds: of these calls together, for one image; None where not known (no calls seen,
            or a kind of layer that is not counted).
        reason: why it cannot be replaced; None if it can.
    """

    name: str
    module: nn.Module
    kind: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    calls: tuple[Shapes, ...] | None
    multiply_adds: int | None
    reason: Reason | None


@dataclass(frozen=True)
class Survey:
    """All layers of a model in the order of registration, and what lies outside of them.

    Attributes:
        layers: convolutions, linear layers, embeddings, recurrent and attention layers, and modules
            of other kinds that hold much of the parameters.
        first: name of the layer that runs first; None if there is none.
        others: parameters outside of the layers (normalisation, free parameters).
        other_bytes: what a checkpoint holds of those, and of buffers there.
    """

    layers: tuple[Layer, ...]
    first: str | None
    others: tuple[OtherParameter, ...]
    other_bytes: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, each counted once."""
        return self.other_parameters + sum(layer.parameters for layer in self.layers)

    @property
    def other_parameters(self) -> int:
        """Number of parameters outside of the layers."""
        return sum(one.parameters for one in self.others)

    @property
    def bytes(self) -> int:
        """What a checkpoint holds of the model."""
        return self.other_bytes + sum(layer.bytes for layer in self.layers)

    @property
    def compressible(self) -> tuple[Layer, ...]:
        """The layers that can be replaced."""
        return tuple(layer for layer in self.layers if layer.reason is None)


def survey(
    model: nn.Module,
    method: Method,
    *,
    init: Init = "fit",
    examples: Sequence[tuple[Call, int]] = (),
    all_called: bool = False,
    owner: str = "compress",
) -> Survey:
    """Looks at every layer; the model is not changed.

    With examples, a copy of the model runs once on them (`record_calls`): the order of execution
    and the multiply-adds are then known, and layers that are never called are not replaced.
    Without, the order of registration counts as the order of execution.

    Args:
        model: any module.
        method: what layers may be replaced by.
        init: whether weights are fitted.
        examples: calls of the model, each with its number of images; one at least, or none.
        all_called: whether others find out which layers are called.
        owner: the function that is called, for messages.

    Raises:
        ValueError: the model does not run on the example inputs.
        TypeError: there are example inputs and the model cannot be copied.
    """
    found = dict(_find_layers(model))
    calls = record_calls(model, found, examples, owner=owner) if examples else None
    parameters, sizes, others = _count_by_owner(model, found)
    reasons = Reasons(model, method, init, None if all_called else calls)
    layers = []
    for name, module in found.items():
        own_calls = None if calls is None else tuple(calls.get(name, ()))
        layer = Layer(
            name=name,
            module=module,
            kind=type(module).__name__,
            shape=_weight_shape(module),
            parameters=parameters.get(name, 0),
            bytes=sizes.get(name, 0),
            calls=own_calls,
            multiply_adds=multiply_adds(module, own_calls) if own_calls else None,
            reason=reasons.of(name, module),
        )
        layers.append(layer)
    order = found if calls is None else calls
    kinds = (*_MATRIX_LAYERS, *methods.compressed_layers())
    return Survey(
        layers=tuple(layers),
        first=next((name for name in order if isinstance(found[name], kinds)), None),
        others=others,
        other_bytes=sizes.get(None, 0),
    )


@torch.no_grad()
def multiply_adds(layer: nn.Module, calls: tuple[Shapes, ...]) -> int | None:
    """Counts the multiply-adds of the calls, for one image; None where that is not known.

    A compressed layer tells them itself, for the path that it would take. A convolution needs its
    weight once at every output position (a transposed one: at every input position), a linear
    layer once for every row.
    """
    counts = [_multiply_adds(layer, call) for call in calls]
    if None in counts:
        return None
    return round(sum(n / call.images for n, call in zip(counts, calls, strict=True) if n))


def _multiply_adds(layer: nn.Module, call: Shapes) -> int | None:
    count = getattr(layer, "multiply_adds", None)
    if callable(count):
        return int(count(call.input_shape))
    if isinstance(layer, nn.Embedding):
        return 0
    shape = _weight_shape(layer)
    if not shape or not isinstance(layer, _MATRIX_LAYERS):
        return None
    if isinstance(layer, _ConvTransposeNd):
        positions = math.prod(call.input_shape) // layer.in_channels
    elif isinstance(layer, _ConvNd):
        positions = math.prod(call.output_shape) // layer.out_channels
    else:
        positions = math.prod(call.output_shape[:-1])
    return positions * math.prod(shape)


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields parameters and persistent buffers by name, each once: what a checkpoint holds."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        tensors: dict[str, Tensor | None] = {**module._parameters}
        for key, buffer in module._buffers.items():
            if key not in module._non_persistent_buffers_set:
                tensors[key] = buffer
        for key, tensor in tensors.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{key}" if prefix else key, tensor


def stored_bytes(tensor: Tensor) -> int:
    """Returns the bytes of the values; 0 for a lazy parameter, whose shape is not known yet."""
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()


def _find_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers by name; what a compressed layer is made of is not looked into.

    Layers are also modules of other kinds with much of the parameters in matrices of their own.
    """
    known = [parameter for parameter in model.parameters() if not is_lazy(parameter)]
    least = max(1, math.ceil(_NOTED_SHARE * sum(parameter.numel() for parameter in known)))
    compressed = methods.compressed_layers()
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, compressed):
            inside.append(f"{name}." if name else "")
            yield name, module
        elif isinstance(module, (*_MATRIX_LAYERS, *_OTHER_LAYERS)) or (
            name and _own_matrices(module) >= least
        ):
            yield name, module


def _own_matrices(module: nn.Module) -> int:
    """Entries of the parameters of two dimensions and more that a module holds itself."""
    own = (p for p in module._parameters.values() if p is not None and not is_lazy(p))
    return sum(parameter.numel() for parameter in own if parameter.dim() > 1)


def dense_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns all convolutions and linear layers outside of compressed layers, by name."""
    return {
        name: layer
        for name, layer in _find_layers(model)
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear))
    }


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of the dense weight, without computing it; () if there is none or none yet."""
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return ()
    sizes = vars(layer)
    if "kernel_size" in sizes:
        ends = [sizes["out_channels"], sizes["in_channels"]]
        if sizes.get("transposed"):
            ends.reverse()
        return (ends[0], ends[1] // sizes["groups"], *sizes["kernel_size"])
    if "in_features" in sizes:
        return (sizes["out_features"], sizes["in_features"])
    weight = sizes["_parameters"].get("weight")
    return () if weight is None else tuple(weight.shape)


def _count_by_owner(
    model: nn.Module, layers: Mapping[str, nn.Module]
) -> tuple[dict[str, int], dict[str | None, int], tuple[OtherParameter, ...]]:
    """Parameters and stored bytes by the innermost layer that holds them, and what no layer holds.

    The bytes of None are those of no layer, with buffers.
    """
    parameters: dict[str, int] = {}
    others = []
    sizes: dict[str | None, int] = {}
    for name, tensor in stored_tensors(model):
        owner: str | None = name.rpartition(".")[0]
        while owner is not None and owner not in layers:
            owner = owner.rpartition(".")[0] if owner else None
        if isinstance(tensor, nn.Parameter):
            shape = () if is_lazy(tensor) else tuple(tensor.shape)
            count = 0 if is_lazy(tensor) else tensor.numel()
            if owner is None:
                kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
                others.append(OtherParameter(name, kind, shape, count))
            else:
                parameters[owner] = parameters.get(owner, 0) + count
        sizes[owner] = sizes.get(owner, 0) + stored_bytes(tensor)
    return parameters, sizes, tuple(others)
