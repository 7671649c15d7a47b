"""Statistics of batch norms, measured in the smaller network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sketchlayers._runtime.processes import Processes
from sketchlayers.surgery.batches import count_images
from sketchlayers.surgery.evaluation import evaluating
from sketchlayers.surgery.sample import Sample

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
        self._count = torch.zeros((), dtype=torch.float64, device="cpu")
        self._sum, self._squares = (
            torch.zeros(len(channels), dtype=torch.float64, device="cpu") for _ in range(2)
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
