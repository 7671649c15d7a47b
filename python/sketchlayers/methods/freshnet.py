"""FreshNets (Chen, Wilson, Tyree, Weinberger, Chen, KDD 2016, arXiv 1506.04449)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import nn

from sketchlayers.methods._dense import DenseMethod
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import FreshConv2d, HashedLinear
from sketchlayers.nn._checks import number_above
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.generated.fresh import ALPHA, BETA, MOST_TAPS, bucket_bounds


@register("freshnet")
@dataclass(frozen=True, kw_only=True)
class FreshNet(DenseMethod):
    """Filters with hashed cosine coefficients; the rank is the number of values.

    Fully connected layers become those of HashedNets, as in the papers' experiments.

    Attributes:
        alpha: first parameter of the distribution of values over frequencies.
        beta: its second parameter.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (FreshConv2d, HashedLinear)
    _takes_depthwise = True

    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, number_above("FreshNet", name, getattr(self, name), 0))

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`."""
        if isinstance(layer, nn.Conv2d) and prod(layer.kernel_size) > MOST_TAPS:
            return f"kernel of more than {MOST_TAPS} positions"
        return super().refusal(layer)

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`: from one value for each frequency."""
        least, _ = bucket_bounds(Geometry.of(layer))
        return super().ranks(layer)[least - 1 :]

    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        return one_number("FreshNet", rank)

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        buckets = {"buckets": one_number("FreshNet", rank)}
        if isinstance(layer, nn.Linear):
            return buckets
        return {**buckets, "alpha": self.alpha, "beta": self.beta}
