"""What `HashedConv2d`, `HashedLinear` and `FreshConv2d` share: values found by hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sketchlayers.decompose import hashed_least_squares

from ._factored import Group
from ._formed import FormedFit, FormedLayer


class HashedLayer(FormedLayer):
    """A layer whose weight, or its cosine coefficients, are taken from a few values by hash.

    Attributes:
        values: parameter ``(K,)``.
        bias: parameter ``(d1,)`` or ``None``.
        seed: persistent buffer, decides which entries share a value, and their signs. A write in
            place takes effect at once.
    """

    _trained = ("values",)
    _fixed: ClassVar[tuple[str, ...]] = ("seed",)

    values: nn.Parameter

    @property
    def buckets(self) -> int:
        """``K``."""
        return len(self.values)

    def _options(self) -> dict[str, Any]:
        return {"buckets": self.buckets}

    def _shared(self, values: Tensor) -> Tensor:
        """The weight for other values, in their type."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight in the shape of the dense layer's, differentiable in ``values``."""
        return self._shared(self.values)

    @torch.no_grad()
    def _fit(self, groups: Sequence[Group]) -> FormedFit:
        def form(values: Tensor) -> Tensor:
            return self._shared(values).unflatten(0, (len(groups), -1)).flatten(2)

        return FormedFit(*hashed_least_squares(form, self.buckets, groups))
