"""What `HashedConv2d`, `HashedLinear` and `FreshConv2d` share: values found by hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.decompose import hashed_least_squares
from sketchlayers.nn._export import constant, exporting
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Factory
from sketchlayers.nn.generated._layer import FormedLayer

_DOCUMENTED = """\
        seed: decides hashes and signs; ``None`` draws it from PyTorch's default generator.
"""
_DOCUMENTED_FIT = """\
            init: ``"fit"`` takes the nearest values
                (`sketchlayers.decompose.hashed_least_squares`), ``"random"`` those of a new layer.
                The weight's error is large at any useful rate: the layer has to be trained.
"""


class HashedLayer(FormedLayer):
    """A layer whose weight, or its cosine coefficients, are taken from a few values by hash.

    Attributes:
        values: parameter ``(K,)``.
        bias: parameter ``(d1,)`` or ``None``.
        seed: decides which entries share a value, and their signs. The state dict has it as
            ``seed_bits``.
        hash_key: the seed as an int64 tensor ``()``, no buffer.
    """

    _needs_extension = True
    _documented, _documented_fit = _DOCUMENTED, _DOCUMENTED_FIT
    _trained = ("values",)
    _fixed: ClassVar[tuple[str, ...]] = ("hash_key",)

    values: nn.Parameter
    hash_key: Tensor

    def _construct(
        self,
        bias: bool,
        factory: Factory,
        *,
        buckets: int | None = None,
        rate: float | None = None,
        seed: int | None = None,
    ) -> None:
        FormedLayer.__init__(self, seed, factory["device"])
        entries = self._weight_shape[0] * self._patch
        count = self._number_or_nearest("buckets", buckets, rate, bias, (1, entries))
        self._finish((count,), bias, factory)

    @property
    def buckets(self) -> int:
        """``K``."""
        return len(self.values)

    def _shared(self, values: Tensor) -> Tensor:
        """The weight for other values, in their type."""
        return self._hashed(values).view(self._weight_shape)

    def _hashed(
        self, values: Tensor, *, first: Sequence[int] = (), buckets: Sequence[int] = ()
    ) -> Tensor:
        """The values by hash, with signs, as the matrix ``(d1, n)``."""
        rows, columns = self._weight_shape[0], self._patch
        if exporting():
            return _looked_up(values, self._seed, rows, columns, first=first, buckets=buckets)
        return ops.hashed_weight(values, self.hash_key, rows, columns, first=first, buckets=buckets)

    def _make_seeded(self) -> dict[str, Tensor]:
        return {"hash_key": torch.tensor(self._seed, device=self.seed_bits.device)}

    def dense_weight(self) -> Tensor:
        """The weight in the shape of the dense layer's, differentiable in ``values``."""
        self._follow_seed()
        return self._shared(self.values)

    @torch.no_grad()
    def _nearest(self, groups: Sequence[Group]) -> tuple[Tensor, float]:
        def form(values: Tensor) -> Tensor:
            return self._shared(values).unflatten(0, (len(groups), -1)).flatten(2)

        return hashed_least_squares(form, self.buckets, groups)


def _looked_up(
    values: Tensor,
    seed: int,
    rows: int,
    columns: int,
    *,
    first: Sequence[int] = (),
    buckets: Sequence[int] = (),
) -> Tensor:
    """`ops.hashed_weight`, looked up in the values and their negatives at constant places."""
    number, device = len(values), values.device

    def places() -> Tensor:
        key = torch.tensor(seed, device=device)
        entries = ops.hash_entries(key, rows, columns, number, first=first, buckets=buckets)
        found = torch.where(entries < 0, number + ~entries, entries)
        return found.to(torch.int32 if 2 * number < 2**31 else torch.int64)

    both = torch.cat([values, -values])
    return both.index_select(0, constant(places).flatten()).reshape(rows, columns)
