"""A fully connected layer of low rank: two plain ones, one after the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Factory, LinearLayer, stands_for_dense
from sketchlayers.nn.factored._fused import is_plain
from sketchlayers.nn.factored._layer import FactoredLayer, Fit

_DOCUMENTED_FIT = """\
            init: ``"fit"`` takes the nearest weight of this rank (`sketchlayers.decompose.svd`),
                ``"random"`` starts as a new layer.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.
"""


@stands_for_dense
class LowRankLinear(LinearLayer, FactoredLayer):
    """Fully connected layer with a weight of low rank, ``W = A B``, in place of ``nn.Linear``.

    Computed by two plain layers: ``first`` (``B``, d2 to r features) and ``second`` (``A``, r to
    d1, with the bias). It has ``r (d1 + d2)`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Args:
        rank: ``r``, at most ``min(d1, d2)``.

    Example:
        >>> layer = LowRankLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    _documented_fit = _DOCUMENTED_FIT

    def _construct(
        self, bias: bool, factory: Factory, *, rank: int | None = None, rate: float | None = None
    ) -> None:
        nn.Module.__init__(self)
        sizes = self.in_features, self.out_features
        self.rank = self._checked_rank(rank, rate, bias, min(sizes), sum(sizes))
        self.first = nn.Linear(self.in_features, self.rank, False, **factory)
        self.second = nn.Linear(self.rank, self.out_features, bias, **factory)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        if not torch.jit.is_scripting():
            return self._computed(input)
        return self.second(self.first(input))

    def _computed(self, input: Tensor) -> Tensor:
        """Without calls of modules, which take as long as a small layer, where parts are plain."""
        parts: Any = self._modules
        first, second = parts["first"], parts["second"]
        if not (is_plain(first, nn.Linear) and is_plain(second, nn.Linear)):
            return self.second(self.first(input))
        inputs, outputs = (part._parameters["weight"] for part in (first, second))
        return F.linear(F.linear(input, inputs), outputs, second._parameters["bias"])

    def dense_weight(self) -> Tensor:
        """``(d1, d2)``, differentiable in the factors."""
        return self._weight_of(self.second) @ self._weight_of(self.first)

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        factors = decompose.svd(group.weight, self.rank, **group.norm)
        return Fit((factors.right, factors.left), factors.relative_error)
