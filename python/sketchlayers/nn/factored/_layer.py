"""What `TuckerConv2d`, `CPConv2d`, `LowRankConv2d` and `LowRankLinear` share: plain layers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sketchlayers._runtime.parallel import check_whole
from sketchlayers.decompose._checks import check_finite
from sketchlayers.nn._checks import checked_rate, one_of, whole_number
from sketchlayers.nn._config import Configured
from sketchlayers.nn._geometry import (
    Geometry,
    batch_and_size,
    geometry_repr,
    memory_format,
    output_size,
)
from sketchlayers.nn._groups import Group, groups_of, overall_error

Init = Literal["fit", "random"]

R = TypeVar("R")


class Fit(NamedTuple):
    """Weights of the parts, in order, for one group; and the relative error."""

    weights: tuple[Tensor, ...]
    relative_error: float


class FactoredLayer(Configured):
    """A layer that is computed by plain layers one after the other; the bias is the last one's.

    Attributes:
        fit_error: relative error of the weight this layer was made from, in the norm of the fit
            (of the factors in float64); ``None`` for a layer that was not made from another. Not
            part of the state dict.
    """

    # Computed on request in Python; not for TorchScript, which otherwise compiles every property.
    __jit_unused_properties__: ClassVar[list[str]] = [
        "weight",
        "bias",
        "rate",
        "_dense_entries",
        "_patch",
    ]

    def __init__(self) -> None:
        super().__init__()
        # Annotated here and not in the class, where TorchScript would read it.
        self.fit_error: float | None = None

    def parts(self) -> list[nn.Module]:
        """The plain layers in the order in which they run."""
        return list(self.children())

    def dense_weight(self) -> Tensor:
        """The weight of the plain layer that computes the same, differentiable in the factors."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dense weight, as `dense_weight` gives it. Read-only; train the parts."""
        return self.dense_weight()

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the last part."""
        return self.parts()[-1].bias  # type: ignore[return-value]

    @property
    def rate(self) -> float:
        """Parameters of this layer over those of the dense one, biases included."""
        own = sum(parameter.numel() for parameter in self.parameters())
        return own / (self._dense_entries + (0 if self.bias is None else len(self.bias)))

    @property
    def _dense_entries(self) -> int:
        """Entries of the dense weight."""
        raise NotImplementedError

    @property
    def _patch(self) -> int:
        """``n``, the number of inputs of one output."""
        raise NotImplementedError

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights and bias.

        The weights are normal with mean zero, of variance ``1 / fan_in`` in every part but the
        last, which has ``2 / fan_in``. An entry of the dense weight is then a sum of uncorrelated
        products, one for every choice of the inner channels. Their number is the product of the
        ranks, which is also what the fans hold beside ``n``, so the variance is Kaiming's
        ``2 / n`` at every rank. The bias is drawn as ``nn.Conv2d`` draws it.

        Args:
            generator: of the layer's device; ``None`` is PyTorch's own.
        """
        self.fit_error = None
        *_, last = parts = self.parts()
        for part in parts:
            weight = part.get_parameter("weight")
            if weight.is_meta:
                return
            deviation = math.sqrt((2 if part is last else 1) / weight[0].numel())
            # Drawn in contiguous order, so that the memory format does not change the values.
            values = torch.empty_like(weight, memory_format=torch.contiguous_format)
            with torch.no_grad():
                weight.copy_(values.normal_(0, deviation, generator=generator))
        if self.bias is not None:
            bound = 1 / math.sqrt(self._patch)
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    @classmethod
    def _from_dense(
        cls,
        dense: nn.Conv2d | nn.Linear,
        arguments: Mapping[str, Any],
        init: Init,
        seed: int | None,
        norm: tuple[Tensor | None, Tensor | None],
        fit: Callable[[Group], Fit],
    ) -> Self:
        """A layer in place of ``dense``.

        Args:
            dense: the layer.
            arguments: those of the constructor.
            init: "fit" or "random".
            seed: of the random weights; ``None`` draws them from PyTorch's own generator.
            norm: second moment and sensitivity.
            fit: the parts' weights for one group.
        """
        owner = cls.__name__
        one_of(owner, "init", init, ("fit", "random"))
        for name, tensor in zip(("second_moment", "sensitivity"), norm, strict=True):
            if tensor is not None and init != "fit":
                raise ValueError(
                    f"{owner}: {name} must be None unless init is 'fit' (got init={init!r})"
                )
        weight = dense.weight.detach()
        layer = skip_init(
            cls, **arguments, bias=dense.bias is not None, device=weight.device, dtype=weight.dtype
        )
        layer.to(memory_format=memory_format(weight))
        if init == "random":
            generator = None
            if seed is not None and not weight.is_meta:
                generator = torch.Generator(weight.device).manual_seed(seed)
            layer.reset_parameters(generator)
        elif not weight.is_meta:  # without values there is nothing to fit
            check_finite(owner, f"weight of {type(dense).__name__}", weight)
            groups = list(groups_of(owner, weight, arguments.get("groups", 1), *norm))
            layer._take(groups, [fit(group) for group in groups])
        for part in layer.parts():
            part.get_parameter("weight").requires_grad_(dense.weight.requires_grad)
        if layer.bias is not None and dense.bias is not None:
            layer.bias.detach().copy_(dense.bias.detach())
            layer.bias.requires_grad_(dense.bias.requires_grad)
        return layer.train(dense.training)

    def _take(self, groups: Sequence[Group], fits: Sequence[Fit]) -> None:
        by_part = zip(*(fit.weights for fit in fits), strict=True)
        for part, weights in zip(self.parts(), by_part, strict=True):
            weight = part.get_parameter("weight").detach()
            weight.copy_(torch.cat(weights).reshape(weight.shape))
        self.fit_error = overall_error(groups, [fit.relative_error for fit in fits])

    def _fold_into(
        self, dense_class: type[nn.Conv2d] | type[nn.Linear], arguments: Mapping[str, Any]
    ) -> Any:
        """The dense layer with this layer's weight; ``arguments`` are those of its constructor."""
        factors = [part.get_parameter("weight") for part in self.parts()]
        check_whole(type(self).__name__, factors[0])
        bias = self.bias
        dense = skip_init(
            dense_class,
            **arguments,
            bias=bias is not None,
            device=factors[0].device,
            dtype=factors[0].dtype,
        )
        dense.to(memory_format=memory_format(factors[0]))
        with torch.no_grad():
            dense.weight.copy_(self.dense_weight())
            dense.weight.requires_grad_(any(factor.requires_grad for factor in factors))
            if bias is not None:
                dense.bias.copy_(bias)
                dense.bias.requires_grad_(bias.requires_grad)
        return dense.train(self.training)


class FactoredConv2d(FactoredLayer):
    """A convolution as a chain of convolutions; has the attributes of ``nn.Conv2d``."""

    # Never other than these; tools that count operations or export read them of any convolution.
    transposed: ClassVar[bool] = False
    output_padding: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding_mode = geometry.padding_mode

    def fold(self) -> nn.Conv2d:
        """The plain convolution with this layer's weight, of the same device, type and format."""
        folded: nn.Conv2d = self._fold_into(nn.Conv2d, Geometry.of(self).arguments())
        return folded

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(N, d2, H, W)`` or ``(d2, H, W)``, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return chain_multiply_adds(
            type(self).__name__,
            Geometry.of(self),
            [Geometry.of(part) for part in self.parts()],
            input_shape,
        )

    @property
    def _dense_entries(self) -> int:
        return Geometry.of(self).weights

    @property
    def _patch(self) -> int:
        return Geometry.of(self).patch

    def _by_group(self, part: nn.Conv2d) -> Tensor:
        """Its weight with the group in front: ``(groups, outputs, inputs, h, w)``."""
        return part.weight.unflatten(0, (self.groups, -1))

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        return ", ".join([*geometry_repr(self), *self._options_repr(), f"rate={self.rate:.3g}"])


def convolution(
    geometry: Geometry,
    *,
    bias: bool,
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> nn.Conv2d:
    """The plain convolution of this geometry."""
    return nn.Conv2d(**geometry.arguments(), bias=bias, device=device, dtype=dtype)


def chain_multiply_adds(
    owner: str, whole: Geometry, parts: Sequence[Geometry], input_shape: Sequence[int]
) -> int:
    """Multiply-adds of a chain of convolutions that stands for the ``whole`` one.

    Raises:
        RuntimeError: the shape does not fit the convolution.
    """
    batch, size = batch_and_size(owner, whole, input_shape)
    count, pixels = 0, list(size)
    for part in parts:
        pixels = output_size(part, pixels)
        count += math.prod(pixels) * part.weights
    return batch * count


def nearest_rank(
    owner: str, ranks: Sequence[R], parameters: Callable[[R], int], rate: float, dense: int
) -> R:
    """The rank whose parameters come nearest to ``rate`` times ``dense``.

    Args:
        owner: name of the caller, for messages.
        ranks: a uniform family, parameters increasing.
        parameters: of the layer at a rank, bias included.
        rate: in (0, 1].
        dense: parameters of the dense layer, bias included.

    Raises:
        TypeError: the rate is not a number.
        ValueError: the rate is out of range, or the layer would grow at any rank.
    """
    target = checked_rate(owner, rate) * dense
    if not ranks:
        raise ValueError(
            f"{owner}: rate must be left out, and ranks given, for a layer that would grow at any "
            f"rank (got rate={rate})"
        )
    above = bisect_right(ranks, target, key=parameters)
    close = ranks[max(0, above - 1) : above + 1]
    return min(close, key=lambda rank: abs(parameters(rank) - target))


def resolved_rank(
    owner: str,
    geometry: Geometry,
    bias: bool,
    rank: int | None,
    rate: float | None,
    *,
    full: int,
    ranks: Sequence[int],
    weights: Callable[[int], int],
) -> int:
    """The rank that was given, checked, or that nearest to the rate.

    Args:
        owner: name of the caller, for messages.
        geometry: of the convolution.
        bias: whether it has one.
        rank: None if a rate is given.
        rate: None if a rank is given.
        full: the rank that is enough for every weight.
        ranks: those at which the layer gets smaller.
        weights: entries of all parts together at a rank.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, both or none of them.
    """
    if (rank is None) == (rate is None):
        raise ValueError(
            f"{owner}: exactly one of rank and rate must be given (got rank={rank}, rate={rate})"
        )
    if rank is not None:
        rank = whole_number(owner, "rank", rank)
        if rank > full:
            raise ValueError(
                f"{owner}: rank must be at most {full}, which is enough for every weight "
                f"(got rank={rank})"
            )
        return rank
    assert rate is not None
    kept = geometry.out_channels if bias else 0
    return nearest_rank(
        owner, ranks, lambda rank: weights(rank) + kept, rate, geometry.weights + kept
    )
