"""Trains each method of the paper's figures long enough to compare final accuracies.

    python experiments/study.py from_scratch --data cifar10 --root DIR --csv from_scratch.csv
    python experiments/study.py from_scratch ... --no-batch-norm --contenders dense sketch-blocks
    python experiments/study.py from_scratch --csv from_scratch.csv --show

Network-in-Network at full width, every method at the same rate of the whole network, one cycle of
the learning rate, label smoothing and a moving average of the weights. Each network that is trained
is a row of the CSV file; what is there is not trained again, and a run that was stopped goes on
from its folder below --out. A run that diverges has a row that says so. Milliseconds are those of
one image on one thread, in turn with the dense network.

Found: not run over all methods yet. In trainings of six epochs eight blocks are 4 points below the
dense network and a sign frame 3 (docs/results.md); this asks what is left of that in twenty.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.distributed import World
from common.runs import RunFolder, circumstances, read_csv, resolved
from common.speed import Speed, measure_speeds, pytorch_steps, set_threads
from common.tables import Column, decimals, format_table, whole
from experiment import Job, NetworkSpec, build, last_words, run
from figures.contenders import CONTENDERS, chosen
from image_data import DataSet
from options import add_options, documented_parser, load_data
from sketchlayers._runtime.files import write_csv
from sketchlayers.cli import kinds
from trained.results import Row, identity
from training import recipe_of

NETWORK = "ninn"
RATE = 0.15
KEY = ("contender", "rate", "batch_norm", "seed", "data", "train_images", "epochs")
_COLUMNS = (
    Column("label", "method", left=True),
    Column("batch_norm", "batch norm"),
    Column("seed", "seed"),
    Column("parameters", "parameters", whole),
    Column("epochs", "epochs"),
    Column("test_accuracy", "accuracy %", decimals(1)),
    Column("train_accuracy", "training images %", decimals(1)),
    Column("seconds_an_epoch", "s an epoch", decimals(0)),
    Column("milliseconds", "ms an image", decimals(2)),
    Column("speed", "times as fast", decimals(2)),
    Column("status", "status", left=True),
)


def parser() -> argparse.ArgumentParser:
    """All options of the study."""
    root = documented_parser(__doc__)
    root.add_argument("--csv", type=Path, required=True, help="file of results, gone on in")
    root.add_argument(
        "--show", action="store_true", help="train nothing: the table of what is there"
    )
    add_options(root, "--data", "--root", "--label", "--subset", "--test-subset")
    add_options(root, "--held-out", "--size", "--stream")
    root.add_argument("--contenders", nargs="+", default=["all"], metavar="NAME")
    root.add_argument("--rate", type=kinds.share, default=RATE, help=f"parameters to keep ({RATE})")
    root.add_argument("--no-batch-norm", dest="batch_norm", action="store_false")
    add_options(root, "--width", "--dropout", "--seeds", dropout=0.0)
    recipe = {"epochs": 20, "schedule": "one_cycle", "warmup": 4.0, "label_smoothing": 0.1}
    recipe |= {"ema": 0.998, "lr": None, "test_every": 5}
    names = ("--epochs", "--lr", "--schedule", "--warmup", "--label-smoothing", "--ema", "--clip")
    add_options(root, *names, "--amp", "--test-every", **recipe)
    add_options(root, "--out", "--device", "--threads", "--markdown", out=Path("runs/from_scratch"))
    root.add_argument("--seconds", type=float, default=5.0, help="of timing, each network (5)")
    return root


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = parser().parse_args(arguments)
    rows: list[Row] = list(read_csv(args.csv)) if args.csv.is_file() else []
    if not args.show:
        data = load_data(args, NETWORK)
        command = resolved(args, arguments, size=data.size)
        for job in _jobs(args, data, command):
            key = _key(job, args, data)
            if identity(key, KEY) not in {identity(row, KEY) for row in rows}:
                summary = run(job, data, world=World(), resume=True)
                print(last_words(summary), flush=True)
                rows = in_order([*rows, {**key, **_row(job, summary, args, data)}])
                write_csv(args.csv, rows)
    print(table(rows, markdown=args.markdown))


def _jobs(args: argparse.Namespace, data: DataSet, command: Mapping[str, object]) -> Iterator[Job]:
    for seed in args.seeds:
        for name in chosen(args.contenders):
            contender = CONTENDERS[name]
            dense = contender.method == "dense"
            spec = NetworkSpec(
                NETWORK,
                width=args.width,
                dropout=args.dropout,
                batch_norm=args.batch_norm,
                method=contender.method,
                rate=None if dense else args.rate,
                options=contender.options,
                seed=seed,
            )
            recipe = recipe_of(args, lr=contender.lr if args.lr is None else args.lr, seed=seed)
            form = name if args.batch_norm else f"{name}_without_batch_norm"
            folder = RunFolder(args.out / form / f"seed_{seed}")
            part_of = {"study": "from_scratch", "contender": name}
            yield Job(spec, recipe, folder, f"{form} {seed}", args.label, command, part_of)


def _key(job: Job, args: argparse.Namespace, data: DataSet) -> Row:
    """What tells a row from others."""
    assert job.part_of is not None
    return {
        "contender": job.part_of["contender"],
        "rate": args.rate,
        "batch_norm": args.batch_norm,
        "seed": job.spec.seed,
        "data": args.label or data.name,
        "train_images": len(data.train),
        "epochs": job.recipe.epochs,
    }


def _row(job: Job, summary: Mapping[str, Any], args: argparse.Namespace, data: DataSet) -> Row:
    assert job.folder is not None
    log = read_csv(job.folder.log) if job.folder.log.is_file() else []
    seconds = [float(epoch["train_seconds"]) for epoch in log]
    last, speed = summary["last_epoch"], _speed(job.spec, data, args.seconds)
    return {
        "label": CONTENDERS[_key(job, args, data)["contender"]].label,
        "lr": job.recipe.lr,
        "parameters": summary["parameters"],
        "test_images": len(data.test),
        "status": summary["status"],
        **{name: last.get(name) for name in ("test_accuracy", "train_accuracy", "train_loss")},
        "seconds_an_epoch": statistics.median(seconds) if seconds else None,
        "milliseconds": speed.milliseconds,
        "speed": speed.times_as_fast,
        **circumstances(torch.device("cpu")),
    }


def _speed(spec: NetworkSpec, data: DataSet, seconds: float) -> Speed:
    """Of a call with one image; untrained, since it takes as long whatever the weights are."""
    specs = {"dense": replace(spec, method="dense", rate=None, options={}), "own": spec}
    networks = {
        name: build(own, len(data.classes)).network.eval().to(memory_format=torch.channels_last)
        for name, own in specs.items()
    }
    with set_threads(1), torch.no_grad():
        steps = pytorch_steps(networks, torch.zeros(1, 3, data.size, data.size))
        return measure_speeds(steps, 1, torch.device("cpu"), seconds)["own"]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """With batch norm first, by contender and seed."""
    names = list(CONTENDERS)
    return sorted(
        rows,
        key=lambda row: (
            str(row["batch_norm"]) != "True",
            names.index(str(row["contender"])),
            int(row["seed"]),
        ),
    )


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows for people."""
    filled = [{key: cell for key, cell in row.items() if cell != ""} for row in rows]
    return format_table(filled, _COLUMNS, markdown=markdown)
