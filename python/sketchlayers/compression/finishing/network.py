"""The smaller network as a whole: how far it is from the original one, and its batch norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sketchlayers._runtime.processes import Processes
from sketchlayers.surgery.batches import count_images
from sketchlayers.surgery.evaluation import evaluating
from sketchlayers.surgery.replace import copy_model
from sketchlayers.surgery.sample import Sample, outputs_of, squared_distance


class Judge:
    """Tells how far a network's outputs are from the original one's, relative to these."""

    def __init__(self, original: nn.Module, sample: Sample, processes: Processes) -> None:
        """Takes the original in evaluation mode.

        Raises:
            ValueError: an output of the original is not finite.
        """
        self._calls = sample.calls()
        self._processes = processes
        self._targets = [self._outputs(original, call) for call in self._calls]
        check_finite(x for target in self._targets for x in target)
        self._square = self._sum(x.float().square().sum() for t in self._targets for x in t)

    def __call__(self, model: nn.Module) -> float:
        """For a model in evaluation mode; infinite if an output is not finite."""
        distance = self._sum(
            squared_distance(self._outputs(model, call), target)
            for call, target in zip(self._calls, self._targets, strict=True)
        )
        if not math.isfinite(distance):
            return math.inf
        return math.sqrt(distance / self._square) if self._square else math.sqrt(distance)

    def _outputs(self, model: nn.Module, call: Callable[[nn.Module], object]) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(call(model))

    def _sum(self, values: Iterable[Tensor]) -> float:
        total = torch.stack([value.double().cpu() for value in values]).sum()
        return float(self._processes.sum(total))


def check_finite(outputs: Iterable[Tensor]) -> None:
    """Raises a ValueError if something in the network's outputs is NaN or infinite."""
    for output in outputs:
        bad = output.numel() - int(output.isfinite().sum())
        if bad:
            raise ValueError(
                "compress: the network's outputs on the calibration images must be finite (got "
                f"{bad} NaN or infinite of {output.numel()}); without images, or with a "
                "Calibration, outputs do not matter"
            )


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode that shares the parameters and has buffers of its own."""
    return copy_model(model, {id(p): p for p in model.parameters()}).eval()


Statistics = dict[str, Tensor]
"""Buffers of batch norms by their names in the model."""


def measured_batch_norms(model: nn.Module, sample: Sample, processes: Processes) -> Statistics:
    """Measures the mean and variance of every batch norm's input over all images together.

    While they are measured each batch is normalised by its own, as in training.

    Args:
        model: unchanged.
        sample: the images.
        processes: whose images count together.

    Returns:
        ``running_mean`` and ``running_var`` of all batch norms that keep them and were reached.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    sums = {name: _InputSums(norm) for name, norm in norms.items()}
    handles = [norm.register_forward_pre_hook(sums[name].add) for name, norm in norms.items()]
    # One image has no variance where a batch norm is behind a pooling.
    calls = [
        call
        for call, batch in zip(sample.calls(), sample.batches, strict=True)
        if count_images(batch) > 1 or len(sample.batches) == 1
    ]
    try:
        with evaluating(model):  # it puts the buffers back
            for norm in norms.values():
                norm.train()
            for call in calls:
                call(model)
    finally:
        for handle in handles:
            handle.remove()
    found: Statistics = {}
    for name, norm in norms.items():
        moments = sums[name].take(processes)
        if moments is not None:
            mean, variance = (value.to(norm.get_buffer("running_mean")) for value in moments)
            found |= {f"{name}.running_mean": mean, f"{name}.running_var": variance}
    return found


class _InputSums:
    """Sums of the inputs of a batch norm, channel by channel, in float64."""

    def __init__(self, norm: nn.Module) -> None:
        channels = norm.get_buffer("running_mean")
        self._count = torch.zeros((), dtype=torch.float64)
        self._sum, self._squares = (
            torch.zeros(len(channels), dtype=torch.float64) for _ in range(2)
        )

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().transpose(0, 1).flatten(1)
        self._count += rows.shape[1]
        self._sum += rows.sum(1, dtype=torch.float64).cpu()
        self._squares += rows.double().square().sum(1).cpu()

    def take(self, processes: Processes) -> tuple[Tensor, Tensor] | None:
        """Returns the mean and unbiased variance; None without inputs."""
        sums = torch.cat([self._count[None], self._sum, self._squares])
        count, (total, squares) = (sums := processes.sum(sums))[0], sums[1:].chunk(2)
        if count < 2:
            return None
        mean = total / count
        return mean, (squares - total * mean).clamp(min=0) / (count - 1)


def put_buffers(model: nn.Module, values: Statistics) -> Statistics:
    """Gives buffers some values, and returns those that they had."""
    before = {name: model.get_buffer(name).clone() for name in values}
    for name, value in values.items():
        model.get_buffer(name).copy_(value)
    return before
