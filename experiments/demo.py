"""Trains Network-in-Network dense and sketched, compresses the trained one, compares them all.

    make demo                       scikit-learn's handwritten digits
    make demo DATA=folder           CIFAR-10: python batches, binary batches or folders of images

Every number printed is measured in the run. The table, a plot and a summary go to runs/demo.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from distributed import World, alone, join
from experiment import NetworkSpec, build
from image_data import DataError, DataSet, load
from networks import count_parameters
from options import documented_parser
from plots import Curve, plot_curves
from runs import RunError, RunFolder, hardware, versions, write_csv
from sketchlayers import compress, inspect
from speed import measure_speeds
from tables import Column, decimals, format_table, whole
from train import DENSE_LR, SKETCH_LR
from training import Epoch, Recipe, Trainer, make_batches

HERE = Path(__file__).resolve().parent
COLUMNS = (
    Column("network", "network", left=True),
    Column("parameters", "parameters", whole),
    Column("rate", "rate", decimals(3)),
    Column("stored_bytes", "stored bytes", whole),
    Column("accuracy", "accuracy %", decimals(1)),
    Column("inference", "inference images/s", whole),
    Column("training", "training images/s", whole),
)


@dataclass(frozen=True)
class Plan:
    """How much the demo does on a data set; chosen to end in time on two cores."""

    data: str
    label: str
    width: float
    epochs: int
    tuning_epochs: int
    dropout: float
    subset: int | None = None
    test_subset: int | None = None


DIGITS = Plan("digits", "handwritten digits", 1.0, epochs=10, tuning_epochs=4, dropout=0.2)
CIFAR10 = Plan(
    "cifar10",
    "CIFAR-10",
    0.5,
    epochs=5,
    tuning_epochs=2,
    dropout=0.0,
    subset=3000,
    test_subset=2000,
)


@dataclass(frozen=True)
class Candidate:
    """One line of the table: a network, its test accuracy, and how it got there by epoch."""

    name: str
    network: nn.Module
    accuracy: float
    history: tuple[Epoch, ...] = ()

    @property
    def curve(self) -> Curve:
        """What the plot shows."""
        tested = {
            epoch.epoch: epoch.test_accuracy
            for epoch in self.history
            if epoch.test_accuracy is not None
        } or {0: self.accuracy}
        parameters = count_parameters(self.network)
        return Curve(self.name, parameters, tuple(tested), tuple(tested.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 when it could not start."""
    alone()
    parser = documented_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 (default: digits)")
    parser.add_argument("--rate", type=float, default=0.15, help="parameters after / before")
    parser.add_argument("--epochs", type=int, help="epochs of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of results")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        with join(args.device) as world:
            _demo(args, world)
    except (DataError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _demo(args: argparse.Namespace, world: World) -> None:
    started = time.time()
    plan = DIGITS if args.data is None else CIFAR10
    if args.epochs is not None:
        plan = replace(plan, epochs=args.epochs)
    recipe = Recipe(epochs=plan.epochs, lr=DENSE_LR, seed=args.seed)
    data = load(plan.data, args.data, subset=plan.subset, test_subset=plan.test_subset)
    dense = NetworkSpec(width=plan.width, dropout=plan.dropout, seed=args.seed)
    sketch = replace(dense, method="sketch", rate=args.rate)
    for spec in (dense, sketch, replace(sketch, options={"frame": "signs"})):
        build(spec, len(data.classes))  # a rate that cannot be met is refused before any training
    folder = RunFolder(args.out)
    folder.prepare(resume=True)
    print(
        f"{plan.label}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{data.size}x{data.size}; Network-in-Network{_width(plan)}, "
        f"{plan.epochs} epochs each, on {world.device}"
    )
    candidates = _candidates(dense, sketch, recipe, plan.tuning_epochs, data, world)
    rows = _rows(candidates, data, world)
    table = format_table(rows, COLUMNS)
    print(f"\n{table}\n")

    write_csv(args.out / "results.csv", rows)
    plot = args.out / "accuracy.png"
    title = f"Network-in-Network{_width(plan)} on {plan.label}, {len(data.train):,} images"
    plot_curves([candidate.curve for candidate in candidates], plot, title=title)
    seconds = time.time() - started
    folder.write_summary(
        {
            "plan": asdict(plan),
            "rate": args.rate,
            "seed": args.seed,
            "rows": rows,
            "seconds": seconds,
            "versions": versions(),
            "hardware": hardware(world.device),
        }
    )
    print(_last_words(args, plan, seconds))


def _candidates(
    dense: NetworkSpec,
    sketch: NetworkSpec,
    recipe: Recipe,
    tuning_epochs: int,
    data: DataSet,
    world: World,
) -> list[Candidate]:
    sketch_recipe = replace(recipe, lr=SKETCH_LR)
    framed = replace(sketch, options={"frame": "signs"})
    trained = _trained("dense", dense, data, recipe, world)
    return [
        trained,
        _trained("sketched", sketch, data, sketch_recipe, world),
        _trained("sketched in a sign frame", framed, data, sketch_recipe, world),
        *_compressed(
            trained, sketch.rate, data, replace(sketch_recipe, epochs=tuning_epochs), world
        ),
    ]


def _compressed(
    dense: Candidate,
    rate: float | Mapping[str, float] | None,
    data: DataSet,
    recipe: Recipe,
    world: World,
) -> list[Candidate]:
    """The trained network fitted by sketched layers, before and after some more training."""
    name = "dense, then compressed"
    with warnings.catch_warnings():
        # The fit warns about large errors; here the accuracy in the table tells.
        warnings.simplefilter("ignore")
        network, report = compress(dense.network, rate=rate, init="fit", seed=recipe.seed)
    print(f"\n{name}: least-squares fit of every layer, without training\n{report}\n")
    fitted = Trainer(copy.deepcopy(network), data, recipe, world=world)
    accuracy = fitted.evaluate().accuracy
    tuned = Trainer(network, data, recipe, world=world, name=f"{name} and tuned")
    outcome = tuned.fit()
    return [
        Candidate(name, fitted.network, accuracy),
        Candidate(tuned.name, tuned.network, outcome.accuracy, tuple(outcome.history)),
    ]


def _trained(
    name: str, spec: NetworkSpec, data: DataSet, recipe: Recipe, world: World
) -> Candidate:
    trainer = Trainer(build(spec, len(data.classes)).network, data, recipe, world=world, name=name)
    outcome = trainer.fit()
    return Candidate(name, trainer.network, outcome.accuracy, tuple(outcome.history))


def _rows(candidates: Sequence[Candidate], data: DataSet, world: World) -> list[dict[str, object]]:
    print("measuring speed ...")
    batches, _ = make_batches(data, Recipe(), world)
    images, labels = next(iter(batches))
    images = images.contiguous(memory_format=torch.channels_last)
    networks = {candidate.name: candidate.network for candidate in candidates}
    speeds = measure_speeds(networks, images, labels)
    dense_parameters = count_parameters(candidates[0].network)
    return [
        {
            "network": candidate.name,
            "parameters": count_parameters(candidate.network),
            "rate": count_parameters(candidate.network) / dense_parameters,
            "stored_bytes": inspect(candidate.network).bytes,
            "accuracy": candidate.accuracy,
            "inference": speeds[candidate.name].inference,
            "training": speeds[candidate.name].training,
        }
        for candidate in candidates
    ]


def _width(plan: Plan) -> str:
    return "" if plan.width == 1 else f" at width {plan.width:g}"


def _last_words(args: argparse.Namespace, plan: Plan, seconds: float) -> str:
    lines = [
        f"Done in {seconds:.0f} s. Table, plot and summary are in {args.out}:",
        "  results.csv  accuracy.png  summary.json",
        "Next:",
    ]
    if plan.data == "digits":
        lines.append("  make demo DATA=folder     the same on CIFAR-10")
    lines += [
        f"  {_train_command()}     one network, longer, on other data sets",
        f"  {os.path.relpath(HERE / 'README.md')}     what has been measured and how",
    ]
    return "\n".join(lines)


def _train_command() -> str:
    """Runs as typed in the current folder, in the environment of this process."""
    in_environment = sys.prefix != sys.base_prefix
    python = os.path.relpath(sys.executable) if in_environment else Path(sys.executable).name
    return shlex.join([python, os.path.relpath(HERE / "train.py"), "--help"])


if __name__ == "__main__":
    sys.exit(main())
