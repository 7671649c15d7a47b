"""HashedNets (Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015, arXiv 1504.04788)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sketchlayers.methods._dense import DenseMethod
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import HashedConv2d, HashedLinear
from sketchlayers.nn._layer import CompressedLayer


@register("hashednet")
@dataclass(frozen=True, kw_only=True)
class HashedNet(DenseMethod):
    """``W[i, j] = xi(i, j) values[h(i, j)]``; the rank is the number of values.

    For training: a trained weight is hardly any nearer to shared values than to zero.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (HashedConv2d, HashedLinear)
    _takes_depthwise = True

    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        return one_number("HashedNet", rank)

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        return {"buckets": one_number("HashedNet", rank)}
