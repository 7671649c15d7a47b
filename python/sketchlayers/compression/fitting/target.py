"""What a layer should return for the inputs that it gets, and the weight that comes nearest to it.

The target is the original network's output ``y = W x`` for the inputs ``x~`` that the layer really
gets from the layers before it. The best weight without a limit of its rank is ``W_opt = E[y x~^T]
E[x~ x~^T]^-1`` (METHODS: ``W E[x x~^T] E[x~ x~^T]^-1``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.moments import LayerMoments, MomentSums, exactly
from sketchlayers.compression.calibration.patches import PART_POSITIONS, PatchGeometry
from sketchlayers.decompose import corrected_weight
from sketchlayers.nn._geometry import Geometry, exchanged_weight, ordinary_weight

_IMAGES = 32
"""Images whose products are summed in float32 before float64 takes the sum, which is slower."""
RIDGE = 1e-3
"""Fraction of the mean input power that pulls a sequential fit to the original weight."""

ROUNDING = 1e-7
"""Fraction of the whole input power by which sums of float32 products are wrong, about; more where
inputs hardly vary, since their errors add up."""


_NOISES = 7
"""Variances of the noise that are tried, each ten times the one before."""
WIDE = 8
"""Inputs for each output from which on a layer is so wide that nothing factorises its moment."""
_HARDLY = 0.1
"""Part of the input power below which inputs hardly vary."""


@dataclass(frozen=True)
class Target:
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
    def of_weight(cls, layer: nn.Module, moments: LayerMoments) -> Target:
        """The layer's own outputs for the inputs whose moments are given."""
        weight = weight_by_group(layer, moments)
        cross = weight @ moments.second_moment
        mean = (weight @ moments.mean[..., None])[..., 0]
        return cls(moments, cross, mean, float((cross * weight).sum()), exact=True)

    def weight(self, layer: nn.Module, *, centred: bool) -> Tensor:
        """The best weight of any rank, (groups, T, n); a ridge pulls it towards the layer's own."""
        original = weight_by_group(layer, self.inputs)
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

        (groups, n, n) and (groups, 1, 1). A group without any input is left at zero. The noise is a
        bound on the rounding errors' norm. Where that is not enough, a larger one is looked for if
        inputs hardly vary or if methods factorise the covariance, which they do not for layers with
        far more inputs than outputs.
        """
        second, mean = self.inputs.second_moment, self.inputs.mean
        size, outputs = second.shape[-1], self.cross.shape[1]
        power = second.diagonal(dim1=1, dim2=2).mean(-1)
        noise = ROUNDING * size * power[:, None, None]
        covariance = torch.baddbmm(second, mean[:, :, None], mean[:, None, :], alpha=-1)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        look = size < WIDE * outputs or bool((diagonal.mean(-1) < _HARDLY * power).any())
        diagonal += noise[..., 0]
        for _ in range(_NOISES if look else 0):
            _, info = torch.linalg.cholesky_ex(covariance)
            failed = (info != 0)[:, None, None] & (noise > 0)
            if not failed.any():
                break
            more = torch.where(failed, 9 * noise, 0)
            diagonal += more[..., 0]
            noise = noise + more
        return covariance, noise

    def relative_error(self, layer: nn.Module, new: nn.Module) -> float:
        """``sqrt(E|y + b - y~|^2 / E|y|^2)``: how far the new layer's output is from the target."""
        weight = weight_by_group(new, self.inputs)
        if self.exact:  # without differences of large numbers
            change = weight_by_group(layer, self.inputs) - weight
            square = float(((change @ self.inputs.second_moment) * change).sum())
            rest = (change @ self.inputs.mean[..., None])[..., 0]
        else:
            square = self.square - 2 * float((self.cross * weight).sum())
            square += float(((weight @ self.inputs.second_moment) * weight).sum())
            rest = self.mean - (weight @ self.inputs.mean[..., None])[..., 0]
        move = _bias(new, rest) - _bias(layer, rest)
        square += float((move * (move - 2 * rest)).sum())
        return (max(0.0, square) / self.square) ** 0.5 if self.square > 0 else 0.0


class TargetSums:
    """Sums up a `Target` batch by batch."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._geometry = PatchGeometry.of(layer)
        self._inputs = MomentSums(self._geometry)
        outputs = Geometry.of(layer).group_outputs
        groups, patch = self._geometry.groups, self._geometry.inputs
        zeros = partial(torch.zeros, dtype=torch.float64, device="cpu")
        self._cross, self._mean = zeros(groups, outputs, patch), zeros(groups, outputs)
        self._square = zeros(())

    def add(self, original: Tensor, actual: Tensor) -> None:
        """Takes the inputs that the layer had and has; the former's outputs are the targets."""
        with exactly(actual.device):
            # A convolution takes one image without an axis for images too.
            size = (
                len(actual) if self._geometry.is_one_image(actual) else self._images_at_once(actual)
            )
            for before, now in zip(original.split(size), actual.split(size), strict=True):
                self._add(before, now)

    def _images_at_once(self, inputs: Tensor) -> int:
        if isinstance(self._layer, nn.Linear):
            return max(1, PART_POSITIONS * len(inputs) * inputs.shape[-1] // max(1, inputs.numel()))
        return _IMAGES

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
            weight = weight.reshape(*weight.shape[:2], *geometry.kernel_size)
            arguments = geometry.convolution()
            outputs = torch.convolution(before, weight, None, *arguments)
            _, cross, _ = torch.ops.aten.convolution_backward(
                outputs, now, weight, None, *arguments, (False, True, False)
            )
            if geometry.is_transposed:
                cross = exchanged_weight(cross, geometry.groups)
            rows = outputs.transpose(0, 1).reshape(*shape[:2], -1)
        self._cross += cross.reshape(shape).double().cpu()
        self._mean += rows.sum(-1, dtype=torch.float64).cpu()
        self._square += rows.square().sum(dtype=torch.float64).cpu()

    def take(self, processes: Processes) -> Target | None:
        """Returns the moments; None if there were no patches in any process."""
        inputs = self._inputs.take(processes.sum)
        sums = [processes.sum(total) for total in (self._cross, self._mean, self._square)]
        if inputs is None:
            return None
        cross, mean, square = (total / inputs.count for total in sums)
        return Target(inputs, cross, mean, float(square), exact=False)


def weight_by_group(layer: nn.Module, moments: LayerMoments) -> Tensor:
    """The weight as ``(groups, T, n)``, float64, on the CPU."""
    groups, patch = moments.mean.shape
    return ordinary_weight(layer).detach().double().cpu().reshape(groups, -1, patch)


def _bias(layer: nn.Module, like: Tensor) -> Tensor:
    bias: Any = layer.bias
    return torch.zeros_like(like) if bias is None else bias.detach().to(like).reshape(like.shape)
