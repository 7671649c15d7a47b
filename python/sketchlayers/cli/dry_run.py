"""``sketchlayers compress --dry-run``: what to expect, from equal rates in all layers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from sketchlayers._runtime.watch import duration
from sketchlayers.cli.compress_options import has_images
from sketchlayers.cli.messages import WrongInput, tell
from sketchlayers.cli.models import Loaded
from sketchlayers.cli.options import example_input, image_batches, images_of, progress_of
from sketchlayers.compression.api import compress, sweep
from sketchlayers.compression.stages.expected import expected_seconds
from sketchlayers.compression.survey.layers import survey
from sketchlayers.methods import Method
from sketchlayers.reports.report import Report
from sketchlayers.surgery.batches import device_of
from sketchlayers.surgery.calls import ExampleCall
from sketchlayers.surgery.forms import in_plain_form


def dry_run(
    args: argparse.Namespace, loaded: Loaded, method: Method, rates: Mapping[str, Any]
) -> int:
    """Prints the sizes of a model with new random layers, and what calls of it take.

    Args:
        args: of the command, checked.
        loaded: the model.
        method: by which layers are replaced.
        rates: the budget, as `compress` takes it.

    Raises:
        WrongInput: the model does not run on its inputs.
    """
    by_layer = isinstance(rates.get("rate"), Mapping)
    example = _example(args, loaded)
    how: dict[str, Any] = {
        "method": method,
        "init": "random",
        "allocation": None if by_layer else "uniform",
        "example_inputs": example,
        "layers": args.layers,
        "exclude": args.exclude,
        "keep_first": args.keep_first,
        "measure_latency": args.measure_latency,
        "progress": progress_of(args),
        "seed": args.seed,
    }
    try:
        if args.rates:
            sizes = sweep(loaded.model, args.rates, budget=args.budget or "rate", **how)
            print(json.dumps(sizes.to_dict(), indent=2, allow_nan=False) if args.json else sizes)
            report = next(iter(sizes.values())).report
        else:
            report = compress(loaded.model, **rates, **how).report
            print(report.to_json() if args.json else report)
    except (TypeError, RuntimeError) as error:  # of the model, with these inputs
        raise WrongInput(str(error)) from error
    _tell_time(args, loaded, method, report, example)
    tell("a dry run: ranks are those of equal rates in all layers; nothing was fitted or written")
    return 0


def _example(args: argparse.Namespace, loaded: Loaded) -> Tensor | None:
    """One of the images, where there are some; multiply-adds are those of one."""
    if not has_images(args):
        return example_input(loaded.model, args.input_size)
    (batch,) = islice(image_batches(args, loaded), 1)
    return batch[:1].to(device_of(loaded.model) or "cpu")


def _tell_time(
    args: argparse.Namespace, loaded: Loaded, method: Method, report: Report, example: Tensor | None
) -> None:
    """How long a compression will take, about."""
    if args.init == "random" or example is None or not report.latencies:
        return
    names = {row.name for row in report.replaced}
    with in_plain_form(loaded.model) as plain:
        found = survey(plain, method, examples=[(ExampleCall((example,)), 1)])
    seconds = expected_seconds(
        method,
        [layer for layer in found.layers if layer.name in names],
        images=images_of(args) if has_images(args) else None,
        seconds_an_image=report.latencies[0].before,
    )
    tell(f"compressing will take about {duration(sum(seconds.values()), about=True)}")
