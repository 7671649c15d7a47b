"""Whole models: `compress` and `fold` make other models of them, `inspect` lists their layers."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.allocation.costs import Budget
from sketchlayers.compression.allocation.ranks import Chosen
from sketchlayers.compression.arguments import (
    Allocation,
    Rates,
    Sensitivity,
    Settings,
    check_names,
    checked_rates,
)
from sketchlayers.compression.arguments import settings as checked_settings
from sketchlayers.compression.calibration.calibrate import MEMORY_BUDGET
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.compression.pipeline import Outcome, make, prepare
from sketchlayers.compression.stages.task import Task
from sketchlayers.compression.survey.layers import (
    Layer,
    multiply_adds,
    stored_bytes,
    stored_tensors,
    survey,
)
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.compression.survey.selection import FilterFunction, left_out
from sketchlayers.methods import Method
from sketchlayers.methods._method import Init, kind_of
from sketchlayers.reports.inspection import Inspection, LayerInspection
from sketchlayers.reports.report import Report
from sketchlayers.reports.rows import LayerReport
from sketchlayers.surgery.batches import Forward
from sketchlayers.surgery.calls import ExampleCall, ExampleInputs
from sketchlayers.surgery.evaluation import outside_of_modes
from sketchlayers.surgery.replace import replace_layers

LARGE_ERROR = 0.3
"""Relative error of a layer above which, without data, a warning says that training is needed."""
LARGE_CHANGE = 0.5
"""Relative change of the network's outputs above which, with data, the same warning appears."""


class Compressed(NamedTuple):
    """The smaller model and what was done; unpacks as ``model, report = compress(...)``."""

    model: nn.Module
    report: Report


@outside_of_modes
def compress(
    model: nn.Module,
    method: str | Method | None = None,
    *,
    rate: float | Mapping[str, float] | None = None,
    flops_rate: float | None = None,
    latency_rate: float | None = None,
    calibration: Calibration | Iterable[Any] | None = None,
    example_inputs: ExampleInputs | None = None,
    layers: str | Iterable[str] | None = None,
    filter_fn: FilterFunction | None = None,
    keep_first: bool = True,
    init: Init = "fit",
    allocation: Allocation | None = None,
    sequential: bool | None = None,
    sensitivity: Sensitivity | None = None,
    correct_bias: bool = True,
    reestimate_batch_norm: bool | Literal["auto"] = False,
    refine: bool | Refinement | None = None,
    forward: Forward | None = None,
    memory_budget: int = MEMORY_BUDGET,
    inplace: bool = False,
    progress: bool | None = None,
    seed: int | None = 0,
    **options: Any,
) -> Compressed:
    """Replaces layers of a model by smaller ones.

    A trained network needs images of the kind that it is for, but no labels and no training::

        small, report = compress(model, rate=0.5, calibration=loader)

    Each layer is then fitted in the norm of its output's change (Kalle et al., NeurIPS 2025, arXiv
    2511.04494), for the inputs that the layers before it give. Errors are weighted by their effect
    on the network's outputs, and ranks are chosen that damage these outputs least. Without images
    the weights alone are approximated, and the network needs training afterwards.

    Layers that cannot be replaced stay as they are, each with its reason in the report: shared
    modules, tied parameters, parametrised layers, layers used through their weight, convolutions of
    other dimensions, depthwise ones, layers with a forward of their own, layers that would grow or
    that the data never reach.

    A replacement keeps the layer's device, dtype, memory format, mode, ``requires_grad`` (that of
    the weight for all its factors), all its hooks and the attributes that a user has set on the
    module. Attributes and hooks of the weight tensor itself are lost with it.

    If anything fails the model is as it was, also with ``inplace``. With ``torch.distributed``
    initialised, every process calibrates on its own images, and all get the same model. Without
    images processes do not wait for each other: each gets the same model for the same ``seed``.

    Forward calls are made of copies of the model, some ten for each batch, in the caller's thread
    and context, one after the other, each from its start to its end or to a layer that is looked
    at, where an exception ends it. Hooks run in all of them. Batches stay whole, as the loader
    yields them (but for `Refinement` and where the graph of one would not fit in
    ``memory_budget``), and all calls on a batch draw the same random numbers; the caller's
    generators stay as they are.

    Args:
        model: any module. It is not changed, unless ``inplace``.
        method: "sketch", "svd", "tucker2", "cp", "lowrank", "dictionary", "hashednet", "freshnet",
            "auto" (each layer takes the best of several), or a config object such as
            ``methods.Sketch(mixing="channel")``. None: "auto" with calibration, else "sketch".
        rate: fraction of the parameters that is kept: parameters after / before, in (0, 1]. A
            number is the rate of the whole model, everything counted. A dict {name or glob pattern:
            rate} gives layers their own rates (nearest whole rank, at least 1; a full name goes
            before a pattern) and leaves all others as they are.
        flops_rate: fraction of the multiply-adds of convolutions and linear layers that is kept;
            instead of ``rate``.
        latency_rate: fraction of the time that is kept, for one batch (or ``example_inputs``) on
            this machine, measured layer by layer; instead of ``rate``.
        calibration: batches of images (tensors, tuples that begin with them, or dicts), a few
            thousand images altogether, or the `Calibration` of some. With the latter, everything
            that needs the images themselves is left out: ``sequential``, ``sensitivity``,
            ``reestimate_batch_norm``, ``refine``, and the report's ``output_change``.
        example_inputs: inputs of one call of the model: a tensor, a tuple of arguments or a dict of
            keyword arguments. A copy of the model runs on them once, in eval mode, which tells the
            order of execution, the multiply-adds, and, without images, which layers are never
            called. None: the first calibration batch.
        layers: names or glob patterns of the layers that may be replaced, such as ``"layer4.*"``;
            None: all.
        filter_fn: function that tells whether to replace a layer: ``filter_fn(module, name)`` is
            called with the model's own module for each layer that can be replaced.
        keep_first: leave the layer that runs first as it is (the first registered one without
            ``example_inputs``), unless it is named in full in ``rate`` or ``layers``.
        init: "fit" approximates the weights, "random" starts training from scratch.
        allocation: "uniform" gives all layers about the same rate, by whole ranks; "error" the
            ranks (of two sides, and methods) that are expected to do the network the least damage.
            None: "error" with calibration.
        sequential: fit layers one after the other, each from the inputs that it will really get.
            None: with images, unless batches come through the layers in different orders, which
            is noted. As many images take part as ``memory_budget`` allows.
        sensitivity: weigh errors of a layer's outputs by what they do to the network's outputs:
            in the fits ("fit"), in the allocation ("allocation"), in both (True) or not at all.
            None: both, with images.
        correct_bias: correct the biases of layers for the change of their outputs' mean.
        reestimate_batch_norm: measure the statistics of batch norms again in the smaller network:
            True, or "auto": where that brings the network's outputs nearer to the original ones.
        refine: True or a `Refinement`: afterwards train the factors, without labels, to give the
            original network's outputs; seconds to minutes. The result is never worse on images
            held out for that.
        forward: ``forward(model, batch)`` calls the model where batches are of another kind.
        memory_budget: bytes for second moments in one pass, and for images and activations kept.
        inplace: change ``model`` itself. Handles of hooks on replaced layers then stay valid.
        progress: draw progress bars; None: on a terminal.
        seed: what the layers' seeds are derived from, together with the layers' names, so that a
            layer's numbers do not depend on the other layers. None draws one from PyTorch's default
            generator. Of several processes that have images, the first one's counts.
        **options: options of the method; they change those of a config object.

    Returns:
        The smaller model and the `Report`.

    Raises:
        ValueError: the rate cannot be met (the message names the smallest possible one) or is not
            in (0, 1]; a pattern matches nothing; the method is unknown; a weight to fit or an input
            on the way is not finite; the model does not run on its inputs; the loader yields
            nothing; a calibration is of another model.
        TypeError: an argument has the wrong type, the method has no such option, or the model
            cannot be copied (with calibration it is, also if ``inplace``).
        RuntimeError: ``sequential``, and batches, or the smaller network, come through the layers
            in different orders.
        ImportError: the method makes sketched or hashed layers, and the compiled extension is
            missing, or was built for another PyTorch.

    Warns:
        UserWarning: fitted layers have a relative error above 0.3 without data, or the network's
            outputs change by more than half, so the network needs training.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be an nn.Module (got {type(model).__name__})")
    if method is None:
        method = "sketch" if calibration is None else "auto"
    check_names(options, kind_of(method), signature(compress).parameters)
    chosen_method = methods.get(method, **options)
    chosen_method.require_extension()
    rates = checked_rates(rate, flops_rate, latency_rate)
    moments = calibration if isinstance(calibration, Calibration) else None
    settings = checked_settings(
        init=init,
        data="none" if calibration is None else "images" if moments is None else "moments",
        per_layer=not isinstance(rates, Budget),
        allocation=allocation,
        sequential=sequential,
        sensitivity=sensitivity,
        correct_bias=correct_bias,
        reestimate_batch_norm=reestimate_batch_norm,
        refine=refine,
        seed=seed,
    )
    if moments is not None:
        moments.check(model)
    processes = Processes("compress", join=calibration is not None and moments is None)
    with processes.together("compressing"):
        images = None
        if calibration is not None and moments is None:
            with processes.together("reading the images"):
                images = Images(model, calibration, forward, memory_budget, progress)
            settings = dataclasses.replace(settings, seed=processes.first(settings.seed))
            alike = dataclasses.replace(settings, refinement=None)  # that may hold a function
            if not processes.agree(repr((chosen_method, rates, alike))):
                raise ValueError("compress: all processes must be called with the same arguments")
            if processes.count > 1 and not processes.agree(_fingerprint(model)):
                raise ValueError(
                    "compress: all processes must have the same network (got other values of its "
                    "tensors); call sketchlayers.broadcast_model(model) before"
                )
        budget = rates if isinstance(rates, Budget) else None
        task = Task(
            model=model,
            method=chosen_method,
            unit="parameters" if budget is None else budget.unit,
            layer_rates=None if isinstance(rates, Budget) else rates,
            settings=settings,
            images=images,
            calibration=moments,
            example_inputs=example_inputs,
            layers=layers,
            filter_fn=filter_fn,
            keep_first=keep_first,
            processes=processes,
            memory_budget=memory_budget,
            progress=progress if processes.rank == 0 else False,
        )
        outcome = make(prepare(task, [] if budget is None else [budget]), budget)
        report = _report(outcome, chosen_method, settings, rates)
    _warn_of_large_errors(report, with_data=calibration is not None)
    return Compressed(outcome.finished.result(inplace=inplace), report)


def _fingerprint(model: nn.Module) -> str:
    """A hash of the names and bytes of all tensors."""
    digest = hashlib.blake2b()
    for name, x in model.state_dict().items():
        if isinstance(x, Tensor):
            digest.update(name.encode())
            values = x.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(values.numpy().data)
    return digest.hexdigest()


@outside_of_modes
def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Turns every compressed layer into the plain layer with the same outputs.

    Hooks and a user's own attributes carry over as in `compress`; a layer that is registered at
    several places stays shared.

    Args:
        model: any module. It is not changed, unless ``inplace``.
        inplace: change ``model`` itself.

    Returns:
        The model of plain layers.

    Raises:
        ValueError: ``inplace`` and the model itself is a compressed layer.
        TypeError: the model is no module or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be an nn.Module (got {type(model).__name__})")
    compressed = methods.compressed_layers()
    folded = {
        module: module.fold()  # type: ignore[operator]
        for module in model.modules()
        if isinstance(module, compressed)
    }
    return replace_layers(model, folded, inplace=inplace)


@outside_of_modes
def inspect(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    method: str | Method = "auto",
    keep_first: bool = True,
    **options: Any,
) -> Inspection:
    """Lists the layers of a model: the size of each, and what `compress` could make of it.

    Args:
        model: any module, also on the meta device; it is not changed.
        example_inputs: as for `compress`; the result then has multiply-adds.
        method: as for `compress`, which takes "auto" where it has calibration images.
        keep_first: count the layer that runs first as one that stays as it is, as `compress` does.
        **options: options of the method.

    Returns:
        The `Inspection`; printed, it is a table.

    Raises:
        ValueError: the method is unknown, or the model does not run on ``example_inputs``.
        TypeError: an argument has the wrong type, or the method has no such option.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"inspect: model must be an nn.Module (got {type(model).__name__})")
    chosen_method = methods.get(method, **options)
    examples = [] if example_inputs is None else [(ExampleCall(example_inputs), 1)]
    found = survey(model, chosen_method, init="random", examples=examples, owner="inspect")
    kept = left_out(found, rates=None, layers=None, filter_fn=None, keep_first=keep_first)
    return Inspection(
        method=chosen_method.name,
        layers=tuple(
            _inspected(layer, chosen_method, kept.get(layer.name)) for layer in found.layers
        ),
        other_parameters=found.other_parameters,
        other_bytes=found.other_bytes,
    )


def _inspected(layer: Layer, method: Method, kept: Reason | None) -> LayerInspection:
    """What a method could make of a layer.

    Args:
        layer: of the model.
        method: of several (``members``), the smallest size is that of the best one.
        kept: why `compress` leaves the layer as it is although it could be replaced, or None.
    """
    reason = layer.reason or kept
    members = () if reason else method.members(layer.module)
    families = [(member, member.ranks(layer.module)) for member in members]
    sizes = [member.parameters(layer.module, ranks[0]) for member, ranks in families]
    return LayerInspection(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        parameters=layer.parameters,
        bytes=layer.bytes,
        multiply_adds=layer.multiply_adds,
        smallest_rank=families[0][1][0] if families else None,
        largest_rank=families[0][1][-1] if families else None,
        smallest_parameters=min(sizes, default=layer.parameters),
        reason=None if reason is None else reason.text,
        methods=tuple(member.name for member in members),
    )


def _report(outcome: Outcome, method: Method, settings: Settings, rates: Rates) -> Report:
    budget = rates if isinstance(rates, Budget) else None
    latencies = outcome.finished.latencies or (None, None)
    return Report(
        method=method.name,
        options=method.options(),
        init=settings.init,
        seed=settings.seed,
        rate_asked=rates.rate if isinstance(rates, Budget) else rates,
        layers=tuple(_layer_report(layer, outcome) for layer in outcome.found.layers),
        other_parameters=outcome.found.other_parameters,
        other_bytes=outcome.found.other_bytes,
        notes=tuple(outcome.log.notes),
        budget="rate" if budget is None else budget.argument,
        budget_rate=outcome.ranks.rate,
        allocation=None if budget is None else settings.allocation,
        images=outcome.measured.images,
        sequential=outcome.fits.sequential,
        output_change=outcome.finished.change,
        latency_before=latencies[0],
        latency_after=latencies[1],
        seconds=outcome.log.seconds,
    )


def _layer_report(layer: Layer, outcome: Outcome) -> LayerReport:
    chosen = outcome.ranks.chosen.get(layer.name, Chosen())
    new = outcome.fits.layers.get(layer.name)
    reason = layer.reason or outcome.log.reasons.get(layer.name)
    after = layer.parameters, layer.bytes, layer.multiply_adds
    if new is None:
        chosen = Chosen()
    else:
        after = (
            sum(parameter.numel() for parameter in new.module.parameters()),
            sum(stored_bytes(tensor) for _, tensor in stored_tensors(new.module)),
            multiply_adds(new.module, layer.calls) if layer.calls else None,
        )
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        method=None if chosen.method is None else chosen.method.name,
        rank=chosen.rank,
        parameters_before=layer.parameters,
        parameters_after=after[0],
        bytes_before=layer.bytes,
        bytes_after=after[1],
        multiply_adds_before=layer.multiply_adds,
        multiply_adds_after=after[2],
        relative_error=None if new is None else new.relative_error,
        reason=None if reason is None else reason.text,
    )


def _warn_of_large_errors(report: Report, *, with_data: bool) -> None:
    """With data, only what becomes of the network's outputs matters."""
    if with_data:
        if report.output_change is not None and report.output_change > LARGE_CHANGE:
            warnings.warn(
                f"compress: the network's outputs change by {report.output_change:.2f}, relative "
                "to them: the network needs training, such as refine=True, or a larger rate",
                UserWarning,
                stacklevel=4,
            )
        return
    errors = {
        row.name: row.relative_error for row in report.layers if row.relative_error is not None
    }
    large = {name: error for name, error in errors.items() if error > LARGE_ERROR}
    if large:
        worst = max(large, key=large.__getitem__)
        warnings.warn(
            f"compress: {len(large)} of {len(errors)} fitted layers have a relative error above "
            f"{LARGE_ERROR} (worst: {worst or 'the model'}, {large[worst]:.2f}): the network needs "
            "training; fitted to images (calibration=) it may do without",
            UserWarning,
            stacklevel=4,
        )
