"""The folder of one training run: checkpoint, log and summary, none of which a kill can harm.

At any moment every file is either the old or the new version, whole; the old checkpoint has the
name of the one before while the new one gets its own.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import platform
import shlex
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from common.stopping import InputError
from sketchlayers._runtime.files import written_whole
from sketchlayers.bench.table import cpu_name

CHECKPOINT_FORMAT = 3


class RunError(InputError):
    """A run folder cannot be used; the message says which file and what to do."""


class TakenError(RunError):
    """Another process trains in this folder at the moment."""


class RunFolder:
    """Reads and writes ``checkpoint.pt``, ``log.csv`` and ``summary.json`` in one folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        self.previous = self.path / "checkpoint_before.pt"
        self.log = self.path / "log.csv"
        self.summary = self.path / "summary.json"
        self._is_ours = False

    def prepare(self, *, resume: bool) -> None:
        """Makes the folder.

        Raises:
            RunError: if it holds a run already and `resume` is false, or cannot be made.
        """
        if not resume and (self.checkpoint.exists() or self.summary.exists()):
            raise RunError(
                f"out: {self.path} already holds a run; continue it with --resume or choose "
                "another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"out: cannot make the folder {self.path} ({error})") from error

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps other processes from training in this folder meanwhile; may be nested.

        Raises:
            TakenError: one does already.
        """
        if self._is_ours:
            yield
            return
        with locked(self.path / "lock", wait=False) as self._is_ours:
            if not self._is_ours:
                raise TakenError(
                    f"out: no other process may train in {self.path} (one does); wait until it "
                    "ends or choose another folder"
                )
            try:
                yield
            finally:
                self._is_ours = False

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Makes a new checkpoint of tensors, numbers, strings, lists and dicts.

        The one before is kept, for when a disk has damaged the new one.

        Raises:
            RunError: it cannot be written, as on a full disk; the last one is as it was.
        """
        whole = {"format": CHECKPOINT_FORMAT, **state}
        try:
            with written_whole(self.checkpoint) as path:
                torch.save(whole, path)
                if self.checkpoint.exists():
                    os.replace(self.checkpoint, self.previous)
        # torch.save turns some failures of the file into its own.
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"checkpoint: cannot write {self.checkpoint} ({error}); the one before is as it "
                "was, and the same command goes on from it"
            ) from error

    def load_checkpoint(self, expected: Mapping[str, object]) -> dict[str, Any] | None:
        """The last checkpoint, or None if there is none yet.

        Of a damaged one the one before, with a warning.

        Args:
            expected: the run's arguments, which must be those the checkpoint was made with.

        Raises:
            RunError: if neither is readable, or it is of another format or of another run.
        """
        if not self.checkpoint.exists() and not self.previous.exists():
            return None
        try:
            state = self.read_checkpoint(self.checkpoint)
        except RunError as error:
            if not self.previous.exists():
                raise
            warnings.warn(f"{error}; going on from {self.previous.name}", stacklevel=2)
            state = self.read_checkpoint(self.previous)
        if different := differences(state["arguments"], expected):
            raise RunError(
                f"checkpoint: {self.checkpoint} must come from a run with the same arguments "
                f"(got {different})"
            )
        return state

    @staticmethod
    def read_checkpoint(path: Path) -> dict[str, Any]:
        """Reads any run's checkpoint.

        Raises:
            RunError: if the file is unreadable or of another format.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:  # torch.load does not look at sums
                    raise zipfile.BadZipFile(f"{damaged} in it is damaged")
            state = torch.load(path, map_location="cpu", weights_only=True)
        # Damaged files show as anything from EOFError to errors of the zip or pickle reader.
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise RunError(
                f"checkpoint: {path} must be a readable checkpoint (got: {first_line}); "
                "move it away to start again"
            ) from error
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            raise RunError(
                f"checkpoint: {path} must be a checkpoint of a training run, format "
                f"{CHECKPOINT_FORMAT} (got something else)"
            )
        return state

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Replaces ``summary.json``."""
        with written_whole(self.summary) as path:
            path.write_text(json.dumps(summary, indent=2, default=str) + "\n")


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The arguments in which two runs differ, in words; empty if they are the same."""
    return "; ".join(
        f"{key}={then.get(key)!r} then and {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    )


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file, which a process lets go of however it ends; yields whether it is held.

    Args:
        path: of the file, in a folder that is there.
        wait: until no other process holds it.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def resolved(
    args: argparse.Namespace, typed: Sequence[str] | None, **values: object
) -> dict[str, object]:
    """A command as JSON values: what was typed, and every argument, defaults included.

    Args:
        args: as parsed.
        typed: the arguments that were parsed; None means those of this process.
        values: what arguments came to that stand for "depends" (size, threads, device).
    """
    script, *own = sys.argv
    arguments = {**vars(args), "threads": torch.get_num_threads(), **values}
    return {
        "line": shlex.join([Path(script).name, *(own if typed is None else typed)]),
        **{
            key: str(value) if isinstance(value, Path) else value
            for key, value in arguments.items()
        },
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "sketchlayers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, object]:
    """Processor, threads used and, when training there, the GPU."""
    found: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def circumstances(device: torch.device) -> dict[str, object]:
    """Cells of a table of measurements: hardware, threads and versions."""
    found, installed = hardware(device), versions()
    return {
        "hardware": found.get("gpu", found["cpu"]),
        "threads": found["threads"],
        "torch": installed["torch"],
        "sketchlayers": installed["sketchlayers"],
    }
