"""Weights predicted from a few of their entries (Denil, Shakibi, Dinh, Ranzato, de Freitas, 2013).

"Predicting Parameters in Deep Learning", NIPS 2013, arXiv 1306.0543. Each feature of a layer, as a
function of its inputs, is taken to be smooth: it is known from its values at a few of the inputs,
and kernel ridge regression predicts the others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional

from sketchlayers import decompose
from sketchlayers.decompose._checks import check_shape
from sketchlayers.decompose._norm import as_moment
from sketchlayers.nn._autocast import full_precision
from sketchlayers.nn._checks import number_above, one_of, whole_number
from sketchlayers.nn._groups import Group, overall_error
from sketchlayers.nn._layer import (
    Conv2dLayer,
    Factory,
    LinearLayer,
    Norm,
    scale_outputs,
    stands_for_dense,
)
from sketchlayers.nn.generated._layer import FormedLayer
from sketchlayers.nn.generated._philox import random_words

Kernel = Literal["spatial", "covariance"]

LENGTH, RIDGE = 3.0, 0.1
"""Of the squared exponential kernel, in pixels; and what is added to the kernel's diagonal."""

# Number of the sign matrix whose words order the inputs, for the first column of the first group:
# part of the file format (see `random_words`).
_ORDER_MATRIX = 2**31 + 2**30 + 2**29


_DOCUMENTED = """\
        num_columns: in how many parts, each with inputs of its own, the features of a group are
            cut; must divide ``d1 / groups``.
        kernel: ``"covariance"`` predicts by how the inputs vary together, which must be given or
            set (`set_covariance`); ``"spatial"`` by nearness in the kernel of a convolution. Where
            that is 1x1, and in a fully connected layer, nothing is near: the layer then sees the
            chosen inputs only.
        length: of the spatial kernel, in pixels.
        ridge: of the regression, in parts of the kernel's mean diagonal.
        covariance: ``E[x x^T]`` of the input patches, ``(n, n)`` or ``(groups, n, n)``; ``n`` is
            ``d2`` of a fully connected layer.
        seed: decides which inputs; ``None`` draws it from PyTorch's default generator.
"""
_DOCUMENTED_FIT = """\
            init: ``"fit"`` takes the nearest coefficients
                (`sketchlayers.decompose.dictionary_least_squares`), ``"random"`` those of a new
                layer. With the kernel of a covariance, no ``covariance`` means the second moment.
                Features are fitted one by one, so that a sensitivity changes nothing.
"""


class DictionaryLayer(FormedLayer):
    """A layer with ``W = coefficients dictionary`` in place of its weight.

    Attributes:
        coefficients: parameter ``(d1, m)``: the features at ``m`` of the inputs.
        bias: parameter ``(d1,)`` or ``None``.
        dictionary: ``(groups, num_columns, m, n)``, what each of these inputs says about all; not
            trained. Made from the seed by the spatial kernel; that of a covariance is a buffer.
        seed: decides which inputs. The state dict has it as ``seed_bits``.
        rank: ``m``.
        num_columns: how many parts of the features have inputs of their own.
        kernel: "spatial" or "covariance".
        length: of the spatial kernel, in pixels.
        ridge: of the regression.
    """

    _documented, _documented_fit = _DOCUMENTED, _DOCUMENTED_FIT
    _trained = ("coefficients",)
    _fixed: ClassVar[tuple[str, ...]] = ("dictionary",)

    coefficients: nn.Parameter
    dictionary: Tensor

    def _construct(
        self,
        bias: bool,
        factory: Factory,
        *,
        rank: int | None = None,
        rate: float | None = None,
        num_columns: int = 1,
        kernel: Kernel = "spatial",
        length: float = LENGTH,
        ridge: float = RIDGE,
        covariance: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        FormedLayer.__init__(self, seed, factory["device"])
        owner = type(self).__name__
        one_of(owner, "kernel", kernel, ("spatial", "covariance"))
        outputs = self._weight_shape[0]
        self.num_columns = whole_number(owner, "num_columns", num_columns)
        if outputs // self._groups % self.num_columns:
            raise ValueError(
                f"{owner}: num_columns must divide the outputs of a group, "
                f"{outputs // self._groups} (got num_columns={num_columns})"
            )
        if covariance is not None and kernel != "covariance":
            raise ValueError(
                f"{owner}: covariance must be None unless kernel is 'covariance' "
                f"(got kernel={kernel!r})"
            )
        self.kernel: Kernel = kernel
        self.length = number_above(owner, "length", length, 0)
        self.ridge = number_above(owner, "ridge", ridge, 0)
        bounds = (1, self._patch)
        self.rank = self._number_or_nearest("rank", rank, rate, bias, bounds, outputs)
        empty = torch.empty((self._groups, self.num_columns, self.rank, self._patch), **factory)
        if kernel == "covariance":
            del self.dictionary
            self.register_buffer("dictionary", empty)
            self.set_covariance(covariance)
        else:
            self.dictionary = empty
        self._finish((outputs, self.rank), bias, factory)

    @torch.no_grad()
    def set_covariance(self, covariance: Tensor | None) -> None:
        """Make the dictionary from how the inputs vary together; the coefficients stay.

        Args:
            covariance: ``E[x x^T]`` of the input patches, ``(n, n)`` or ``(groups, n, n)``; None
                is the identity, with which the inputs that were chosen are all that is seen.

        Raises:
            RuntimeError: another shape, or a layer with the spatial kernel.
            ValueError: NaN or infinite entries, or not symmetric positive semidefinite.
        """
        owner = type(self).__name__
        if self.kernel != "covariance":
            raise RuntimeError(
                f"{owner}: set_covariance needs a layer with kernel='covariance' "
                f"(got kernel={self.kernel!r})"
            )
        if self.dictionary.is_meta:
            return
        n = self._patch
        if covariance is None:
            alone = torch.ones(1, 1, dtype=torch.float64)
            self.dictionary.copy_(self._regression_by_channel(alone, self.dictionary.dtype))
            return
        check_shape(owner, "covariance", covariance, [(n, n), (self._groups, n, n)])
        kernels = as_moment(owner, "covariance", covariance).expand(self._groups, n, n)
        means = kernels.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        scaled = kernels / torch.where(means > 0, means, 1.0)
        self.dictionary.copy_(self._regression(scaled.to(self.dictionary.device)))

    def _fill_stored(self, options: Mapping[str, Any], norm: Norm) -> None:
        if self.kernel == "covariance":
            covariance = options.get("covariance")
            self.set_covariance(norm[0] if covariance is None else covariance)

    def _seeded_options(self) -> dict[str, object]:
        names = ["rank", "num_columns", "kernel"]
        if self.kernel == "spatial":
            names += ["length", "ridge"]
        return {name: getattr(self, name) for name in names}

    def _make_seeded(self) -> dict[str, Tensor]:
        if self.kernel == "covariance":
            return {}
        if self.seed_bits.is_meta:
            return {"dictionary": self.dictionary.to("meta", self.coefficients.dtype)}
        height, width = self._kernel or (1, 1)
        place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
        place = place.reshape(height * width, 2)
        taps = torch.exp(-torch.cdist(place, place).square() / (2 * self.length**2))
        made = self._regression_by_channel(taps, self.coefficients.dtype)
        return {"dictionary": made.to(self.seed_bits.device)}

    def _regression_by_channel(self, kernel: Tensor, dtype: torch.dtype) -> Tensor:
        """As `_regression`, for a kernel ``(taps, taps)`` within each channel and none between."""
        taps, inputs = len(kernel), self._chosen()
        # Of its final type: it may be several times the dense weight, and twice that in float64.
        made = torch.zeros(*inputs.shape, self._patch // taps, taps, dtype=dtype)
        for rows, chosen in zip(made, inputs, strict=True):
            is_chosen = torch.zeros(self._patch, dtype=torch.float64)
            is_chosen[chosen] = 1
            mask = is_chosen.reshape(-1, taps, 1)  # of every channel
            system = kernel * mask * mask.mT + self.ridge * torch.eye(taps, dtype=torch.float64)
            weights = torch.linalg.solve(system, kernel * mask)
            channel, tap = chosen // taps, chosen % taps
            rows[torch.arange(len(chosen)), channel] = weights[channel, tap].to(dtype)
        return made.reshape(self.dictionary.shape)

    def _regression(self, kernels: Tensor) -> Tensor:
        """``(K_aa + ridge I)^-1 K_a``, for each group's kernel ``K (n, n)`` in float64."""
        made = torch.empty_like(self.dictionary)
        inputs = self._chosen().to(kernels.device).unflatten(0, (self._groups, self.num_columns))
        for group, kernel in enumerate(kernels):
            for column, chosen in enumerate(inputs[group]):
                rows = kernel[chosen]
                square = rows[:, chosen].clone()
                square.diagonal().add_(self.ridge)
                made[group, column] = torch.linalg.solve(square, rows)
        return made

    def _chosen(self) -> Tensor:
        """Inputs at which features are known, ``m`` of ``n`` for each column of each group.

        Returns:
            int64 tensor ``(groups * num_columns, m)`` on the CPU, every row in random order.
        """
        columns = self._groups * self.num_columns
        words = random_words(self._seed, _ORDER_MATRIX, columns, self._patch)
        return words.argsort(stable=True)[:, : self.rank]

    def _initial_deviation(self) -> float:
        squares = self.dictionary.double().square().sum((-2, -1)).mean()
        return math.sqrt(2 / float(squares))

    def dense_weight(self) -> Tensor:
        """The weight in the shape of the dense layer's, differentiable in ``coefficients``."""
        self._follow_seed()
        with full_precision(self.seed_bits.device):
            by_column = self.coefficients.unflatten(0, (self._groups, self.num_columns, -1))
            return (by_column @ self.dictionary).reshape(self._weight_shape)

    def _scaled(self, scale: Tensor, shift: Tensor) -> nn.Module:
        return scale_outputs(copy.deepcopy(self), "coefficients", scale, shift)

    def _forming_multiply_adds(self) -> int:
        return self.rank * math.prod(self._weight_shape)

    @torch.no_grad()
    def _nearest(self, groups: Sequence[Group]) -> tuple[Tensor, float]:
        fits = [
            decompose.dictionary_least_squares(
                group.weight, dictionary.double(), second_moment=group.second_moment
            )
            for group, dictionary in zip(groups, self.dictionary, strict=True)
        ]
        coefficients = torch.stack([fit.coefficients for fit in fits])
        error = overall_error(groups, [fit.relative_error for fit in fits])
        return coefficients.flatten(0, 2), error


@stands_for_dense
class DictionaryLinear(LinearLayer, DictionaryLayer):
    """Fully connected layer whose weight is predicted, in place of ``nn.Linear``.

    The weight is::

        W = V U,    U = (K_aa + ridge I)^-1 K_a          (Denil et al., NIPS 2013, equation 2)

    with trained ``V (d1, m)``, the weights of ``m`` inputs drawn without replacement, and a fixed
    dictionary ``U (m, d2)`` that predicts those of all inputs by kernel ridge regression. It has
    ``m d1`` parameters and the bias, instead of ``d1 d2``, and stores ``m d2`` numbers for each
    more column if the kernel is a covariance. Input ``(*, d2)``, output ``(*, d1)``.

    Args:
        rank: ``m``, at most ``d2``.

    Raises:
        RuntimeError: a covariance of another shape.
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = DictionaryLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``; without a kept weight by dictionary and coefficients in turn.

        Forming the weight would take ``m d1 d2`` multiply-adds, more than most batches.
        """
        weight = None if is_compiling() else self._current_weight(input)
        if weight is None and not self._is_factored:
            weight = self.dense_weight()
        if weight is not None:
            return functional.linear(input, weight, self.bias)
        seen = functional.linear(input, self.dictionary.flatten(0, 2))
        by_column = seen.unflatten(-1, (self.num_columns, self.rank))
        columns = self.coefficients.unflatten(0, (self.num_columns, -1))
        output = torch.einsum("...cm,ctm->...ct", by_column, columns).flatten(-2)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    @property
    def _is_factored(self) -> bool:
        """Whether that is at most twice the work of the dense layer for an input."""
        return self._factored_per_row <= 2 * self.in_features * self.out_features

    @property
    def _factored_per_row(self) -> int:
        return self.rank * (self.num_columns * self.in_features + self.out_features)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(*, d2)``, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        dense = super().multiply_adds(input_shape)
        if self._would_keep_weight() or not self._is_factored:
            return dense
        return math.prod(input_shape[:-1]) * self._factored_per_row


@stands_for_dense
class DictionaryConv2d(Conv2dLayer, DictionaryLayer):
    r"""Convolution whose filters are predicted, in place of ``nn.Conv2d``: see `DictionaryLinear`.

    The weight of a group is ``V U`` with ``V (d1 / groups, m)`` and ``U (m, n)``,
    ``n = d2 / groups * h * w``. The spatial kernel between two entries of a patch is
    ``exp(-|p - q|^2 / (2 length^2))`` of their positions in one channel, and zero between channels.
    It has ``m d1`` parameters and the bias, instead of ``n d1``.

    Shapes are those of ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``.

    Args:
        rank: ``m``, at most ``n``.

    Raises:
        RuntimeError: a covariance of another shape.
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = DictionaryConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """
