"""Trains a small network, compresses it without labels, trains sketched ones, compares them all.

    make demo                       scikit-learn's handwritten digits
    make demo DATA=folder           CIFAR-10: python batches, binary batches or folders of images

Every number printed is measured in the run. The networks, a table and a plot go to runs/demo.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from common.distributed import World, alone, join
from common.plots import Line, Panel, plot_panels
from common.runs import RunFolder, hardware, versions
from common.speed import (
    ONNX_PACKAGES,
    Speed,
    Step,
    measure_speeds,
    onnx_steps,
    pytorch_steps,
    set_threads,
    training_steps,
)
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, whole
from image_data import ImageFiles, Images, load
from networks import count_parameters
from options import add_options, documented_parser
from sketchlayers import compress, inspect, save
from sketchlayers._runtime.files import write_csv
from train import DENSE_LR, SKETCH_LR
from trained.pictures import Pictures, accuracies, drawn, predictions
from trained.variants import quietly_compressed
from training import Recipe, Trainer

HERE = Path(__file__).resolve().parent
RATES = (0.5, 0.25, 0.1)
METHODS = ("tucker2", "svd", "cp", "auto")
"""The first is the quickest, and its layers are fast."""
TIMED_IMAGES = 32
"""Images in a call that is timed: enough for the layers to take longer than their calls."""
BEAT_SECONDS = 10.0
"""From one sign of life to the next while nothing else is printed."""
SAME = 1.05
"""A speedup up to which a network is called as fast as the dense one."""
KEPT = 1.0
"""Points of accuracy that may be lost where the demo says that accuracy is kept."""


@dataclass(frozen=True)
class Plan:
    """How much the demo does on a data set; chosen to end in time on two cores."""

    data: str
    label: str
    epochs: int
    images: int | None = None
    test_images: int | None = None
    calibration_images: int = 1024
    timing_seconds: float = 3.0
    width: float = 1.0


DIGITS = Plan("digits", "handwritten digits", epochs=6)
CIFAR10 = Plan("cifar10", "CIFAR-10", epochs=5, images=2500, test_images=2000)


SKETCHES: dict[str, tuple[dict[str, Any], str]] = {
    "for speed (channels, 8 blocks)": (
        {"mixing": "channel", "blocks": 8},
        "no gain from layers of this size on this processor",
    ),
    "for accuracy (sign frame)": (
        {"frame": "signs"},
        "its dense weight is formed from the seed: small to store, at best as fast as dense",
    ),
    "as in the paper": (
        {},
        "mixing kernel positions, too, takes many more multiply-adds than mixing channels alone",
    ),
}
"""Forms of the sketched layer: options, and what to know where one is not faster."""


@dataclass(frozen=True)
class Result:
    """A network and what was measured of it.

    Attributes:
        name: as in tables.
        network: in eval mode.
        rate: parameters after / before, of the whole network.
        parameters: of the whole network.
        file_bytes: of the file that was written.
        accuracy: in percent of the test images.
        error: standard error of the accuracy, in points.
        difference: accuracy minus that of the dense network, in points.
        difference_error: standard error of the difference, over the same images.
        seconds: that training or compression took; None for what was there before.
        speeds: by what was timed: "pytorch", "onnx", "training".
    """

    name: str
    network: nn.Module
    rate: float
    parameters: int
    file_bytes: int
    accuracy: float
    error: float
    difference: float
    difference_error: float
    seconds: float
    speeds: dict[str, Speed] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """The numbers, for the CSV file."""
        own = {key: value for key, value in vars(self).items() if key not in ("network", "speeds")}
        for key, speed in self.speeds.items():
            own |= {f"{key}_ms": speed.milliseconds, f"{key}_times_as_fast": speed.times_as_fast}
        return own


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 when it could not start."""
    alone()
    parser = documented_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 (default: digits)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="of compression; auto tries the others in every layer, and takes minutes (tucker2)",
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=RATES,
        help="fractions of the parameters to keep when compressing (0.5 0.25 0.1)",
    )
    parser.add_argument(
        "--sketch-rate", type=float, default=0.1, help="the same of sketched networks (0.1)"
    )
    parser.add_argument("--images", type=int, help="number of training images")
    add_options(parser, "--epochs", "--width", "--device", "--seed", epochs=None)
    add_options(parser, "--out", out=Path("runs/demo"))
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress shows in a pipe, too

    def script() -> None:
        with join(args.device) as world:
            Demo(args, world).run()

    return exit_code(script)


class Demo:
    """One run: data, plan, and where results go.

    Raises:
        DataError: images are missing or unreadable.
        RunError: the folder of results cannot be made.
        ValueError: an argument is out of range, or a rate cannot be met.
    """

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.args, self.world = args, world
        plan = DIGITS if args.data is None else CIFAR10
        given = {name: getattr(args, name) for name in ("epochs", "images", "width")}
        self.plan = replace(plan, **{name: x for name, x in given.items() if x is not None})
        self.recipe = Recipe(epochs=self.plan.epochs, lr=DENSE_LR, seed=args.seed)
        self.data = load(
            self.plan.data,
            args.data,
            size=32,
            subset=self.plan.images,
            test_subset=self.plan.test_images,
        )
        self.start = self._network()
        self.sketches = {name: self._sketched(options) for name, (options, _) in SKETCHES.items()}
        self._check_rates()
        RunFolder(args.out).prepare(resume=True)
        self.test = self._pictures(self.data.test)
        self.timed = next(iter(self.test))[:TIMED_IMAGES].to(self.world.device)
        self.correct: Tensor | None = None  # of the dense network, image by image

    def run(self) -> None:
        """Trains, compresses, trains sketches; prints and writes what was measured."""
        started = time.perf_counter()
        print(
            f"Data: {self.plan.label}, {len(self.data.train):,} images to train on and "
            f"{len(self.data.test):,} to test on, {self.data.size}x{self.data.size}.\n"
            f"Network: six convolutions, {count_parameters(self.start):,} parameters. "
            f"Device: {self.world.device}, {torch.get_num_threads()} threads.\n"
        )
        dense = self._trained("dense", self.start, DENSE_LR)

        print(
            f'\n1. compress(model, "{self.args.method}", rate=r, calibration=images) on '
            f"{len(self._calibration_images().labels):,} images: no labels, no training\n"
        )
        compressed = [dense, *(self._compressed(dense, rate) for rate in self.args.rates)]
        self._time_inference(compressed, exported=True)
        print(f"\n{compression_table(compressed, len(self.data.test))}\n")

        print("2. Sketched layers trained from scratch, as long as the dense network\n")
        sketched = [replace(dense, speeds={})] + [
            self._trained(name, network, SKETCH_LR) for name, network in self.sketches.items()
        ]
        self._time_inference(sketched, exported=False)
        self._time_training(sketched)
        dense.speeds["training"] = sketched[0].speeds["training"]
        print(f"\n{training_table(sketched)}\n")

        self._write([*compressed, *sketched[1:]], started)
        plot(compressed, sketched, self.args.out / "accuracy.png", self.plan.label)
        print(last_words(self.args, self.plan, time.perf_counter() - started))

    def _network(self) -> nn.Sequential:
        torch.manual_seed(self.args.seed)
        return small_vgg(len(self.data.classes), self.plan.width)

    def _sketched(self, options: Mapping[str, Any]) -> nn.Module:
        """The network as it starts, in sketched layers."""
        network, _ = compress(
            self._network(),
            "sketch",
            rate=self.args.sketch_rate,
            init="random",
            inplace=True,
            seed=self.args.seed,
            **options,
        )
        return network

    def _check_rates(self) -> None:
        """A rate that cannot be met is refused before any training."""
        smallest = inspect(self.start, method=self.args.method).smallest_rate
        for rate in self.args.rates:
            if not smallest <= rate < 1:
                raise ValueError(
                    f"--rates: must be at least {smallest:.3f}, the smallest that this network "
                    f"can have, and below 1 (got {rate:g})"
                )

    def _trained(self, name: str, network: nn.Module, lr: float) -> Result:
        trainer = Trainer(
            network, self.data, replace(self.recipe, lr=lr), world=self.world, name=name
        )
        with heartbeat(f"training: {name}"):
            outcome = trainer.fit()
        return self._measured(name, trainer.network, outcome.seconds)

    def _compressed(self, dense: Result, rate: float) -> Result:
        images = self._calibration_images()
        started = time.perf_counter()
        with heartbeat(f"compressing at rate {rate:g}"):
            network, report = quietly_compressed(
                dense.network,
                self.args.method,
                rate=rate,
                calibration=images,
                seed=self.args.seed,
            )
        seconds = time.perf_counter() - started
        print(f"  rate {rate:g}: {seconds:.0f} s, {methods_of(report)}")
        return self._measured(f"rate {rate:g}", network, seconds)

    def _calibration_images(self) -> Pictures:
        """Training images without their labels."""
        return self._pictures(drawn(self.data.train, self.args.seed, self.plan.calibration_images))

    def _pictures(self, source: Images | ImageFiles) -> Pictures:
        return Pictures(source, size=self.data.size, normalisation=self.data.normalisation)

    def _measured(self, name: str, network: nn.Module, seconds: float) -> Result:
        """Tests a network, and saves it."""
        network.eval()
        correct = predictions(network, self.test) == self.data.test.labels
        if self.correct is None:
            self.correct = correct
        measured = accuracies(correct, self.correct)
        share = measured["accuracy"] / 100
        file = save(network, self.args.out / f"{file_name(name)}.safetensors")
        parameters = count_parameters(network)
        return Result(
            name,
            network,
            parameters / count_parameters(self.start),
            parameters,
            file.stat().st_size,
            measured["accuracy"],
            100 * math.sqrt(share * (1 - share) / len(correct)),
            measured["difference"],
            measured["standard_error"],
            seconds,
        )

    def _time_inference(self, results: Sequence[Result], *, exported: bool) -> None:
        networks = {result.name: result.network for result in results}
        with set_threads(1), heartbeat("timing"), torch.no_grad():
            self._time("pytorch", results, pytorch_steps(networks, self.timed))
            if exported and self.world.device.type == "cpu":
                with tempfile.TemporaryDirectory() as folder:
                    print("  exporting to ONNX")
                    self._time("onnx", results, onnx_steps(networks, self.timed, Path(folder)))

    def _time_training(self, results: Sequence[Result]) -> None:
        networks = {result.name: result.network for result in results}
        with set_threads(1), heartbeat("timing steps of training"):
            self._time("training", results, training_steps(networks, self.timed))

    def _time(self, kind: str, results: Sequence[Result], steps: Mapping[str, Step] | None) -> None:
        """Times steps in turn; None stands for those of ONNX Runtime where it is not installed."""
        if steps is None:
            print(f"  not timed in ONNX Runtime: pip install {' '.join(ONNX_PACKAGES)}")
            return
        seconds = self.plan.timing_seconds
        speeds = measure_speeds(steps, TIMED_IMAGES, self.world.device, seconds)
        for result in results:
            result.speeds[kind] = speeds[result.name]

    def _write(self, results: Sequence[Result], started: float) -> None:
        rows = [result.row() for result in results]
        columns = dict.fromkeys(key for row in rows for key in row)
        write_csv(self.args.out / "results.csv", [dict.fromkeys(columns) | row for row in rows])
        RunFolder(self.args.out).write_summary(
            {
                "plan": asdict(self.plan),
                "seed": self.args.seed,
                "rows": rows,
                "seconds": time.perf_counter() - started,
                "versions": versions(),
                "hardware": hardware(self.world.device),
            }
        )


def small_vgg(classes: int, width: float = 1.0) -> nn.Sequential:
    """3x3 convolutions with many channels on small feature maps, after Simonyan and Zisserman.

    Args:
        classes: number of outputs.
        width: factor on the numbers of channels, 64 and 128.

    Returns:
        A network for images ``(N, 3, 32, 32)``.

    Raises:
        ValueError: the width is not positive.
    """
    if not width > 0:
        raise ValueError(f"--width: must be positive (got {width})")
    first, wide = (max(1, round(width * channels)) for channels in (64, 128))
    network = nn.Sequential(
        *_convolution(3, first, kernel=5, stride=2),
        nn.MaxPool2d(2),
        *_convolution(first, wide),
        *_convolution(wide, wide),
        *_convolution(wide, wide),
        nn.MaxPool2d(2),
        *_convolution(wide, wide),
        *_convolution(wide, wide),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(wide, classes),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def compression_table(results: Sequence[Result], images: int) -> str:
    """The table of compressed networks, and what follows from it in words; dense comes first."""
    words = [_notes(images), _best(results), *_not_faster(results), *_at_chance(results)]
    return _table(results, {"pytorch": "PyTorch ms", "onnx": "ONNX Runtime ms"}, words)


def training_table(results: Sequence[Result]) -> str:
    """The same of networks that were trained from scratch."""
    dense, fast, accurate, paper = results
    words = [
        f"With {dense.parameters / fast.parameters:.1f}x fewer parameters the layers for speed are "
        f"{_times(fast.speeds['pytorch'])} as fast as dense in inference and "
        f"{_times(fast.speeds['training'])} in training. Accuracy against dense, in points: for "
        f"speed {_signed(fast)}, for accuracy {_signed(accurate)}, as in the paper "
        f"{_signed(paper)}.",
        *_not_faster(results),
        *_at_chance(results),
    ]
    return _table(results, {"pytorch": "inference ms", "training": "training ms"}, words)


def _table(results: Sequence[Result], times: Mapping[str, str], words: Sequence[str]) -> str:
    """A line for each network, and paragraphs below."""
    columns = [
        Column("name", "network", left=True),
        Column("parameters", "parameters", whole),
        Column("file", "file kB", whole),
        Column("accuracy", "accuracy %"),
        Column("difference", "against dense"),
        *(Column(kind, heading) for kind, heading in times.items()),
        Column("seconds", "made in s", decimals(0)),
    ]
    table = format_table([_cells(result) for result in results], columns)
    return "\n".join([table, "", *(textwrap.fill(text, 100) for text in words)])


def _cells(result: Result) -> dict[str, object]:
    dense = result.difference_error == result.difference == 0 and result.rate == 1
    return {
        "name": result.name,
        "parameters": result.parameters,
        "file": result.file_bytes / 1000,
        "accuracy": f"{result.accuracy:.1f} ± {result.error:.1f}",
        "difference": None if dense else _signed(result),
        "seconds": result.seconds,
        **{
            kind: f"{speed.milliseconds:.2f}" + ("" if dense else f" ({_times(speed)})")
            for kind, speed in result.speeds.items()
        },
    }


def _notes(images: int) -> str:
    return (
        f"ms: milliseconds an image, one thread, calls of {TIMED_IMAGES} images; in brackets how "
        f"many times as fast as dense. ±: one standard error, {images:,} test images. "
        "kB: 1,000 bytes."
    )


def _best(results: Sequence[Result]) -> str:
    """The strongest compression that keeps the accuracy, in a sentence."""
    dense, *others = results
    kept = [one for one in others if one.difference >= -KEPT]
    best = min(kept or others, key=lambda one: one.parameters if kept else -one.accuracy)
    fast = " and ".join(
        f"{_times(best.speeds[kind])} as fast in {name}"
        for kind, name in (("pytorch", "PyTorch"), ("onnx", "ONNX Runtime"))
        if kind in best.speeds
    )
    return (
        f"At {best.name} the network has {dense.parameters / best.parameters:.1f}x fewer "
        f"parameters, its file is {dense.file_bytes / best.file_bytes:.1f}x smaller, it is {fast}, "
        f"and its accuracy changes by {_signed(best)} points. "
        f"Compression took {best.seconds:.0f} s, training {dense.seconds:.0f} s."
    )


def _not_faster(results: Sequence[Result]) -> list[str]:
    """A line for each network that is not faster than dense."""
    names = {
        "pytorch": "inference with PyTorch",
        "onnx": "ONNX Runtime",
        "training": "training",
    }
    lines = []
    for result in results[1:]:
        slow = [
            f"{names[kind]} ({_times(speed)})"
            for kind, speed in result.speeds.items()
            if speed.times_as_fast < SAME
        ]
        if slow:
            usual = "it has more layers, with fewer operations"
            _, remark = SKETCHES.get(result.name, ({}, usual))
            lines.append(f"Not faster than dense: {result.name} in {', '.join(slow)}: {remark}.")
    return lines


def _at_chance(results: Sequence[Result]) -> list[str]:
    """A line for each network that has lost more than half of what dense has above chance."""
    return [
        f"{result.name}: too small for this network and so little training; take a larger rate."
        for result in results[1:]
        if result.accuracy < results[0].accuracy / 2
    ]


def _times(speed: Speed) -> str:
    return f"{speed.times_as_fast:.1f}x"


def _signed(result: Result) -> str:
    return f"{result.difference:+.1f} ± {result.difference_error:.1f}"


def plot(compressed: Sequence[Result], sketched: Sequence[Result], path: Path, label: str) -> None:
    """Draws accuracy over the file's size, and over milliseconds an image in PyTorch."""

    def panel(title: str, x: Callable[[Result], float]) -> Panel:
        kinds = {"compressed, no training": compressed[1:]}
        kinds |= {f"sketch {result.name.partition(' (')[0]}": [result] for result in sketched[1:]}
        lines = tuple(
            Line(name, tuple(map(x, results)), tuple(result.accuracy for result in results))
            for name, results in kinds.items()
        )
        return Panel(label, lines, compressed[0].accuracy, f"{title}, smaller to the right")

    plot_panels(
        [
            panel("size of the file (kB)", lambda one: one.file_bytes / 1000),
            panel(
                "milliseconds an image (PyTorch)", lambda one: one.speeds["pytorch"].milliseconds
            ),
        ],
        path,
        y="test accuracy (%), higher is better",
        level="dense",
    )


def methods_of(report: Any) -> str:
    """Which method took how many layers: ``5 layers by cp, 1 by svd``."""
    used = [row.method for row in report.replaced]
    counts = [f"{used.count(method)} by {method}" for method in dict.fromkeys(used)]
    return f"layers: {', '.join(counts)}, {len(report.layers) - len(used)} left alone"


def file_name(name: str) -> str:
    """The name of a network, as that of a file."""
    return name.partition(" (")[0].replace(" ", "_")


def last_words(args: argparse.Namespace, plan: Plan, seconds: float) -> str:
    """What was written, and what to do next."""
    lines = [
        "The same with your own network:",
        "",
        "    import sketchlayers",
        f'    small, report = sketchlayers.compress(model, "{args.method}", rate=0.25, '
        "calibration=images)",
        '    sketchlayers.save(small, "small.safetensors")',
        "",
        "images: batches that the model takes, such as those of a DataLoader, of a few thousand "
        "images in all.",
        "",
        f"Done in {seconds:.0f} s. In {args.out}: accuracy.png, results.csv, summary.json and "
        "the saved networks.",
    ]
    if plan.data == "digits":
        lines.append("`make demo DATA=folder` does the same on CIFAR-10.")
    results = os.path.relpath(HERE.parent / "docs" / "results.md")
    lines.append(f"What else has been measured, and how: {results}")
    return "\n".join(lines)


@contextmanager
def heartbeat(what: str, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Prints from time to time how long something has taken, until it is done."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(seconds):
            tqdm.write(f"  {what}: {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
