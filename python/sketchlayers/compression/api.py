"""Whole models: `compress`, `sweep` and `fold` make others of them, `inspect` lists layers."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from typing import Any, Literal

from torch import nn

from sketchlayers import methods
from sketchlayers._runtime.progress import draws_bars
from sketchlayers._runtime.watch import Watch, watching
from sketchlayers.compression.arguments import (
    Allocation,
    BudgetName,
    Sensitivity,
    checked_goal,
    checked_sweep,
)
from sketchlayers.compression.calibration.calibrate import MEMORY_BUDGET
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.candidates.evaluation import Evaluate
from sketchlayers.compression.candidates.maker import Maker
from sketchlayers.compression.candidates.sweep import Sweep
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.compression.request import check_model, chosen_method, task_of
from sketchlayers.compression.result import Compressed
from sketchlayers.compression.stages.task import Task
from sketchlayers.compression.survey.layers import Layer, survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.compression.survey.selection import FilterFunction, left_out
from sketchlayers.methods import Method
from sketchlayers.methods._method import Init
from sketchlayers.nn.plain import PlainForm
from sketchlayers.reports.inspection import Inspection, LayerInspection
from sketchlayers.reports.report import Report
from sketchlayers.surgery.batches import Forward
from sketchlayers.surgery.calls import ExampleCall, ExampleInputs
from sketchlayers.surgery.evaluation import outside_of_modes
from sketchlayers.surgery.forms import folded_forms, folded_layers, on_plain_forms
from sketchlayers.surgery.replace import replace_layers

LARGE_ERROR = 0.3
"""Relative error of a layer above which, without data, a warning says that training is needed."""
LARGE_CHANGE = 0.5
"""Relative change of the network's outputs above which, with data, the same warning appears."""


@outside_of_modes
@on_plain_forms
def compress(
    model: nn.Module,
    method: str | Method | None = None,
    *,
    rate: float | Mapping[str, float] | None = None,
    flops_rate: float | None = None,
    latency_rate: float | None = None,
    bytes_rate: float | None = None,
    max_drop: float | None = None,
    budget: BudgetName = "rate",
    calibration: Calibration | Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    example_inputs: ExampleInputs | None = None,
    layers: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    filter_fn: FilterFunction | None = None,
    keep_first: bool = True,
    init: Init = "fit",
    allocation: Allocation | None = None,
    sequential: bool | None = None,
    sensitivity: Sensitivity | None = None,
    correct_bias: bool = True,
    reestimate_batch_norm: bool | Literal["auto"] = False,
    refine: bool | Refinement | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    measure_latency: bool = True,
    forward: Forward | None = None,
    memory_budget: int = MEMORY_BUDGET,
    cache: str | os.PathLike[str] | None = None,
    original: nn.Module | None = None,
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

    Attention layers and other kinds that hold matrices (`register_layer`) are taken apart, and the
    parts replaced; the model has them in the layers' places until the call ends. Layers that cannot
    be replaced stay as they are, each with its reason in the report: shared modules, tied
    parameters, parametrised layers, layers used through their weight, convolutions of other
    dimensions, depthwise ones, recurrent layers, layers with a forward of their own, layers that
    would grow or that the data never reach.

    A replacement keeps the layer's device, dtype, memory format, mode, ``requires_grad`` (that of
    the weight for all its factors), all its hooks and the attributes that a user has set on the
    module. Attributes and hooks of the weight tensor itself are lost with it.

    If anything fails the model is as it was, also with ``inplace``. With ``torch.distributed``
    initialised, every process calibrates on its own images, and all get the same model. Without
    images processes do not wait for each other: each gets the same model for the same ``seed``.

    Forward calls are made of copies of the model, some ten for each batch, in the caller's thread
    and context, one after the other, each from its start to its end or to a layer that is looked
    at, where an exception ends it. Hooks run in all of them. Batches stay whole, as the loader
    yields them (but for `Refinement`, where the graph of one would not fit in ``memory_budget``,
    and for timing one image), and all calls on a batch draw the same random numbers; the caller's
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
        bytes_rate: fraction of the bytes of a file that is kept, instead of ``rate``: layers get
            ranks and bits that are expected to do the least damage together, or, with ``bits``,
            ranks alone.
        max_drop: how much the network may lose at most, in the unit of ``evaluate`` (0.01 of an
            accuracy is one point); instead of ``rate``. The smallest network that loses no more is
            looked for with about six candidates, each fitted and evaluated; they are in
            ``report.candidates``. The images of ``evaluate`` then take part in the choice: measure
            on others what the network is worth.
        budget: what ``max_drop`` makes as small as it can be: "rate" (parameters), "flops_rate"
            (multiply-adds), "latency_rate" (time) or "bytes_rate" (a file's bytes).
        calibration: batches of images (tensors, tuples that begin with them, or dicts), a few
            thousand images altogether, or the `Calibration` of some. With the latter, everything
            that needs the images themselves is left out: ``sequential``, ``sensitivity``,
            ``reestimate_batch_norm``, ``refine``, and the report's ``output_change``.
        evaluate: ``evaluate(model)`` says how good a network is, higher is better: a number, such
            as an accuracy, or better a 1-D tensor with a score for each example, always in the
            same order, such as ``(predicted == labels)``. The report then has the original's and
            the smaller network's; with scores also the standard error of the drop, from the
            differences example by example, which is much smaller than that of either. Models are
            in evaluation mode, without gradients. Of several processes the mean counts.
        example_inputs: inputs of one call of the model: a tensor, a tuple of arguments or a dict of
            keyword arguments. A copy of the model runs on them once, in eval mode, which tells the
            order of execution, the multiply-adds, and, without images, which layers are never
            called. None: the first calibration batch.
        layers: names or glob patterns of the layers that may be replaced, such as ``"layer4.*"``;
            None: all.
        exclude: names or glob patterns of layers that stay as they are, also where ``rate`` or
            ``layers`` names them.
        filter_fn: function that tells whether to replace a layer: ``filter_fn(module, name)`` is
            called with the model's own module for each layer that can be replaced (with the plain
            one, where it is compressed; with a part of one that is taken apart).
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
        bits: round the numbers of all layers, replaced or not, to so many bits, 2 to 16, with a
            scale for each output: one factor after the other, each first fitted to what is rounded
            already, in the norm of the layer's output (with images; GPTQ, Frantar et al., ICLR
            2023). Depthwise factors have at least 8. The network computes in floating point as
            before; `save` writes the few bits. With ``rate=1`` layers stay dense.
        group_size: inputs that share a scale; None: all of an output. It must divide the inputs of
            a weight; others have one scale for each output.
        measure_latency: time one call of both networks at the end, with one image and with the
            first batch (or ``example_inputs``), for the report: for two seconds, or 2 % of the
            compression's time, but each call at least once.
        forward: ``forward(model, batch)`` calls the model where batches are of another kind.
        memory_budget: bytes for second moments in one pass, and for images and activations kept.
        cache: a folder, for any number of models. The calibration, and what is found and fitted for
            each layer, is written there as soon as it is done; the next call with the same model,
            images and options takes it from there, for another rate what does not depend on it, and
            also after this process was killed. What does not fit is not used, a damaged file is
            made again and a full disk gives a warning. Images are told apart by their values, as
            far as they fit in ``memory_budget``: do not shuffle them. Not used by several
            processes.
        original: the network that ``model`` was compressed from, to compress it again: the result
            is made of its weights, and what ``model`` has learnt since is lost. None: compressed
            layers are folded before they are compressed again. In both cases rates and sizes are
            those of the plain network; compressed layers that are not meant (``layers``,
            ``exclude``, ``filter_fn``, a dict of rates) stay as they are.
        inplace: change ``model`` itself. Handles of hooks on replaced layers then stay valid.
        progress: draw progress bars, with an estimate of the whole time beside them; None: on a
            terminal, and elsewhere a line for each stage and every 30 s. A call of a few seconds
            prints nothing.
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
        SweepError: ``evaluate`` has failed or returned what is not finite, or no candidate loses
            as little as ``max_drop``. The models that were made are in the error's attribute
            ``sweep``.
        RuntimeError: ``sequential``, and batches, or the smaller network, come through the layers
            in different orders.
        ImportError: the method makes sketched or hashed layers, and the compiled extension is
            missing, or was built for another PyTorch.

    Warns:
        UserWarning: fitted layers have a relative error above 0.3 without data, or the network's
            outputs change by more than half, so the network needs training.
    """
    check_model(model)
    with_data = calibration is not None
    chosen = chosen_method(
        method, options, with_data=with_data, arguments=signature(compress).parameters
    )
    goal = checked_goal(
        rate=rate,
        flops_rate=flops_rate,
        latency_rate=latency_rate,
        bytes_rate=bytes_rate,
        max_drop=max_drop,
        budget=budget,
        evaluate=evaluate,
        with_data=with_data,
    )
    if inplace and original is not None:
        raise ValueError("compress: inplace must be False with original (got both)")
    task = task_of(
        model=model,
        method=chosen,
        unit=goal.unit,
        layer_rates=goal.layer_rates,
        asked=goal,
        calibration=calibration,
        example_inputs=example_inputs,
        layers=layers,
        exclude=exclude,
        filter_fn=filter_fn,
        keep_first=keep_first,
        measure_latency=measure_latency,
        init=init,
        allocation=allocation,
        sequential=sequential,
        sensitivity=sensitivity,
        correct_bias=correct_bias,
        reestimate_batch_norm=reestimate_batch_norm,
        refine=refine,
        bits=bits,
        group_size=group_size,
        forward=forward,
        memory_budget=memory_budget,
        progress=progress,
        seed=seed,
        cache=cache,
        original=original,
        several=goal.max_drop is not None,
    )
    with _watching("compress", task), task.processes.together("compressing"):
        maker = Maker(task, goal.budgets, evaluate)
        if goal.max_drop is not None:
            made = maker.smallest(goal.unit, goal.max_drop)
        else:
            made = maker.make(*goal.budgets or [None])
    if not with_data and (bits is not None or goal.unit == "bytes"):
        warnings.warn(
            "compress: without calibration images every number was rounded to the nearest one, "
            "which needs more bits than rounding in the norm of the layers' outputs",
            stacklevel=3,
        )
    _warn_of_large_errors(made.report, with_data=with_data)
    return made.result(inplace=inplace)


@outside_of_modes
@on_plain_forms
def sweep(
    model: nn.Module,
    rates: Iterable[float] = (0.7, 0.5, 0.4, 0.3),
    *,
    budget: BudgetName = "rate",
    calibration: Calibration | Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    **how: Any,
) -> Sweep:
    """Makes smaller models of several sizes, from one calibration, and evaluates each.

    ::

        sweep = sketchlayers.sweep(model, (0.7, 0.5, 0.3), calibration=loader, evaluate=accuracy)
        print(sweep)
        small = sweep[0.5].model

    Each is what `compress` makes of ``model`` at that rate. What no rate has a part in is done
    once: the survey, the calibration, the sensitivities, and what the ranks of every layer would
    do to the network. Layers are chosen and fitted for each rate; one that has the same size and
    the same inputs at several rates is fitted once.

    Args:
        model: any module; it is not changed.
        rates: fractions that are kept, each in (0, 1]; models are made in this order.
        budget: what rates count: "rate" (parameters), "flops_rate" (multiply-adds),
            "latency_rate" (time) or "bytes_rate" (a file's bytes); as the arguments of `compress`
            of these names.
        calibration: as for `compress`.
        evaluate: as for `compress`.
        **how: ``method`` and all other arguments of `compress` but ``rate``, ``flops_rate``,
            ``latency_rate``, ``bytes_rate``, ``max_drop`` and ``inplace``; also options of the
            method.

    Returns:
        The `Sweep`: models and reports by the rate that was asked. All models are in memory.

    Raises:
        SweepError: ``evaluate`` has failed or returned what is not finite. Models that were made
            before are in the error's attribute ``sweep``, and the cause is what was raised.
        ValueError: a rate cannot be met or is not in (0, 1]; see also `compress`.
        TypeError: see `compress`.
    """
    for name in ("rate", "flops_rate", "latency_rate", "bytes_rate", "max_drop", "inplace"):
        if name in how:
            hint = "rates" if name != "inplace" else "sweep[rate].model"
            raise TypeError(f"sweep: there is no argument {name!r}; see {hint}")
    check_model(model)
    parameters = signature(compress).parameters
    options = {name: value for name, value in how.items() if name not in parameters}
    known = {name: value for name, value in how.items() if name in parameters}
    chosen = chosen_method(
        known.pop("method", None),
        options,
        with_data=calibration is not None,
        arguments=parameters,
    )
    goal = checked_sweep(rates, budget=budget, evaluate=evaluate)
    others = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name in signature(task_of).parameters and parameter.kind is Parameter.KEYWORD_ONLY
    }
    task = task_of(
        **{
            **others,
            **known,
            "model": model,
            "method": chosen,
            "unit": goal.unit,
            "layer_rates": None,
            "asked": goal,
            "calibration": calibration,
            "several": True,
        }
    )
    with _watching("sweep", task), task.processes.together("compressing"):
        maker = Maker(task, goal.budgets, evaluate)
        for one in goal.budgets:
            maker.make(one)
        return maker.sweep


def _watching(owner: str, task: Task) -> contextlib.AbstractContextManager[Watch]:
    """Lines where no bars are drawn."""
    lines = task.progress is not False and not draws_bars(task.progress)
    return watching(owner, lines=lines)


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
        ValueError: ``inplace`` and the model itself is a compressed layer, or holds the parts of
            one.
        TypeError: the model is no module or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be an nn.Module (got {type(model).__name__})")
    if inplace and isinstance(model, PlainForm):
        raise ValueError(
            "fold: inplace must be False where the model itself is the layer to fold "
            f"(got {type(model).__name__})"
        )
    return folded_forms(replace_layers(model, folded_layers(model), inplace=inplace))


@outside_of_modes
@on_plain_forms
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
    chosen = methods.get(method, **options)
    examples = [] if example_inputs is None else [(ExampleCall(example_inputs), 1)]
    found = survey(model, chosen, init="random", examples=examples, owner="inspect")
    kept = left_out(found, rates=None, layers=None, filter_fn=None, keep_first=keep_first)
    return Inspection(
        method=chosen.name,
        layers=tuple(_inspected(layer, chosen, kept.get(layer.name)) for layer in found.layers),
        others=found.others,
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
