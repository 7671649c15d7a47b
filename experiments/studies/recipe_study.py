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
of its results that no question asks for are of options that are gone: ``base=random`` of the
package, and a learning rate, a scale or a seed of compressed layers alone, which gained nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.distributed import join
from common.runs import RunError, RunFolder, locked, read_csv, resolved
from common.tables import Column, decimals, format_table
from experiment import Job, NetworkSpec
from figure2 import FIGURE
from figures.contenders import CONTENDERS
from figures.figure import dense_network
from figures.points import run_each, summaries
from figures.results import mean_and_spread
from image_data import load
from options import add_options, documented_parser
from plot import result_row
from sketchlayers._runtime.files import write_csv
from training import Recipe, recipe_of

_LAST_POINT = FIGURE.layers[-1]
_OTHERS = ("freshnet", "hashednet", "lowrank1", "lowrank2")
_SKETCHES = ("sketch", "sketch-channel", "sketch-blocks", "sketch-paper", "sketch-paper-channel")


@dataclass(frozen=True)
class Trial:
    """A contender of the figures with something changed.

    Attributes:
        contender: name in `contenders.CONTENDERS`.
        recipe: fields of `Recipe` with other values, and ``batch_norm`` of `NetworkSpec`.
        options: added to the contender's.
    """

    contender: str
    recipe: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The contender and what is changed, such as ``sketch lr=0.2``."""
        changes = {**self.options, **self.recipe}
        return " ".join([self.contender, *(f"{key}={value}" for key, value in changes.items())])


QUESTIONS: dict[str, list[Trial]] = {
    "learning rate": [
        *(
            Trial(contender, {"lr": lr})
            for contender in ("dense", *_SKETCHES, *_OTHERS)
            for lr in (0.05, 0.1, 0.2)
        ),
        Trial("lowrank2", {"lr": 0.4}),
    ],
    "without batch norm": [
        *(
            Trial(contender, {"lr": lr, "batch_norm": False})
            for contender in ("dense", "sketch", "sketch-blocks", "sketch-paper", *_OTHERS)
            for lr in (0.01, 0.02, 0.05)
        ),
        *(
            Trial(contender, {"lr": 0.003, "batch_norm": False})
            for contender in ("sketch-paper", "lowrank1", "lowrank2")
        ),
    ],
    "without batch norm, larger steps": [
        Trial(contender, {"lr": 0.05, "batch_norm": False, **change})
        for contender in ("dense", "sketch-blocks", "sketch-paper", *_OTHERS)
        for change in ({"clip": 1.0}, {"warmup": 3.0})
    ],
    "over seeds": [
        *(
            Trial(contender, {"lr": 0.1})
            for contender in ("dense", "sketch", "sketch-blocks", "sketch-paper", *_OTHERS[:3])
        ),
        Trial("lowrank2", {"lr": 0.2}),
    ],
    "blocks and signs": [
        Trial("sketch-paper", {"lr": 0.1}, {"mixing": mixing, "blocks": blocks, "signs": signs})
        for mixing, numbers in (("channel", (1, 2, 4, 8, 16)), ("spatial", (1, 8)))
        for blocks in numbers
        for signs in ("rademacher", "hadamard")
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
    add_options(root, "--seeds", "--width", "--dropout", "--epochs", "--amp", epochs=6, dropout=0.0)
    add_options(root, "--out", "--device", "--threads", "--plan", out=Path("runs/recipe_study"))
    root.add_argument("--show", type=Path, metavar="CSV", help="print the tables of results")
    add_options(root, "--markdown")
    return root


def trials_of(questions: Sequence[str]) -> list[Trial]:
    """The trials of some questions, each once."""
    trials = {trial.name: trial for question in questions for trial in QUESTIONS[question]}
    return list(trials.values())


def described(trial: Trial, args: argparse.Namespace, seed: int) -> tuple[NetworkSpec, Recipe]:
    """Network and recipe of a trial.

    Raises:
        ValueError: values that do not go together.
    """
    contender, changes = CONTENDERS[trial.contender], dict(trial.recipe)
    spec = NetworkSpec(
        network=FIGURE.network,
        width=args.width,
        dropout=args.dropout,
        batch_norm=changes.pop("batch_norm", True),
        seed=seed,
    )
    if contender.method != "dense":
        rates = FIGURE.rates(dense_network(spec, 10), _LAST_POINT)
        options = {**contender.options, **trial.options}
        spec = replace(spec, method=contender.method, rate=rates, options=options)
    own = {"lr": contender.lr, "test_every": args.epochs, "seed": seed}
    return spec, recipe_of(args, **(own | changes))


def _run_all(args: argparse.Namespace, typed: Sequence[str] | None) -> None:
    trials = trials_of(args.questions)
    runs = [(trial, seed) for seed in args.seeds for trial in trials]
    if args.plan:
        print("\n".join(f"{trial.name} seed {seed}" for trial, seed in runs))
        print(f"\n{len(runs)} runs of {args.epochs} epochs")
        return
    with join(args.device) as world:
        data = load(args.data, args.root, subset=args.subset, held_out=args.held_out)
        command = resolved(args, typed, device=str(world.device), size=data.size)
        jobs = [job_of(trial, seed, args, command) for trial, seed in runs]
        run_each(jobs, data, world, partial(collect, args.out))
        if world.is_main:
            print(show(collect(args.out), markdown=False, questions=args.questions))


def job_of(trial: Trial, seed: int, args: argparse.Namespace, command: Mapping[str, object]) -> Job:
    """A trial as it is trained."""
    spec, recipe = described(trial, args, seed)
    folder = RunFolder(args.out / trial.name.replace(" ", "_") / f"seed_{seed}")
    part_of = {"study": "recipe", "trial": trial.name}
    return Job(spec, recipe, folder, f"{trial.name} seed {seed}", args.label, command, part_of)


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
    named = {question: [trial.name for trial in trials] for question, trials in QUESTIONS.items()}
    if questions is None:
        asked = {name for names in named.values() for name in names}
        named["no longer asked"] = [name for name in by_trial if name not in asked]
    tables = []
    for question in named if questions is None else questions:
        lines = [_line(name, by_trial[name]) for name in named[question] if name in by_trial]
        if lines:
            table = format_table(lines, _COLUMNS, markdown=markdown)
            tables.append(f"{question}\n\n{table}")
    return "\n\n".join(tables)


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    finished = [row for row in rows if row["status"] == "finished"]
    accuracies = [float(row["test_accuracy"]) for row in finished]
    losses = [float(row["train_loss"]) for row in finished]
    return {
        "trial": name,
        "accuracy": mean_and_spread(accuracies, len(rows)),
        "loss": statistics.mean(losses) if losses else None,
        "seeds": len(rows),
    }


_COLUMNS = [
    Column("trial", "trial", left=True),
    Column("accuracy", "accuracy %, spread over seeds"),
    Column("loss", "training loss", decimals(3)),
    Column("seeds", "seeds"),
]
