"""``sketchlayers inspect``, ``calibrate`` and ``compress``: whole models from a shell.

``compress`` writes a torchvision model as `sketchlayers.save` does. Of a pickled model it writes
the whole compressed model, pickled: nothing else says how to rebuild it.

Reports go to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers._runtime.files import SAFETENSORS, written_whole
from sketchlayers.checkpoint import save
from sketchlayers.cli.finetune import FineTuning, accuracy, finetune, scores_of
from sketchlayers.cli.folders import (
    ImageBatches,
    LabelledImages,
    Preparation,
    find_images,
    spread,
)
from sketchlayers.cli.models import Loaded, WrongInput, open_model
from sketchlayers.cli.options import (
    IMAGES,
    Rate,
    add_arguments_calibrate,
    add_arguments_compress,
    add_arguments_inspect,
)
from sketchlayers.compression.api import compress, inspect
from sketchlayers.compression.arguments import Sensitivity
from sketchlayers.compression.calibration.calibrate import Calibration, calibrate
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.reports.plot import check_picture, picture
from sketchlayers.reports.report import Report
from sketchlayers.reports.table import joined, quantity
from sketchlayers.surgery.evaluation import evaluating

__all__ = [
    "add_arguments_calibrate",
    "add_arguments_compress",
    "add_arguments_inspect",
    "run_calibrate",
    "run_compress",
    "run_inspect",
]

WRONG_INPUT = 2
"""Exit code when the arguments or the files are wrong."""

_SENSITIVITIES: dict[str | None, Sensitivity | None] = {
    None: None,
    "both": True,
    "fit": "fit",
    "allocation": "allocation",
    "none": False,
}
_REESTIMATE: dict[str, bool | Literal["auto"]] = {"no": False, "auto": "auto", "yes": True}


def run_inspect(args: argparse.Namespace) -> int:
    """Prints what could be compressed; returns the exit code."""
    return _guarded("inspect", lambda: _inspect(args))


def run_calibrate(args: argparse.Namespace) -> int:
    """Measures second moments on images and writes them; returns the exit code."""
    return _guarded("calibrate", lambda: _calibrate(args))


def run_compress(args: argparse.Namespace) -> int:
    """Compresses, writes the files and prints the report; returns the exit code."""
    return _guarded("compress", lambda: _compress(args))


def _guarded(command: str, body: Callable[[], None]) -> int:
    """Runs the body; what is wrong with the input becomes one line and an exit code."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            body()
        messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        for message in dict.fromkeys(messages):
            _tell(f"warning: {message}")
        return 0
    except (WrongInput, ValueError, OSError, ImportError) as error:
        message = (
            " ".join(str(error).split()).removeprefix(f"{command}: ").removeprefix("compress: ")
        )
        _tell(f"sketchlayers {command}: {message}")
        return WRONG_INPUT


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------ the commands


def _inspect(args: argparse.Namespace) -> None:
    loaded = _open(args, on_meta=True)
    inspection = inspect(
        loaded.model,
        _example(loaded.model, args.input_size),
        method=_method(args, "auto"),
        keep_first=args.keep_first,
    )
    print(inspection.to_json() if args.json else inspection)


def _calibrate(args: argparse.Namespace) -> None:
    _check_destination("--out", args.out, args.force)
    if args.out.suffix.lower() != SAFETENSORS:
        raise WrongInput(f"--out must be a {SAFETENSORS} file (got {args.out})")
    loaded = _open(args)
    prepare = Preparation.of(loaded.name, args.input_size)
    result = calibrate(
        loaded.model.to(_device(args.device)),
        _image_batches(args, prepare),
        layers=args.layers,
        memory_budget=args.memory_budget,
    )
    result.save(args.out)
    print(result)
    _tell(f"written: {args.out} ({quantity(args.out.stat().st_size, 'B')})")
    _tell(f"use it: sketchlayers compress ... --calibration {args.out}")


def _compress(args: argparse.Namespace) -> None:
    _check_compress(args)
    rates = _rates(args)
    method = _method(args, "sketch" if args.calibration is None else "auto")
    method.require_extension()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed % 2**63)  # a named network without weights starts at random
        loaded = _open(args)
    _check_ending(args.out, loaded)
    model = loaded.model.to(_device(args.device))
    labels = _Labels(args, loaded)
    calibration = _calibration(args, loaded)
    labels.measure("original", model)
    try:
        small, report = compress(
            model,
            method,
            **rates,
            calibration=calibration,
            example_inputs=_example(model, args.input_size) if not _has_images(args) else None,
            layers=args.layers,
            keep_first=args.keep_first,
            init=args.init,
            allocation=args.allocation,
            sequential=args.sequential,
            sensitivity=_SENSITIVITIES[args.sensitivity],
            correct_bias=args.correct_bias,
            reestimate_batch_norm=_REESTIMATE[args.reestimate_batch_norm],
            refine=None if args.refine is None else Refinement(epochs=args.refine),
            memory_budget=args.memory_budget,
            seed=args.seed,
        )
    except (TypeError, RuntimeError) as error:  # of the model, with these inputs
        raise WrongInput(str(error)) from error
    labels.measure("compressed", small)
    report = labels.finished(small, report)
    _write_results(args, loaded, small.cpu(), report)


def _write_results(
    args: argparse.Namespace, loaded: Loaded, model: nn.Module, report: Report
) -> None:
    drawn = None if args.plot is None else picture(report, args.plot)
    architecture = loaded.architecture
    if architecture is None:
        kind = ", the whole model: pickled, as MODEL was; to read it say --trust-pickle"
        reopen = f"model = torch.load({str(args.out)!r}, weights_only=False)"
        with written_whole(args.out) as temporary:
            torch.save(model, temporary)
    else:
        kind = ""
        reopen = f"import sketchlayers; model = sketchlayers.load({str(args.out)!r})"
        reports = [*loaded.reports, report.to_dict()]
        save(model, args.out, architecture=architecture, reports=reports)
    if drawn is not None:
        with written_whole(args.plot) as temporary:
            temporary.write_bytes(drawn)
    print(report.to_json() if args.json else report)
    _tell(f"written: {args.out} ({quantity(args.out.stat().st_size, 'B')}){kind}")
    if drawn is not None:
        _tell(f"written: {args.plot}")
    _tell(f"open it in Python: {reopen}")


# ------------------------------------------------------------------------------ reading arguments


def _check_compress(args: argparse.Namespace) -> None:
    """Refuses what can be known to be wrong before anything is read."""
    if args.calibration is None and args.method is None and args.init == "fit":
        raise WrongInput(
            "a trained network needs images: --calibration DIR, without labels; fitted to the "
            "weights alone by a sketch it would be at chance. To train from scratch say "
            "--init random; to fit all the same choose how, such as --method svd"
        )
    _check_destination("--out", args.out, args.force)
    if args.plot is not None:
        _check_destination("--plot", args.plot, args.force)
        check_picture(args.plot)
        if args.plot == args.out:
            raise WrongInput(f"--plot and --out must be different files (got {args.out})")
    if not _has_images(args):
        for option in ("images", "sequential", "sensitivity", "refine"):
            if getattr(args, option):
                why = "got no folder" if args.calibration is None else f"got {args.calibration}"
                raise WrongInput(f"--{option} needs images: --calibration DIR ({why})")
        if args.input_size is None and (args.flops_rate or args.latency_rate):
            flag = "--latency-rate" if args.flops_rate is None else "--flops-rate"
            raise WrongInput(f"{flag} needs --calibration DIR, or --input-size such as 3x224x224")
    if (args.finetune is None) != (args.train is None):
        flags = ("--finetune EPOCHS", "--train DIR")
        given, missing = flags if args.train is None else flags[::-1]
        raise WrongInput(f"{given} goes with {missing}")


def _check_destination(option: str, path: Path, force: bool) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise WrongInput(f"{option} must be a file in a folder that exists (got {path})")
    if path.exists() and not force:
        raise WrongInput(f"{path} exists; --force overwrites it")


def _check_ending(path: Path, loaded: Loaded) -> None:
    is_safetensors = path.suffix.lower() == SAFETENSORS
    if loaded.architecture is None and is_safetensors:
        raise WrongInput(
            f"--out of a pickled MODEL must not be a {SAFETENSORS} file: only the pickled model "
            "says how to rebuild it; choose another ending, such as .pt"
        )
    if loaded.architecture is not None and not is_safetensors:
        raise WrongInput(f"--out must be a {SAFETENSORS} file (got {path})")


def _rates(args: argparse.Namespace) -> dict[str, Any]:
    """The budget, as `compress` takes it."""
    if args.rate is None:
        return {"flops_rate": args.flops_rate, "latency_rate": args.latency_rate}
    return {"rate": _joined_rate(args.rate)}


def _joined_rate(rates: list[Rate]) -> float | dict[str, float]:
    """One number for the whole model, or the rates of patterns."""
    by_pattern = dict(rate for rate in rates if isinstance(rate, tuple))
    numbers = [rate for rate in rates if isinstance(rate, float)]
    if len(numbers) > 1 or (numbers and by_pattern):
        raise WrongInput("--rate must be one number, or only pairs PATTERN=NUMBER")
    return numbers[0] if numbers else by_pattern


def _device(name: str) -> torch.device:
    """The device, if something can be put there."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise WrongInput(f"--device must be one of this machine (got {name}: {reason})") from error
    return device


def _method(args: argparse.Namespace, default: str) -> methods.Method:
    """The method with those options that were given."""
    options = {
        option: value
        for option in ("num_sketches", "mixing", "scale", "blocks", "signs", "frame")
        if (value := getattr(args, option)) is not None
    }
    try:
        return methods.get(args.method or default, **options)
    except TypeError as error:
        if args.method in (None, "auto"):
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise WrongInput(f"{flags} must go with --method sketch") from error
        raise WrongInput(str(error)) from error


def _open(args: argparse.Namespace, *, on_meta: bool = False) -> Loaded:
    if (args.model is None) == (args.model_option is None):
        raise WrongInput("MODEL must be given, once")
    return open_model(
        args.model or args.model_option,
        args.weights,
        args.num_classes,
        trust=args.trust_pickle,
        on_meta=on_meta,
    )


def _example(model: nn.Module, size: tuple[int, ...] | None) -> Tensor | None:
    """One input of zeros, of the type and on the device of the model's parameters."""
    if size is None:
        return None
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


# ------------------------------------------------------------------------------------------ images


def _has_images(args: argparse.Namespace) -> bool:
    return args.calibration is not None and not args.calibration.is_file()


def _calibration(args: argparse.Namespace, loaded: Loaded) -> Calibration | Iterable[Tensor] | None:
    """What the layers are fitted to."""
    if args.calibration is None:
        return None
    if not loaded.trained:
        _tell(f"warning: {loaded.name} has random weights; --weights FILE loads trained ones")
    if not _has_images(args):
        return Calibration.load(args.calibration)
    batches = _image_batches(args, Preparation.of(loaded.name, args.input_size))
    return batches.in_memory() if batches.nbytes <= args.memory_budget else batches


def _image_batches(args: argparse.Namespace, prepare: Preparation) -> ImageBatches:
    found = find_images(args.calibration)
    chosen = spread(found, args.images or IMAGES)
    folders = len({file.parent for file in chosen})
    _tell(
        f"calibrating on {len(chosen):,} of {len(found):,} images, from {folders:,} "
        f"folder{'s' * (folders != 1)}, as {joined(prepare.size)}"
    )
    return ImageBatches(chosen, prepare, args.batch_size)


class _Labels:
    """What images with labels are for: measuring accuracy, and training on."""

    def __init__(self, args: argparse.Namespace, loaded: Loaded) -> None:
        """Finds the images and checks that their classes are the model's.

        Raises:
            WrongInput: they are not.
        """
        self._args = args
        self._train = None if args.train is None else LabelledImages.find(args.train)
        self._val = None if args.val is None else LabelledImages.find(args.val)
        self._accuracy: dict[str, float] = {}
        if self._train is None and self._val is None:
            return
        self._prepare = Preparation.of(loaded.name, args.input_size)
        for option, images in (("--train", self._train), ("--val", self._val)):
            if images is not None:
                self._check(option, images, loaded.model)
        if self._train and self._val and self._train.classes != self._val.classes:
            differing = sorted({*self._train.classes} ^ {*self._val.classes})
            raise WrongInput(
                f"--train and --val must have the same classes (got {differing[0]!r} in one only)"
            )

    def measure(self, which: str, model: nn.Module) -> None:
        """Takes note of a network's accuracy on held-out images, if there are any."""
        if self._val is not None:
            share = accuracy(model, self._val, self._prepare, self._args.batch_size)
            self._accuracy[which] = share
            _tell(f"accuracy on {len(self._val):,} held-out images, {which}: {100 * share:.1f} %")

    def finished(self, model: nn.Module, report: Report) -> Report:
        """Trains the smaller network, if that is asked for, and says so in the report."""
        notes, seconds = report.notes, dict(report.seconds)
        if self._train is not None:
            recipe = FineTuning(
                epochs=self._args.finetune,
                learning_rate=self._args.learning_rate,
                batch_size=self._args.batch_size,
            )
            begin = time.perf_counter()
            finetune(model, self._train, self._prepare, recipe, seed=report.seed, tell=_tell)
            seconds["fine-tuning"] = time.perf_counter() - begin
            self.measure("fine-tuned", model)
            notes = (
                *notes,
                f"fine-tuned with labels for {recipe.epochs} epochs on {len(self._train):,} images "
                f"of {len(self._train.classes)} classes; changes and errors are from before that",
            )
        return dataclasses.replace(
            report,
            notes=notes,
            seconds=seconds,
            accuracy=self._accuracy,
            accuracy_images=None if self._val is None else len(self._val),
        )

    def _check(self, option: str, images: LabelledImages, model: nn.Module) -> None:
        """One folder for every output."""
        like = next(model.parameters())
        one = self._prepare.normalise(self._prepare.load(images.files[0])[None]).to(like)
        try:
            with torch.no_grad(), evaluating(model):
                outputs = scores_of(model(one)).shape[1]
        except (RuntimeError, TypeError, AssertionError) as error:
            size = joined(self._prepare.size)
            raise WrongInput(f"the model must run on an image of {size} ({error})") from error
        if outputs != len(images.classes):
            raise WrongInput(
                f"{option} must hold one folder for each of the model's {outputs:,} outputs, in "
                f"the order of their names (got {len(images.classes):,} folders)"
            )
