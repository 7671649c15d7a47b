"""What the scripts of the paper's figures share: points, runs that go on, results, plots.

A figure compares methods on one network whose layers are compressed one after the other. A point is
one method, one number of compressed layers and one seed, and has a folder of its own, as `train.py`
leaves it; what is there is not done again, and a run that was stopped goes on. The same command
given several times at once, for each GPU say, shares the points among the processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.distributed import World, alone, join
from common.runs import RunFolder, locked, read_csv, resolved
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, whole
from experiment import Job, NetworkSpec, build
from figures.contenders import CONTENDERS, chosen
from figures.points import is_done, run_each
from figures.results import collect, comparison, draw, show
from image_data import DataSet
from networks import NETWORKS, convolutions_and_linears, count_parameters
from options import add_options, documented_parser, load_data
from sketchlayers import inspect
from training import Recipe, Trainer, recipe_of

_WARM_STEPS, _TIMED_STEPS, _TIMED_TESTS = 1, 2, 64

Rates = float | Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """What a figure of the paper shows.

    Attributes:
        name: of the script.
        network: of `networks.NETWORKS`.
        layers: compressed one after the other, in this order; empty: all together.
        factor: by which the weights of each of them get fewer.
        rate: of the whole network, where all are compressed together.
        methods: names of contenders by default.
        epochs: by default.
        lr: by default, of all methods alike; None is that of each contender.
        data: by default.
    """

    name: str
    network: str
    layers: tuple[str, ...]
    factor: float
    rate: float | None = None
    methods: tuple[str, ...] = ("all",)
    epochs: int = 60
    lr: float | None = None
    data: str = "cifar10"

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the points: the last layer that is compressed."""
        return self.layers or (f"rate {self.rate:g}",)

    def layers_at(self, point: str) -> tuple[str, ...]:
        """The layers that are compressed at a point, one or several that go together."""
        return self.layers[: self.layers.index(point) + 1] if point in self.layers else ()

    def nominal_rate(self, network: nn.Module, point: str | None) -> float:
        """Weights alone, as if ranks were fractions; None is the dense network."""
        if point is None:
            return 1.0
        if self.rate is not None:
            return self.rate
        weights = {name: one.weight.numel() for name, one in convolutions_and_linears(network)}
        saved = sum(weights[name] for name in self.layers_at(point)) * (1 - 1 / self.factor)
        return 1 - saved / sum(weights.values())

    def rates(self, network: nn.Module, point: str) -> Rates:
        """What `compress` is asked for: rates of layers, with their biases, or of the network."""
        if self.rate is not None:
            return self.rate
        layers = dict(convolutions_and_linears(network))
        return {name: _with_bias(layers[name], self.factor) for name in self.layers_at(point)}


@dataclass(frozen=True)
class Point:
    """One run of a figure; ``point`` is None for the dense network."""

    method: str
    point: str | None
    seed: int

    @property
    def folder(self) -> Path:
        """Below the folder of the figure."""
        middle = [] if self.point is None else [self.point.replace(" ", "_")]
        return Path(self.method, *middle, f"seed_{self.seed}")

    @property
    def name(self) -> str:
        """For progress and plots."""
        return " ".join([self.method, *([self.point] if self.point else []), f"seed {self.seed}"])


def main_of(figure: Figure, doc: str | None, arguments: Sequence[str] | None = None) -> int:
    """A figure's command; 0 when all points are there, 2 when it could not start or go on."""
    args = parser(figure, doc).parse_args(arguments)
    args.out = args.out or Path("runs") / f"{figure.name}_{args.data}"

    def script() -> None:
        if args.plot or args.show:
            alone()
        if args.plot:
            draw(args.plot, args.png or args.plot[0].with_suffix(".png"))
        elif args.show:
            print(show(args.show, markdown=args.markdown))
        else:
            _run_all(figure, args, arguments)

    return exit_code(script, f"stopped; the same command goes on from there in {args.out}")


def parser(figure: Figure, doc: str | None) -> argparse.ArgumentParser:
    """All options of a figure's script."""
    root = documented_parser(doc)
    data = root.add_argument_group("data")
    add_options(data, "--data", "--root", "--label", "--size", "--subset", data=figure.data)
    add_options(data, "--test-subset", "--stream", "--workers")

    points = root.add_argument_group("points")
    points.add_argument(
        "--methods",
        nargs="+",
        default=list(figure.methods),
        metavar="METHOD",
        help=f"all, or of {', '.join(CONTENDERS)}",
    )
    points.add_argument(
        "--points", nargs="+", default=["all"], metavar="POINT",
        help=f"all, or of {', '.join(figure.points)}",
    )  # fmt: skip
    add_options(points, "--seeds")

    recipe = root.add_argument_group("training")
    if "width" in _arguments_of(figure.network):
        add_options(recipe, "--width")
        recipe.add_argument("--no-batch-norm", dest="batch_norm", action="store_false")
    add_options(recipe, "--dropout", "--epochs", "--lr", epochs=figure.epochs, lr=figure.lr)
    add_options(recipe, "--batch-size", "--weight-decay", "--warmup", "--clip", "--test-every")
    add_options(recipe, "--amp", "--compile")

    where = root.add_argument_group("results")
    add_options(where, "--out", "--device", "--threads", "--plan")
    where.add_argument(
        "--plot", nargs="+", type=Path, metavar="CSV", help="draw results that are there"
    )
    where.add_argument(
        "--show", nargs="+", type=Path, metavar="CSV", help="compare the methods that are there"
    )
    add_options(where, "--png", "--markdown")
    return root


def _run_all(figure: Figure, args: argparse.Namespace, typed: Sequence[str] | None) -> None:
    points = points_of(figure, args)
    with join(args.device) as world:
        data = load_data(args, figure.network)
        command = resolved(args, typed, device=str(world.device), size=data.size)
        for point in points_there(figure, args.out):
            is_done(job_of(figure, args, point, data), data)
        jobs = {point: job_of(figure, args, point, data, command) for point in points}
        if args.plan:
            planned = plan(jobs, data, world)
            if world.is_main:
                print(planned)
            return
        run_each(jobs.values(), data, world, partial(_results, figure, args.out))
        if world.is_main:
            print(comparison(_results(figure, args.out)))
            print(f"\nresults.csv and {figure.name}.png are in {args.out}")


def _results(figure: Figure, out: Path) -> list[dict[str, Any]]:
    """Writes ``results.csv`` and the plot of all points that are there."""
    with locked(out / "lock", wait=True):
        rows = collect(out)
        if rows:
            draw([out / "results.csv"], out / f"{figure.name}.png")
    return rows


def points_of(figure: Figure, args: argparse.Namespace) -> list[Point]:
    """All points that the options name; what is compressed most comes first, it tells most.

    Raises:
        ValueError: an unknown method or point.
    """
    for name in args.points:
        if name not in figure.points and name != "all":
            raise ValueError(
                f"--points: must be all or of {', '.join(figure.points)} (got {name!r})"
            )
    wanted = [name for name in figure.points if "all" in args.points or name in args.points]
    methods = chosen(args.methods)
    dense = [Point("dense", None, seed) for seed in args.seeds]
    others = [
        Point(method, point, seed)
        for seed in args.seeds
        for point in reversed(wanted)
        for method in methods
        if method != "dense"
    ]
    return dense + others


def points_there(figure: Figure, out: Path) -> Iterator[Point]:
    """The points that have a summary below a folder, whichever command trained them."""
    for method in CONTENDERS:
        for name in (None, *figure.points):
            folders = (out / Point(method, name, 0).folder).parent
            for summary in sorted(folders.glob("seed_*/summary.json")):
                yield Point(method, name, int(summary.parent.name.removeprefix("seed_")))


def job_of(
    figure: Figure,
    args: argparse.Namespace,
    point: Point,
    data: DataSet,
    command: Mapping[str, object] | None = None,
) -> Job:
    """A point as it is trained."""
    spec = network_spec(figure, args, point)
    dense = dense_network(spec, len(data.classes))
    part_of = {
        "figure": figure.name,
        "method": point.method,
        "label": CONTENDERS[point.method].label,
        "point": point.point,
        "nominal_rate": figure.nominal_rate(dense, point.point),
    }
    folder, recipe = RunFolder(args.out / point.folder), training_recipe(args, point)
    return Job(spec, recipe, folder, point.name, args.label, command or {}, part_of, args.workers)


def network_spec(figure: Figure, args: argparse.Namespace, point: Point) -> NetworkSpec:
    """The network of a point."""
    spec = NetworkSpec(network=figure.network, dropout=args.dropout, seed=point.seed)
    if "width" in _arguments_of(figure.network):
        spec = replace(spec, width=args.width, batch_norm=args.batch_norm)
    if point.point is None:
        return spec
    contender = CONTENDERS[point.method]
    rates = figure.rates(dense_network(spec, 10), point.point)
    return replace(spec, method=contender.method, rate=rates, options=dict(contender.options))


def training_recipe(args: argparse.Namespace, point: Point) -> Recipe:
    """How a point is trained."""
    lr = CONTENDERS[point.method].lr if args.lr is None else args.lr
    return recipe_of(args, lr=lr, seed=point.seed)


def plan(jobs: Mapping[Point, Job], data: DataSet, world: World) -> str:
    """Every point with its size, and the time it will take by a few steps of each."""
    rows: list[dict[str, object]] = []
    total = 0.0
    times_of: dict[str, Times] = {}  # of a method, at the point that is compressed most
    for point, job in jobs.items():
        assert job.folder is not None and job.part_of is not None
        built = build(job.spec, len(data.classes))
        done = is_done(job, data)
        if not done and point.method not in times_of:
            if world.is_main:
                print(f"timing a few steps of {point.method}", file=sys.stderr, flush=True)
            times_of[point.method] = _times(job, data, world)
        log = job.folder.log
        epochs = len(read_csv(log)) if log.exists() else 0
        seconds = 0.0 if done else times_of[point.method].left(job.recipe, epochs)
        total += seconds
        rows.append(
            {
                "method": point.method,
                "point": point.point or "-",
                "seed": point.seed,
                "nominal": job.part_of["nominal_rate"],
                "rate": built.rate,
                "parameters": count_parameters(built.network),
                "stored": inspect(built.network).bytes,
                "minutes": None if done else seconds / 60,
            }
        )
    columns = [
        Column("method", "method", left=True),
        Column("point", "compressed up to", left=True),
        Column("seed", "seed"),
        Column("nominal", "nominal rate", decimals(3)),
        Column("rate", "rate", decimals(3)),
        Column("parameters", "parameters", whole),
        Column("stored", "stored bytes", whole),
        Column("minutes", "minutes", decimals(1)),
    ]
    left = sum(row["minutes"] is not None for row in rows)
    return (
        f"{format_table(rows, columns)}\n\n{len(rows)} points, {left} to train, about "
        f"{total / 3600:.1f} hours on {world.device} with {torch.get_num_threads()} threads"
    )


@dataclass(frozen=True)
class Times:
    """Seconds of an epoch of training, and of going through the test images."""

    epoch: float
    test: float

    def left(self, recipe: Recipe, done: int) -> float:
        """Seconds of what is left of a run after some epochs."""
        epochs = range(done + 1, recipe.epochs + 1)
        tests = sum(one % recipe.test_every == 0 or one == recipe.epochs for one in epochs)
        return len(epochs) * self.epoch + tests * self.test


def _times(job: Job, data: DataSet, world: World) -> Times:
    """By a few steps and one batch of tests."""
    recipe, workers = job.recipe, job.workers
    # Of streamed images the first batches wait for the processes that decode them.
    warm = _WARM_STEPS + (4 * workers if data.streamed else 0)
    images = (warm + _TIMED_STEPS * (1 + workers * data.streamed)) * recipe.batch_size
    few = data.train.take(torch.arange(min(images, len(data.train))))
    test = data.test.take(torch.arange(min(_TIMED_TESTS, len(data.test))))
    short, some = replace(recipe, epochs=1), replace(data, train=few, test=test)
    network = build(job.spec, len(data.classes)).network
    trainer = Trainer(network, some, short, world=world, workers=workers)
    times = trainer.step_seconds()
    step = statistics.mean(times[warm:] or times[-1:])
    begin = time.perf_counter()
    trainer.evaluate()
    tests = (time.perf_counter() - begin) * len(data.test) / len(test)
    return Times(step * len(data.train) / recipe.batch_size, tests)


def dense_network(spec: NetworkSpec, num_classes: int) -> nn.Module:
    """The network before compression, without memory."""
    with torch.device("meta"):
        return build(replace(spec, method="dense", rate=None, options={}), num_classes).network


def _with_bias(layer: nn.Conv2d | nn.Linear, factor: float) -> float:
    """The rate of a layer whose weight gets fewer entries by a factor, its bias counted."""
    weights, kept = layer.weight.numel(), 0 if layer.bias is None else layer.bias.numel()
    return (weights / factor + kept) / (weights + kept)


def _arguments_of(network: str) -> Mapping[str, object]:
    return signature(NETWORKS[network]).parameters
