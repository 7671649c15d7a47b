"""A progress bar where somebody looks at it: tqdm, if it is installed, on a terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sketchlayers._runtime.watch import current_watch, duration


def draws_bars(show: bool | None) -> bool:
    """Tells whether bars are drawn: None draws on a terminal, True everywhere, False nowhere."""
    return _tqdm(show) is not None


def _tqdm(show: bool | None) -> Any:
    if show or (show is None and sys.stderr is not None and sys.stderr.isatty()):
        with contextlib.suppress(ImportError):
            return importlib.import_module("tqdm").tqdm
    return None


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str = "it", show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on the standard error, drawn by tqdm; without tqdm nothing is drawn.

    Beside it stands how long the whole call will take, as far as that is known.

    Args:
        description: stands before the bar.
        total: how many steps there will be; None where that is not known.
        unit: what a step is called.
        show: as for `draws_bars`.

    Yields:
        A function to call with the number of steps that have been done since its last call.
    """
    watch, tqdm, done = current_watch(), _tqdm(show), 0
    with contextlib.ExitStack() as stack:
        bar: Any = None
        if tqdm is not None:
            bar = stack.enter_context(
                tqdm(total=total, desc=description, unit=unit, leave=False, dynamic_ncols=True)
            )

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if watch is not None and total:
                watch.advance(min(1.0, done / total))
            if bar is None:
                return
            left = None if watch is None else watch.left()
            if left is not None:
                bar.set_postfix_str(f"about {duration(left, about=True)} left in all", False)
            bar.update(steps)

        yield advance
