"""What a network returns for calibration images, and how far another network is from that."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.surgery.batches import Forward
from sketchlayers.surgery.replace import evaluation_copy
from sketchlayers.surgery.sample import (
    OutputsDifferError,
    Sample,
    kind_of_batch,
    outputs_of,
    squared_distance,
)


class KeptOutputs:
    """What a network returned for the first batches when it was run for something else.

    Attributes:
        targets: the outputs, batch by batch.
    """

    def __init__(self, batches: int, most_bytes: int) -> None:
        """Empty.

        Args:
            batches: how many to keep at most.
            most_bytes: of outputs that are kept.
        """
        self.targets: list[list[Tensor]] = []
        self._batches, self._bytes = batches, most_bytes

    def through(self, forward: Forward) -> Forward:
        """Returns the same calls of a model, whose results are kept, from the first one on."""

        def call(model: nn.Module, batch: Any) -> object:
            result = forward(model, batch)
            if len(self.targets) < self._batches and self._bytes > 0:
                self._keep(result)
            return result

        return call

    def _keep(self, result: object) -> None:
        try:
            target = outputs_of(result)
        except Exception:  # whoever needs them runs into it again
            self._bytes = 0
            return
        self._bytes -= sum(x.nbytes for x in target)
        self.targets.append(target)


class OriginalOutputs:
    """The outputs of the original network on some batches.

    Attributes:
        sample: the batches whose outputs are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Sample,
        processes: Processes,
        *,
        most_bytes: int,
        known: Sequence[list[Tensor]] = (),
    ) -> None:
        """Runs a copy of the model.

        Args:
            model: the original, in any mode; it does not change.
            sample: the images.
            processes: whose images count together.
            most_bytes: of outputs that are kept; one batch's are in any case.
            known: outputs for the first batches.

        Raises:
            OutputsDifferError: the number of outputs depends on what is in the images.
            ValueError: an output is not finite.
        """
        self._processes = processes
        self._targets: list[list[Tensor]] = []
        original = evaluation_copy(model)
        for number, call in enumerate(sample.calls()):
            with torch.no_grad():
                known_one = known[number] if number < len(known) else None
                self._targets.append(known_one or outputs_of(call(original)))
            most_bytes -= sum(x.nbytes for x in self._targets[-1])
            if most_bytes < 0:
                break
        self.sample = Sample(sample.batches[: len(self._targets)], sample.forward)
        self._agree(_are_alike(self.sample.batches, self._targets))
        _check_finite(x for target in self._targets for x in target)

    def first(self, images: int) -> OriginalOutputs:
        """Returns those of the first batches with at least so many images."""
        part = object.__new__(OriginalOutputs)
        part._processes = self._processes
        part.sample = self.sample.first(images)
        part._targets = self._targets[: len(part.sample.batches)]
        return part

    def relative_change(self, model: nn.Module) -> float:
        """Returns ``|z~ - z| / |z|`` over all outputs of a model in evaluation mode.

        Infinite if an output is not finite.

        Raises:
            OutputsDifferError: the model's outputs have other shapes.
        """
        with torch.no_grad():
            distance = self._distance(call(model) for call in self.sample.calls())
        square = self._sum(x.float().square().sum() for t in self._targets for x in t)
        if not math.isfinite(distance):
            return math.inf
        return math.sqrt(distance / square) if square else math.sqrt(distance)

    def mean_squared_change(self, results: Iterable[object]) -> float:
        """Returns ``|z~ - z|^2``, its mean over the images, of what a model returns batch by batch.

        Infinite if an output is not finite.

        Raises:
            OutputsDifferError: the results have other shapes.
        """
        distance = self._distance(results)
        images = self._processes.sum(_number(self.sample.images)).item()
        return distance / images if math.isfinite(distance) else math.inf

    def _distance(self, results: Iterable[object]) -> float:
        distances, alike = [], True
        for result, target in zip(results, self._targets, strict=True):
            try:
                distances.append(squared_distance(outputs_of(result), target))
            except OutputsDifferError:
                alike = False
        self._agree(alike)
        return self._sum(distances)

    def _agree(self, alike: bool) -> None:
        """All processes fail together."""
        if not self._processes.least(alike):
            raise OutputsDifferError(
                "the number of the model's outputs depends on what is in the images"
            )

    def _sum(self, values: Iterable[Tensor]) -> float:
        total = torch.stack([value.double().cpu() for value in values]).sum()
        return float(self._processes.sum(total))


def _are_alike(batches: Sequence[object], outputs: Sequence[Sequence[Tensor]]) -> bool:
    """Whether there are outputs, and as many for one batch as for another of its sizes."""
    shapes: dict[Hashable, list[torch.Size]] = {}
    return all(
        all(x.numel() for x in target)
        and shapes.setdefault(kind_of_batch(batch, counted=True), [x.shape for x in target])
        == [x.shape for x in target]
        for batch, target in zip(batches, outputs, strict=True)
    )


def _check_finite(outputs: Iterable[Tensor]) -> None:
    for output in outputs:
        bad = output.numel() - int(output.isfinite().sum())
        if bad:
            raise ValueError(
                "compress: the network's outputs on the calibration images must be finite (got "
                f"{bad} NaN or infinite of {output.numel()}); without images, or with a "
                "Calibration, outputs do not matter"
            )


def _number(value: int) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64, device="cpu")
