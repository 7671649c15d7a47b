"""One pass over images: the moments of every layer's inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.moments import (
    LayerMoments,
    MomentSums,
    NonFiniteError,
    pooled_moments,
)
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.calibration.products import working_bytes
from sketchlayers.compression.survey.layers import dense_layers
from sketchlayers.compression.survey.reasons import Reason, unusual_layer
from sketchlayers.compression.survey.selection import (
    FilterFunction,
    match,
    patterns_of,
    suggestion,
)
from sketchlayers.nn._checks import whole_number
from sketchlayers.nn._geometry import is_depthwise
from sketchlayers.reports.table import quantity
from sketchlayers.surgery.batches import (
    Forward,
    batches_in,
    call_model,
    cannot_run_on_batch,
    check_forward,
    count_images,
    described,
    device_of,
    generators_of,
    is_loader,
    is_used_up_by_one_pass,
    may_be_misfit,
    to_device,
)
from sketchlayers.surgery.evaluation import evaluating, random_numbers, same_random_numbers
from sketchlayers.surgery.forms import on_plain_forms

MOST_INPUTS = 16_000
"""Inputs of a convolution's patches up to which second moments are summed."""
MEMORY_BUDGET = 4 << 30
"""Bytes that the sums of one pass may take by default: 4 GiB."""
ENOUGH_IMAGES, ENOUGH_PATCHES = 64, 100
"""Images, and patches for each input of a layer, that are enough to compress it: more lower the
error by less than fits differ from start to start."""


@on_plain_forms
def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: str | Iterable[str] | None = None,
    filter_fn: FilterFunction | None = None,
    memory_budget: int = MEMORY_BUDGET,
    max_images: int | None = None,
    patches_per_input: int | None = None,
    forward: Forward | None = None,
    into: Calibration | None = None,
    distributed: bool = True,
    progress: bool | None = None,
) -> Calibration:
    """Runs the model on images and measures the moments of every layer's input patches.

    The second moment ``E[x x^T]`` says how much an error of the weight changes the layer's output:
    ``E|(W - W~) x|^2 = tr((W - W~) E[x x^T] (W - W~)^T)``. It is taken over all output positions of
    all images, with stride, padding, dilation and groups as the layer has them, padding counted as
    data, and over all calls of a layer that is called several times. Labels are not needed.

    Source of the norm: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, "Distribution-Aware Tensor
    Decomposition for Compression of Convolutional Neural Networks", NeurIPS 2025, arXiv 2511.04494.

    All convolutions and ``nn.Linear`` layers are calibrated but depthwise ones and those that no
    method can replace (parametrised ones, those with a forward of their own), and convolutions with
    patches of more than 16,000 inputs; the reasons are in `Calibration.missing`. Patches are never
    held but for a small part of a batch. If the moments of all layers do not fit in
    ``memory_budget``, the loader is run through several times, for some layers each time, and
    finished moments wait in a temporary file.

    The model runs in evaluation mode without gradients; its modes, buffers and hooks and the random
    numbers of PyTorch, Python and NumPy are as before, whatever happens. An outer autocast applies
    to the model, not to the sums, which are float64 sums of products in float32.

    When ``torch.distributed`` is initialised, every process runs on its own part of the images (a
    ``DistributedSampler`` makes them; a part may be empty) and all get the moments of all images. A
    failure in one process is an error in all.

    Args:
        model: any module. It is not changed.
        loader: batches: tensors, tuples or lists that begin with the images, or dicts; tensors are
            moved to the model's device. Larger batches are faster.
        layers: names or glob patterns of the layers to calibrate; None: all.
        filter_fn: ``filter_fn(module, name)`` tells whether to calibrate a layer; None: all.
        memory_budget: bytes that the sums of one pass over the loader may take, 4 GiB by default.
            The model's own activations and about 0.3 GB of working memory come on top.
        max_images: stop after the batch with which so many images (of this process) are reached;
            None takes all.
        patches_per_input: a layer that would see more patches for each of its inputs takes a part
            of the images, at least 64, drawn at random from every batch; as many as come if the
            loader has no length. ``compress`` takes 100. None: all images.
        forward: ``forward(model, batch)`` calls the model where the batches are of another kind.
        into: a calibration of the same model to continue: the result is that of one run over the
            images of both, for the same layers.
        distributed: work with the other processes of ``torch.distributed``, if it is initialised.
        progress: draw a progress bar (by tqdm, if installed): None does so on a terminal.

    Returns:
        The `Calibration`.

    Raises:
        ValueError: the loader yields nothing, or is an iterator and several passes are needed; an
            input of a layer is NaN or infinite (layer and batch are named); a layer has no shape
            or no values yet; a pattern matches no layer; no layer is left or none is called;
            ``into`` is of another model.
        TypeError: an argument or a batch has the wrong type.
        RuntimeError: another process has failed.
    """
    processes = Processes("calibrate", join=distributed)
    with processes.together("the calibration"):
        with processes.together("the preparation"):
            check_forward("calibrate", forward)
            if patches_per_input is not None:
                whole_number("calibrate", "patches_per_input", patches_per_input)
            plan = _prepare(model, loader, layers, filter_fn, memory_budget, max_images, into)
        if not processes.agree(repr((plan.passes, plan.geometries))):
            raise ValueError(
                "calibrate: all processes must calibrate the same layers with the same "
                "memory_budget"
            )
        moments: dict[str, LayerMoments] = {}
        total = batches_in(loader) if max_images is None else max_images
        with progress_bar(
            "calibrating",
            None if total is None else total * len(plan.passes),
            unit="batch" if max_images is None else "image",
            show=progress if processes.rank == 0 else False,
        ) as advance:
            run = _Run(
                model,
                loader,
                forward or call_model,
                max_images,
                patches_per_input,
                processes.count,
                advance,
            )
            for names in plan.passes:
                sums = {name: MomentSums(plan.geometries[name]) for name in names}
                with processes.together("the pass over the images"):
                    run.once(sums)
                images = int(processes.sum(torch.tensor(run.images, device="cpu")))
                if images == 0:
                    raise ValueError(
                        "calibrate: the loader must yield batches (got none; a generator that has "
                        "been run through before is empty)"
                    )
                for name in names:
                    result = _take(name, sums.pop(name), processes)
                    if into is not None and name in into:
                        result = pooled_moments(into[name], result)
                    if result is not None:
                        moments[name] = result if len(plan.passes) == 1 else _on_disk(result)
        missing = {name: plan.missing.get(name, Reason.NEVER_CALLED) for name in plan.order}
        missing = {name: reason for name, reason in missing.items() if name not in moments}
        if not moments:
            raise ValueError(
                "calibrate: the model must call a layer that is calibrated "
                f"(got none of {', '.join(map(repr, plan.geometries))})"
            )
        return Calibration(
            {name: moments[name] for name in plan.order if name in moments},
            images=images + (into.images if into is not None else 0),
            missing=missing,
        )


@dataclass(frozen=True)
class _Plan:
    """What to calibrate.

    Attributes:
        order: names of all convolutions and linear layers, in order of registration.
        geometries: of the layers to calibrate.
        passes: their names, pass by pass over the loader.
        missing: reasons of the others.
    """

    order: tuple[str, ...]
    geometries: dict[str, PatchGeometry]
    passes: tuple[tuple[str, ...], ...]
    missing: dict[str, Reason]


def _prepare(
    model: nn.Module,
    loader: Iterable[Any],
    patterns: str | Iterable[str] | None,
    filter_fn: FilterFunction | None,
    memory_budget: int,
    max_images: int | None,
    into: Calibration | None,
) -> _Plan:
    """Checks the arguments and plans the passes, before any work."""
    _check_arguments(model, loader, memory_budget, max_images)
    if into is not None:
        if patterns is not None or filter_fn is not None:
            raise ValueError(
                "calibrate: with into= the layers are those of that calibration "
                "(got layers= or filter_fn= too)"
            )
        into.check(model)
    found = dense_layers(model)
    for name, layer in found.items():
        if any(map(is_lazy, layer.parameters(recurse=False))):
            raise ValueError(
                "calibrate: every layer must know its shape; run the model once first "
                f"(got the lazy layer {name!r})"
            )
        if any(p.is_meta for p in layer.parameters(recurse=False)):
            raise ValueError(
                f"calibrate: the model must have values (got {name!r} on the meta device)"
            )
    missing = _left_out(found, patterns, filter_fn)
    if into is not None:
        missing = {
            name: reason for name, reason in into.missing.items() if reason != Reason.NEVER_CALLED
        }
    geometries = {
        name: PatchGeometry.of(layer) for name, layer in found.items() if name not in missing
    }
    for name, geometry in list(geometries.items()):
        if geometry.kind != "linear" and geometry.inputs > MOST_INPUTS:
            missing[name] = Reason(
                f"its patches have {geometry.inputs:,} inputs, too many for second moments "
                f"(at most {MOST_INPUTS:,})"
            )
            del geometries[name]
    sizes = {name: working_bytes(geometry) for name, geometry in geometries.items()}
    for name, size in sizes.items():
        if size > memory_budget:
            missing[name] = Reason(
                f"its second moment needs {quantity(size, 'B')}, more than memory_budget "
                f"({quantity(memory_budget, 'B')})"
            )
            del geometries[name]
    if not geometries:
        telling = sorted(missing.items(), key=lambda item: item[1] == Reason.NOT_CHOSEN)
        reasons = [f"{name or 'the model'}: {reason}" for name, reason in telling]
        raise ValueError(
            "calibrate: the model must have a layer that can be calibrated "
            f"(got {'; '.join(reasons[:3]) or 'no convolution and no linear layer'}"
            f"{f'; and {len(reasons) - 3} more' if len(reasons) > 3 else ''})"
        )
    passes = _passes({name: sizes[name] for name in geometries}, memory_budget)
    if len(passes) > 1 and is_used_up_by_one_pass(loader):
        raise ValueError(
            f"calibrate: with memory_budget={quantity(memory_budget, 'B')} the loader must be run "
            f"through {len(passes)} times, which an iterator can't (got {type(loader).__name__}); "
            "give a DataLoader or a list, at least "
            f"memory_budget={sum(sizes[name] for name in geometries)}, or fewer layers"
        )
    return _Plan(tuple(found), geometries, passes, missing)


def _check_arguments(
    model: nn.Module, loader: Iterable[Any], memory_budget: int, max_images: int | None
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"calibrate: model must be an nn.Module (got {type(model).__name__})")
    if not is_loader(loader):
        raise TypeError(
            "calibrate: loader must be an iterable of batches, as a DataLoader or a list of "
            f"tensors (got {type(loader).__name__})"
        )
    whole_number("calibrate", "memory_budget", memory_budget)
    if max_images is not None:
        whole_number("calibrate", "max_images", max_images)


def _left_out(
    found: Mapping[str, nn.Module],
    patterns: str | Iterable[str] | None,
    filter_fn: FilterFunction | None,
) -> dict[str, Reason]:
    """The layers that are not calibrated, with the reasons."""
    chosen = None if patterns is None else patterns_of("calibrate", patterns)
    for pattern in chosen or ():
        if all(match(name, [pattern]) is None for name in found):
            hint = suggestion(pattern, list(found))
            raise ValueError(f"calibrate: a pattern must match a layer (got {pattern!r}{hint})")
    reasons = {}
    for name, layer in found.items():
        reason = unusual_layer(layer)
        if reason is None and is_depthwise(layer):
            reason = Reason("depthwise convolution")
        if reason is None and (
            (chosen is not None and match(name, chosen) is None)
            or (filter_fn is not None and not filter_fn(layer, name))
        ):
            reason = Reason.NOT_CHOSEN
        if reason is not None:
            reasons[name] = reason
    return reasons


def _passes(sizes: Mapping[str, int], budget: int) -> tuple[tuple[str, ...], ...]:
    """Parts the layers, the largest first, so that each part fits in the budget."""
    passes: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        for names in passes:
            if sum(sizes[other] for other in names) + sizes[name] <= budget:
                names.append(name)
                break
        else:
            passes.append([name])
    order = list(sizes)
    return tuple(tuple(sorted(names, key=order.index)) for names in passes)


class _Run:
    """Passes of a model over a loader.

    Attributes:
        images: how many images the last pass has seen.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        forward: Forward,
        max_images: int | None,
        patches_per_input: int | None,
        processes: int,
        advance: Callable[[int], None],
    ) -> None:
        self._model = model
        self._loader = loader
        self._forward = forward
        self._max_images = max_images
        self._patches_per_input = patches_per_input
        self._processes = processes
        self._advance = advance
        self._passes = 0
        self._batch = 0  # the number of the batch that the model is running on
        self._images_in_batch = 0
        self._expected: int | None = None  # images in all, of all processes
        self.images = 0

    def once(self, sums: Mapping[str, MomentSums]) -> None:
        """Runs one pass for these layers."""
        seen, device = self.images, device_of(self._model)
        self.images = self._batch = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(same_random_numbers(generators_of(self._loader)))
            for name, layer_sums in sums.items():
                hook = self._hook(name, layer_sums)
                layer = self._model.get_submodule(name)
                stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
            for batch in self._loader:
                self._batch += 1
                images = self._images_in_batch = count_images(batch)
                if self._batch == 1:
                    self._expected = self._images_expected(images)
                if images:
                    self._call(to_device(batch, device))
                self.images += images
                self._advance(1 if self._max_images is None else images)
                if self._max_images is not None and self.images >= self._max_images:
                    break
        self._passes += 1
        if self._passes > 1 and self.images != seen:
            raise ValueError(
                "calibrate: the loader must yield the same images in each pass "
                f"(got {seen} and then {self.images})"
            )

    def _images_expected(self, in_first_batch: int) -> int | None:
        batches = batches_in(self._loader)
        counts = [] if self._max_images is None else [self._max_images]
        counts += [] if batches is None else [batches * in_first_batch]
        return self._processes * min(counts) if counts else None

    def _share(self, inputs: int, patches: int) -> float:
        """What part of the batch's images a layer takes that has so many patches in it."""
        if not self._expected or self._patches_per_input is None:
            return 1.0
        patches_expected = patches * self._expected / self._images_in_batch
        enough = self._patches_per_input * inputs / patches_expected
        return max(ENOUGH_IMAGES / self._expected, enough)

    def _call(self, batch: Any) -> None:
        try:
            with random_numbers(self._batch - 1, self._model):
                self._forward(self._model, batch)
        except Exception as error:
            if isinstance(error, NonFiniteInputError) or not may_be_misfit(error):
                error.add_note(f"(calibrate: in batch {self._batch} of the loader)")
                raise
            what = described(batch)
            raise cannot_run_on_batch("calibrate", self._batch, what, error) from error

    def _hook(self, name: str, sums: MomentSums) -> Callable[..., None]:
        def note(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            try:
                share = partial(self._share, sums.inputs)
                sums.add(args[0] if args else kwargs["input"], share)
            except NonFiniteError as error:
                raise _non_finite(name, f"{error.found} in batch {self._batch}") from error

        return note


def _take(name: str, sums: MomentSums, processes: Processes) -> LayerMoments | None:
    try:
        return sums.take(processes.sum if processes.count > 1 else None)
    except NonFiniteError as error:
        raise _non_finite(name, error.found) from error


class NonFiniteInputError(ValueError):
    """A layer has inputs that cannot be summed."""


def _non_finite(name: str, found: str) -> NonFiniteInputError:
    return NonFiniteInputError(
        f"calibrate: the inputs of layer {name!r} must be finite (got {found}); look at the images "
        "and at the weights before it, or leave the layer out with filter_fn"
    )


def _on_disk(moments: LayerMoments) -> LayerMoments:
    """The moments with the large part in a temporary file, which vanishes with the tensor.

    The system may then move it out of memory.
    """
    matrix = moments.second_moment
    with tempfile.NamedTemporaryFile(prefix="sketchlayers-") as file:
        if hasattr(os, "posix_fallocate"):  # an error, if there is no room
            os.posix_fallocate(file.fileno(), 0, matrix.nbytes)
        else:
            file.truncate(matrix.nbytes)
        stored = torch.from_file(file.name, shared=True, size=matrix.numel(), dtype=matrix.dtype)
    stored.copy_(matrix.flatten())
    return dataclasses.replace(moments, second_moment=stored.view(matrix.shape))
