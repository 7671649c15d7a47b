"""A progress bar where somebody looks at it: tqdm, if it is installed, on a terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str = "it", show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error, drawn by tqdm; without tqdm nothing is drawn.

    Args:
        description: stands before the bar.
        total: how many steps there will be; None where that is not known.
        unit: what a step is called.
        show: None draws only on a terminal, True everywhere, False nowhere.

    Yields:
        A function to call with the number of steps that have been done since its last call.
    """
    tqdm: Any = None
    if show or (show is None and sys.stderr is not None and sys.stderr.isatty()):
        with contextlib.suppress(ImportError):
            tqdm = importlib.import_module("tqdm").tqdm
    if tqdm is None:
        yield lambda steps: None
        return
    with tqdm(total=total, desc=description, unit=unit, leave=False, dynamic_ncols=True) as bar:
        yield bar.update
