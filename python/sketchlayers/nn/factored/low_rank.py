"""A fully connected layer of low rank: two plain ones, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._checks import check_one_given, whole_number
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import (
    Device,
    LinearLayer,
    linear_rows,
    stands_for_dense,
)
from sketchlayers.nn.factored._layer import FactoredLayer, Fit, Init, nearest_rank


@stands_for_dense
class LowRankLinear(LinearLayer, FactoredLayer):
    """Fully connected layer with a weight of low rank, ``W = A B``, in place of ``nn.Linear``.

    Computed by two plain layers: ``first`` (``B``, d2 to r features) and ``second`` (``A``, r to
    d1, with the bias). It has ``r (d1 + d2)`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Args:
        rank: ``r``, at most ``min(d1, d2)``. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.

    Example:
        >>> layer = LowRankLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    def _construct(
        self,
        bias: bool,
        device: Device,
        dtype: torch.dtype | None,
        *,
        rank: int | None = None,
        rate: float | None = None,
    ) -> None:
        owner = type(self).__name__
        nn.Module.__init__(self)
        self.rank = resolved_rank(owner, self.in_features, self.out_features, bias, rank, rate)
        self.first = nn.Linear(self.in_features, self.rank, False, device, dtype)
        self.second = nn.Linear(self.rank, self.out_features, bias, device, dtype)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        return self.second(self.first(input))

    def dense_weight(self) -> Tensor:
        """``(d1, d2)``, differentiable in the factors."""
        return self.second.weight @ self.first.weight

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int | None = None,
        *,
        rate: float | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        seed: int | None = None,
    ) -> Self:
        """A layer of low rank in place of ``linear``, which is left as it is.

        Args:
            init: ``"fit"`` takes the nearest weight of this rank (`sketchlayers.decompose.svd`),
                ``"random"`` starts as a new layer.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.
        """
        options = {"rank": rank, "rate": rate}
        return cls._replacing(linear, options, init, second_moment, sensitivity, seed)

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        weight, moment, weights = group
        factors = decompose.svd(weight, self.rank, second_moment=moment, sensitivity=weights)
        return Fit((factors.right, factors.left), factors.relative_error)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(*, d2)``, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return low_rank_multiply_adds(
            type(self).__name__, self.in_features, self.out_features, self.rank, input_shape
        )

    def options(self) -> dict[str, Any]:
        """As `Configured.options`."""
        return {"rank": self.rank}


def low_rank_multiply_adds(
    owner: str, inputs: int, outputs: int, rank: int, input_shape: Sequence[int]
) -> int:
    """Multiply-adds of two layers through ``rank`` features.

    Raises:
        RuntimeError: the shape does not fit the layer.
    """
    return linear_rows(owner, inputs, input_shape) * rank * (inputs + outputs)


def uniform_ranks(inputs: int, outputs: int) -> range:
    """The ranks at which two factors are smaller than an ``outputs x inputs`` matrix."""
    largest = (inputs * outputs - 1) // (inputs + outputs) if inputs and outputs else 0
    return range(1, largest + 1)


def resolved_rank(
    owner: str, inputs: int, outputs: int, bias: bool, rank: int | None, rate: float | None
) -> int:
    """The rank that was given, checked, or that nearest to the rate.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, both or none of them.
    """
    check_one_given(owner, "rank", rank, rate)
    if rank is None:
        assert rate is not None
        kept = outputs if bias else 0
        return nearest_rank(
            owner,
            uniform_ranks(inputs, outputs),
            lambda rank: rank * (inputs + outputs) + kept,
            rate,
            inputs * outputs + kept,
        )
    rank = whole_number(owner, "rank", rank)
    if rank > min(inputs, outputs):
        raise ValueError(
            f"{owner}: rank must be at most min(in_features, out_features) = "
            f"{min(inputs, outputs)} (got rank={rank})"
        )
    return rank
