"""What is asked for, and what happens on the way."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.watch import current_watch
from sketchlayers.compression.allocation.costs import Unit
from sketchlayers.compression.arguments import Settings
from sketchlayers.compression.cache import Cache
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.fitting.layer import (
    Norm,
)
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.compression.survey.selection import FilterFunction
from sketchlayers.methods import Method
from sketchlayers.surgery.calls import Call, ExampleCall, ExampleInputs

BITS = (8, 6, 5, 4, 3, 2)
"""That layers may have under a budget of bytes."""


_REFUSED_BITS = 8
"""The fewest of layers that no method takes, small ones and depthwise ones: others pay less."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked for; all checked.

    Attributes:
        model: the user's.
        method: what layers may be replaced by.
        unit: what budgets of the whole model count.
        layer_rates: rates of layers, by name or pattern; None: budgets are of the whole model.
        settings: how to fit.
        images: calibration images; None without.
        calibration: finished moments; None without.
        example_inputs: of one call of the model; None: the first calibration batch.
        layers: names or patterns of the layers that are meant; None: all.
        exclude: names or patterns of layers that stay as they are.
        filter_fn: tells which layers are meant; None: all.
        keep_first: leave the layer that runs first.
        measure_latency: time the networks, before and after.
        processes: that share the work.
        memory_budget: bytes of activations that are kept.
        progress: draw progress bars.
        cache: results of earlier calls.
        given: the model to change in place; None: ``model``, which else is made of it.
        again: names of layers that are compressed in ``given`` and plain in ``model``.
        notes: for the report.
    """

    model: nn.Module
    method: Method
    unit: Unit
    layer_rates: Mapping[str, float] | None
    settings: Settings
    images: Images | None
    calibration: Calibration | None
    example_inputs: ExampleInputs | None
    layers: str | Iterable[str] | None
    exclude: str | Iterable[str] | None
    filter_fn: FilterFunction | None
    keep_first: bool
    measure_latency: bool
    processes: Processes
    memory_budget: int
    progress: bool | None
    cache: Cache
    given: nn.Module | None = None
    again: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def norm_of_fit(self, norm: Norm) -> Norm:
        """Returns what a layer is fitted in, of what errors of its outputs do."""
        return norm if self.settings.weighted_fit else Norm(norm.moments)

    @property
    def bits_to_choose(self) -> tuple[int, ...]:
        """Bits that a budget of bytes chooses from; none where it does not."""
        if self.unit != "bytes":
            return ()
        return BITS if self.settings.bits is None else (self.settings.bits,)

    @property
    def bits_of_refused(self) -> int | None:
        """Bits of layers that the method does not take; None where nothing is rounded."""
        if self.settings.bits is None and self.unit != "bytes":
            return None
        return max(self.settings.bits or 0, _REFUSED_BITS)

    @property
    def examples(self) -> list[tuple[Call, int]]:
        """Calls of the model, each with its number of images."""
        if self.example_inputs is not None:
            return [(ExampleCall(self.example_inputs), 1)]
        return [] if self.images is None else self.images.calls()


@dataclass(frozen=True)
class Log:
    """What happens on the way, for the report.

    Attributes:
        notes: advice and exceptions.
        seconds: of each stage.
        reasons: why layers stay as they are although they could be replaced, by name.
        taken: how many results of each kind were taken from the cache.
    """

    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)

    def continued(self) -> Log:
        """Returns one that begins with all this, for what comes next."""
        return Log(list(self.notes), dict(self.seconds), dict(self.reasons), self.taken.copy())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the body to a stage's."""
        begin = time.perf_counter()
        if (watch := current_watch()) is not None:
            watch.enter(name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def open_layers(self, found: Survey) -> list[Layer]:
        """Returns the layers that may be replaced, as far as is known."""
        return [one for one in found.compressible if one.name not in self.reasons]
