"""How long a call of minutes will take: an estimate of all that is left, on the standard error.

Where no progress bars are drawn, a line tells of every stage, and of a long one every half a
minute. Calls of a few seconds print nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

_PATIENCE = 5.0
"""Seconds after which there is a first line."""
_EVERY = 30.0
"""Seconds from one line to the next in one stage."""
_KNOWN = 0.05
"""Share of a stage from which on its own pace counts."""
_MOST_OFF = 4.0
"""How many times as long as expected the rest may be taken to last, from what the past lasted."""


class Watch:
    """Knows which stage a call is in, how far that is, and what is left."""

    def __init__(
        self,
        owner: str,
        *,
        lines: bool,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], object] | None = None,
    ) -> None:
        """Begins.

        Args:
            owner: the function that is called, with which lines begin.
            lines: whether any are written.
            clock: seconds.
            write: takes a line; None writes to the standard error.
        """
        self._owner, self._lines, self._clock = owner, lines, clock
        self._write = write or _to_standard_error
        self._lock = threading.Lock()
        self._begin = self._stage_begin = clock()
        self._expected: dict[str, float] = {}
        self._stage: str | None = None
        self._share = 0.0
        self._pace = 1.0  # seconds for each expected one, of the stages that are over
        self._next_line = self._begin + _PATIENCE

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Takes the seconds that stages will last, in their order."""
        with self._lock:
            self._expected |= seconds

    def enter(self, stage: str) -> None:
        """A stage begins."""
        with self._lock:
            now = self._clock()
            self._leave(now)
            self._stage, self._share, self._stage_begin = stage, 0.0, now
            if now - self._begin >= _PATIENCE:
                self._next_line = now
        self.tick()

    def _leave(self, now: float) -> None:
        expected = self._expected.pop(self._stage, 0.0) if self._stage else 0.0
        if expected > 1:
            self._pace = _bounded((now - self._stage_begin) / expected)

    def advance(self, share: float) -> None:
        """So much of the present stage is done, from 0 to 1."""
        with self._lock:
            self._share = share

    def left(self) -> float | None:
        """Seconds to the end of the call, about; None where nothing is expected."""
        with self._lock:
            return self._left()

    def _left(self) -> float | None:
        passed = self._clock() - self._stage_begin
        expected = self._expected.get(self._stage or "")
        if expected is None and not self._expected:
            return None
        pace = self._pace
        whole = pace * (expected or 0.0)
        if self._share > _KNOWN:  # its own pace counts the more, the further it is
            own = passed / self._share
            whole += self._share * (own - whole)
            if expected:
                pace += self._share * (_bounded(own / expected) - pace)
        later = [seconds for stage, seconds in self._expected.items() if stage != self._stage]
        return max(whole - passed, 0.0) + pace * sum(later)

    def tick(self) -> None:
        """Writes a line if it is time for one."""
        with self._lock:
            now = self._clock()
            if not self._lines or self._stage is None or now < self._next_line:
                return
            self._next_line = now + _EVERY
            text = f"{self._owner}: {self._stage}"
            if self._share > 0:
                text += f" ({100 * self._share:.0f} %)"
            text += f", {duration(now - self._begin)} so far"
            left = self._left()
            if left is not None:
                text += f", about {duration(left, about=True)} left"
        self._write(text)


def _bounded(pace: float) -> float:
    return min(_MOST_OFF, max(1 / _MOST_OFF, pace))


def duration(seconds: float, *, about: bool = False) -> str:
    """Seconds as a text: ``45 s``, ``2 min 10 s``, ``1 h 5 min``; ``about`` rounds more."""
    step = 1 if not about else 5 if seconds < 60 else 10 if seconds < 600 else 60
    whole = max(step, round(seconds / step) * step)
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


_current: ContextVar[Watch | None] = ContextVar("sketchlayers_watch", default=None)


def current_watch() -> Watch | None:
    """Returns that of the call that is running, if it has one."""
    return _current.get()


def expect(seconds: Mapping[str, float]) -> None:
    """Tells the watch of the call that is running what its stages will last."""
    if (watch := current_watch()) is not None:
        watch.expect(seconds)


@contextlib.contextmanager
def watching(owner: str, *, lines: bool) -> Iterator[Watch]:
    """Watches the body; a thread of its own writes the lines while that computes.

    Args:
        owner: the function that is called.
        lines: whether any are written.
    """
    watch = Watch(owner, lines=lines)
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(1.0):
            watch.tick()

    token = _current.set(watch)
    if lines:
        threading.Thread(target=tick, name="sketchlayers-watch", daemon=True).start()
    try:
        yield watch
    finally:
        ended.set()
        _current.reset(token)


def _to_standard_error(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            print(line, file=sys.stderr, flush=True)
