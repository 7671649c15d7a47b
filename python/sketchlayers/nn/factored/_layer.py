"""What layers of factors share: they are plain layers, one after the other."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sketchlayers._runtime.parallel import own_class
from sketchlayers.nn._checks import check_one_given, checked_rate, whole_number
from sketchlayers.nn._geometry import (
    CONVOLUTIONS,
    Geometry,
    batch_and_size,
    output_size,
    own_weight,
)
from sketchlayers.nn._groups import Group, groups_of, overall_error
from sketchlayers.nn._layer import CompressedLayer, Norm, draw_normal, scale_outputs

R = TypeVar("R")
_PLAIN: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)


class Fit(NamedTuple):
    """Weights of the parts, in order, for one group; and the relative error."""

    weights: tuple[Tensor, ...]
    relative_error: float


class FactoredLayer(CompressedLayer):
    """A layer that is computed by plain layers one after the other; the bias is the last one's."""

    _fit_options: ClassVar[dict[str, Any]] = {"seed": None}

    def parts(self) -> list[nn.Module]:
        """The plain layers in the order in which they run."""
        return list(self.children())

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the last part."""
        bias: Any = self.parts()[-1].bias
        return bias() if callable(bias) else bias

    @bias.setter
    def bias(self, bias: Tensor | None) -> None:
        last: Any = self.parts()[-1]
        last.bias = bias

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of ``nn.Module``; the bias is the last part's.

        Raises:
            AttributeError: for the weight, which is computed.
        """
        if name == "bias":
            self.parts()[-1].register_parameter(name, param)
        else:
            super().register_parameter(name, param)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights and bias.

        The weights are normal with mean zero, of variance ``1 / fan_in`` in every part but the
        last, which has ``2 / fan_in``. An entry of the dense weight is then a sum of uncorrelated
        products, one for every choice of the inner channels. Their number is the product of the
        ranks, which is also what the fans hold beside ``n``, so the variance is Kaiming's
        ``2 / n`` at every rank. The bias is drawn as ``nn.Conv2d`` draws it.

        Args:
            generator: of the layer's device; ``None`` is PyTorch's own.
        """
        self.fit_error = None
        *_, last = parts = self.parts()
        for part in parts:
            weight = part.get_parameter("weight")
            if weight.is_meta:
                return
            deviation = math.sqrt((2 if part is last else 1) / Geometry.of(part).patch)
            draw_normal(weight, deviation, generator)
        self._draw_bias(generator)

    def _draw(self, *, seed: int | None = None, **how: Any) -> None:
        device, generator = self._weight_parameters()[0].device, None
        if seed is not None and device.type != "meta":
            generator = torch.Generator(device).manual_seed(seed)
        self.reset_parameters(generator)

    def _weight_parameters(self) -> list[nn.Parameter]:
        return [self._weight_of(part) for part in self.parts()]

    def _weight_of(self, part: nn.Module) -> nn.Parameter:
        """The weight of a part, computed where the part is pruned, parametrised or torchao's.

        Raises:
            RuntimeError: something else is in the part's place, as after quantisation or under an
                adapter, which computes with more than this weight.
        """
        kind = type_before_parametrizations(part)
        if kind not in _PLAIN and own_class(part) not in _PLAIN:
            raise RuntimeError(
                f"{type(self).__name__}: its parts must be plain layers to have one weight (got "
                f"{kind.__module__}.{kind.__name__}); take the weight, or fold the model, before "
                "it is quantised, and merge adapters before"
            )
        weight: Any = part.weight
        if not torch.compiler.is_compiling() and type(weight).__module__.startswith("torchao."):
            weight = weight.dequantize()
        made: nn.Parameter = weight
        return made

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        """Weights of the parts that approximate one group's."""
        raise NotImplementedError

    def _fit(
        self,
        weight: Tensor,
        init: str,
        norm: Norm,
        *,
        start: FactoredLayer | None = None,
        **how: Any,
    ) -> float:
        owner = type(self).__name__
        groups = list(groups_of(owner, weight, self._groups, *norm))
        begins: list[dict[str, Any]] = [{} for _ in groups]
        if start is not None:
            begins = [{"start": begin} for begin in self._checked_start(start)]
        fits = [
            self._fit_group(group, **how, **begin)
            for group, begin in zip(groups, begins, strict=True)
        ]
        by_part = zip(*(fit.weights for fit in fits), strict=True)
        for part, weights in zip(self.parts(), by_part, strict=True):
            self._weight_of(part).detach().copy_(own_weight(part, torch.cat(weights)))
        return overall_error(groups, [fit.relative_error for fit in fits])

    def _checked_start(self, start: FactoredLayer) -> list[Any]:
        """What the fits of the groups begin with.

        Raises:
            TypeError: it is no layer of this class.
            ValueError: it has other sizes.
        """
        owner = type(self).__name__
        if type(start) is not type(self):
            raise TypeError(f"{owner}: start must be a {owner} (got {type(start).__name__})")
        own, others = (
            [tuple(weight.shape) for weight in layer._weight_parameters()]
            for layer in (self, start)
        )
        if own != others:
            raise ValueError(
                f"{owner}: start must have parts of the same sizes, {own} (got {others})"
            )
        return start._starts()

    def _starts(self) -> list[Any]:
        """What a decomposition takes as ``start``, for each group."""
        raise NotImplementedError

    def _scaled(self, scale: Tensor, shift: Tensor) -> nn.Module:
        result = copy.deepcopy(self)
        scale_outputs(result.parts()[-1], "weight", scale, shift)
        return result

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on an input of this shape, without the bias.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        parts = map(Geometry.of, self.parts())
        return chain_multiply_adds(type(self).__name__, self, parts, input_shape)

    def _checked_rank(
        self, rank: int | None, rate: float | None, bias: bool, full: int, weights_per_rank: int
    ) -> int:
        """The rank that was given, checked, or that nearest to the rate.

        Args:
            rank: None if a rate is given.
            rate: None if a rank is given.
            bias: whether the layer has one.
            full: the rank that is enough for every weight.
            weights_per_rank: entries of all parts together, for each rank.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of its range, both or none of them.
        """
        owner = type(self).__name__
        check_one_given(owner, "rank", rank, rate)
        if rank is None:
            ranks = Geometry.of(self).shrinking_ranks(weights_per_rank)
            return self._nearest_rank(rate, bias, ranks, weights_per_rank.__mul__)
        rank = whole_number(owner, "rank", rank)
        if rank > full:
            raise ValueError(
                f"{owner}: rank must be at most {full}, which is enough for every weight "
                f"(got rank={rank})"
            )
        return rank

    def _nearest_rank(
        self, rate: Any, bias: bool, ranks: Sequence[R], weights: Callable[[R], int]
    ) -> R:
        """The rank whose parameters come nearest to ``rate`` times those of the dense layer.

        Args:
            rate: of parameters, bias included.
            bias: whether the layer has one.
            ranks: a uniform family, parameters increasing.
            weights: entries of all parts together at a rank.

        Raises:
            TypeError: the rate is not a number.
            ValueError: the rate is out of range, or the layer would grow at any rank.
        """
        owner, kept = type(self).__name__, self._outputs if bias else 0
        target = checked_rate(owner, rate) * (math.prod(self._weight_shape) + kept)
        if not ranks:
            raise ValueError(
                f"{owner}: rate must be left out, and ranks given, for a layer that would grow at "
                f"any rank (got rate={rate})"
            )

        def parameters(rank: R) -> int:
            return weights(rank) + kept

        above = bisect_right(ranks, target, key=parameters)
        close = ranks[max(0, above - 1) : above + 1]
        return min(close, key=lambda rank: abs(parameters(rank) - target))


def chain_multiply_adds(
    owner: str, layer: nn.Module, parts: Iterable[Geometry], input_shape: Sequence[int]
) -> int:
    """Multiply-adds of a chain of convolutions that stands for a layer.

    Raises:
        RuntimeError: the shape does not fit the layer.
    """
    batch, size = batch_and_size(owner, layer, input_shape)
    count, pixels = 0, list(size)
    for part in parts:
        before, pixels = pixels, output_size(part, pixels)
        # Every input of a transposed convolution meets the weight once.
        positions = pixels if part.output_padding is None else before
        count += math.prod(positions) * part.weights
    return batch * count
