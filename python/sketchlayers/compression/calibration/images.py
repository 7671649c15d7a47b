"""Calibration data as `compress` uses them: moments of all layers, and images at hand."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from sketchlayers.compression.calibration.calibrate import ENOUGH_PATCHES, calibrate
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.outputs import KeptOutputs
from sketchlayers.compression.survey.layers import dense_layers
from sketchlayers.nn._checks import whole_number
from sketchlayers.surgery.batches import (
    Forward,
    batches_in,
    call_model,
    check_forward,
    count_images,
    device_of,
    generators_of,
    is_loader,
    is_used_up_by_one_pass,
)
from sketchlayers.surgery.calls import Call, CallOrder
from sketchlayers.surgery.evaluation import evaluating, same_random_numbers
from sketchlayers.surgery.sample import take


class Images:
    """A loader, and as many of its first images as the memory may hold."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        forward: Forward | None,
        memory_budget: int,
        progress: bool | None,
    ) -> None:
        """Reads the first images.

        Raises:
            ValueError: the loader yields nothing, or can be read once only and does not fit.
            TypeError: what is given is no loader.
        """
        if not is_loader(loader):
            raise TypeError(
                "compress: calibration must be a Calibration or an iterable of batches, as a "
                f"DataLoader or a list of tensors (got {type(loader).__name__})"
            )
        check_forward("compress", forward)
        memory_budget = whole_number("compress", "memory_budget", memory_budget)
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ValueError(
                "compress: the parameters must be able to have gradients (got some that were made "
                "under torch.inference_mode)"
            )
        self._model = model
        self._loader = loader
        self._forward = forward or call_model
        self._memory_budget = memory_budget
        self._progress = progress
        with self._random_numbers():
            self.sample, self._complete = take(
                loader, self._forward, device_of(model), memory_budget
            )
        if not self.sample.batches:
            raise ValueError(
                "compress: the calibration loader must yield batches (got none; a generator that "
                "has been run through before is empty)"
            )
        if not self._complete and is_used_up_by_one_pass(loader):
            raise ValueError(
                "compress: a calibration loader that can be read only once must fit in "
                f"memory_budget={memory_budget} bytes; give a list or a DataLoader "
                f"(got {type(loader).__name__})"
            )

    def of(self, model: nn.Module) -> Images:
        """Returns the same images for another model on the same device."""
        other = copy.copy(self)
        other._model = model
        return other

    @property
    def more(self) -> str:
        """What lies beyond the sample, as far as can be told: nothing, or a number of batches."""
        return "nothing" if self._complete else f"{batches_in(self._loader)} batches in all"

    def calls(self) -> list[tuple[Call, int]]:
        """Returns calls of a model on the batches at hand, each with its number of images."""
        sample = self.sample
        return list(zip(sample.calls(), map(count_images, sample.batches), strict=True))

    def calibrate(
        self, layers: Iterable[str], outputs: KeptOutputs
    ) -> tuple[Calibration, CallOrder]:
        """Returns the moments of some layers, over all images, and the order of their calls.

        Args:
            layers: their names.
            outputs: gets those of the sample's first batches, if these are sure to come first.
        """
        names, order = set(layers), CallOrder()
        forward = outputs.through(self._forward) if self._complete else self._forward
        with order.watching(self._model, names) as noted:
            if names.isdisjoint(dense_layers(self._model)):  # tables alone, which have no moments
                with evaluating(self._model), self._random_numbers():
                    for batch in self.sample.batches:
                        noted(self._forward, self._model, batch)
                return Calibration({}, images=self.sample.images), order
            calibration = calibrate(
                self._model,
                self.sample.batches if self._complete else self._loader,
                filter_fn=lambda _, name: name in names,
                memory_budget=self._memory_budget,
                patches_per_input=ENOUGH_PATCHES,
                forward=partial(noted, forward),
                progress=self._progress,
            )
        return calibration, order

    def _random_numbers(self) -> contextlib.AbstractContextManager[None]:
        return same_random_numbers(generators_of(self._loader))
