"""Runs that belong to a larger whole, a figure or a study: done once, gone on with when stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.distributed import World
from common.runs import RunError, TakenError, differences
from experiment import Job, NetworkSpec, last_words, only_here, run
from image_data import DataSet
from training import Recipe

ENDS = ("finished", "chance", "diverged")
"""How a run can end; after the last two the network has learned nothing."""


def run_each(jobs: Iterable[Job], data: DataSet, world: World, ended: Callable[[], object]) -> None:
    """Trains what is not done, each from where it was stopped; processes with the same jobs share.

    Args:
        jobs: each with a folder of its own.
        data: the images.
        world: processes of this script.
        ended: called in the main process when one has ended.

    Raises:
        RunError: a folder has results of other arguments.
    """
    elsewhere = []
    for job in jobs:
        try:
            with only_here(job.folder, world, resume=True):
                if world.shared(is_done(job, data)):
                    continue
                summary = run(job, data, world=world, resume=True)
        except TakenError:
            elsewhere.append(job.name)
            continue
        if world.is_main:
            print(last_words(summary), flush=True)
            ended()
    if world.is_main and elsewhere:
        print(
            f"left to the processes that train them now: {', '.join(elsewhere)}; the same command "
            "goes on with them should one be stopped"
        )


def is_done(job: Job, data: DataSet) -> bool:
    """Whether the job's folder holds its result.

    Raises:
        RunError: it holds that of another.
    """
    assert job.folder is not None
    file = job.folder.summary
    if not file.exists():
        return False
    here: dict[str, Any] = {
        "network": asdict(job.spec),
        "recipe": asdict(job.recipe),
        "data": data.describe(),
    }
    here = json.loads(json.dumps(here))
    # What a summary does not have yet was as it is by default.
    newer = ("crop_scale", "train_size", "trivial_augment", "normalisation")
    plain = {key: here["data"][key] for key in newer}
    usual = {"network": asdict(NetworkSpec()), "recipe": asdict(Recipe()), "data": plain}
    now = _flat(here)
    try:
        summary = json.loads(file.read_text())
        then = _flat({part: usual[part] | summary[part] for part in usual})
        ended = summary["status"] in ENDS and "part_of" in summary
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"out: {file} must be the summary of a run (got {type(error).__name__}: {error}); "
            "move it away to run the point again"
        ) from error
    if different := differences({key: then.get(key) for key in now}, now):
        raise RunError(
            f"out: {job.folder.path} must hold results of the same arguments (got {different}); "
            "choose another --out"
        )
    return ended


def _flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{part}.{key}": value for part in parts for key, value in parts[part].items()}


def summaries(out: Path) -> Iterator[dict[str, Any]]:
    """The summaries of all runs of a whole, below its folder, that have ended."""
    for path in sorted(out.glob("**/summary.json")):
        summary = json.loads(path.read_text())
        if summary["status"] in ENDS and "part_of" in summary:
            yield summary
