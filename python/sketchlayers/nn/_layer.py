"""What every layer shares that stands for a convolution or an ``nn.Linear``.

A family of layers (sketches, factors, generated weights) says how a layer is built, what its dense
weight is and how it is fitted. `ConvLayer`, `ConvTransposeLayer` and `LinearLayer` have the dense
layer's arguments and ``from_conv`` and ``from_linear``, once for all; the decorator
`stands_for_dense` writes the signatures and docstrings that a class has of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sketchlayers._runtime.parallel import check_whole
from sketchlayers.decompose._checks import check_finite

from ._checks import check_one_given, checked_rate, one_of, refuse_other_layers, whole_number
from ._config import NO_PART, Configured, dense_arguments
from ._geometry import (
    CHANNELS_LAST,
    DenseConv,
    Geometry,
    PaddingMode,
    effective_dilation,
    geometry_repr,
    memory_format,
    ordinary_weight,
    own_weight,
    pad,
)
from ._weight import computed_weight

Device = torch.device | str | int | None
Factory = dict[str, Any]  # device and dtype, by name
Norm = tuple[Tensor | None, Tensor | None]  # second moment of inputs, sensitivity of outputs


_UNSET = (
    "{owner}: weight is computed from the parameters and cannot be set; for batch norm there is "
    "sketchlayers.fuse_batch_norm(layer, norm), for anything else set the layer's parameters "
    "(named_parameters()), or take the plain layer, sketchlayers.fold(layer)"
)


class CompressedLayer(Configured):
    """A layer in place of a dense one, with fewer parameters.

    Attributes:
        fit_error: relative error of the weight this layer was made from, in the norm of the fit (of
            the factors in float64); ``None`` for a layer that was not made from another. Not part
            of the state dict.
        rate: parameters of this layer over those of the dense one, biases included.
    """

    # The plain layer that this one stands for.
    _dense_class: ClassVar[type[DenseConv] | type[nn.Linear]]
    if TYPE_CHECKING:  # TorchScript would read the annotations, and a family may compute its bias
        bias: nn.Parameter | None
        # Of the parameters that the weight is made from, as they were constructed: later they may
        # be quantised or computed.
        _entries: int

    # What ``init`` may be.
    _inits: ClassVar[tuple[str, ...]] = ("fit", "random")
    # Arguments of the constructor after the dense layer's, the size first; found by the decorator.
    _own: ClassVar[tuple[str, ...]]
    # Arguments of ``from_conv`` and ``from_linear`` for `_fit` and `_draw` alone; their defaults.
    _fit_options: ClassVar[Mapping[str, Any]] = {}
    # Docstrings of what a family adds to the constructor's arguments; of ``init`` and the above.
    _documented: ClassVar[str] = ""
    _documented_fit: ClassVar[str]
    # Computed on request in Python; not for TorchScript, which otherwise compiles every property.
    __jit_unused_properties__: ClassVar[list[str]] = [
        "weight",
        "bias",
        "rate",
        "_groups",
        "_kernel",
        "_weight_shape",
        "_outputs",
        "_patch",
    ]

    def _construct(self, bias: bool, factory: Factory) -> None:
        """Finish the construction, the dense layer's sizes known; a family has more arguments."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight of the dense layer that computes the same, differentiable."""
        raise NotImplementedError

    def _weight_parameters(self) -> list[nn.Parameter]:
        """What the weight is made from."""
        raise NotImplementedError

    def _fit(self, weight: Tensor, init: str, norm: Norm, **how: Any) -> float:
        """Take the parameters nearest to a weight; return the relative error."""
        raise NotImplementedError

    def _draw(self, **how: Any) -> None:
        """Take random parameters in place of a fit."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        raise NotImplementedError

    def _fill_stored(self, options: Mapping[str, Any], norm: Norm) -> None:
        """Write what is fixed but not made from the seed, into memory that was not initialised."""

    def _applied(self, input: Tensor, weight: Tensor) -> Tensor:
        """What the dense layer makes of an input, with this weight and the bias."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """As `Configured.options`."""
        return {name: getattr(self, name) for name in self._own if name not in NO_PART}

    def _add_bias(self, bias: bool, factory: Factory) -> None:
        """Register the parameter ``bias``, not initialised, or None."""
        made = torch.empty(self._outputs, **factory) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made))

    def _draw_bias(self, generator: torch.Generator | None = None) -> None:
        """Draw the bias as the dense layer draws it."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self._patch)
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def _number_or_nearest(
        self,
        name: str,
        number: int | None,
        rate: float | None,
        bias: bool,
        bounds: tuple[int, int],
        parameters: int = 1,
    ) -> int:
        """The size that was given, checked, or that nearest to the rate within its bounds.

        Args:
            name: of the size.
            number: the size, or None for a rate.
            rate: None for a size.
            bias: whether the layer has one.
            bounds: the smallest and the largest size.
            parameters: for each unit of the size.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of its range, both or none of them.
        """
        owner = type(self).__name__
        check_one_given(owner, name, number, rate)
        if number is not None:
            return whole_number(owner, name, number, *bounds)
        assert rate is not None
        kept = self._outputs if bias else 0
        dense = math.prod(self._weight_shape) + kept
        wanted = round((checked_rate(owner, rate) * dense - kept) / parameters)
        return min(max(bounds[0], wanted), bounds[1])

    @property
    def weight(self) -> Tensor:
        """The dense weight, as `dense_weight` gives it. A write into it raises a RuntimeError."""
        owner, first = type(self).__name__, self._weight_parameters()[0]
        check_whole(owner, first)
        return computed_weight(owner, self.dense_weight(), memory_format(first))

    @weight.setter
    def weight(self, weight: object) -> NoReturn:
        raise AttributeError(_UNSET.format(owner=type(self).__name__))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of ``nn.Module``.

        Raises:
            AttributeError: for the weight, which is computed.
        """
        if name == "weight" or name.startswith("weight_"):  # as pruning and the like store it
            raise AttributeError(_UNSET.format(owner=type(self).__name__))
        super().register_parameter(name, param)

    @property
    def rate(self) -> float:
        """Parameters of this layer over those of the dense one, biases included."""
        kept = 0 if self.bias is None else self._outputs
        return (self._entries + kept) / (math.prod(self._weight_shape) + kept)

    def _count_entries(self) -> int:
        """Of all parameters that the weight is made from."""
        return sum(parameter.numel() for parameter in self._weight_parameters())

    @property
    def _groups(self) -> int:
        return int(getattr(self, "groups", 1))

    @property
    def _kernel(self) -> tuple[int, ...]:
        """Kernel size of a convolution; empty for a fully connected layer."""
        return getattr(self, "kernel_size", ())

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        raise NotImplementedError

    @property
    def _outputs(self) -> int:
        """Channels or features that the layer returns, which the bias has an entry for."""
        return self._weight_shape[0]

    @property
    def _patch(self) -> int:
        """``n``, the number of inputs of one output; of a transposed one, by which it is drawn."""
        return math.prod(self._weight_shape[1:])

    @classmethod
    def _from_dense(
        cls,
        dense: DenseConv | nn.Linear,
        size: Sequence[Any],
        init: str,
        norm: Norm,
        options: Mapping[str, Any],
    ) -> Self:
        """A layer in place of ``dense``.

        Args:
            dense: the layer.
            size: of the new one, unless it is among the options.
            init: one of `_inits`.
            norm: in which to fit.
            options: arguments of the constructor after the dense layer's, and of `_fit_options`.
        """
        owner = cls.__name__
        refuse_other_layers(owner, dense, cls._dense_class)
        one_of(owner, "init", init, cls._inits)
        for name, tensor in zip(("second_moment", "sensitivity"), norm, strict=True):
            if tensor is not None and init != "fit":
                raise ValueError(
                    f"{owner}: {name} must be None unless init is 'fit' (got init={init!r})"
                )
        how = {name: options.get(name, value) for name, value in cls._fit_options.items()}
        own = {name: value for name, value in options.items() if name not in how}
        own |= zip(cls._own, size, strict=False)
        weight = dense.weight.detach()
        sizes = dense_arguments(dense)
        layer = skip_init(cls, **sizes, **own, device=weight.device, dtype=weight.dtype)
        layer._fill_stored(own, norm)
        parameters = layer._weight_parameters()
        for parameter in parameters:
            if parameter.dim() == weight.dim() and weight.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=memory_format(weight))
        if init == "random":
            layer._draw(**how)
        elif not weight.is_meta:  # without values there is nothing to fit
            check_finite(owner, f"weight of {type(dense).__name__}", weight)
            layer.fit_error = layer._fit(weight, init, norm, **how)
        for parameter in parameters:
            parameter.requires_grad_(dense.weight.requires_grad)
        if layer.bias is not None and dense.bias is not None:
            layer.bias.detach().copy_(dense.bias.detach())
            layer.bias.requires_grad_(dense.bias.requires_grad)
        return layer.train(dense.training)

    def _folded(self) -> Any:
        """The dense layer with this layer's weight."""
        parameters = self._weight_parameters()
        first = parameters[0]
        check_whole(type(self).__name__, first)
        sizes = dense_arguments(self)
        dense = skip_init(self._dense_class, **sizes, device=first.device, dtype=first.dtype)
        dense.to(memory_format=memory_format(first))
        with torch.no_grad():
            dense.weight.copy_(self.dense_weight())
            dense.weight.requires_grad_(any(part.requires_grad for part in parameters))
            if self.bias is not None:
                dense.bias.copy_(self.bias)
                dense.bias.requires_grad_(self.bias.requires_grad)
        return dense.train(self.training)

    def _scaled(self, scale: Tensor, shift: Tensor) -> nn.Module:
        """A layer whose outputs are ``scale`` times this one's plus ``shift``, both ``(d1,)``.

        By the plain layer, where a family has no parameters for each output alone.
        """
        return scale_outputs(self._folded(), "weight", scale, shift)


def scale_outputs(layer: nn.Module, name: str, scale: Tensor, shift: Tensor) -> nn.Module:
    """Scale the outputs of a layer, whose parameter of this name has a row for each, and shift."""
    parameter = layer.get_parameter(name)
    with torch.no_grad():
        rows = scale.reshape(-1, *[1] * (parameter.dim() - 1))
        if name == "weight" and getattr(layer, "transposed", False):  # has no row for each output
            scaled = own_weight(layer, ordinary_weight(layer).to(scale.dtype) * rows)
        else:
            scaled = parameter.to(scale.dtype) * rows
        parameter.copy_(scaled)
        if isinstance(layer.bias, Tensor):
            layer.bias.copy_(layer.bias.to(scale.dtype) * scale + shift)
        else:
            layer.bias = nn.Parameter(shift.to(parameter), parameter.requires_grad)
    return layer


class ConvLayer(CompressedLayer):
    """A layer in place of a convolution; has the attributes of PyTorch's."""

    # Tools that count operations or export read it of any convolution.
    transposed: ClassVar[bool] = False
    _axes: ClassVar[int]
    if TYPE_CHECKING:  # TorchScript would read the annotations
        in_channels: int
        out_channels: int
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        padding: str | tuple[int, ...]
        dilation: tuple[int, ...]
        groups: int
        padding_mode: PaddingMode

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        geometry = Geometry.checked(
            type(self).__name__,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            axes=self._axes,
        )
        self._begin(geometry, bias, {"device": device, "dtype": dtype}, options)

    def _begin(
        self, geometry: Geometry, bias: bool, factory: Factory, options: dict[str, Any]
    ) -> None:
        """Take the attributes of this geometry, and construct the rest."""
        for name, value in geometry.arguments().items():
            setattr(self, name, value)
        self._construct(bias, factory, **options)
        self._entries = self._count_entries()

    @classmethod
    def from_conv(
        cls,
        conv: DenseConv,
        *size: Any,
        init: str = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Any,
    ) -> Self:
        """A layer of this class in place of ``conv``, which is left as it is."""
        return cls._from_dense(conv, size, init, (second_moment, sensitivity), options)

    def fold(self) -> DenseConv:
        """The plain convolution with this layer's weight, of the same device, type and format."""
        folded: DenseConv = self._folded()
        return folded

    def _applied(self, input: Tensor, weight: Tensor) -> Tensor:
        input, padding = pad(self, input)
        dilation = effective_dilation(self)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self._axes - 1]
        bias = parameter_of(self, "bias")
        return convolve(input, weight, bias, self.stride, padding, dilation, self.groups)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        return ", ".join([*geometry_repr(self), *self._options_repr(), f"rate={self.rate:.3g}"])


class Conv1dLayer(ConvLayer):
    """A layer in place of an ``nn.Conv1d``."""

    output_padding: ClassVar[tuple[int, ...]] = (0,)
    _axes = 1
    _dense_class = nn.Conv1d


class Conv2dLayer(ConvLayer):
    """A layer in place of an ``nn.Conv2d``."""

    output_padding: ClassVar[tuple[int, ...]] = (0, 0)
    _axes = 2
    _dense_class = nn.Conv2d


class Conv3dLayer(ConvLayer):
    """A layer in place of an ``nn.Conv3d``."""

    output_padding: ClassVar[tuple[int, ...]] = (0, 0, 0)
    _axes = 3
    _dense_class = nn.Conv3d


class ConvTransposeLayer(ConvLayer):
    """A layer in place of a transposed convolution; has the attributes of PyTorch's."""

    transposed: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        geometry = Geometry.checked(
            type(self).__name__,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            output_padding,
            axes=self._axes,
        )
        self._begin(geometry, bias, {"device": device, "dtype": dtype}, options)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    @property
    def _outputs(self) -> int:
        return self.out_channels


class ConvTranspose1dLayer(ConvTransposeLayer):
    """A layer in place of an ``nn.ConvTranspose1d``."""

    _axes = 1
    _dense_class = nn.ConvTranspose1d


class ConvTranspose2dLayer(ConvTransposeLayer):
    """A layer in place of an ``nn.ConvTranspose2d``."""

    _axes = 2
    _dense_class = nn.ConvTranspose2d


class ConvTranspose3dLayer(ConvTransposeLayer):
    """A layer in place of an ``nn.ConvTranspose3d``."""

    _axes = 3
    _dense_class = nn.ConvTranspose3d


class LinearLayer(CompressedLayer):
    """A layer in place of a fully connected one; has the attributes of ``nn.Linear``."""

    _dense_class = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        owner = type(self).__name__
        self.in_features = whole_number(owner, "in_features", in_features)
        self.out_features = whole_number(owner, "out_features", out_features)
        self._construct(bias, {"device": device, "dtype": dtype}, **options)
        self._entries = self._count_entries()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *size: Any,
        init: str = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Any,
    ) -> Self:
        """A layer of this class in place of ``linear``, which is left as it is."""
        return cls._from_dense(linear, size, init, (second_moment, sensitivity), options)

    def fold(self) -> nn.Linear:
        """The plain layer with this layer's weight, of the same device and type."""
        folded: nn.Linear = self._folded()
        return folded

    def _applied(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input, weight, parameter_of(self, "bias"))

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Arguments of the constructor, and the rate."""
        sizes = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        return ", ".join([*sizes, *self._options_repr(), f"rate={self.rate:.3g}"])


def parameter_of(module: nn.Module, name: str) -> Any:
    """As ``getattr``, but without ``nn.Module``'s search in Python for a parameter of its own."""
    own = module._parameters.get(name)
    return getattr(module, name) if own is None else own


def draw_normal(
    parameter: Tensor, deviation: float, generator: torch.Generator | None = None
) -> None:
    """Draw the entries, in contiguous order, so that the memory format does not change them."""
    values = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    with torch.no_grad():
        parameter.copy_(values.normal_(0, deviation, generator=generator))


_CONV = """\
        in_channels: ``d2``, of all groups together.
        out_channels: ``d1``, of all groups together.
        kernel_size: {kernel_size}.
        stride: as in ``nn.{dense}``.
        padding: {numbers}, ``"same"`` or ``"valid"``.
        dilation: as in ``nn.{dense}``.
        groups: as in ``nn.{dense}``.
        bias: learn a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of parameters and buffers; may be ``"meta"``.
        dtype: of the parameters.
"""
_CONV_TRANSPOSE = """\
        in_channels: ``d2``, of all groups together.
        out_channels: ``d1``, of all groups together.
        kernel_size: {kernel_size}.
        stride: as in ``nn.{dense}``.
        padding: as in ``nn.{dense}``.
        output_padding: as in ``nn.{dense}``.
        groups: as in ``nn.{dense}``.
        bias: learn a bias.
        dilation: as in ``nn.{dense}``.
        padding_mode: ``"zeros"``.
        device: of parameters and buffers; may be ``"meta"``.
        dtype: of the parameters.
"""
_KERNEL_SIZE = {
    1: "``w``",
    2: "``(h, w)`` or one number for both",
    3: "``(d, h, w)`` or one number for all",
}
_NUMBERS = {1: "number", 2: "number, pair", 3: "number, three of them"}
_LINEAR = """\
        in_features: ``d2``.
        out_features: ``d1``.
        bias: learn a bias.
        device: of parameters and buffers; may be ``"meta"``.
        dtype: of the parameters.
"""
_RATE = """
        rate: parameters of this layer over those of ``nn.{dense}``, bias included, in (0, 1], in
            place of ``{size}``; the nearest size is taken, and the attribute ``rate`` tells what it
            gives.
"""
_CONVERTED = """\
A layer of this class in place of ``{given}``, which is left as it is.

        Device, type, memory format, the bias, ``requires_grad`` and the training flag carry over,
        hooks do not. The attribute ``fit_error`` holds the relative error of the weight. On the
        meta device there are no values to fit, and the result is a meta layer.

        Args:
            {given}: the layer; a subclass must compute its output as ``nn.{dense}`` does.
            {options}: see the class.
"""
_NORM = {
    "Conv": """\
            second_moment: ``E[x x^T]`` of the input patches in the order of ``F.unfold``,
                ``(n, n)`` or ``(groups, n, n)``: the fit is in the norm of the output's change.
            sensitivity: weight of the output's errors, ``(d1,)``, or a matrix for each group
                ``(groups, T, T)`` with ``T = d1 / groups``, ``(T, T)`` for one.
""",
    "ConvTranspose": """\
            second_moment: ``E[x x^T]`` of the patches of the input with zeros between its pixels,
                by which a transposed convolution is an ordinary one, in the order of ``F.unfold``,
                ``(n, n)`` or ``(groups, n, n)``: the fit is in the norm of the output's change.
            sensitivity: weight of the output's errors, ``(d1,)``, or a matrix for each group
                ``(groups, T, T)`` with ``T = d1 / groups``, ``(T, T)`` for one.
""",
    "Linear": """\
            second_moment: ``E[x x^T]`` of the inputs, ``(d2, d2)``: the fit is in the norm of the
                output's change.
            sensitivity: weight of the output's errors, ``(d1,)`` or ``(d1, d1)``.
""",
}
_RAISED = """
        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a layer of this kind.
            ValueError: NaN or infinite weights or moments, moments without a fit, or arguments that
                the class refuses.
        """

_REFUSED = """\
    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

"""
_WITHOUT_EXTENSION = """\
        ImportError: the compiled extension is missing, or was built for another PyTorch.
"""

_BASES: tuple[type[CompressedLayer], ...] = (ConvTransposeLayer, ConvLayer, LinearLayer)

L = TypeVar("L", bound=type[CompressedLayer])


def stands_for_dense(kind: L) -> L:
    """Complete a layer's signatures and docstrings by what it shares with others of its kind.

    The constructor takes the dense layer's arguments, in their order, and then those of
    ``_construct``; ``from_conv`` or ``from_linear`` takes the latter as options, and those of the
    fit.
    """
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    own = [
        part
        for part in inspect.signature(kind._construct).parameters.values()
        if part.kind is keyword_only and part.name not in getattr(kind, "_without", ())
    ]
    kind._own = tuple(part.name for part in own)
    shared = next(base for base in _BASES if issubclass(kind, base))
    dense = kind._dense_class.__name__

    constructor: Any = shared.__init__
    common = [*inspect.signature(constructor).parameters.values()][:-1]
    _replace(kind, "__init__", constructor, [*common, *own], "None")

    convert: Any = LinearLayer.from_linear if shared is LinearLayer else ConvLayer.from_conv
    cls, given, _, *norm, _ = inspect.signature(convert.__func__).parameters.values()
    size, *others = own
    size = size.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    fit = [
        inspect.Parameter(name, keyword_only, default=default)
        for name, default in kind._fit_options.items()
    ]
    parameters = [cls, given, size, *others, *norm, *fit]
    method = _replace(kind, convert.__name__, convert.__func__, parameters, "Self")
    setattr(kind, convert.__name__, classmethod(method))
    if kind.__doc__:  # not with python -OO
        kind.__doc__ = _documented_class(kind, dense)
        options = ", ".join(kind._own)
        told = _CONVERTED.format(given=given.name, dense=dense, options=options)
        norm_told = _NORM[shared.__name__.removesuffix("Layer")]
        method.__doc__ = told + kind._documented_fit + norm_told + _RAISED
    return kind


def _replace(
    kind: type[CompressedLayer],
    name: str,
    shared: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    result: str,
) -> Callable[..., Any]:
    """Give the class a method of its own that tells what arguments the shared one takes for it."""
    signature = inspect.Signature(parameters, return_annotation=result)

    def method(first: Any, *arguments: Any, **options: Any) -> Any:
        try:
            signature.bind(first, *arguments, **options)
        except TypeError as error:
            raise TypeError(f"{kind.__name__}: {error}") from None
        return shared(first, *arguments, **options)

    method.__signature__ = signature  # type: ignore[attr-defined]
    method.__name__, method.__qualname__ = name, f"{kind.__qualname__}.{name}"
    setattr(kind, name, method)
    return method


def _documented_sizes(kind: type[CompressedLayer], dense: str) -> str:
    """The arguments of the dense layer."""
    if not issubclass(kind, ConvLayer):
        return _LINEAR
    told = _CONV_TRANSPOSE if issubclass(kind, ConvTransposeLayer) else _CONV
    axes = kind._axes
    return told.format(dense=dense, kernel_size=_KERNEL_SIZE[axes], numbers=_NUMBERS[axes])


def _documented_class(kind: type[CompressedLayer], dense: str) -> str:
    """The docstring with the dense layer's arguments, those of the family, and what is raised."""
    head, _, rest = (kind.__doc__ or "").partition("    Args:\n")
    own, _, rest = rest.partition("\n\n")
    raised = "" if "    Raises:\n" in rest else _REFUSED
    if raised and kind._needs_extension:
        raised = raised.replace("Raises:\n", "Raises:\n" + _WITHOUT_EXTENSION)
    rest, _, example = rest.partition("    Example:\n")
    shared = _documented_sizes(kind, dense)
    rate = _RATE.format(dense=dense, size=kind._own[0])
    arguments = f"{shared}{own}{rate}{kind._documented}"
    return f"{head}    Args:\n{arguments}\n{rest}{raised}    Example:\n{example}"
