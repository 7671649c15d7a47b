"""Trials behind the recipes of the figures: what makes each method train, over several seeds.

    python experiments/study.py recipe_study --data cifar10 --root DIR --subset 10000 --width 0.5
    python experiments/study.py recipe_study --questions scale signs --seeds 0 1 2 ...
    python experiments/study.py recipe_study --show results.csv [--markdown]

Network-in-Network with CONV_2 to CONV_8 each compressed by a factor of 10, one thing changed at a
time. A question is a list of trials; one that several questions share is run once. Settings are
chosen by training images that are held out, so that the test images stay unseen. A stopped run goes
on with the same command; given several times at once it shares the trials among the processes.

Found: batch norm makes the learning rate and the scale of no importance; the paper's sketch lacks
rank, which blocks or a sign frame give back (docs/results.md, docs/negative_results.md). The rows
of its results whose trial has ``base=random`` are of an option that the package no longer has: the
frame is more accurate and blocks are faster.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.distributed import World, join
from common.runs import RunError, RunFolder, locked, read_csv, resolved, write_csv
from common.tables import Column, decimals, format_table
from experiment import NetworkSpec
from figure2 import FIGURE
from figures.contenders import CONTENDERS
from figures.figure import dense_network
from figures.points import run_each, run_unless_done, summaries
from image_data import DataSet, load
from options import add_options, documented_parser
from plot import result_row
from training import Recipe

_LAST_POINT = FIGURE.layers[-1]
_OTHERS = ("freshnet", "hashednet", "lowrank1", "lowrank2")
_SKETCHES = ("sketch", "sketch-channel", "sketch-blocks", "sketch-paper", "sketch-paper-channel")
_COMPRESSED = (*_SKETCHES, *_OTHERS)


@dataclass(frozen=True)
class Trial:
    """A contender of the figures with something changed.

    Attributes:
        contender: name in `contenders.CONTENDERS`.
        changes: fields of `Recipe` or `NetworkSpec` with other values; ``options`` are added to
            the contender's, and ``factor`` is that of the compression.
    """

    contender: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The contender and what is changed, such as ``sketch lr=0.2``."""
        return " ".join([self.contender, *(f"{key}={value}" for key, value in self._flat())])

    @property
    def folder(self) -> str:
        """A file name."""
        return self.name.replace(" ", "_").replace("/", "-")

    def _flat(self) -> list[tuple[str, object]]:
        options = self.changes.get("options", {})
        rest = [(key, value) for key, value in self.changes.items() if key != "options"]
        return [*options.items(), *rest]


def _with(contender: str, **changes: Any) -> Trial:
    return Trial(contender, changes)


def _options(contender: str, *, changes: Mapping[str, Any] | None = None, **options: Any) -> Trial:
    return Trial(contender, {"options": options, **(changes or {})})


QUESTIONS: dict[str, list[Trial]] = {
    "learning rate": [
        *(_with(name, lr=lr) for name in ("dense", *_COMPRESSED) for lr in (0.05, 0.1, 0.2)),
        _with("lowrank2", lr=0.4),
    ],
    "learning rate of compressed layers alone": [
        _with(contender, lr=lr, compressed_lr=factor)
        for contender in ("sketch-blocks", "sketch-paper", *_OTHERS)
        for lr, factor in ((0.05, 2.0), (0.1, 0.5))
    ],
    "scale": [
        _with("sketch-paper", lr=0.1),
        *(_with("sketch-paper", lr=lr, gain="none") for lr in (0.1, 0.2, 0.4)),
        _options("sketch-paper", scale="normalized", changes={"lr": 0.1, "gain": "none"}),
    ],
    "size at the start": [
        _with(contender, lr=0.1, init_scale=scale)
        for contender in ("sketch-blocks", "sketch-paper", *_OTHERS)
        for scale in (0.5, 2.0)
    ],
    "without batch norm": [
        *(
            _with(contender, lr=lr, batch_norm=False)
            for contender in ("dense", "sketch", "sketch-blocks", "sketch-paper", *_OTHERS)
            for lr in (0.01, 0.02, 0.05)
        ),
        *(
            _with(contender, lr=0.003, batch_norm=False)
            for contender in ("sketch-paper", "lowrank1", "lowrank2")
        ),
    ],
    "without batch norm, larger steps": [
        _with(contender, lr=0.05, batch_norm=False, **changes)
        for contender in ("dense", "sketch-blocks", "sketch-paper", *_OTHERS)
        for changes in ({"clip": 1.0}, {"warmup": 3.0})
    ],
    "over seeds": [
        _with("dense", lr=0.1),
        _with("sketch", lr=0.1),
        _with("sketch-blocks", lr=0.1),
        _with("sketch-paper", lr=0.1),
        _with("freshnet", lr=0.1),
        _with("hashednet", lr=0.1),
        _with("lowrank1", lr=0.1),
        _with("lowrank2", lr=0.2),
    ],
    "blocks and signs": [
        _options("sketch-paper", mixing=mixing, blocks=blocks, signs=signs, changes={"lr": 0.1})
        for mixing, numbers in (("channel", (1, 2, 4, 8, 16)), ("spatial", (1, 8)))
        for blocks in numbers
        for signs in ("rademacher", "hadamard")
    ],
    "stability": [
        _options(
            "sketch-paper",
            num_sketches=sketches,
            changes={"lr": 0.1, "factor": factor, "sign_seed": sign_seed},
        )
        for sketches, factor in ((1, 10.0), (2, 10.0), (2, 5.0), (4, 2.5))
        for sign_seed in range(4)
    ],
    "mixing, frame": [
        _with(contender, lr=0.1)
        for contender in (
            *("sketch-paper", "sketch-paper-channel", "sketch", "sketch-channel"),
            *("hashednet", "freshnet"),
        )
    ],
}
"""What is asked, and the trials that answer it."""


def main(arguments: Sequence[str]) -> None:
    """Runs the command; 0 when all trials are there, 2 when it could not start or go on."""
    args = parser().parse_args(arguments)
    if args.show is not None:
        print(show(_rows(args.show), args.markdown))
    else:
        _run_all(args, arguments)


def parser() -> argparse.ArgumentParser:
    """All options of the study."""
    root = documented_parser(__doc__)
    add_options(root, "--data", "--root", "--label", "--subset", "--held-out", held_out=5000)
    root.add_argument("--questions", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    root.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=[])
    add_options(root, "--seeds", "--width", "--dropout", "--epochs", "--amp", epochs=6, dropout=0.0)
    add_options(root, "--out", "--device", "--threads", "--plan", out=Path("runs/recipe_study"))
    root.add_argument("--show", type=Path, metavar="CSV", help="print the tables of results")
    add_options(root, "--markdown")
    return root


def trials_of(questions: Sequence[str], contenders: Sequence[str] = ()) -> list[Trial]:
    """The trials of some questions, each once; of some contenders if any are named."""
    trials = {trial.name: trial for question in questions for trial in QUESTIONS[question]}
    return [one for one in trials.values() if not contenders or one.contender in contenders]


def described(trial: Trial, args: argparse.Namespace, seed: int) -> tuple[NetworkSpec, Recipe]:
    """Network and recipe of a trial.

    Raises:
        ValueError: values that do not go together.
    """
    contender = CONTENDERS[trial.contender]
    spec = NetworkSpec(network=FIGURE.network, width=args.width, dropout=args.dropout, seed=seed)
    recipe = Recipe(
        epochs=args.epochs, lr=contender.lr, amp=args.amp, test_every=args.epochs, seed=seed
    )
    changes = dict(trial.changes)
    figure = replace(FIGURE, factor=changes.pop("factor", FIGURE.factor))
    own_options = changes.pop("options", {})
    if contender.method != "dense":
        rates = figure.rates(dense_network(spec, 10), _LAST_POINT)
        options = {**contender.options, **own_options}
        spec = replace(spec, method=contender.method, rate=rates, options=options)
    of_recipe = {one.name for one in fields(Recipe)}
    spec = replace(spec, **{key: value for key, value in changes.items() if key not in of_recipe})
    return spec, replace(recipe, **{k: value for k, value in changes.items() if k in of_recipe})


def _run_all(args: argparse.Namespace, typed: Sequence[str] | None) -> None:
    trials = trials_of(args.questions, args.contenders)
    runs = [(trial, seed) for seed in args.seeds for trial in trials]
    if args.plan:
        print("\n".join(f"{trial.name} seed {seed}" for trial, seed in runs))
        print(f"\n{len(runs)} runs of {args.epochs} epochs")
        return
    with join(args.device) as world:
        data = load(args.data, args.root, subset=args.subset, held_out=args.held_out)
        command = resolved(args, typed, device=str(world.device), size=data.size)
        named = {
            f"{trial.name} seed {seed}": partial(_run, trial, seed, args, data, world, command)
            for trial, seed in runs
        }
        run_each(named, partial(collect, args.out), world)
        if world.is_main:
            print(show(collect(args.out), markdown=False, questions=args.questions))


def _run(
    trial: Trial,
    seed: int,
    args: argparse.Namespace,
    data: DataSet,
    world: World,
    command: Mapping[str, object],
) -> dict[str, Any] | None:
    """Trains a trial, from where it was stopped, unless its result is there."""
    spec, recipe = described(trial, args, seed)
    return run_unless_done(
        RunFolder(args.out / trial.folder / f"seed_{seed}"),
        spec,
        recipe,
        data,
        world,
        name=f"{trial.name} seed {seed}",
        label=args.label,
        command=command,
        part_of={"study": "recipe", "trial": trial.name},
    )


def collect(out: Path) -> list[dict[str, Any]]:
    """Writes ``results.csv`` from the summaries of all trials below a folder that have ended."""
    rows: list[dict[str, Any]] = [
        {"trial": summary["part_of"]["trial"], **result_row(summary)} for summary in summaries(out)
    ]
    rows.sort(key=lambda row: (row["trial"], row["seed"]))
    if rows:
        with locked(out / "lock", wait=True):
            write_csv(out / "results.csv", rows)
    return rows


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = read_csv(file)
    if rows and "trial" not in rows[0]:
        raise RunError(f"--show: {file} must be a results.csv of this study (got other columns)")
    return [dict(row) for row in rows]


def show(
    rows: Sequence[Mapping[str, Any]], markdown: bool, questions: Sequence[str] | None = None
) -> str:
    """A table for each question of which there are results; means over the seeds."""
    by_trial: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_trial.setdefault(row["trial"], []).append(row)
    tables = []
    for question in QUESTIONS if questions is None else questions:
        names = [trial.name for trial in QUESTIONS[question] if trial.name in by_trial]
        if names:
            lines = [_line(name, by_trial[name]) for name in names]
            table = format_table(lines, _COLUMNS, markdown=markdown)
            tables.append(f"{question}\n\n{table}")
    return "\n\n".join(tables)


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    finished = [row for row in rows if row["status"] == "finished"]
    accuracies = [float(row["test_accuracy"]) for row in finished]
    losses = [float(row["train_loss"]) for row in finished]
    return {
        "trial": name,
        "accuracy": statistics.mean(accuracies) if accuracies else None,
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "loss": statistics.mean(losses) if losses else None,
        "seeds": len(rows),
        "failed": len(rows) - len(finished) or None,
    }


_COLUMNS = [
    Column("trial", "trial", left=True),
    Column("accuracy", "accuracy %", decimals(1)),
    Column("spread", "over seeds", decimals(1)),
    Column("loss", "training loss", decimals(3)),
    Column("seeds", "seeds"),
    Column("failed", "failed"),
]
