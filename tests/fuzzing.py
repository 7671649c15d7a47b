"""What the fuzzers share: numbered cases that can be repeated, bounds, and a watch over crashes.

A fuzzer tries one case after the other. Case N of seed S is the same in every run, whatever came
before it, so that what failed can be repeated:

    python tests/ops/fuzz.py --seed S --first N --calls 1

Tests try a fixed list of cases; ``--seed random --seconds T`` tries others in each run, and prints
the seed first.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

_PATIENCE = 300.0  # seconds that one case may take before it counts as hanging


class Target(Protocol):
    """What is fuzzed."""

    def attempt(self, draw: random.Random) -> str:
        """Tries one case and names its outcome; whatever must not happen raises.

        A target may also have ``pytorch_alone(draw)``, which does what is PyTorch's of a case. A
        case that ends its process is passed over where this does so, too.
        """


@dataclass(frozen=True)
class Plan:
    """Which cases are tried; ``seconds`` ends them early."""

    seed: int = 0
    first: int = 0
    count: int = 1_000_000
    seconds: float | None = None
    begun: float = field(default_factory=time.perf_counter)

    def after(self, number: int) -> Plan:
        """What is left of it behind a case."""
        return replace(self, first=number + 1, count=self.first + self.count - number - 1)


def case(seed: int, number: int) -> random.Random:
    """Where case ``number`` draws from."""
    return random.Random(f"{seed} {number}")


def attempt_all(
    target: Target, plan: Plan, begins: Callable[[int], None] = lambda number: None
) -> Counter[str]:
    """Tries the cases of a plan, telling ``begins`` each one's number.

    Returns:
        How many there were of each outcome.
    """
    outcomes: Counter[str] = Counter()
    start = last = time.perf_counter()
    end = math.inf if plan.seconds is None else plan.begun + plan.seconds
    for number in range(plan.first, plan.first + plan.count):
        begins(number)
        outcomes[target.attempt(case(plan.seed, number))] += 1
        now = time.perf_counter()
        if now > end:
            break
        if now - last > 60:
            print(f"{outcomes.total():,} after {now - start:.0f} s", flush=True)
            last = now
    return outcomes


def main(description: str, unit: str, count: int, make: Callable[[], Target]) -> None:
    """The command line of a fuzzer.

    The cases run in a process of their own. A crash or a case that hangs is reported by its number.

    Args:
        description: What the fuzzer does.
        unit: What a case is called, in the plural: the option that says how many.
        count: How many if nothing else is said.
        make: Makes the target, in the process of the cases.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{unit}", type=int, default=count, dest="count", help="how many at most")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--seed", type=_seed, default=0, help="a number, or random to draw one")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    plan = Plan(**vars(parser.parse_args()))
    print(f"{unit} of seed {plan.seed}", flush=True)
    shared = mmap.mmap(-1, 8)  # the number of the case at work, seen by both processes

    while problem := _try_all(plan, unit, make, shared):
        number = int.from_bytes(shared[:], "little")
        if not problem.startswith("ended by") or not _blames_pytorch(plan, number, make, shared):
            sys.exit(
                f"{unit}: number {number} of seed {plan.seed} {problem}; to repeat it:\n"
                f"    python {sys.argv[0]} --seed {plan.seed} --first {number} --{unit} 1"
            )
        print(f"{unit}: number {number} {problem}, and so did PyTorch alone", flush=True)
        plan = plan.after(number)


def _try_all(plan: Plan, unit: str, make: Callable[[], Target], shared: mmap.mmap) -> str:
    """Tries all cases in a process of their own, and says what went wrong, if something did."""
    child = os.fork()
    if child == 0:
        _work(plan, unit, make, shared)
    return _watch(child, shared)


def _blames_pytorch(plan: Plan, number: int, make: Callable[[], Target], shared: mmap.mmap) -> bool:
    """Whether what PyTorch alone does of a case ends a process, too."""
    child = os.fork()
    if child == 0:
        try:
            getattr(make(), "pytorch_alone", lambda draw: None)(case(plan.seed, number))
        finally:
            os._exit(0)
    return _watch(child, shared).startswith("ended by")


def _seed(text: str) -> int:
    return random.SystemRandom().getrandbits(32) if text == "random" else int(text)


def _work(plan: Plan, unit: str, make: Callable[[], Target], shared: mmap.mmap) -> None:
    """Tries all cases and ends this process."""
    faulthandler.enable()

    def begins(number: int) -> None:
        shared[:] = number.to_bytes(8, "little")

    start = time.perf_counter()
    try:
        outcomes = attempt_all(make(), plan, begins)
        seconds = time.perf_counter() - start
        counts = ", ".join(f"{number:,} {what}" for what, number in sorted(outcomes.items()))
        print(f"{outcomes.total():,} {unit} in {seconds:.0f} s: {counts}")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _watch(child: int, shared: mmap.mmap) -> str:
    """Waits for the process of the cases and says what went wrong, if something did."""
    seen, since = bytes(shared[:]), time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                return f"ended by {signal.Signals(-code).name}"
            return "failed" if code else ""
        if bytes(shared[:]) != seen:
            seen, since = bytes(shared[:]), time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            os.kill(child, signal.SIGABRT)  # prints where it is
            os.waitpid(child, 0)
            return f"took longer than {_PATIENCE:.0f} s"
        time.sleep(0.1)
