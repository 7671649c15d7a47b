r"""Compresses trained networks without training them: method x norm x allocation x rate.

    python experiments/zero_shot.py --network resnet20 --weights FILE --data cifar10 --root DIR \
        --csv zero_shot.csv --png zero_shot.png
    python experiments/zero_shot.py --csv zero_shot.csv --show          # the tables once more
    torchrun --nproc-per-node 8 experiments/zero_shot.py ...            # processes share the runs

Every run is a row of the CSV file. What is there already is not run again, so a command that was
stopped goes on where it was, and other networks and data can be added to the same file.

Calibration images are drawn at random from the training images, without their labels. --split
validation measures on the other training images, to choose settings; the test images are for the
end. Networks have seen all training images, so that their accuracy there is too high; differences
between variants are what to look at.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.distributed import RANK, own_device, share
from common.runs import circumstances, locked, read_csv, write_csv
from common.stopping import exit_code
from image_data import DATA_SETS, ImageFiles, Images, read_split
from networks import count_parameters
from options import add_options, documented_parser
from sketchlayers import compress, methods
from trained import pretrained, variants
from trained.pictures import Pictures, bits_to_text, drawn, paired_difference, predictions
from trained.results import COLUMNS, KEY, RESULTS, Row, plot, stage_seconds, tables
from trained.variants import Variant

METHODS = ("tucker2", "svd", "cp", "auto")
RATES = (0.7, 0.5, 0.4, 0.3)
CALIBRATION_IMAGES = 2048
DENSE = Variant("dense", images=False)


@dataclass(frozen=True)
class Run:
    """One row to make: a variant of a method at a rate."""

    method: str
    variant: Variant
    rate: float


DENSE_RUN = Run("dense", DENSE, 1.0)


def is_convolution(layer: nn.Module, name: str) -> bool:
    """Convolutions alone are compressed, as in the paper; the classifier has few parameters."""
    return isinstance(layer, nn.Conv2d)


class Experiment:
    """A network, images to calibrate and to measure on, and the runs that are asked for.

    Raises:
        DataError: images are missing or unreadable.
        WeightsError: weights are missing, unreadable or of another network.
        ValueError: an argument is out of range.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.variants = variants.chosen(args.variants, args.variant or ())
        self.device = own_device(args.device)
        self.trained = pretrained.load(args.network, args.weights)
        if args.fold_batch_norms:
            self.trained = pretrained.with_batch_norms_folded(self.trained)
        self.trained.network.to(self.device)
        train = read_split(args.data, args.root, train=True)
        self.calibration = self._calibration_images(train)
        self.measured = self._measured_images(train)
        outputs = outputs_of_classes(
            args.data, len(train.classes), self.trained.classes, args.class_indices
        )
        self.labels = torch.tensor(outputs)[self.measured.labels]

    def runs(self) -> Iterator[Run]:
        """The dense network first, then the variants of each method at each rate."""
        yield DENSE_RUN
        for rate in self.args.rates:
            for method in self.args.methods:
                for variant in self.variants:
                    yield Run(method, variant, rate)

    def key(self, run: Run) -> Row:
        """What tells the run from others."""
        args, images = self.args, run.variant.images
        calibration = args.calibration_label or args.calibration_data or "same"
        return {
            "network": args.network + (" folded" if args.fold_batch_norms else ""),
            "data": args.label or args.data,
            "split": args.split,
            "images": len(self.labels),
            "calibration_data": calibration if images else "none",
            "calibration_images": len(self.calibration.labels) if images else 0,
            "method": run.method,
            "variant": run.variant.name,
            "options": run.variant.description,
            "rate": run.rate,
            "seed": args.seed,
        }

    def measure(self, run: Run) -> Row:
        """Compresses and measures. A rate that cannot be met leaves a note and no accuracy."""
        row = {**self.key(run), **dict.fromkeys(RESULTS), **self._circumstances}
        network = self.trained.network
        before = count_parameters(network)
        if run is not DENSE_RUN:
            begin = time.perf_counter()
            try:
                network, report = self.compressed(run)
            except ValueError as error:
                return row | {"note": str(error)}
            row["seconds"] = time.perf_counter() - begin
            row |= stage_seconds(report)
            row["replaced"] = len(report.replaced)
            row["output_change"] = report.output_change
            row["note"] = "; ".join(report.notes)
        row["parameters"] = count_parameters(network)
        row["kept"] = row["parameters"] / before
        correct = predictions(network, self.measured) == self.labels
        row["accuracy"] = 100 * float(correct.double().mean())
        row["difference"], row["standard_error"] = paired_difference(correct, self._dense_correct)
        row["correct"] = bits_to_text(correct)
        return row

    def compressed(self, run: Run) -> Any:
        with warnings.catch_warnings():
            # That a network's outputs change much is in its row, as a number.
            warnings.simplefilter("ignore", UserWarning)
            return compress(
                self.trained.network,
                run.method,
                rate=run.rate,
                calibration=self.calibration if run.variant.images else None,
                example_inputs=next(iter(self.calibration))[:1].to(self.device),
                filter_fn=is_convolution,
                seed=self.args.seed,
                **run.variant.options,
            )

    @cached_property
    def _dense_correct(self) -> Tensor:
        return predictions(self.trained.network, self.measured) == self.labels

    @cached_property
    def _circumstances(self) -> Row:
        return circumstances(self.device)

    def _calibration_images(self, train: Images | ImageFiles) -> Pictures:
        args = self.args
        name = args.calibration_data or args.data
        if args.calibration_data is not None:
            train = read_split(name, args.calibration_root, train=True)
        return self._pictures(name, drawn(train, args.seed, args.calibration_images))

    def _measured_images(self, train: Images | ImageFiles) -> Pictures:
        args = self.args
        if args.split == "test":
            source = read_split(args.data, args.root, train=False)
        else:
            every = torch.arange(len(train))
            source = drawn(train, args.seed).take(every[args.calibration_images :])
        if not len(source):
            raise ValueError(
                f"--calibration-images: must leave images for validation (got "
                f"{args.calibration_images} of {len(train)})"
            )
        if args.images is not None:
            source = drawn(source, args.seed, args.images)
        return self._pictures(args.data, source)

    def _pictures(self, name: str, source: Images | ImageFiles) -> Pictures:
        args = self.args
        return self.trained.pictures(
            source, name, size=args.size, resize=args.resize, batch_size=args.batch_size
        )


def outputs_of_classes(
    data: str, classes: int, outputs: int, given: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Which output of a network stands for each class of a data set.

    Args:
        data: name of the data set.
        classes: that it has.
        outputs: that the network has.
        given: the answer, where neither equal numbers nor ImageNet's classes tell.

    Raises:
        ValueError: it is not known, or what is given does not fit.
    """
    imagenet = DATA_SETS[data].imagenet_classes
    if given is None and outputs == classes:
        return tuple(range(classes))
    if given is None and outputs == 1000 and imagenet is not None:
        given = imagenet
    if given is None or len(given) != classes or not all(0 <= i < outputs for i in given):
        raise ValueError(
            f"--class-indices: must name one of the network's {outputs} outputs for each of the "
            f"{classes} classes of {data} (got {'none' if given is None else given})"
        )
    return tuple(given)


def run_missing(experiment: Experiment, path: Path) -> None:
    """Makes the rows that a CSV file lacks, one after the other; each is there once it is made.

    Several processes share them.
    """
    done = {_identity(row) for row in _finished(path)}
    own = share(list(experiment.runs()))
    missing = [run for run in own if _identity(experiment.key(run)) not in done]
    for number, run in enumerate(missing, 1):
        row = experiment.measure(run)
        # Read anew: another process may have added rows of its own.
        with locked(path.with_name(f"{path.name}.lock"), wait=True):
            write_csv(path, [*_finished(path), row])
        accuracy = row["note"] if row["accuracy"] is None else f"{row['accuracy']:.2f} %"
        seconds = "" if row["seconds"] is None else f", {row['seconds']:.1f} s"
        print(
            f"[{number}/{len(missing)}] {run.method} {run.rate:g} {run.variant.name}: "
            f"{accuracy}{seconds}",
            flush=True,
        )


def _finished(path: Path) -> list[Row]:
    """The file's rows but those of rates that could not be met, which are tried again.

    Raises:
        ValueError: the file has other columns.
    """
    rows: list[Row] = list(read_csv(path)) if path.is_file() else []
    if rows and tuple(rows[0]) != COLUMNS:
        raise ValueError(f"--csv: {path} must have the columns of this version; use another file")
    return [row for row in rows if row["accuracy"]]


def _identity(row: Row) -> tuple[str, ...]:
    """The key as text, as it stands in the CSV file."""
    values = (row[name] for name in KEY)
    return tuple(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)


def parser(doc: str | None = __doc__) -> argparse.ArgumentParser:
    """All options, with the help of a script."""
    root = documented_parser(doc)
    root.add_argument("--csv", type=Path, required=True, help="file of results, made or gone on in")
    root.add_argument("--show", action="store_true", help="run nothing: tables of what is there")
    add_options(root, "--png", "--markdown")

    network = root.add_argument_group("network")
    network.add_argument(
        "--network", help="resnet20, resnet32, efficientnet_lite0, or a classifier of torchvision"
    )
    network.add_argument(
        "--fold-batch-norms",
        action="store_true",
        help="first put batch norms into weights and biases of convolutions",
    )
    add_options(network, "--weights", "--device", "--threads", device="cpu")

    data = root.add_argument_group("images")
    add_options(data, "--data", "--root", "--label", "--size", "--batch-size")
    data.add_argument("--split", choices=["test", "validation"], default="test")
    data.add_argument("--images", type=int, help="measure on so many, drawn at random")
    data.add_argument("--resize", type=int, help="shorter side before the centre is cut out")
    data.add_argument(
        "--class-indices", type=int, nargs="+", help="the network's output for each class"
    )
    data.add_argument("--calibration-images", type=int, default=CALIBRATION_IMAGES)
    data.add_argument(
        "--calibration-data", choices=list(DATA_SETS), help="calibrate on other images"
    )
    data.add_argument("--calibration-root", type=Path)
    data.add_argument("--calibration-label", help="what figures call them")

    grid = root.add_argument_group("compression")
    grid.add_argument("--methods", nargs="+", choices=methods.names(), default=list(METHODS))
    grid.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    grid.add_argument(
        "--variants",
        nargs="*",
        default=["steps"],
        help=f"{', '.join(variants.GROUPS)}, or names (default: steps)",
    )
    grid.add_argument(
        "--variant",
        nargs="+",
        action="append",
        metavar=("NAME", "OPTION=VALUE"),
        help="one of your own: arguments of compress; refine.epochs=8 and the like refine",
    )
    add_options(grid, "--seed")
    return root


def check(args: argparse.Namespace) -> None:
    """Makes sure of what can be checked before any work.

    Raises:
        ValueError: an argument is out of range.
    """
    for name in ("images", "calibration_images", "batch_size", "size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: must be at least 1 (got {value})")
    for rate in args.rates:
        if not 0 < rate <= 1:
            raise ValueError(f"--rates: must be in (0, 1] (got {rate})")
    for name in ("csv", "png"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"--{name}: its folder must exist (got {path})")
    if args.show and not args.csv.is_file():
        raise ValueError(f"--csv: the file to show must exist (got {args.csv})")
    if not args.show and args.network is None:
        raise ValueError("--network: must be given (got none)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 on bad arguments or data."""
    args = parser().parse_args(arguments)
    return exit_code(lambda: run_and_show(args, Experiment))


def run_and_show(args: argparse.Namespace, experiment: type[Experiment]) -> None:
    """Makes the rows that are missing, unless they are only to be shown; prints and draws all.

    Raises:
        InputError: images or weights cannot be used.
        ValueError: an argument is out of range.
    """
    check(args)
    if not args.show:
        run_missing(experiment(args), args.csv)
    if RANK > 0:
        return
    rows = read_csv(args.csv)
    print("\n\n".join(tables(rows, markdown=args.markdown)))
    if args.png is not None:
        shown = {variant.name for variant in (DENSE, *variants.chosen(args.variants))}
        plot([row for row in rows if row["variant"] in shown], args.png)
        print(f"wrote {args.png}")


if __name__ == "__main__":
    sys.exit(main())
