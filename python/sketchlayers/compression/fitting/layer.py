"""One layer: what it shall become, and the replacement that is fitted to that."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers.compression.calibration.moments import LayerMoments
from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.compression.fitting.target import Target, weight_by_group
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._method import Init
from sketchlayers.nn._geometry import ordinary_weight, own_weight
from sketchlayers.nn._rounding import forget


@dataclass(frozen=True)
class Choice:
    """What a layer shall become.

    Attributes:
        layer: the original.
        method: None: stays a plain layer.
        rank: None: stays a plain layer.
        seed: of the replacement.
        bits: that its numbers are rounded to; None: they stay.
        group_size: inputs that share a scale then; None: all of an output.
    """

    layer: nn.Module
    method: Method | None
    rank: Rank | None
    seed: int
    bits: int | None = None
    group_size: int | None = None

    def rounded(self, module: nn.Module, **norm: Tensor | None) -> nn.Module:
        """The module itself, its weights rounded if they shall be, see `round_layer`."""
        if self.bits is not None:
            dtype = self.layer.get_parameter("weight").dtype
            round_layer(module, self.bits, dtype=dtype, group_size=self.group_size, **norm)
        return module


@dataclass(frozen=True)
class Norm:
    """What a fit is measured by.

    Attributes:
        moments: of the layer's inputs in the original network; None: the weight's own norm.
        sensitivity: weight of output errors, ``(groups, T, T)``; None: all alike.
    """

    moments: LayerMoments | None = None
    sensitivity: Tensor | None = None


@dataclass(frozen=True)
class Fitted:
    """A layer that takes the place of an original one.

    Attributes:
        module: the new layer.
        relative_error: change of the layer's output, relative to it, on the calibration data (or
            of its weight, without data); None for a random start.
    """

    module: nn.Module
    relative_error: float | None


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Errors of decompositions tell which layer it was.

    Raises:
        ValueError: whatever of that kind the body raises, with the layer's name.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"compress: {layer!r} cannot be fitted: {error}") from error


def for_method(tensor: Tensor | None) -> Tensor | None:
    """Returns a moment or sensitivity without the axis of the groups, where there is one group."""
    return tensor[0] if tensor is not None and len(tensor) == 1 else tensor


def power(layer: nn.Module, norm: Norm) -> float:
    """Returns ``tr(F W Sigma W^T)``, to which a squared relative error is relative."""
    groups = getattr(layer, "groups", 1)
    weight = ordinary_weight(layer).detach().double().cpu()
    rows = weight.reshape(groups, len(weight) // groups, -1)
    image = rows if norm.moments is None else rows @ norm.moments.second_moment
    image = image if norm.sensitivity is None else norm.sensitivity @ image
    return max(0.0, float((rows * image).sum()))


def without_mean(layer: nn.Module, norm: Norm) -> Norm:
    """The norm for a layer whose bias, if it has one, takes up what is wrong on average."""
    if norm.moments is None or layer.bias is None:
        return norm
    target = Target.of_weight(layer, norm.moments)
    moments = replace(norm.moments, second_moment=target.second_moment(centred=True))
    return Norm(moments, norm.sensitivity)


def fit_alone(choice: Choice, norm: Norm, *, init: Init, correct_bias: bool = True) -> Fitted:
    """Builds a replacement fitted to the layer's weight, or started at random.

    With moments and a bias the fit is in the norm of the covariance, and the bias takes up the
    change of the mean: ``b~ = b + (W - W~) E[x]``.
    """
    if init == "random" or norm.moments is None:
        return _without_data(choice, init)
    target = Target.of_weight(choice.layer, norm.moments)
    module = approximate(choice, target, norm.sensitivity, correct_bias=correct_bias)
    return Fitted(module, target.relative_error(choice.layer, module))


def _without_data(choice: Choice, init: Init) -> Fitted:
    layer, module = choice.layer, choice.layer
    if choice.method is None or choice.rank is None:
        weight = ordinary_weight(layer).detach()
        module = with_weight(layer, weight).to(layer.get_parameter("weight").dtype)
    else:
        module = choice.method.build(layer, choice.rank, init=init, seed=choice.seed)
    if choice.bits is None:
        return Fitted(module, getattr(module, "fit_error", None))
    module = choice.rounded(module)
    before, after = (ordinary_weight(one).detach().double() for one in (layer, folded(module)))
    size = float(before.norm())
    return Fitted(module, float((before - after).norm()) / size if size else 0.0)


def approximate(
    choice: Choice,
    target: Target,
    sensitivity: Tensor | None,
    *,
    correct_bias: bool,
    start: nn.Module | None = None,
) -> nn.Module:
    """The layer of the chosen kind whose outputs come nearest to the target.

    A fit goes on from ``start`` if that is given.
    """
    centred = correct_bias and choice.layer.bias is not None
    weight = target.weight(choice.layer, centred=centred)
    wanted = with_weight(choice.layer, weight)
    if choice.method is None or choice.rank is None:
        module = wanted
    else:
        module = choice.method.build(
            wanted,
            choice.rank,
            init="fit",
            seed=choice.seed,
            second_moment=target.second_moment(centred=centred),
            sensitivity=for_method(sensitivity),
            **({} if start is None else {"start": start}),
        )
    module = choice.rounded(
        module, weight=weight, second_moment=target.second_moment(centred=centred)
    )
    if centred:
        weight = weight_by_group(module, target.inputs)
        rest = target.mean - (weight @ target.inputs.mean[..., None])[..., 0]
        bias: Any = module.bias
        bias.detach().add_(rest.reshape(bias.shape).to(bias))
    dtype = choice.layer.get_parameter("weight").dtype
    return module.to(dtype).train(choice.layer.training)


def folded(layer: nn.Module) -> nn.Module:
    """The plain layer with the same outputs, of a plain layer itself.

    It computes large batches faster than chains of layers, whose depthwise ones take their time.
    """
    fold = getattr(layer, "fold", None)
    return layer if fold is None else fold()


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Returns the layer with another weight and a copy of its bias, float64, without its hooks."""
    like = layer.get_parameter("weight")
    values = torch.empty_like(like, dtype=torch.float64).copy_(own_weight(layer, weight))
    new = copy.copy(layer)
    forget(new)
    new._parameters = {
        name: None
        if one is None
        else nn.Parameter(one.detach().double().clone(), one.requires_grad)
        for name, one in layer._parameters.items()
        if name != "weight"
    }
    new._parameters["weight"] = nn.Parameter(values.detach(), like.requires_grad)
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(new, kind, type(getattr(layer, kind))())
    return new


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators of the CPU and of the device start from ``seed``, and are put back."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
