"""A table of vectors of low rank: a smaller table and a linear layer."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sketchlayers.decompose._checks import check_finite
from sketchlayers.nn._checks import check_one_given, checked_rate, one_of, whole_number
from sketchlayers.nn._config import Configured
from sketchlayers.nn._weight import computed_weight


class LowRankEmbedding(Configured):
    """Table of vectors ``W = A B`` of low rank in place of ``nn.Embedding``.

    Computed by two plain layers: ``first`` (``A``, a table of r numbers for each entry) and
    ``second`` (``B``, r to d features, without bias). It has ``r (n + d)`` parameters instead of
    ``n d``. Input ``(*)`` of integers, output ``(*, d)``.

    Args:
        num_embeddings: ``n``, as for ``nn.Embedding``.
        embedding_dim: ``d``, as for ``nn.Embedding``.
        padding_idx: as for ``nn.Embedding``.
        device: of the parameters.
        dtype: of the parameters.
        rank: ``r``, at most ``min(n, d)``.
        rate: in place of the rank: parameters over those of the table.

    Attributes:
        fit_error: relative error of the table that this layer was made from; None for others.

    Example:
        >>> layer = LowRankEmbedding(1000, 64, rate=0.25)
        >>> layer(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 64])
    """

    _dense_class = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        rate: float | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_one_given(owner, "rank", rank, rate)
        full = min(num_embeddings, embedding_dim)
        if rate is not None:
            weights = checked_rate(owner, rate) * num_embeddings * embedding_dim
            rank = min(full, max(1, round(weights / (num_embeddings + embedding_dim))))
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.rank = whole_number(owner, "rank", rank or 0, most=full)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.first = nn.Embedding(num_embeddings, self.rank, padding_idx, **factory)
        self.second = nn.Linear(self.rank, embedding_dim, False, **factory)
        self.fit_error: float | None = None
        self.reset_parameters()

    @classmethod
    def from_embedding(
        cls,
        table: nn.Embedding,
        *,
        rank: int | None = None,
        rate: float | None = None,
        init: Literal["fit", "random"] = "fit",
        seed: int | None = None,
    ) -> Self:
        """A layer in place of a table.

        Args:
            table: the layer; it is not changed.
            rank: as of the constructor.
            rate: as of the constructor.
            init: "fit" takes the nearest table of this rank, "random" starts as a new layer.
            seed: of the random start; None draws from PyTorch's generator.
        """
        owner = cls.__name__
        one_of(owner, "init", init, ("fit", "random"))
        weight = table.weight.detach()
        layer = cls(
            table.num_embeddings,
            table.embedding_dim,
            table.padding_idx,
            "meta",
            weight.dtype,
            rank=rank,
            rate=rate,
        ).to_empty(device=weight.device)
        if weight.is_meta:
            return layer.train(table.training)
        if init == "random":
            generator = None
            if seed is not None:
                generator = torch.Generator(weight.device).manual_seed(seed)
            layer.reset_parameters(generator)
        else:
            check_finite(owner, f"weight of {type(table).__name__}", weight)
            layer._fit(weight)
        layer.requires_grad_(table.weight.requires_grad)
        return layer.train(table.training)

    @torch.no_grad()
    def _fit(self, weight: Tensor) -> None:
        """Takes the nearest table: every vector is projected to the directions with most of all."""
        table = weight.double()
        values, vectors = torch.linalg.eigh(table.T @ table)
        basis = vectors[:, -self.rank :]
        self.first.weight.copy_(table @ basis)
        self.second.weight.copy_(basis)
        whole = float(values.clamp(min=0).sum())
        lost = float(values[: -self.rank].clamp(min=0).sum())
        self.fit_error = (lost / whole) ** 0.5 if whole else 0.0

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new vectors, of variance 1 as those of a new table; that of the padding is zero."""
        self.fit_error = None
        nn.init.normal_(self.first.weight, generator=generator)
        nn.init.normal_(self.second.weight, std=self.rank**-0.5, generator=generator)
        if self.padding_idx is not None and not self.first.weight.is_meta:
            self.first.weight.detach()[self.padding_idx].zero_()

    @property
    def padding_idx(self) -> int | None:
        """The entry whose vector is not trained."""
        return self.first.padding_idx

    @property
    def bias(self) -> None:
        """A table has none."""
        return None

    @property
    def rate(self) -> float:
        """Parameters of this layer over those of the table."""
        sizes = self.num_embeddings, self.embedding_dim
        return self.rank * sum(sizes) / (sizes[0] * sizes[1])

    @property
    def weight(self) -> Tensor:
        """The whole table, computed."""
        return computed_weight(type(self).__name__, self.dense_weight(), torch.contiguous_format)

    def dense_weight(self) -> Tensor:
        """``(n, d)``, differentiable in the factors."""
        return self.first.weight @ self.second.weight.T

    def forward(self, input: Tensor) -> Tensor:
        """``(*)`` to ``(*, d)``."""
        output: Tensor = self.second(self.first(input))
        return output

    def fold(self) -> nn.Embedding:
        """The table that gives the same."""
        table = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            device="meta",
            dtype=self.first.weight.dtype,
        )
        trained = self.first.weight.requires_grad or self.second.weight.requires_grad
        table.weight = nn.Parameter(self.dense_weight().detach(), trained)
        return table.train(self.training)

    def multiply_adds(self, input_shape: Any) -> int:
        """Multiply-adds of a forward call on an input of this shape."""
        return torch.Size(input_shape).numel() * self.rank * self.embedding_dim

    def options(self) -> dict[str, Any]:
        """See `Configured.options`."""
        return {"rank": self.rank}

    def extra_repr(self) -> str:
        """Sizes and rank."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}, rate={self.rate:.3g}"
        )
