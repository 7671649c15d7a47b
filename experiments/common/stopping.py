"""How scripts end: by an error in one line, or by SIGINT and SIGTERM where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class InputError(Exception):
    """What a script was given cannot be used; the message says what must hold and what was got."""


class StoppedError(KeyboardInterrupt):
    """A signal asks to stop, at a place where the state can be saved."""


class Signals:
    """Signals of this process, from `noted_signals` on.

    Attributes:
        noted: one has come. More mean nothing: ``torchrun`` hands on what its processes have got.
    """

    noted = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self.noted = True


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Takes both signals in the main thread, the only one that may; others never see any.

    Raises:
        StoppedError: at the end, if one came and nothing else was raised.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, signals.note) for kind in kinds]
    try:
        yield signals
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
    if signals.noted:
        raise StoppedError


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops a script as Ctrl-C does.

    Under ``torchrun`` it ends the process at once, but while it trains: no handler would run while
    one process waits for another, and nothing that is on disk can be harmed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(script: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Runs a script; its own code or 0, 2 after an error in what it was given, 130 if stopped.

    Args:
        script: does the work.
        stopped: said where a signal stops it.
    """
    try:
        with stoppable():
            return script() or 0
    except (InputError, TypeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
