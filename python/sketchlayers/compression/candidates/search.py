"""Which rates to try for the smallest network that loses little. Numbers only."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

MOST_CANDIDATES = 7
LARGEST_RATE = 0.97
"""Nearer to 1 nothing is gained."""
_FIRST_RATE = 0.5
_GRID = 16
"""Rates whose damage is predicted; between them its logarithm is linear in the rate."""
_CLOSE = 0.02
"""Relative difference of two rates between which nothing is tried any more."""
_STEP, _LARGEST_STEP = 3.0, 1000.0
"""Factor of the damage from one candidate to the next, while all lose too much or none does, at
least; to the power of how many there were. And at most."""
_MIDDLE = 0.2
"""Interpolation keeps this share of the distance from the two rates that it is between."""


class Search:
    """Looks for the smallest rate whose drop is at most so much; tell it drops, ask it for rates.

    To begin with, drops count as proportional to the damage that the layers' curves predict. With
    one rate that loses too much and one that does not, it interpolates between them.
    """

    def __init__(
        self, damage: Callable[[float], float] | None, smallest: float, max_drop: float
    ) -> None:
        """Takes what is known beforehand.

        Args:
            damage: predicted at a rate; falls with it. None: not known.
            smallest: rate that is possible.
            max_drop: the largest drop that is good enough.
        """
        self._max_drop = max_drop
        smallest = min(smallest, LARGEST_RATE)
        step = (LARGEST_RATE - smallest) / (_GRID - 1)
        self._rates = [smallest + step * i for i in range(_GRID)]
        logs = [_log(1 / rate - 1 if damage is None else damage(rate)) for rate in self._rates]
        for i in reversed(range(_GRID - 1)):  # strictly falling, so that it can be inverted
            logs[i] = max(logs[i], logs[i + 1] + 1e-6)
        self._logs = logs
        self._drops: dict[float, float] = {}

    def tell(self, rate: float, drop: float) -> None:
        """Takes the drop that a rate has."""
        self._drops[rate] = drop

    def next(self) -> float | None:
        """Returns the rate to try next; None where that is not worth it."""
        if len(self._drops) >= MOST_CANDIDATES:
            return None
        if not self._drops:
            return _rounded(min(max(_FIRST_RATE, self._rates[0]), LARGEST_RATE))
        good = min((r for r, d in self._drops.items() if d <= self._max_drop), default=None)
        failed = [r for r, d in self._drops.items() if d > self._max_drop]
        bad = max((r for r in failed if good is None or r < good), default=None)
        if good is None:
            assert bad is not None
            rate = self._rate(self._log(bad) + self._step(self._drops[bad]))
        elif bad is None:
            rate = self._rate(self._log(good) + self._step(self._drops[good]))
        elif good - bad <= _CLOSE * good:
            return None
        else:
            drops = self._drops[good], self._drops[bad]
            share = (self._max_drop - drops[0]) / (drops[1] - drops[0])
            share = min(max(share, _MIDDLE), 1 - _MIDDLE)
            rate = self._rate((1 - share) * self._log(good) + share * self._log(bad))
        rate = _rounded(rate)
        near = min(abs(rate - one) for one in self._drops)
        return None if near <= _CLOSE / 4 * rate else rate

    def _step(self, drop: float) -> float:
        """How far to go in the logarithm of the damage from the only end that is known."""
        least = _STEP ** len(self._drops)
        smaller = drop <= self._max_drop
        low, high = (drop, self._max_drop) if smaller else (self._max_drop, drop)
        wanted = high / low if low > 0 else least
        step = math.log(min(max(wanted, least), _LARGEST_STEP))
        return step if smaller else -step

    def _log(self, rate: float) -> float:
        """The logarithm of the damage at a rate."""
        at = min(max(bisect_left(self._rates, rate), 1), _GRID - 1)
        (left, right), (high, low) = self._rates[at - 1 : at + 1], self._logs[at - 1 : at + 1]
        share = (rate - left) / (right - left) if right > left else 0.0
        return high + (low - high) * share

    def _rate(self, log: float) -> float:
        """The rate at which the damage has this logarithm, within what is possible."""
        if log >= self._logs[0]:
            return self._rates[0]
        for i in range(1, _GRID):
            if log >= self._logs[i]:
                share = (self._logs[i - 1] - log) / (self._logs[i - 1] - self._logs[i])
                return self._rates[i - 1] + share * (self._rates[i] - self._rates[i - 1])
        return self._rates[-1]


def _log(damage: float) -> float:
    return math.log(max(damage, 1e-30))


def _rounded(rate: float) -> float:
    """Up, so that the smallest possible one stays possible."""
    return min(1.0, math.ceil(rate * 1e4 - 1e-6) / 1e4)
