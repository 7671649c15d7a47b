"""Every layer by the method that does it the least harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sketchlayers.methods._method import Method, get, register
from sketchlayers.methods._rank import Rank
from sketchlayers.methods.cp import CP
from sketchlayers.methods.sketch import Sketch
from sketchlayers.methods.svd import SVD
from sketchlayers.methods.tucker2 import Tucker2
from sketchlayers.nn._geometry import Geometry

_DECOMPOSITIONS = (Tucker2, SVD, CP)


@register("auto")
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Several methods; with ``allocation="error"`` each layer takes the best one for its size.

    What works on one rank, such as a uniform rate, is done by the first method that takes the
    layer.

    Attributes:
        candidates: names of the methods. Sketches are left out by default: their fixed random
            factors cannot be as near to a trained weight as factors that are fitted.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = tuple(
        dict.fromkeys((*SVD.layers, *CP.layers, *Sketch.layers))
    )

    candidates: tuple[str, ...] = ("tucker2", "svd", "cp")

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str) or not self.candidates:
            raise TypeError(
                f"Auto: candidates must be a tuple of names of methods (got {self.candidates!r})"
            )
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if self.name in self.candidates:
            raise ValueError("Auto: candidates must be other methods (got 'auto')")
        for name in self.candidates:
            get(name)

    def require_extension(self) -> None:
        """See `Method.require_extension`: for the candidates."""
        for name in self.candidates:
            get(name).require_extension()

    def members(self, layer: nn.Module) -> tuple[Method, ...]:
        """See `Method.members`.

        Of a linear layer and a 1x1 convolution all decompositions are the same singular value
        decomposition: the first one stands for all.
        """
        methods = (get(name) for name in self.candidates)
        found = [
            method for method in methods if method.refusal(layer) is None and method.ranks(layer)
        ]
        if len(found) < 2 or Geometry.of(layer).taps > 1:
            return tuple(found)
        first = next((method for method in found if isinstance(method, _DECOMPOSITIONS)), None)
        return tuple(one for one in found if one is first or not isinstance(one, _DECOMPOSITIONS))

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: that of the first method, if all refuse."""
        refusals = [get(name).refusal(layer) for name in self.candidates]
        return None if None in refusals else refusals[0]

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        members = self.members(layer)
        return members[0].ranks(layer) if members else ()

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`."""
        return self.members(layer)[0].parameters(layer, rank)

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        return self.members(layer)[0].multiply_adds(layer, rank, input_shape)

    def build(self, layer: nn.Module, rank: Rank, **how: Any) -> nn.Module:
        """See `Method.build`."""
        return self.members(layer)[0].build(layer, rank, **how)
