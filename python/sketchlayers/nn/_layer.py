"""What every layer shares that stands for an ``nn.Conv2d`` or an ``nn.Linear``.

A family of layers (sketches, factors, generated weights) says how a layer is built, what its dense
weight is and how it is fitted. `Conv2dLayer` and `LinearLayer` have the dense layer's arguments,
once for all; the decorator `stands_for_dense` adds a class's own to its signature and writes the
shared arguments into its docstrings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sketchlayers._runtime.parallel import check_whole
from sketchlayers.decompose._checks import check_finite

from ._checks import one_of, refuse_other_layers, whole_number
from ._config import Configured, dense_arguments
from ._geometry import (
    Geometry,
    PaddingMode,
    effective_dilation,
    geometry_repr,
    memory_format,
    pad,
)

Device = torch.device | str | int | None


class CompressedLayer(Configured):
    """A layer in place of a dense one, with fewer parameters.

    Attributes:
        fit_error: relative error of the weight this layer was made from, in the norm of the fit (of
            the factors in float64); ``None`` for a layer that was not made from another. Not part
            of the state dict.
        rate: parameters of this layer over those of the dense one, biases included.
    """

    # The plain layer that this one stands for.
    _dense_class: ClassVar[type[nn.Conv2d] | type[nn.Linear]]
    if TYPE_CHECKING:  # TorchScript would read the annotation, and a family may compute its bias
        bias: nn.Parameter | None

    # What ``init`` may be.
    _inits: ClassVar[tuple[str, ...]] = ("fit", "random")
    # Computed on request in Python; not for TorchScript, which otherwise compiles every property.
    __jit_unused_properties__: ClassVar[list[str]] = [
        "weight",
        "bias",
        "rate",
        "_groups",
        "_kernel",
        "_weight_shape",
        "_patch",
    ]

    def _construct(self, bias: bool, device: Device, dtype: torch.dtype | None) -> None:
        """Finish the construction, the dense layer's sizes known; a family has more arguments."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight of the dense layer that computes the same, differentiable."""
        raise NotImplementedError

    def _weight_parameters(self) -> list[nn.Parameter]:
        """What the weight is made from."""
        raise NotImplementedError

    def _fit(
        self,
        weight: Tensor,
        init: str,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        **how: Any,
    ) -> float:
        """Take the parameters nearest to a weight; return the relative error."""
        raise NotImplementedError

    def _fill_stored(self, options: Mapping[str, Any]) -> None:
        """Write what is fixed but not made from the seed, into memory that was not initialised."""

    @property
    def weight(self) -> Tensor:
        """The dense weight, as `dense_weight` gives it. Read-only; train the parameters."""
        return self.dense_weight()

    @property
    def rate(self) -> float:
        """Parameters of this layer over those of the dense one, biases included."""
        kept = 0 if self.bias is None else len(self.bias)
        own = sum(parameter.numel() for parameter in self.parameters())
        return own / (math.prod(self._weight_shape) + kept)

    @property
    def _groups(self) -> int:
        raise NotImplementedError

    @property
    def _kernel(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        raise NotImplementedError

    @property
    def _patch(self) -> int:
        """``n``, the number of inputs of one output."""
        return math.prod(self._weight_shape[1:])

    @classmethod
    def _from_dense(
        cls,
        dense: nn.Conv2d | nn.Linear,
        options: Mapping[str, Any],
        init: str,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        reset: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Self:
        """A layer in place of ``dense``.

        Args:
            dense: the layer.
            options: arguments of the constructor after the dense layer's.
            init: one of `_inits`.
            second_moment: of the inputs of one output.
            sensitivity: of the outputs.
            reset: arguments of ``reset_parameters``, for random parameters.
            how: arguments of the fit.
        """
        owner = cls.__name__
        refuse_other_layers(owner, dense, cls._dense_class)
        one_of(owner, "init", init, cls._inits)
        for name, tensor in (("second_moment", second_moment), ("sensitivity", sensitivity)):
            if tensor is not None and init != "fit":
                raise ValueError(
                    f"{owner}: {name} must be None unless init is 'fit' (got init={init!r})"
                )
        weight = dense.weight.detach()
        sizes = dense_arguments(dense)
        layer = skip_init(cls, **sizes, **options, device=weight.device, dtype=weight.dtype)
        layer._fill_stored(options)
        parameters = layer._weight_parameters()
        for parameter in parameters:
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=memory_format(weight))
        if init == "random":
            layer.reset_parameters(**(reset or {}))
        elif not weight.is_meta:  # without values there is nothing to fit
            check_finite(owner, f"weight of {type(dense).__name__}", weight)
            layer.fit_error = layer._fit(weight, init, second_moment, sensitivity, **how)
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


class Conv2dLayer(CompressedLayer):
    """A layer in place of a convolution; has the attributes of ``nn.Conv2d``."""

    # Never other than these; tools that count operations or export read them of any convolution.
    transposed: ClassVar[bool] = False
    output_padding: ClassVar[tuple[int, int]] = (0, 0)
    _dense_class = nn.Conv2d

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
        )
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding_mode = geometry.padding_mode
        self._construct(bias, device, dtype, **options)

    def fold(self) -> nn.Conv2d:
        """The plain convolution with this layer's weight, of the same device, type and format."""
        folded: nn.Conv2d = self._folded()
        return folded

    def _convolved(self, input: Tensor, weight: Tensor) -> Tensor:
        """What the plain convolution makes of ``(N, d2, H, W)`` or ``(d2, H, W)``."""
        input, padding = pad(self, input)
        dilation = effective_dilation(self)
        return F.conv2d(input, weight, self.bias, self.stride, padding, dilation, self.groups)

    @property
    def _groups(self) -> int:
        return self.groups

    @property
    def _kernel(self) -> tuple[int, ...]:
        return self.kernel_size

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        return ", ".join([*geometry_repr(self), *self._options_repr(), f"rate={self.rate:.3g}"])


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
        self._construct(bias, device, dtype, **options)

    def fold(self) -> nn.Linear:
        """The plain layer with this layer's weight, of the same device and type."""
        folded: nn.Linear = self._folded()
        return folded

    @property
    def _groups(self) -> int:
        return 1

    @property
    def _kernel(self) -> tuple[int, ...]:
        return ()

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


def linear_rows(owner: str, in_features: int, input_shape: Sequence[int]) -> int:
    """Number of rows of an input ``(*, in_features)``.

    Raises:
        RuntimeError: the shape does not fit the layer.
    """
    if len(input_shape) < 1 or input_shape[-1] != in_features:
        raise RuntimeError(
            f"{owner}: input_shape must be (*, {in_features}) "
            f"(got input_shape={tuple(input_shape)})"
        )
    return math.prod(input_shape[:-1])


_CONV2D = """\
        in_channels: ``d2``, of all groups together.
        out_channels: ``d1``, of all groups together.
        kernel_size: ``(h, w)`` or one number for both.
        stride: as in ``nn.Conv2d``.
        padding: number, pair, ``"same"`` or ``"valid"``.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: learn a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of parameters and buffers; may be ``"meta"``.
        dtype: of the parameters.
"""
_LINEAR = """\
        in_features: ``d2``.
        out_features: ``d1``.
        bias: learn a bias.
        device: of parameters and buffers; may be ``"meta"``.
        dtype: of the parameters.
"""
_CARRIED = """\
        Device, type, memory format, the bias, ``requires_grad`` and the training flag carry over,
        hooks do not. The attribute ``fit_error`` holds the relative error of the weight. On the
        meta device there are no values to fit, and the result is a meta layer.

        Args:
            {name}: the layer; a subclass must compute its output as ``nn.{kind}`` does.
            {options}: see the class.
"""
_NORM = {
    "Conv2d": """\
            second_moment: ``E[x x^T]`` of the input patches in the order of ``F.unfold``,
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

L = TypeVar("L", bound=type[CompressedLayer])


def stands_for_dense(kind: L) -> L:
    """Complete a layer's signatures and docstrings by what it shares with others of its kind.

    The constructor takes the dense layer's arguments, in their order, and then those of
    ``_construct``; ``from_conv`` or ``from_linear`` takes the latter as options.
    """
    dense = kind._dense_class.__name__
    shared: type[CompressedLayer] = Conv2dLayer if dense == "Conv2d" else LinearLayer
    build = inspect.signature(kind._construct).parameters.values()
    own = [
        part
        for part in build
        if part.kind is part.KEYWORD_ONLY and part.name not in getattr(kind, "_without", ())
    ]
    common = inspect.signature(shared.__init__).parameters.values()
    signature = inspect.Signature(
        [*(part for part in common if part.kind is not part.VAR_KEYWORD), *own],
        return_annotation="None",
    )

    def __init__(self: CompressedLayer, *arguments: Any, **options: Any) -> None:
        try:
            signature.bind(self, *arguments, **options)
        except TypeError as error:
            raise TypeError(f"{kind.__name__}: {error}") from None
        shared.__init__(self, *arguments, **options)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{kind.__qualname__}.__init__"
    setattr(kind, "__init__", __init__)  # noqa: B010  # mypy sees the shared one
    if kind.__doc__:
        kind.__doc__ = _documented_class(kind, _CONV2D if dense == "Conv2d" else _LINEAR)
    name = "from_conv" if dense == "Conv2d" else "from_linear"
    convert = vars(kind)[name].__func__
    _spell_out(convert, own, dense)
    return kind


def _documented_class(kind: type[CompressedLayer], dense: str) -> str:
    """The docstring with the dense layer's arguments, those of the family, and what is raised."""
    head, _, rest = (kind.__doc__ or "").partition("    Args:\n")
    own, _, rest = rest.partition("\n\n")
    raised = "" if "    Raises:\n" in rest else _REFUSED
    if raised and kind._needs_extension:
        raised = raised.replace("Raises:\n", "Raises:\n" + _WITHOUT_EXTENSION)
    rest, _, example = rest.partition("    Example:\n")
    family = getattr(kind, "_documented", "")
    return f"{head}    Args:\n{dense}{own}\n{family}\n{rest}{raised}    Example:\n{example}"


def _spell_out(convert: Callable[..., Any], own: list[inspect.Parameter], dense: str) -> None:
    """Names the options in the signature of ``from_conv`` or ``from_linear``, and documents all."""
    given = list(inspect.signature(convert).parameters.values())
    named = {part.name for part in given}
    options = [part for part in own if part.name not in named]
    if any(part.kind is part.VAR_KEYWORD for part in given):
        place = next(i for i, part in enumerate(given) if part.kind is part.KEYWORD_ONLY)
        given = [*given[:place], *options, *given[place:-1]]
        convert.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            given, return_annotation="Self"
        )
    if convert.__doc__:
        head, _, arguments = convert.__doc__.partition("        Args:\n")
        carried = _CARRIED.format(
            name=given[1].name, kind=dense, options=", ".join(part.name for part in own)
        )
        arguments = arguments.rstrip() + "\n"
        convert.__doc__ = head + carried + arguments + _NORM[dense] + _RAISED
