"""From chosen ranks to fitted layers: each by itself, or one after the other.

One after the other (*sequentially*), a layer is fitted to the original network's output ``y = W x``
from the inputs ``x~`` that it will really get from the layers before it. The best weight without a
limit of its rank is ``W_opt = E[y x~^T] E[x~ x~^T]^-1`` (METHODS: ``W E[x x~^T] E[x~ x~^T]^-1``),
and of a limited rank the one nearest to it in the norm of ``E[x~ x~^T]``: errors add up at right
angles. Layers that stay dense take ``W_opt`` as their weight.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.moments import (
    LayerMoments,
    MomentSums,
    NonFiniteError,
    exactly,
)
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.fitting.lockstep import Lockstep, OrderError
from sketchlayers.decompose import corrected_weight
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._method import Init
from sketchlayers.surgery.sample import Sample

_IMAGES = 32
"""Images whose products are summed in float32 before float64 takes the sum, which is slower."""
RIDGE = 1e-3
"""Fraction of the mean input power that pulls a sequential fit to the original weight."""

ROUNDING = 1e-7
"""Fraction of the whole input power by which sums of float32 products are wrong, about; more where
inputs hardly vary, since their errors add up."""


@dataclass(frozen=True)
class Choice:
    """What a layer shall become.

    Attributes:
        layer: the original.
        method: None: stays a plain layer.
        rank: None: stays a plain layer.
        seed: of the replacement.
    """

    layer: nn.Module
    method: Method | None
    rank: Rank | None
    seed: int


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
    weight = layer.get_parameter("weight").detach().double().cpu()
    rows = weight.reshape(groups, len(weight) // groups, -1)
    image = rows if norm.moments is None else rows @ norm.moments.second_moment
    image = image if norm.sensitivity is None else norm.sensitivity @ image
    return max(0.0, float((rows * image).sum()))


def fit_alone(choice: Choice, norm: Norm, *, init: Init, correct_bias: bool = True) -> Fitted:
    """Builds a replacement fitted to the layer's weight, or started at random.

    With moments and a bias the fit is in the norm of the covariance, and the bias takes up the
    change of the mean: ``b~ = b + (W - W~) E[x]``.
    """
    assert choice.method is not None and choice.rank is not None
    build = partial(choice.method.build, choice.layer, choice.rank, init=init, seed=choice.seed)
    if init == "random" or norm.moments is None:
        module = build()
        return Fitted(module, getattr(module, "fit_error", None))
    moments, layer = norm.moments, choice.layer
    target = _Target.of_weight(layer, moments)
    module = _approximate(choice, target, norm.sensitivity, correct_bias=correct_bias)
    return Fitted(module, target.relative_error(layer, module))


def fit_one_after_the_other(
    model: nn.Module,
    choices: Mapping[str, Choice],
    sensitivities: Mapping[str, Tensor],
    sample: Sample,
    processes: Processes,
    *,
    fitted: Mapping[str, nn.Module],
    correct_bias: bool,
    advance: Callable[[int], None],
) -> dict[str, Fitted]:
    """Fits layers in the order in which the model runs them, each from its real inputs.

    Args:
        model: the original; it does not change.
        choices: by name; layers that a call of the model reaches once.
        sensitivities: by name, ``(groups, T, T)``; of layers that have none all outputs count
            alike.
        sample: the images.
        processes: whose images are summed up.
        fitted: layers that have been replaced already.
        correct_bias: the bias takes up the change of the mean.
        advance: told of every layer.

    Returns:
        The fitted layers; those missing were not reached.

    Raises:
        OrderError: batches come through the layers in different orders.
        ValueError: a layer's input or output is not finite.
    """
    done: dict[str, Fitted] = {}
    with (
        Lockstep(model, choices, sample.calls()) as originals,
        Lockstep(model, [*choices, *fitted], sample.calls()) as actual,
    ):
        for other, layer in fitted.items():
            actual.replace(other, layer)
        while (name := originals.advance()) is not None:
            while (place := actual.advance()) in fitted:
                pass  # was fitted before; its inputs do not matter
            if place != name:
                raise OrderError(
                    "compress: the smaller network must run its layers in the order of the "
                    f"original one for sequential fitting (got {place!r} in place of {name!r}); "
                    "use sequential=False"
                )
            choice = choices[name]
            sums = _TargetSums(choice.layer)
            try:
                for before, now in zip(originals.inputs, actual.inputs, strict=True):
                    sums.add(before, now)
                target = sums.take(processes)
            except NonFiniteError as error:
                raise ValueError(
                    f"compress: inputs of {name!r} must be finite in the smaller network "
                    f"(got {error.found})"
                ) from error
            if target is not None:
                with naming(name):
                    module = _approximate(
                        choice, target, sensitivities.get(name), correct_bias=correct_bias
                    )
                done[name] = Fitted(module, target.relative_error(choice.layer, module))
                actual.replace(name, module)
            advance(1)
    return done


# ------------------------------------------------------------------------------- least squares


@dataclass(frozen=True)
class _Target:
    """The outputs that a layer shall have and the inputs that it has for them: moments of both.

    Attributes:
        inputs: ``E[x~ x~^T]`` and ``E[x~]``.
        cross: ``E[y x~^T]``, (groups, T, n); y is without the bias.
        mean: ``E[y]``, (groups, T).
        square: ``E|y|^2``, summed over all outputs.
        exact: whether ``y`` is the layer's weight times ``x~``.
    """

    inputs: LayerMoments
    cross: Tensor
    mean: Tensor
    square: float
    exact: bool

    @classmethod
    def of_weight(cls, layer: nn.Module, moments: LayerMoments) -> _Target:
        weight = _by_group(layer, moments)
        cross = weight @ moments.second_moment
        mean = (weight @ moments.mean[..., None])[..., 0]
        return cls(moments, cross, mean, float((cross * weight).sum()), exact=True)

    def weight(self, layer: nn.Module, *, centred: bool) -> Tensor:
        """The best weight of any rank, (groups, T, n); a ridge pulls it towards the layer's own."""
        original = _by_group(layer, self.inputs)
        if self.exact:
            return original
        cross = self.cross
        if centred:  # noise that covers rounding errors is mapped as the layer does
            _, noise = self._covariance
            cross = cross - self.mean[..., None] * self.inputs.mean[:, None, :] + noise * original
        groups = zip(original, cross, self.second_moment(centred=centred), strict=True)
        return torch.stack([corrected_weight(*group, ridge=RIDGE) for group in groups])

    def second_moment(self, *, centred: bool) -> Tensor:
        """``E[x~ x~^T]``, or the covariance with noise added that covers its rounding errors."""
        return self._covariance[0] if centred else self.inputs.second_moment

    @cached_property
    def _covariance(self) -> tuple[Tensor, Tensor]:
        """The covariance with noise that makes it positive definite, and the noise's variance.

        (groups, n, n) and (groups, 1, 1). A group without any input is left at zero.
        """
        second, mean = self.inputs.second_moment, self.inputs.mean
        size = second.shape[-1]
        noise = ROUNDING * size * second.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        covariance = second - mean[:, :, None] * mean[:, None, :]
        identity = torch.eye(size, dtype=second.dtype)
        while True:
            _, info = torch.linalg.cholesky_ex(covariance + noise * identity)
            failed = (info != 0)[:, None, None] & (noise > 0)
            if not failed.any():
                return covariance + noise * identity, noise
            noise = torch.where(failed, 10 * noise, noise)

    def relative_error(self, layer: nn.Module, new: nn.Module) -> float:
        """``sqrt(E|y + b - y~|^2 / E|y|^2)``: how far the new layer's output is from the target."""
        weight = _by_group(new, self.inputs)
        if self.exact:  # without differences of large numbers
            change = _by_group(layer, self.inputs) - weight
            square = float(((change @ self.inputs.second_moment) * change).sum())
            rest = (change @ self.inputs.mean[..., None])[..., 0]
        else:
            square = self.square - 2 * float((self.cross * weight).sum())
            square += float(((weight @ self.inputs.second_moment) * weight).sum())
            rest = self.mean - (weight @ self.inputs.mean[..., None])[..., 0]
        move = _bias(new, rest) - _bias(layer, rest)
        square += float((move * (move - 2 * rest)).sum())
        return (max(0.0, square) / self.square) ** 0.5 if self.square > 0 else 0.0


class _TargetSums:
    """Sums up a `_Target` batch by batch."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._geometry = PatchGeometry.of(layer)
        self._inputs = MomentSums(self._geometry)
        outputs = layer.get_parameter("weight").shape[0] // self._geometry.groups
        groups, patch = self._geometry.groups, self._geometry.inputs
        zeros = partial(torch.zeros, dtype=torch.float64, device="cpu")
        self._cross, self._mean = zeros(groups, outputs, patch), zeros(groups, outputs)
        self._square = zeros(())

    def add(self, original: Tensor, actual: Tensor) -> None:
        """Takes the inputs that the layer had and has; the former's outputs are the targets."""
        with exactly(actual.device):
            # A convolution takes one image without an axis for images too.
            alone = isinstance(self._layer, nn.Conv2d) and actual.ndim == 3
            size = len(actual) if alone else _IMAGES
            for before, now in zip(original.split(size), actual.split(size), strict=True):
                self._add(before, now)

    def _add(self, original: Tensor, actual: Tensor) -> None:
        layer, shape = self._layer, self._cross.shape
        self._inputs.add(actual)
        weight = layer.get_parameter("weight").detach()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        weight, original, actual = (x.detach().to(dtype) for x in (weight, original, actual))
        if isinstance(layer, nn.Linear):
            inputs = actual.reshape(-1, shape[2])
            outputs = original.reshape(-1, shape[2]) @ weight.T
            cross = outputs.T @ inputs
            rows = outputs.T.reshape(*shape[:2], -1)
        else:
            geometry = self._geometry
            before, now = (geometry.pad(geometry.maps(x)) for x in (original, actual))
            arguments = (geometry.stride, 0, geometry.dilation, geometry.groups)
            outputs = torch.conv2d(before, weight, None, *arguments)
            cross = conv2d_weight(now, weight.shape, outputs, *arguments)
            rows = outputs.transpose(0, 1).reshape(*shape[:2], -1)
        self._cross += cross.reshape(shape).double().cpu()
        self._mean += rows.sum(-1, dtype=torch.float64).cpu()
        self._square += rows.square().sum(dtype=torch.float64).cpu()

    def take(self, processes: Processes) -> _Target | None:
        """Returns the moments; None if there were no patches in any process."""
        inputs = self._inputs.take(processes.sum)
        sums = [processes.sum(total) for total in (self._cross, self._mean, self._square)]
        if inputs is None:
            return None
        cross, mean, square = (total / inputs.count for total in sums)
        return _Target(inputs, cross, mean, float(square), exact=False)


def _approximate(
    choice: Choice, target: _Target, sensitivity: Tensor | None, *, correct_bias: bool
) -> nn.Module:
    """The layer of the chosen kind whose outputs come nearest to the target."""
    centred = correct_bias and choice.layer.bias is not None
    weight = target.weight(choice.layer, centred=centred)
    wanted = _with_weight(choice.layer, weight)
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
        )
    if centred:
        weight = _by_group(module, target.inputs)
        rest = target.mean - (weight @ target.inputs.mean[..., None])[..., 0]
        bias: Any = module.bias
        bias.detach().add_(rest.reshape(bias.shape).to(bias))
    dtype = choice.layer.get_parameter("weight").dtype
    return module.to(dtype).train(choice.layer.training)


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The layer with another weight, float64, and a copy of its bias; hooks are left behind."""
    like = layer.get_parameter("weight")
    values = torch.empty_like(like, dtype=torch.float64).copy_(weight.reshape(like.shape))
    new = copy.copy(layer)
    bias: Any = layer.bias
    new._parameters = {
        "weight": nn.Parameter(values.detach(), like.requires_grad),
        "bias": None
        if bias is None
        else nn.Parameter(bias.detach().double().clone(), bias.requires_grad),
    }
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(new, kind, type(getattr(layer, kind))())
    return new


def _by_group(layer: nn.Module, moments: LayerMoments) -> Tensor:
    """The weight as ``(groups, T, n)``, float64, on the CPU."""
    groups, patch = moments.mean.shape
    weight: Any = layer.weight
    return weight.detach().double().cpu().reshape(groups, -1, patch)


def _bias(layer: nn.Module, like: Tensor) -> Tensor:
    bias: Any = layer.bias
    return torch.zeros_like(like) if bias is None else bias.detach().to(like).reshape(like.shape)


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
