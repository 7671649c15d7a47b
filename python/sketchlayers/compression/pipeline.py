"""What one call of `compress` does after its arguments have been checked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Budget, Costs
from sketchlayers.compression.allocation.damage import DamageMeter, images_to_measure_on
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.allocation.sensitivity import images_to_look_at, output_sensitivity
from sketchlayers.compression.arguments import Rates, Settings
from sketchlayers.compression.calibration.calibrate import NEVER_CALLED, Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.finishing.network import (
    Judge,
    Statistics,
    evaluation_copy,
    measured_batch_norms,
    put_buffers,
)
from sketchlayers.compression.finishing.refine import Refinement, refine
from sketchlayers.compression.fitting.fit import (
    Choice,
    Fitted,
    Norm,
    fit_alone,
    fit_one_after_the_other,
    naming,
    seeded,
)
from sketchlayers.compression.fitting.lockstep import OrderError, live_bytes
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.methods import Method
from sketchlayers.surgery.calls import Call, ExampleInputs, call_with
from sketchlayers.surgery.evaluation import evaluating
from sketchlayers.surgery.replace import replace_layers
from sketchlayers.surgery.sample import Sample, outputs_of

_NOT_REACHED = "none of the images that took part in the sequential fit reach it"
STAYS_DENSE = "stays dense at this rate"
_CALLS_AT_ONCE = 8
"""Batches of a sequential fit: each has a thread that waits, and threads that it computes with."""
JUDGED_IMAGES = 512
"""Images on which the change of the network's outputs is measured."""


class Job:
    """Measures, chooses ranks, fits, and finishes the network.

    Attributes:
        reasons: why layers stay as they are, by name; grows.
        notes: advice and exceptions, for the report.
        seconds: of each stage.
        fitted: the new layers, by name.
        methods: what they were made by, by name.
        change: of the network's outputs, relative to them, on calibration images; None without.
        images: that the layers' moments were taken on; None without.
        latencies: seconds of one call, before and after; None unless the budget is of seconds.
        sequential: whether layers were fitted one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        found: Survey,
        method: Method,
        settings: Settings,
        reasons: dict[str, str],
        images: Images | None,
        processes: Processes,
        *,
        memory_budget: int,
        progress: bool | None,
    ) -> None:
        self.reasons = reasons
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.fitted: dict[str, Fitted] = {}
        self.ranks = Ranks({})
        self.change: float | None = None
        self.images: int | None = None
        self.latencies: tuple[float, float] | None = None
        self.sequential = settings.sequential
        self._swaps: dict[nn.Module, nn.Module] = {}
        self._small: nn.Module | None = None
        self._batch_norms: Statistics = {}  # measured in the smaller network
        self._model = model
        self._found = found
        self._method = method
        self._settings = settings
        self._images = images
        self._memory_budget = memory_budget
        self._processes = processes
        self._progress = progress if self._processes.rank == 0 else False

    def run(
        self,
        rates: Rates,
        calibration: Calibration | None,
        example_inputs: ExampleInputs | None,
    ) -> None:
        """Does all the work; the user's model stays as it is until `result`."""
        if self._settings.init == "fit":
            for layer in self._layers():
                _check_finite(layer)
        costs = self._costs(rates, example_inputs)
        if isinstance(rates, Budget):
            ranks.check_budget(
                self._found, self._method, self._layers(), rates, costs, self.reasons
            )
        norms = self._norms(calibration)
        with self._stage("ranks"):
            self.ranks = self._choose(rates, costs, norms)
        self.notes += self.ranks.notes
        for name, chosen in self.ranks.chosen.items():
            if chosen.method is None:
                self.reasons[name] = STAYS_DENSE
        with self._stage("fit"):
            self.fitted = self._fit(norms)
        modules = {layer.name: layer.module for layer in self._found.layers}
        self._swaps = {modules[name]: fitted.module for name, fitted in self.fitted.items()}
        if self._images is not None:
            self._small = self._finished(self._images)
        if isinstance(rates, Budget) and rates.unit == "seconds":
            small = self._small
            if small is None:
                small = replace_layers(self._model, self._swaps, inplace=False)
            self.latencies = costs.latencies(self._model, small)

    def result(self, *, inplace: bool) -> nn.Module:
        """Returns the smaller model: the original one, changed, if ``inplace``.

        If anything fails the original one is as it was.
        """
        if not inplace:
            if self._small is not None:
                return self._small
            return replace_layers(self._model, self._swaps, inplace=False)
        before = put_buffers(self._model, self._batch_norms)
        try:
            return replace_layers(self._model, self._swaps, inplace=True)
        except BaseException:
            put_buffers(self._model, before)
            raise

    def _layers(self) -> list[Layer]:
        """The layers that may be replaced."""
        return [one for one in self._found.compressible if one.name not in self.reasons]

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    # ------------------------------------------------------------------------------- measuring

    def _costs(self, rates: Rates, example_inputs: ExampleInputs | None) -> Costs:
        unit = rates.unit if isinstance(rates, Budget) else "parameters"
        call: Call | None = None if example_inputs is None else call_with(example_inputs)
        return Costs(unit, self._found, self._model, call, self._processes)

    def _norms(self, calibration: Calibration | None) -> dict[str, Norm]:
        """How the error of each layer is measured; layers that no data reach stay as they are."""
        names = [layer.name for layer in self._layers()]
        if self._images is not None and names:
            with self._stage("calibration"):
                calibration = self._images.calibrate(names)
        if calibration is None:
            return {name: Norm() for name in names}
        self.images = calibration.images
        for name, why in calibration.missing.items():
            if name in names and why == NEVER_CALLED:
                self.reasons[name] = why
            elif name in names:
                self.notes.append(f"{name}: fitted in the norm of its weight ({why})")
        self._note_few_patches(calibration, names)
        names = [layer.name for layer in self._layers()]
        sensitivities = self._sensitivities([name for name in names if name in calibration])
        return {name: Norm(calibration.get(name), sensitivities.get(name)) for name in names}

    def _note_few_patches(self, calibration: Calibration, names: list[str]) -> None:
        few = {name: n for name, n in calibration.advised_images.items() if name in names}
        if few:
            worst = max(few, key=few.__getitem__)
            moments = calibration[worst]
            more = f", and {len(few) - 1} more saw few" if len(few) > 1 else ""
            self.notes.append(
                f"use at least {few[worst]:,} images (got {calibration.images:,}): "
                f"{f'layer {worst}' if worst else 'the model'} saw {moments.count:,} patches for "
                f"its {moments.inputs:,} inputs{more}"
            )

    def _sensitivities(self, names: list[str]) -> Mapping[str, Tensor]:
        settings = self._settings
        wanted = settings.weighted_fit or settings.weighted_allocation
        if self._images is None or not wanted or not names:
            return {}
        sample = self._images.sample
        sample = sample.first(images_to_look_at(sample))
        with self._stage("sensitivity"):
            return output_sensitivity(self._model, names, sample, self._processes)

    # ------------------------------------------------------------------------ choosing and fitting

    def _choose(self, rates: Rates, costs: Costs, norms: Mapping[str, Norm]) -> Ranks:
        layers = self._layers()
        if not isinstance(rates, Budget):
            return ranks.by_layer(self._method, layers, rates)
        if self._settings.allocation == "uniform":
            return ranks.uniform(self._method, layers, rates, costs)
        meter = None
        if self._images is not None and self._settings.weighted_allocation:
            count = images_to_measure_on(self._images.sample, len(layers))
            sample = self._with_outputs_kept(self._images.sample.first(count))
            meter = DamageMeter(self._model, sample, self._processes)
        return ranks.by_error(
            self._method,
            layers,
            rates,
            costs,
            {name: self._norm_of_fit(norm) for name, norm in norms.items()},
            meter,
            progress=self._progress,
        )

    def _with_outputs_kept(self, sample: Sample) -> Sample:
        """As many of the images as the network's outputs for them may be kept."""
        with torch.no_grad():
            outputs = outputs_of(sample.first(1).calls()[0](evaluation_copy(self._model)))
        size = max(1, sum(output.nbytes for output in outputs))
        return sample.first(max(1, self._memory_budget // size))

    def _norm_of_fit(self, norm: Norm) -> Norm:
        return norm if self._settings.weighted_fit else Norm(norm.moments)

    def _fit(self, norms: Mapping[str, Norm]) -> dict[str, Fitted]:
        """The new layers; with sequential fits also those that stay dense, with other weights."""
        layers = {layer.name: layer for layer in self._layers() if layer.name in self.ranks.chosen}
        layers |= {
            layer.name: layer
            for layer in self._found.compressible
            if self.reasons.get(layer.name) == STAYS_DENSE
        }
        choices = {
            name: Choice(
                layer.module,
                self.ranks.chosen[name].method,
                self.ranks.chosen[name].rank,
                layer_seed(self._settings.seed, name),
            )
            for name, layer in layers.items()
        }
        alone = {
            name: choice
            for name, choice in choices.items()
            if choice.method is not None and not self._in_sequence(layers[name], norms[name])
        }
        sequence = {
            name: choice
            for name, choice in choices.items()
            if self._in_sequence(layers[name], norms[name])
        }
        fitted = self._fit_each(alone, norms)
        if sequence and self._images is not None:
            try:
                fitted |= self._fit_in_sequence(sequence, fitted, norms, self._images)
                self.reasons |= {name: _NOT_REACHED for name in sequence if name not in fitted}
            except OrderError as error:
                if self._settings.only_sequential or self._processes.count > 1:
                    raise
                self.sequential = False
                self.notes.append(f"layers were fitted each for itself: {error}")
                rest = {name: one for name, one in sequence.items() if one.method is not None}
                fitted |= self._fit_each(rest, norms)
        for name, one in fitted.items():
            one.module.train(layers[name].module.training)  # they ran in evaluation mode
        return {name: fitted[name] for name in layers if name in fitted}

    def _in_sequence(self, layer: Layer, norm: Norm) -> bool:
        """Whether the layer can be fitted to the inputs that it will really get."""
        calls = layer.calls
        return self._settings.sequential and norm.moments is not None and len(calls or ()) == 1

    def _fit_each(
        self, choices: Mapping[str, Choice], norms: Mapping[str, Norm]
    ) -> dict[str, Fitted]:
        fitted = {}
        with progress_bar("fitting", len(choices), unit="layer", show=self._progress) as bar:
            for name, choice in choices.items():
                with naming(name):
                    fitted[name] = self._fit_alone(name, choice, norms[name])
                bar(1)
        return fitted

    def _fit_alone(self, name: str, choice: Choice, norm: Norm) -> Fitted:
        device = choice.layer.get_parameter("weight").device
        with seeded(layer_seed(self._settings.seed, f"{name}:init"), device):
            return fit_alone(
                choice,
                self._norm_of_fit(norm),
                init=self._settings.init,
                correct_bias=self._settings.correct_bias,
            )

    def _fit_in_sequence(
        self,
        choices: Mapping[str, Choice],
        fitted: Mapping[str, Fitted],
        norms: Mapping[str, Norm],
        images: Images,
    ) -> dict[str, Fitted]:
        sample = images.sample
        size = 2 * live_bytes(self._model, choices, sample.first(1).calls()[0])
        count = max(1, self._memory_budget // max(1, size))
        if count < sample.images:
            self.notes.append(
                f"{count} of {sample.images} images took part in the sequential fit: "
                f"memory_budget={self._memory_budget}, {size} bytes an image"
            )
            sample = sample.first(count)
        sample = sample.in_few_batches(_CALLS_AT_ONCE)
        weights = {
            name: norm.sensitivity
            for name, norm in norms.items()
            if norm.sensitivity is not None and self._settings.weighted_fit
        }
        with progress_bar("fitting", len(choices), unit="layer", show=self._progress) as bar:
            return fit_one_after_the_other(
                self._model,
                choices,
                weights,
                sample,
                self._processes,
                fitted={name: one.module for name, one in fitted.items()},
                correct_bias=self._settings.correct_bias,
                advance=bar,
            )

    # ------------------------------------------------------------------------------- finishing

    def _finished(self, images: Images) -> nn.Module:
        """The network with its new layers, refined and judged."""
        original = evaluation_copy(self._model)
        small = replace_layers(self._model, self._swaps, inplace=False)
        with evaluating(small):
            judged = self._with_outputs_kept(images.sample.first(JUDGED_IMAGES))
            judge = Judge(original, judged, self._processes)
            self.change = judge(small)
            if self._settings.reestimate_batch_norm:
                with self._stage("batch norm"):
                    self._reestimate(small, images, judge)
            if self._settings.refinement is not None:
                with self._stage("refinement"):
                    self._refine(original, small, list(self._swaps.values()), images)
                self.change = judge(small)
        put_buffers(small, self._batch_norms)
        return small

    def _reestimate(self, small: nn.Module, images: Images, judge: Judge) -> None:
        before = self.change
        self._batch_norms = measured_batch_norms(small, images.sample, self._processes)
        previous = put_buffers(small, self._batch_norms)
        self.change = judge(small)
        if (
            self._settings.reestimate_batch_norm == "auto"
            and before is not None
            and not self.change < before
        ):
            put_buffers(small, previous)
            self._batch_norms = {}
            self.notes.append(
                "batch norms were left as they are: with new statistics the outputs would "
                f"change by {self.change:.3f} instead of {before:.3f}"
            )
            self.change = before

    def _refine(
        self, original: nn.Module, small: nn.Module, layers: list[nn.Module], images: Images
    ) -> None:
        settings: Refinement | None = self._settings.refinement
        assert settings is not None
        done = refine(
            original,
            small,
            layers,
            images.sample,
            settings,
            self._processes,
            seed=self._settings.seed,
            progress=self._progress,
        )
        self.notes.append(
            f"refined for {done.epochs} epochs: on held-out images the outputs change by "
            f"{done.after:.3f} instead of {done.before:.3f}"
        )


def _check_finite(layer: Layer) -> None:
    weight: Any = layer.module.get_parameter("weight").detach()
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise ValueError(
            f"compress: weights to fit must be finite (got {bad} NaN or infinite of "
            f"{weight.numel()} in {layer.name or 'the model'!r})"
        )
