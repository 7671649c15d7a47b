"""Tensor sketching: SK-CONV and SK-FC (Kasiviswanathan, Narodytska, Jin, IJCAI 2018)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sketchlayers.methods._method import Init, Method, register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.nn._checks import one_of, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.sketch._layer import scale_factor
from sketchlayers.nn.sketch._sizes import (
    dense_parameters,
    fitting_blocks,
    max_rank,
    sketch_parameters,
)

Sizes = tuple[int, int, tuple[int, int]]


@register("sketch")
@dataclass(frozen=True, kw_only=True)
class Sketch(Method):
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

    layers: ClassVar[tuple[type[nn.Module], ...]] = (SKConv2d, SKLinear)

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

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: takes ``nn.Conv2d`` and ``nn.Linear``, but no depthwise layers."""
        if isinstance(layer, nn.Linear):
            return None
        if not isinstance(layer, nn.Conv2d):
            return f"{type(layer).__name__} is not a layer that sketching takes"
        if layer.groups > 1 and layer.groups == layer.in_channels:
            return "depthwise convolution"
        return None

    def ranks(self, layer: nn.Module) -> range:
        """See `Method.ranks`: every whole rank."""
        in_channels, out_channels, kernel = _sizes(layer)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        dense = dense_parameters(in_channels, out_channels, kernel, groups=groups, bias=False)
        per_rank = sketch_parameters(
            in_channels,
            out_channels,
            kernel,
            rank=1,
            num_sketches=self.num_sketches,
            bias=False,
        )
        shrinks = max(0, dense - 1) // per_rank if per_rank else 0
        exists = max_rank(in_channels, out_channels, groups=groups, num_sketches=self.num_sketches)
        return range(1, min(shrinks, exists) + 1)

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`: ``l k h w (d1 + d2)`` and the bias."""
        in_channels, out_channels, kernel = _sizes(layer)
        return sketch_parameters(
            in_channels,
            out_channels,
            kernel,
            rank=one_number("Sketch", rank),
            num_sketches=self.num_sketches,
            bias=layer.bias is not None,
        )

    @torch.no_grad()
    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`: of the path that is planned on the CPU."""
        arguments = {**self._arguments(layer, rank), "seed": 0, "device": "meta"}
        sketched: SKConv2d | SKLinear
        if isinstance(layer, nn.Conv2d):
            sketched = SKConv2d(**Geometry.of(layer).arguments(), mixing=self.mixing, **arguments)
        else:
            inputs, outputs, _ = _sizes(layer)
            sketched = SKLinear(inputs, outputs, **arguments)
        return sketched.train(layer.training).multiply_adds(input_shape)

    def build(
        self,
        layer: nn.Module,
        rank: Rank,
        *,
        init: Init,
        seed: int,
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> nn.Module:
        """See `Method.build`."""
        arguments = {
            **self._arguments(layer, rank),
            "seed": seed,
            "init": init,
            "second_moment": second_moment,
            "sensitivity": sensitivity,
        }
        if isinstance(layer, nn.Conv2d):
            return SKConv2d.from_conv(layer, mixing=self.mixing, **arguments)
        if isinstance(layer, nn.Linear):
            return SKLinear.from_linear(layer, **arguments)
        raise TypeError(
            f"Sketch: the layer must be nn.Conv2d or nn.Linear (got {type(layer).__name__})"
        )

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        """Arguments that both layers have."""
        inputs, outputs, _ = _sizes(layer)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        return {
            "rank": one_number("Sketch", rank),
            "num_sketches": self.num_sketches,
            "scale": self.scale,
            "blocks": fitting_blocks(inputs, outputs, blocks=self.blocks, groups=groups),
            "signs": self.signs,
            "frame": self.frame,
        }


def _sizes(layer: nn.Module) -> Sizes:
    """Input channels, output channels and kernel size; those of a linear layer are (1, 1)."""
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return layer.in_channels, layer.out_channels, (height, width)
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, (1, 1)
    raise TypeError(
        f"Sketch: the layer must be nn.Conv2d or nn.Linear (got {type(layer).__name__})"
    )


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
