"""Runs that belong to a larger whole, a figure or a study: done once, gone on with when stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.distributed import World
from common.runs import RunError, RunFolder, TakenError
from experiment import NetworkSpec, only_here, run
from image_data import DataSet
from training import Recipe

ENDS = ("finished", "chance", "diverged")
"""How a run can end; after the last two the network has learned nothing."""


def run_each(
    runs: Mapping[str, Callable[[], Mapping[str, Any] | None]],
    ended: Callable[[], object],
    world: World,
) -> None:
    """Trains one after the other; several processes with the same runs share them.

    Args:
        runs: by name, what `run_unless_done` does for each.
        ended: called in the main process when one has ended.
        world: processes of this script.
    """
    elsewhere = []
    for name, train in runs.items():
        try:
            summary = train()
        except TakenError:
            elsewhere.append(name)
            continue
        if world.is_main and summary is not None:
            print(last_words(name, summary), flush=True)
            ended()
    if world.is_main and elsewhere:
        print(
            f"left to the processes that train them now: {', '.join(elsewhere)}; the same command "
            "goes on with them should one be stopped"
        )


def run_unless_done(
    folder: RunFolder,
    spec: NetworkSpec,
    recipe: Recipe,
    data: DataSet,
    world: World,
    *,
    name: str,
    label: str | None,
    command: Mapping[str, object],
    part_of: Mapping[str, object],
    workers: int = 0,
) -> dict[str, Any] | None:
    """Trains, from where it was stopped, unless the folder has the result.

    Args:
        folder: of this run alone.
        spec: the network.
        recipe: how to train.
        data: the images.
        world: processes of this run.
        name: for progress and plots.
        label: what figures call the data set.
        command: resolved arguments, for the summary.
        part_of: what the run is within the whole, for the summary.
        workers: processes that decode streamed images.

    Returns:
        The summary as the folder now holds it; None where it was there before.

    Raises:
        TakenError: another process trains it at the moment.
        RunError: the folder has results of other arguments.
    """
    with only_here(folder, world, resume=True):
        if world.shared(is_done(folder, spec, recipe, data)):
            return None
        _, summary = run(
            spec,
            data,
            recipe,
            folder,
            world=world,
            name=name,
            label=label,
            resume=True,
            command=command,
            part_of=part_of,
            workers=workers,
        )
    return summary


def is_done(folder: RunFolder, spec: NetworkSpec, recipe: Recipe, data: DataSet) -> bool:
    """Whether the folder holds the result of this run.

    Raises:
        RunError: it holds that of another.
    """
    if not folder.summary.exists():
        return False
    try:
        summary = json.loads(folder.summary.read_text())
        described = {key: summary["data"].get(key) for key in data.describe()}
        # What a summary does not have yet was as it is by default.
        there = {
            "network": asdict(NetworkSpec()) | summary["network"],
            "recipe": asdict(Recipe()) | summary["recipe"],
            "data": described,
        }
        status = summary["status"]
    except (ValueError, KeyError, AttributeError) as error:
        raise RunError(
            f"out: {folder.summary} must be the summary of a run (got {type(error).__name__}: "
            f"{error}); move it away to run the point again"
        ) from error
    here = json.loads(
        json.dumps({"network": asdict(spec), "recipe": asdict(recipe), "data": data.describe()})
    )
    different = [
        f"{part}.{key}={there[part].get(key)!r} then and {here[part].get(key)!r} now"
        for part in here
        for key in here[part]
        if there[part].get(key) != here[part][key]
    ]
    if different:
        raise RunError(
            f"out: {folder.path} must hold results of the same arguments (got "
            f"{'; '.join(different)}); choose another --out"
        )
    return status in ENDS and "part_of" in summary


def summaries(out: Path) -> Iterator[dict[str, Any]]:
    """The summaries of all runs of a whole, below its folder, that have ended."""
    for path in sorted(out.glob("**/summary.json")):
        summary = json.loads(path.read_text())
        if summary["status"] in ENDS and "part_of" in summary:
            yield summary


def last_words(name: str, summary: Mapping[str, Any]) -> str:
    """One line on a run that has ended."""
    tested = (summary["last_epoch"] or {}).get("test_accuracy")
    error = "" if tested is None else f", error {100 - tested:.2f} %"
    return f"{name}: {summary['status']}{error}, rate {summary['rate']:.3f}"
