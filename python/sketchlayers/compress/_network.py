"""The smaller network as a whole: how far it is from the original one, and its batch norms."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sketchlayers.compress._processes import Processes
from sketchlayers.compress._sample import Sample, outputs_of, squared_distance
from sketchlayers.compress._swap import copy_model


class Judge:
    """Tells how far a network's outputs are from the original one's, relative to these."""

    def __init__(self, original: nn.Module, sample: Sample, processes: Processes) -> None:
        """Takes the original in evaluation mode."""
        self._calls = sample.calls()
        self._processes = processes
        self._targets = [self._outputs(original, call) for call in self._calls]
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


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the parameters and has buffers of its own."""
    return copy_model(model, {id(p): p for p in model.parameters()}).eval()


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def reestimate_batch_norm(
    model: nn.Module, sample: Sample, processes: Processes
) -> Callable[[], None]:
    """Takes the running statistics of all batch norms anew, over all images.

    Args:
        model: in evaluation mode; its batch norms change.
        sample: the images.
        processes: whose images count together.

    Returns:
        A function that undoes it.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    before = [
        ({key: value.clone() for key, value in norm.named_buffers()}, norm.momentum)
        for norm in norms
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    try:
        with torch.no_grad():
            for call in sample.calls():
                call(model)
    finally:
        for norm, (_, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()

    if processes.count > 1:
        for norm in norms:
            batches = processes.sum(norm.get_buffer("num_batches_tracked").clone())
            for name in ("running_mean", "running_var"):
                statistic = norm.get_buffer(name)
                total = processes.sum(statistic * norm.get_buffer("num_batches_tracked"))
                statistic.copy_(total / batches)
            norm.get_buffer("num_batches_tracked").copy_(batches)

    def undo() -> None:
        for norm, (buffers, _) in zip(norms, before, strict=True):
            for key, value in buffers.items():
                norm.get_buffer(key).copy_(value)

    return undo
