"""Predicted weights (Denil, Shakibi, Dinh, Ranzato, de Freitas, NIPS 2013, arXiv 1306.0543)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

from torch import nn

from sketchlayers.methods._formed import Formed
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import DictionaryConv2d, DictionaryLinear
from sketchlayers.nn._checks import number_above, one_of, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.generated._layer import FormedLayer
from sketchlayers.nn.generated.dictionary import LENGTH, RIDGE, is_factored


@register("dictionary")
@dataclass(frozen=True, kw_only=True)
class Dictionary(Formed):
    """``W = V U``: ``V`` trained, ``U`` predicts all weights from those of ``rank`` inputs.

    Attributes:
        kernel: what predicts. "spatial" is nearness in the kernel of a convolution; "covariance" is
            how the inputs vary together, from calibration data (without, each input is alone until
            the layer's ``set_covariance``), and is stored; "auto" is the first for kernels of more
            than one pixel and the second for others.
        num_columns: in how many parts, each with inputs of its own, the features are cut; where it
            does not divide them the next smaller number does.
        length: of the spatial kernel, in pixels.
        ridge: of the regression, in parts of the kernel's mean diagonal.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (DictionaryConv2d, DictionaryLinear)

    kernel: Literal["auto", "spatial", "covariance"] = "auto"
    num_columns: int = 1
    length: float = LENGTH
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        one_of("Dictionary", "kernel", self.kernel, ("auto", "spatial", "covariance"))
        columns = whole_number("Dictionary", "num_columns", self.num_columns)
        object.__setattr__(self, "num_columns", columns)
        for name in ("length", "ridge"):
            object.__setattr__(self, name, number_above("Dictionary", name, getattr(self, name), 0))

    def _parameters_per_rank(self, geometry: Geometry) -> int:
        return geometry.out_channels

    def _forming_multiply_adds(self, layer: nn.Module, geometry: Geometry, rank: int) -> int:
        return rank * geometry.weights

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        dense = super().multiply_adds(layer, rank, input_shape)
        number = one_number("Dictionary", rank)
        if not isinstance(layer, nn.Linear) or not layer.training:
            return dense
        inputs, outputs = layer.in_features, layer.out_features
        columns = self._columns(self._geometry(layer))
        if not is_factored(inputs, outputs, number, columns):
            return dense
        return prod(input_shape[:-1]) * number * (columns * inputs + outputs)

    def _columns(self, geometry: Geometry) -> int:
        """The largest number of equal parts, at most as many as asked for."""
        columns = min(self.num_columns, geometry.group_outputs)
        while geometry.group_outputs % columns:
            columns -= 1
        return columns

    def _build(self, layer: nn.Module, rank: int, **arguments: Any) -> FormedLayer:
        geometry = self._geometry(layer)
        kernel = self.kernel
        if kernel == "auto":
            kernel = "covariance" if prod(geometry.kernel_size) == 1 else "spatial"
        arguments |= {
            "rank": rank,
            "kernel": kernel,
            "num_columns": self._columns(geometry),
            "length": self.length,
            "ridge": self.ridge,
        }
        if isinstance(layer, nn.Conv2d):
            return DictionaryConv2d.from_conv(layer, **arguments)
        assert isinstance(layer, nn.Linear)  # no other gets here
        return DictionaryLinear.from_linear(layer, **arguments)
