"""What files and pip's records tell of the installation; works without PyTorch."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sketchlayers._version import __version__

PACKAGE = Path(__file__).parents[1]
LIBRARY = PACKAGE / "libsketchlayers.so"

REBUILD = "pip install --no-build-isolation . (in the folder of the sources)"
REBUILD_WITH_COMPILER = (
    "pip install --no-build-isolation . (in the folder of the sources, with a C++ compiler and "
    "without SKETCHLAYERS_NO_EXTENSION)"
)


@dataclass(frozen=True)
class Problem:
    """Something wrong, and what to type to make it right."""

    what: str
    remedy: str


@dataclass(frozen=True)
class ExtensionFacts:
    """What was seen of the compiled extension.

    Attributes:
        torch: PyTorch's version, or None when it cannot be imported.
        required_torch: The requirement that was written when this package was built, such as
            ``"torch==2.15.*"``; None when the package was not installed.
        pure: Whether the package was installed as one without an extension.
        missing: Files of the extension that are not there.
        build: What the extension tells about itself; None when it cannot be loaded.
        load_error: Why it cannot.
    """

    torch: str | None
    required_torch: str | None = None
    pure: bool = False
    missing: tuple[str, ...] = ()
    build: Mapping[str, Any] | None = None
    load_error: str = ""

    @property
    def left_out(self) -> bool:
        """Whether there is no extension because none was built."""
        return self.pure and bool(self.missing)

    @property
    def may_load(self) -> bool:
        """Whether loading is safe: a library for another PyTorch may take the process down."""
        required = self.required_torch
        return not self.missing and (required is None or fits(required, self.torch or ""))


def diagnose_extension(facts: ExtensionFacts) -> Problem | None:
    """The first reason why the extension cannot be used, or None."""
    if facts.left_out:
        return Problem(
            "sketchlayers was built without its compiled extension", REBUILD_WITH_COMPILER
        )
    if facts.missing:
        return Problem(
            f"the compiled extension is not there, or was built for another Python than "
            f"{platform.python_version()} (missing: {', '.join(facts.missing)})",
            REBUILD,
        )
    if not facts.may_load:
        return Problem(
            f"the compiled extension was built for {facts.required_torch}, not for the PyTorch "
            f"{facts.torch} that is installed",
            REBUILD,
        )
    if facts.build is None:
        return Problem(f"the compiled extension cannot be loaded ({facts.load_error})", REBUILD)
    if minor_version(facts.build["torch"]) != minor_version(facts.torch or ""):
        return Problem(
            f"the compiled extension was built for PyTorch {facts.build['torch']}, not for the "
            f"{facts.torch} that is installed",
            REBUILD,
        )
    if facts.build["version"] != __version__:
        return Problem(
            f"the compiled extension is of version {facts.build['version']}, the Python part of "
            f"{__version__}",
            REBUILD,
        )
    return None


def missing_files(package: Path = PACKAGE) -> tuple[str, ...]:
    """Files of the extension that should be in the package's folder and are not."""
    patterns = {
        LIBRARY.name: LIBRARY.name,
        "_C": f"_C.{sys.implementation.cache_tag}*.so",
    }
    return tuple(name for name, pattern in patterns.items() if not any(package.glob(pattern)))


def is_pure() -> bool:
    """Whether pip has installed the package as one without an extension."""
    try:
        wheel = importlib.metadata.distribution("sketchlayers").read_text("WHEEL")
    except importlib.metadata.PackageNotFoundError:
        return False
    return "Root-Is-Purelib: true" in (wheel or "")


def required_torch() -> str | None:
    """What the installed package requires, such as ``"torch==2.15.*"``; None if not installed."""
    try:
        requirements = importlib.metadata.requires("sketchlayers") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((line for line in requirements if re.match(r"torch\b(?!vision)", line)), None)


def minor_version(version: str) -> tuple[int, int]:
    """Major and minor number: ``"2.15.0+cu132"`` gives ``(2, 15)``."""
    numbers = re.findall(r"\d+", version)
    return int(numbers[0]), int(numbers[1])


def fits(requirement: str, version: str) -> bool:
    """Whether a version meets a requirement of the form ``torch==2.15.*``; any other is met."""
    pinned = re.search(r"==\s*(\d+\.\d+)\.\*", requirement)
    return pinned is None or minor_version(pinned.group(1)) == minor_version(version)
