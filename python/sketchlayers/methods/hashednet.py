"""HashedNets (Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015, arXiv 1504.04788)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sketchlayers.methods._formed import Formed
from sketchlayers.methods._method import register
from sketchlayers.nn import HashedConv2d, HashedLinear
from sketchlayers.nn.generated._layer import FormedLayer


@register("hashednet")
@dataclass(frozen=True, kw_only=True)
class HashedNet(Formed):
    """``W[i, j] = xi(i, j) values[h(i, j)]``; the rank is the number of values.

    For training: a trained weight is hardly any nearer to shared values than to zero.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (HashedConv2d, HashedLinear)

    def _build(self, layer: nn.Module, rank: int, **arguments: Any) -> FormedLayer:
        if isinstance(layer, nn.Conv2d):
            return HashedConv2d.from_conv(layer, buckets=rank, **arguments)
        assert isinstance(layer, nn.Linear)  # no other gets here
        return HashedLinear.from_linear(layer, buckets=rank, **arguments)
