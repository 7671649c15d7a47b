"""The planner's constants of this machine, kept in the user's cache directory.

``sketchlayers bench --tune`` measures and writes them; they are read when the compiled extension
is loaded, those of a GPU when PyTorch first uses it. ``SKETCHLAYERS_CACHE`` names another
directory; empty, nothing is read.
"""

from __future__ import annotations

import os
import platform
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch


def directory() -> Path | None:
    """Where the files lie, or ``None`` where the user wants none."""
    own = os.environ.get("SKETCHLAYERS_CACHE")
    if own is not None:
        return Path(own) if own else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sketchlayers"


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_of(device: torch.device) -> Path | None:
    """The file of this type of machine, whether it exists or not."""
    folder = directory()
    if folder is None:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"plan-{device.type}-{words}.txt"


def load(compiled: ModuleType) -> None:
    """Hands what was measured on this machine to the planner; says so where it cannot be read."""
    folder = directory()
    if folder is None or not folder.is_dir():
        return
    if any(folder.glob("plan-cpu-*.txt")):
        _load_file(compiled, file_of(torch.device("cpu")))
    if any(folder.glob("plan-cuda-*.txt")):
        # Asking for a GPU's name starts it, so this waits until something else does.
        torch.cuda._lazy_call(lambda: _load_file(compiled, file_of(torch.device("cuda"))))


def _load_file(compiled: ModuleType, path: Path | None) -> None:
    if path is None or not path.exists():
        return
    try:
        compiled.load_plan_costs(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        warnings.warn(
            f"sketchlayers: the planner's constants in {path} are not used ({error}): delete the "
            "file, or measure them again with `sketchlayers bench --tune`",
            stacklevel=2,
        )
