"""Layers whose parameters are rounded to a few bits, in the norm of the layer's output.

A layer of factors is a chain. Its factors are rounded one after the other, each in the norm of the
features that the rounded ones before it give; each is first re-fitted to these, and the last one to
the weight that all of them stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers.decompose import corrected_weight, rounded
from sketchlayers.decompose.rounding import Rounded
from sketchlayers.nn._geometry import CONVOLUTIONS, own_weight
from sketchlayers.nn._rounding import Rounding, note, stored_bytes
from sketchlayers.nn.factored._conv import FactoredConv
from sketchlayers.nn.factored._layer import FactoredLayer
from sketchlayers.nn.generated.dictionary import DictionaryLayer

from .target import RIDGE

DEPTHWISE_BITS = 8
"""The fewest of a filter with one channel: it has few entries, and errors in each count much."""

DICTIONARY_BITS = 8
"""The fewest of a dictionary's coefficients, which make large numbers cancel."""


@torch.no_grad()
def round_layer(
    layer: nn.Module,
    bits: int,
    *,
    dtype: torch.dtype = torch.float32,
    group_size: int | None = None,
    weight: Tensor | None = None,
    second_moment: Tensor | None = None,
) -> None:
    """Rounds the weights of a layer in place, and notes on its modules how they follow.

    A parameter whose few bits and scales would be more bytes than it has now stays as it is.

    Args:
        layer: a plain one, or one that a method has made; in float64 or as it will stay.
        bits: of each number.
        dtype: that it will stay in.
        group_size: inputs that share a scale; None: all of an output.
        weight: ``(groups, T, n)``, what the layer stands for; None: its own.
        second_moment: ``(groups, n, n)`` of the layer's input patches; None for the identity.
    """
    form = _Form(bits, dtype, group_size)
    if isinstance(layer, FactoredLayer):
        _round_chain(layer, form, weight, second_moment)
    elif isinstance(layer, (*CONVOLUTIONS, nn.Linear, nn.Embedding)):
        moments = [None] if second_moment is None else list(second_moment)
        own = layer.get_parameter("weight")
        if getattr(layer, "transposed", False):  # its scales are those of inputs
            moments = [None]
        by_group = own.reshape(len(moments), len(own) // len(moments), -1)
        made = [
            form.rounded(one, second_moment=moment)
            for one, moment in zip(by_group, moments, strict=True)
        ]
        _put(layer, "weight", made)
    else:
        if isinstance(layer, DictionaryLayer):
            form = form.of_at_least(DICTIONARY_BITS)
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and name != "bias" and parameter.numel():
                    rows = parameter.reshape(1, -1) if parameter.dim() < 2 else parameter
                    _put(module, name, [form.rounded(rows)])


class _Form(NamedTuple):
    """How a layer's weights are rounded.

    Attributes:
        bits: of each number.
        dtype: of the layer's parameters.
        group_size: inputs that share a scale; None: all of an output.
    """

    bits: int
    dtype: torch.dtype
    group_size: int | None

    def of_at_least(self, bits: int) -> _Form:
        """The same with so many bits or more."""
        return self._replace(bits=max(self.bits, bits))

    def rounded(
        self, weight: Tensor, *, second_moment: Tensor | None = None, one_scale: bool = False
    ) -> _Weight:
        """A weight of these outputs (rows), rounded where that takes fewer bytes."""
        inputs, size = weight[0].numel(), self.group_size
        groups = 1 if size is None or inputs % size else inputs // size
        scales = groups * (1 if one_scale else len(weight))
        numbers = weight.numel()
        if stored_bytes(numbers, scales, self.bits) >= numbers * self.dtype.itemsize:
            return _Weight(weight, None)
        made = rounded(
            weight, self.bits, second_moment=second_moment, groups=groups, one_scale=one_scale
        )
        return _Weight(made.weight, made)


class _Weight(NamedTuple):
    """A weight, and the whole numbers that it is made of; None where it stays in floats."""

    values: Tensor
    rounded: Rounded | None


def _put(module: nn.Module, name: str, made: Sequence[_Weight]) -> None:
    """Gives a module's parameter the weights of its groups, which are all rounded or none."""
    parameter = module._parameters[name]
    assert parameter is not None
    numbers = [one.rounded for one in made if one.rounded is not None]
    if numbers:
        scale = torch.cat([one.scale for one in numbers]).float().cpu()
        note(module, name, Rounding(numbers[0].bits, scale))
    parameter.copy_(torch.cat([one.values for one in made]).reshape(parameter.shape))


def _round_chain(
    layer: FactoredLayer,
    form: _Form,
    weight: Tensor | None,
    second_moment: Tensor | None,
) -> None:
    parts = layer.parts()
    by_part = [_by_group(layer, part) for part in parts]
    if weight is None:
        weight = _by_group(layer)
    kernel = getattr(layer, "kernel_size", ())
    groups = []
    for g, target in enumerate(weight.double()):
        factors = _balanced([part[g] for part in by_part])
        moment = None if second_moment is None else second_moment[g]
        groups.append(_round_group(factors, target.flatten(1), moment, kernel, form))
    for part, made in zip(parts, zip(*groups, strict=True), strict=True):
        if getattr(part, "transposed", False):  # its rows are others
            own = own_weight(part, torch.cat([one.values for one in made]))
            bits = [one.rounded.bits for one in made if one.rounded is not None]
            _put(part, "weight", [form.of_at_least(max(bits, default=0)).rounded(own)])
        else:
            _put(part, "weight", made)


def _is_depthwise(factor: Tensor, inputs: int) -> bool:
    """Whether each output of a factor has one of its inputs."""
    return factor.shape[1] == 1 and len(factor) == inputs


def _by_group(layer: Any, part: Any = None) -> Tensor:
    """The weight of a part, or of the whole, ``(groups, outputs, inputs, *kernel)``, float64."""
    weight: Tensor
    if isinstance(layer, FactoredConv):
        weight = layer._product() if part is None else layer._ordinary(part)
    else:
        weight = layer.dense_weight() if part is None else part.weight
    return weight.detach().double().cpu().unflatten(0, (layer._groups, -1))


def _balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product, in which the inputs of every factor but the first are of one size.

    The rows of each factor have scales of their own, so that their sizes are free.
    """
    balanced = list(factors)
    for i in range(len(balanced) - 1, 0, -1):
        factor, before = balanced[i], balanced[i - 1]
        depthwise = _is_depthwise(factor, len(before))
        if depthwise:
            size = factor.flatten(1).abs().amax(1)
        else:
            size = factor.transpose(0, 1).flatten(1).square().mean(1).sqrt()
        size = torch.where(size > 0, size, 1.0)
        ones = [1] * (factor.dim() - 2)
        balanced[i] = factor / (size.view(-1, 1, *ones) if depthwise else size.view(1, -1, *ones))
        balanced[i - 1] = before * size.view(-1, *[1] * (before.dim() - 1))
    return balanced


def _round_group(
    factors: Sequence[Tensor],
    target: Tensor,
    moment: Tensor | None,
    kernel: Sequence[int],
    form: _Form,
) -> list[_Weight]:
    made: list[_Weight] = []
    inputs = factors[0].shape[1]
    eye = torch.eye(target.shape[1], dtype=torch.float64)
    # What each factor gets for a patch, (channels, *kernel, n): before rounding and after.
    wanted = found = eye.reshape(inputs, *kernel, -1)
    for i, factor in enumerate(factors):
        last = i == len(factors) - 1
        depthwise = i > 0 and _is_depthwise(factor, len(found))
        if depthwise:
            # As many scales as numbers would outweigh them.
            one = form.of_at_least(DEPTHWISE_BITS).rounded(factor.flatten(1), one_scale=True)
        else:
            own, norm = factor.flatten(1), None
            if i == 0:
                norm = None if moment is None else _traced(moment, inputs, kernel, factor.shape[2:])
            elif moment is not None:
                features = found.flatten(0, -2)
                image = features @ moment
                norm = image @ features.T
                before = target if last else own @ wanted.flatten(0, -2)
                own = corrected_weight(own, before @ image.T, norm, ridge=RIDGE)
            one = form.rounded(own, second_moment=norm)
        made.append(one._replace(values=one.values.reshape(factor.shape)))
        if not last:
            wanted = _through(wanted, factor, depthwise=depthwise)
            found = _through(found, made[-1].values, depthwise=depthwise)
    return made


def _traced(moment: Tensor, inputs: int, kernel: Sequence[int], own: Sequence[int]) -> Tensor:
    """The second moment of what a factor with its own kernel gets, over all its places."""
    axes = len(kernel)
    by_axis = moment.reshape(inputs, *kernel, inputs, *kernel)
    letters = "abcdefgh"
    left, right = "s", "t"
    for axis in range(axes):
        left += letters[axis]
        right += letters[axis + axes] if own[axis] > 1 else letters[axis]
    kept = [i for i in range(axes) if own[i] > 1]
    out = "s" + "".join(letters[i] for i in kept) + "t" + "".join(letters[i + axes] for i in kept)
    traced = torch.einsum(f"{left}{right}->{out}", by_axis)
    size = inputs
    for i in kept:
        size *= kernel[i]
    return traced.reshape(size, size)


def _through(features: Tensor, factor: Tensor, *, depthwise: bool) -> Tensor:
    """What a factor makes of features ``(channels, *kernel, n)``; axes that it has get size 1."""
    axes = factor.dim() - 2
    letters = "abcd"[:axes]
    source = "s" + letters + "n"
    kept = "".join(x if factor.shape[2 + i] == 1 else "" for i, x in enumerate(letters))
    shape = [1 if factor.shape[2 + i] > 1 else features.shape[1 + i] for i in range(axes)]
    own = "".join(x for i, x in enumerate(letters) if factor.shape[2 + i] > 1)
    taken = factor.reshape(*factor.shape[:2], *(n for n in factor.shape[2:] if n > 1))
    if depthwise:
        result = torch.einsum(f"s{own},{source}->s{kept}n", taken[:, 0], features)
    else:
        result = torch.einsum(f"o s{own},{source}->o{kept}n".replace(" ", ""), taken, features)
    return result.reshape(len(factor), *shape, features.shape[-1])
