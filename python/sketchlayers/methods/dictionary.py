"""Predicted weights (Denil, Shakibi, Dinh, Ranzato, de Freitas, NIPS 2013, arXiv 1306.0543)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

from torch import nn

from sketchlayers.methods._dense import DenseMethod
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import DictionaryConv2d, DictionaryLinear
from sketchlayers.nn._checks import number_above, one_of, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.generated.dictionary import LENGTH, RIDGE


@register("dictionary")
@dataclass(frozen=True, kw_only=True)
class Dictionary(DenseMethod):
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

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (DictionaryConv2d, DictionaryLinear)
    _takes_depthwise = True

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

    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        return one_number("Dictionary", rank) * Geometry.of(layer).out_channels

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        geometry = Geometry.of(layer)
        kernel = self.kernel
        if kernel == "auto":
            kernel = "covariance" if prod(geometry.kernel_size) == 1 else "spatial"
        columns = min(self.num_columns, geometry.group_outputs)
        while geometry.group_outputs % columns:
            columns -= 1
        return {
            "rank": one_number("Dictionary", rank),
            "kernel": kernel,
            "num_columns": columns,
            "length": self.length,
            "ridge": self.ridge,
        }
