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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.distributed import RANK, own_device, share
from common.runs import circumstances, locked, read_csv
from common.stopping import exit_code
from image_data import DATA_SETS, ImageFiles, Images, read_split
from networks import count_parameters
from options import add_options, documented_parser
from sketchlayers import methods
from sketchlayers._runtime.files import write_csv
from sketchlayers.cli import kinds
from trained import pretrained, variants
from trained.pictures import Pictures, accuracies, bits_to_text, drawn, predictions
from trained.results import COLUMNS, RESULTS, Row, identity, plot, stage_seconds, tables
from trained.variants import Variant, quietly_compressed

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
        self._pictures = partial(
            self.trained.pictures, size=args.size, resize=args.resize, batch_size=args.batch_size
        )
        train = read_split(args.data, args.root, train=True)
        self.calibration = self._calibration_images(train)
        self.measured = self._measured_images(train)
        outputs = outputs_of_classes(args.data, len(train.classes), self.trained.classes)
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
        correct = self.found(network)
        return row | accuracies(correct, self._dense_found) | {"correct": bits_to_text(correct)}

    def compressed(self, run: Run, **more: Any) -> Any:
        return quietly_compressed(
            self.trained.network,
            run.method,
            rate=run.rate,
            calibration=self.calibration if run.variant.images else None,
            example_inputs=next(iter(self.calibration))[:1].to(self.device),
            filter_fn=is_convolution,
            seed=self.args.seed,
            **run.variant.options,
            **more,
        )

    def found(self, network: nn.Module) -> Tensor:
        """Whether a network finds the class of each image that is measured on."""
        return predictions(network, self.measured) == self.labels

    @cached_property
    def _dense_found(self) -> Tensor:
        return self.found(self.trained.network)

    @cached_property
    def _circumstances(self) -> Row:
        return circumstances(self.device)

    def _calibration_images(self, train: Images | ImageFiles) -> Pictures:
        args = self.args
        name = args.calibration_data or args.data
        if args.calibration_data is not None:
            train = read_split(name, args.calibration_root, train=True)
        return self._pictures(drawn(train, args.seed, args.calibration_images), name)

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
        return self._pictures(source, args.data)


def outputs_of_classes(data: str, classes: int, outputs: int) -> tuple[int, ...]:
    """Which output of a network stands for each class of a data set.

    Args:
        data: name of the data set.
        classes: that it has.
        outputs: that the network has.

    Raises:
        ValueError: it is not known.
    """
    imagenet = DATA_SETS[data].imagenet_classes
    if outputs == classes:
        return tuple(range(classes))
    if outputs == 1000 and imagenet is not None and len(imagenet) == classes:
        return imagenet
    raise ValueError(
        f"--network: must have an output for each of the {classes} classes of {data} "
        f"(got {outputs} outputs)"
    )


def run_missing(experiment: Experiment, path: Path) -> None:
    """Makes the rows that a CSV file lacks, one after the other; each is there once it is made.

    Several processes share them.
    """
    done = {identity(row) for row in _finished(path)}
    own = share(list(experiment.runs()))
    missing = [run for run in own if identity(experiment.key(run)) not in done]
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
    add_options(data, "--data", "--root", "--label", "--size", "--batch-size", batch_size=None)
    data.add_argument("--split", choices=["test", "validation"], default="test")
    data.add_argument("--images", type=kinds.positive, help="measure on so many, drawn at random")
    data.add_argument("--resize", type=int, help="shorter side before the centre is cut out")
    data.add_argument("--calibration-images", type=kinds.positive, default=CALIBRATION_IMAGES)
    data.add_argument(
        "--calibration-data", choices=list(DATA_SETS), help="calibrate on other images"
    )
    data.add_argument("--calibration-root", type=Path)
    data.add_argument("--calibration-label", help="what figures call them")

    grid = root.add_argument_group("compression")
    grid.add_argument("--methods", nargs="+", choices=methods.names(), default=list(METHODS))
    grid.add_argument("--rates", nargs="*", type=kinds.share, default=list(RATES))
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
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    """Makes the rows that are missing, unless they are only to be shown; prints and draws all."""
    check(args)
    if not args.show:
        run_missing(Experiment(args), args.csv)
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
