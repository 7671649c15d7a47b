"""FreshNets (Chen, Wilson, Tyree, Weinberger, Chen, KDD 2016, arXiv 1506.04449)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import nn

from sketchlayers.methods._formed import Formed
from sketchlayers.methods._method import register
from sketchlayers.nn import FreshConv2d, HashedLinear
from sketchlayers.nn._checks import number_above
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.generated._layer import FormedLayer
from sketchlayers.nn.generated.fresh import ALPHA, BETA, MOST_TAPS, bucket_bounds


@register("freshnet")
@dataclass(frozen=True, kw_only=True)
class FreshNet(Formed):
    """Filters with hashed cosine coefficients; the rank is the number of values.

    Fully connected layers become those of HashedNets, as in the papers' experiments.

    Attributes:
        alpha: first parameter of the distribution of values over frequencies.
        beta: its second parameter.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (FreshConv2d, HashedLinear)

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

    def _least_rank(self, geometry: Geometry) -> int:
        return bucket_bounds(geometry)[0]

    def _forming_multiply_adds(self, layer: nn.Module, geometry: Geometry, rank: int) -> int:
        if isinstance(layer, nn.Linear):
            return 0
        return geometry.weights * prod(geometry.kernel_size)

    def _build(self, layer: nn.Module, rank: int, **arguments: Any) -> FormedLayer:
        if isinstance(layer, nn.Conv2d):
            return FreshConv2d.from_conv(
                layer, buckets=rank, alpha=self.alpha, beta=self.beta, **arguments
            )
        assert isinstance(layer, nn.Linear)  # no other gets here
        return HashedLinear.from_linear(layer, buckets=rank, **arguments)
