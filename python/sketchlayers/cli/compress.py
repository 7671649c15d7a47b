"""``sketchlayers compress``: a smaller model, in a file.

A model of torchvision, timm, transformers or a function is written as `sketchlayers.save` does. Of
a pickled model the whole compressed model is written, pickled: nothing else says how to rebuild it.

The report goes to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.files import SAFETENSORS, written_whole
from sketchlayers._version import __version__
from sketchlayers.checkpoint import save
from sketchlayers.cli.compress_options import add_arguments, check, file_of, has_images
from sketchlayers.cli.dry_run import dry_run
from sketchlayers.cli.finetune import Labels
from sketchlayers.cli.messages import WrongInput, tell, warn
from sketchlayers.cli.models import Loaded
from sketchlayers.cli.options import (
    chosen_device,
    chosen_method,
    chosen_model,
    example_input,
    image_batches,
    progress_of,
    written,
)
from sketchlayers.compression.api import compress, sweep
from sketchlayers.compression.arguments import BudgetName
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.candidates.sweep import Sweep
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.methods import Method
from sketchlayers.onnx import export_onnx, few_bits
from sketchlayers.reports.report import Report

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Compresses, writes the files and prints the report."""
    check(args)
    rates = _rates(args)
    scratch = args.calibration is None and not (args.dry_run and args.init == "fit")
    method = chosen_method(args, "sketch" if scratch else "auto")
    method.require_extension()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed % 2**63)  # a named network without weights starts at random
        loaded = chosen_model(args)
    if args.out is not None:
        _check_ending(args.out, loaded)
    if args.verbose:
        versions = f"sketchlayers {__version__}, PyTorch {torch.__version__}"
        tell(f"{versions}, threads: {torch.get_num_threads()}, device: {args.device}")
    model = loaded.model.to(chosen_device(args.device))
    labels = Labels(args, loaded)
    if args.dry_run:
        return dry_run(args, loaded, method, rates)
    calibration = _calibration(args, loaded)
    how = _how(args, model, method, calibration)
    try:
        if args.rates:
            evaluate = labels.hits if args.val is not None else None
            budget: BudgetName = args.budget or "rate"
            sizes = sweep(model, args.rates, budget=budget, evaluate=evaluate, **how)
            return _finish_all(args, loaded, sizes)
        if args.max_drop is not None:
            rates |= {"max_drop": args.max_drop / 100, "evaluate": labels.hits}
            rates["budget"] = args.budget or "rate"
        else:
            labels.measure("original", model)
        small, report = compress(model, **rates, **how)
    except (TypeError, RuntimeError) as error:  # of the model, with these inputs
        raise WrongInput(str(error)) from error
    if args.max_drop is None:
        labels.measure("compressed", small)
    report = labels.finished(small, report)
    opening = _write(args, loaded, small, report)
    print(report.to_json() if args.json else report)
    return _end(args, report, "it", opening)


def _finish_all(args: argparse.Namespace, loaded: Loaded, sizes: Sweep) -> int:
    """Writes the files of all rates, and prints their table."""
    print(json.dumps(sizes.to_dict(), indent=2, allow_nan=False) if args.json else sizes)
    opening = ""
    for rate, (small, report) in sizes.items():
        opening = _write(args, loaded, small, report, rate) or opening
        if args.verbose and not args.json:
            print(f"\n{report}")
    return _end(args, sizes, "the last one", opening)


def _end(args: argparse.Namespace, done: Report | Sweep, what: str, opening: str) -> int:
    """Draws the plot, and tells how to open what was written."""
    if args.plot is not None:
        done.plot(args.plot)
        tell(f"written: {args.plot}")
    if opening:
        tell(f"open {what} in Python: {opening}")
    return 0


def _how(
    args: argparse.Namespace,
    model: nn.Module,
    method: Method,
    calibration: Calibration | Iterable[Tensor] | None,
) -> dict[str, Any]:
    """All arguments of `compress` but the budget."""
    return {
        "method": method,
        "calibration": calibration,
        "example_inputs": None if has_images(args) else example_input(model, args.input_size),
        "layers": args.layers,
        "exclude": args.exclude,
        "keep_first": args.keep_first,
        "init": args.init,
        "allocation": args.allocation,
        "sequential": args.sequential,
        "sensitivity": {"both": True, "none": False}.get(args.sensitivity, args.sensitivity),
        "correct_bias": args.correct_bias,
        "reestimate_batch_norm": {"yes": True, "no": False}.get(
            args.reestimate_batch_norm, args.reestimate_batch_norm
        ),
        "refine": None if args.refine is None else Refinement(epochs=args.refine),
        "bits": args.bits,
        "group_size": args.group_size,
        "measure_latency": args.measure_latency,
        "memory_budget": args.memory_budget,
        "cache": args.cache,
        "progress": progress_of(args),
        "seed": args.seed,
    }


def _write(
    args: argparse.Namespace,
    loaded: Loaded,
    model: nn.Module,
    report: Report,
    rate: float | None = None,
) -> str:
    """Writes the files of one smaller model; returns the Python that opens it."""
    model, opening = model.cpu(), ""
    if args.out is not None:
        opening = _save(file_of(args.out, rate), loaded, model, report)
    if args.html is not None:
        report.to_html(file_of(args.html, rate))
        tell(f"written: {file_of(args.html, rate)}")
    if args.onnx is not None:
        size = loaded.preparation(args.input_size).size if has_images(args) else args.input_size
        example = example_input(model, size)
        assert example is not None
        path = file_of(args.onnx, rate)
        export_onnx(model, example, path, quantized=bool(few_bits(model)))
        tell(written(path))
    return opening


def _save(path: Path, loaded: Loaded, model: nn.Module, report: Report) -> str:
    if loaded.pickled:
        with written_whole(path) as temporary:
            torch.save(model, temporary)
        tell(
            f"{written(path)}, the whole model: pickled, as MODEL was; to read it say "
            "--trust-pickle"
        )
        return f"model = torch.load({str(path)!r}, weights_only=False)"
    reports = [*loaded.reports, report.to_dict()]
    save(model, path, architecture=loaded.architecture, reports=reports)
    tell(written(path))
    return loaded.opening(path)


def _check_ending(path: Path, loaded: Loaded) -> None:
    is_safetensors = path.suffix.lower() == SAFETENSORS
    if loaded.pickled and is_safetensors:
        raise WrongInput(
            f"--out of a pickled MODEL must not be a {SAFETENSORS} file: only the pickled model "
            "says how to rebuild it; choose another ending, such as .pt"
        )
    if not loaded.pickled and not is_safetensors:
        raise WrongInput(f"--out must be a {SAFETENSORS} file (got {path})")


def _rates(args: argparse.Namespace) -> dict[str, Any]:
    """The budget, as `compress` takes it."""
    if args.rate is None:
        return {
            "flops_rate": args.flops_rate,
            "latency_rate": args.latency_rate,
            "bytes_rate": args.bytes_rate,
        }
    by_pattern: dict[str, float] = dict(one for one in args.rate if isinstance(one, tuple))
    numbers = [one for one in args.rate if isinstance(one, float)]
    if len(numbers) > 1 or (numbers and by_pattern):
        raise WrongInput("--rate must be one number, or only pairs PATTERN=NUMBER")
    return {"rate": numbers[0] if numbers else by_pattern}


def _calibration(args: argparse.Namespace, loaded: Loaded) -> Calibration | Iterable[Tensor] | None:
    """What the layers are fitted to."""
    if args.calibration is None:
        return None
    if not loaded.trained:
        warn(f"warning: {args.model} has random weights; --weights FILE loads trained ones")
    if not has_images(args):
        return Calibration.load(args.calibration)
    batches = image_batches(args, loaded)
    return batches.in_memory() if batches.nbytes <= args.memory_budget else batches
