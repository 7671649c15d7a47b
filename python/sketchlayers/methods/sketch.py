"""Tensor sketching: SK-CONV and SK-FC (Kasiviswanathan, Narodytska, Jin, IJCAI 2018)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from sketchlayers.methods._dense import DenseMethod
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import SKConv1d, SKConv2d, SKConv3d, SKLinear
from sketchlayers.nn._checks import one_of, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.sketch._layer import scale_factor
from sketchlayers.nn.sketch._sizes import fitting_blocks, max_rank, weights_per_rank


@register("sketch")
@dataclass(frozen=True, kw_only=True)
class Sketch(DenseMethod):
    """``W_hat = c sum_i (U1_i^T S1_i + S2_i U2_i)`` (equation 1): signs U fixed, S trained.

    Attributes:
        num_sketches: the ``l`` of the paper, how many sketches are summed.
        mixing: "spatial" (Definition 3, the paper's) or "channel" (Definition 2, fewer operations).
        scale: the factor c: "paper" is ``1/(2l)``, "normalized" ``1/sqrt(2l)``, or a number.
        blocks: number of blocks of a layer's inputs and outputs with signs of their own; a layer
            whose sizes it does not divide gets the next smaller number that does.
        signs: "rademacher" (independent), or "hadamard" (rows of a randomised transform).
        frame: None, or "signs" to multiply elementwise by fixed random signs made from the seed.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (
        SKConv1d,
        SKConv2d,
        SKConv3d,
        SKLinear,
    )

    num_sketches: int = 1
    mixing: Literal["spatial", "channel"] = "spatial"
    scale: Literal["paper", "normalized"] | float = "paper"
    blocks: int = 1
    signs: Literal["rademacher", "hadamard"] = "rademacher"
    frame: Literal["signs"] | None = None

    def __post_init__(self) -> None:
        num_sketches = whole_number("Sketch", "num_sketches", self.num_sketches)
        one_of("Sketch", "mixing", self.mixing, ("spatial", "channel"))
        blocks = whole_number("Sketch", "blocks", self.blocks)
        one_of("Sketch", "signs", self.signs, ("rademacher", "hadamard"))
        one_of("Sketch", "frame", self.frame, (None, "signs"))
        factor = scale_factor("Sketch", self.scale, num_sketches)
        # Plain Python numbers, whatever number classes came in, so that a report can be saved.
        object.__setattr__(self, "num_sketches", num_sketches)
        object.__setattr__(self, "blocks", blocks)
        if not isinstance(self.scale, str):
            object.__setattr__(self, "scale", factor)

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`: every whole rank."""
        return super().ranks(layer)[: max_rank(Geometry.of(layer), self.num_sketches)]

    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        per_rank = weights_per_rank(Geometry.of(layer), self.num_sketches)
        return one_number("Sketch", rank) * per_rank

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        geometry = Geometry.of(layer)
        sizes = geometry.group_inputs, geometry.group_outputs
        arguments = {"rank": one_number("Sketch", rank)} | self.options()
        arguments["blocks"] = fitting_blocks(*sizes, blocks=self.blocks)
        if isinstance(layer, nn.Linear):
            del arguments["mixing"]
        return arguments


def scale_argument(text: str) -> str | float:
    """Parses the option ``scale`` of a command line, for ``type=`` of ``argparse``.

    Raises:
        argparse.ArgumentTypeError: neither "paper" nor "normalized" nor a number.
    """
    if text in ("paper", "normalized"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'must be "paper", "normalized" or a number (got {text!r})'
        ) from None
