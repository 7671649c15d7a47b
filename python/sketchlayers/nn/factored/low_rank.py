"""A fully connected layer of low rank: two plain ones, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._checks import refuse_other_layers, whole_number
from sketchlayers.nn._groups import Group
from sketchlayers.nn.factored._layer import FactoredLayer, Fit, Init, nearest_rank


class LowRankLinear(FactoredLayer):
    """Fully connected layer with a weight of low rank, ``W = A B``, in place of ``nn.Linear``.

    Computed by two plain layers: ``first`` (``B``, d2 to r features) and ``second`` (``A``, r to
    d1, with the bias). It has ``r (d1 + d2)`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Args:
        in_features: ``d2``.
        out_features: ``d1``.
        bias: learn a bias.
        device: of the parameters; may be ``"meta"``.
        dtype: of the parameters.
        rank: ``r``, at most ``min(d1, d2)``. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = LowRankLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        rate: float | None = None,
    ) -> None:
        owner = type(self).__name__
        super().__init__()
        self.in_features = whole_number(owner, "in_features", in_features)
        self.out_features = whole_number(owner, "out_features", out_features)
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

        Device, type, the bias, ``requires_grad`` and the training flag carry over, hooks do not.
        The attribute ``fit_error`` holds the relative error of the weight. On the meta device there
        are no values to fit, and the result is a meta layer.

        Args:
            linear: the layer; a subclass must compute its output as ``nn.Linear`` does.
            rank: see the class.
            rate: see the class.
            init: ``"fit"`` takes the nearest weight of this rank (`sketchlayers.decompose.svd`),
                ``"random"`` starts as a new layer.
            second_moment: ``E[x x^T]`` of the inputs, ``(d2, d2)``: the fit is in the norm of the
                output's change.
            sensitivity: weight of the output's errors, ``(d1,)`` or ``(d1, d1)``.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.

        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a fully connected layer of this kind.
            ValueError: NaN or infinite weights or moments, moments without a fit, or arguments that
                the class refuses.
        """
        refuse_other_layers(cls.__name__, linear, nn.Linear)
        sizes = linear.in_features, linear.out_features
        rank = resolved_rank(cls.__name__, *sizes, linear.bias is not None, rank, rate)

        def fit(group: Group) -> Fit:
            weight, moment, weights = group
            factors = decompose.svd(weight, rank, second_moment=moment, sensitivity=weights)
            return Fit((factors.right, factors.left), factors.relative_error)

        arguments = {"in_features": sizes[0], "out_features": sizes[1], "rank": rank}
        return cls._from_dense(linear, arguments, init, seed, (second_moment, sensitivity), fit)

    def fold(self) -> nn.Linear:
        """The plain layer with this layer's weight, of the same device and type."""
        arguments = {"in_features": self.in_features, "out_features": self.out_features}
        folded: nn.Linear = self._fold_into(nn.Linear, arguments)
        return folded

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(*, d2)``, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return low_rank_multiply_adds(
            type(self).__name__, self.in_features, self.out_features, self.rank, input_shape
        )

    @property
    def _dense_entries(self) -> int:
        return self.in_features * self.out_features

    @property
    def _patch(self) -> int:
        return self.in_features

    def extra_repr(self) -> str:
        """Arguments of the constructor, and the rate."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, rank={self.rank}, rate={self.rate:.3g}"
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
    if len(input_shape) < 1 or input_shape[-1] != inputs:
        raise RuntimeError(
            f"{owner}: input_shape must be (*, {inputs}) (got input_shape={tuple(input_shape)})"
        )
    return math.prod(input_shape[:-1]) * rank * (inputs + outputs)


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
    if (rank is None) == (rate is None):
        raise ValueError(
            f"{owner}: exactly one of rank and rate must be given (got rank={rank}, rate={rate})"
        )
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
