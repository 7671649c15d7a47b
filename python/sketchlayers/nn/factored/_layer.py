"""What `TuckerConv2d`, `CPConv2d`, `LowRankConv2d` and `LowRankLinear` share: plain layers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from sketchlayers.nn._checks import check_one_given, checked_rate, whole_number
from sketchlayers.nn._geometry import Geometry, batch_and_size, output_size
from sketchlayers.nn._groups import Group, groups_of, overall_error
from sketchlayers.nn._layer import CompressedLayer

Init = Literal["fit", "random"]

R = TypeVar("R")


class Fit(NamedTuple):
    """Weights of the parts, in order, for one group; and the relative error."""

    weights: tuple[Tensor, ...]
    relative_error: float


class FactoredLayer(CompressedLayer):
    """A layer that is computed by plain layers one after the other; the bias is the last one's."""

    def parts(self) -> list[nn.Module]:
        """The plain layers in the order in which they run."""
        return list(self.children())

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]
        """The bias of the last part."""
        return self.parts()[-1].bias  # type: ignore[return-value]

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

    def _weight_parameters(self) -> list[nn.Parameter]:
        return [part.get_parameter("weight") for part in self.parts()]

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        """Weights of the parts that approximate one group's."""
        raise NotImplementedError

    def _fit(
        self,
        weight: Tensor,
        init: str,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        **how: Any,
    ) -> float:
        owner = type(self).__name__
        groups = list(groups_of(owner, weight, self._groups, second_moment, sensitivity))
        fits = [self._fit_group(group, **how) for group in groups]
        by_part = zip(*(fit.weights for fit in fits), strict=True)
        for parameter, weights in zip(self._weight_parameters(), by_part, strict=True):
            parameter.detach().copy_(torch.cat(weights).reshape(parameter.shape))
        return overall_error(groups, [fit.relative_error for fit in fits])

    @classmethod
    def _replacing(
        cls,
        dense: nn.Conv2d | nn.Linear,
        options: dict[str, Any],
        init: Init,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        seed: int | None,
        **how: Any,
    ) -> Self:
        """As `_from_dense`; the seed is of random weights, None draws them from PyTorch's own."""
        device = dense.weight.device
        generator = None
        if seed is not None and not dense.weight.is_meta:
            generator = torch.Generator(device).manual_seed(seed)
        reset = {"generator": generator}
        return cls._from_dense(dense, options, init, second_moment, sensitivity, reset, **how)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on an input of this shape, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return chain_multiply_adds(
            type(self).__name__,
            Geometry.of(self),
            [Geometry.of(part) for part in self.parts()],
            input_shape,
        )

    def _by_group(self, part: nn.Conv2d) -> Tensor:
        """Its weight with the group in front: ``(groups, outputs, inputs, h, w)``."""
        return part.weight.unflatten(0, (self._groups, -1))


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
    check_one_given(owner, "rank", rank, rate)
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
