"""A fixed list of random calls of all operators; ``fuzz.py`` runs any number of others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .fuzz import NAMES, Maker

FUZZER = Path(__file__).with_name("fuzz.py")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZER), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_operator_is_called() -> None:
    assert len(NAMES) >= 15 and all(hasattr(Maker, f"_{name}") for name in NAMES)


def test_results_are_sound_or_errors_say_why() -> None:
    """In a process of its own: a crash would take the tests along."""
    calls = 8000
    done = run("--seed", "0", "--calls", str(calls))
    assert done.returncode == 0, done.stderr[-4000:]
    # PyTorch alone ends the process on some calls, other ones on other processors; behind such a
    # call a new process counts from 0.
    ended = re.findall(r"number (\d+) ended by \w+, and so did PyTorch alone", done.stdout)
    counts = {
        what: int(n.replace(",", "")) for n, what in re.findall(r"(\d[\d,]*) (\w+)", done.stdout)
    }
    assert counts["calls"] == calls - (int(ended[-1]) + 1 if ended else 0), done.stdout
    assert counts["computed"] >= counts["calls"] / 2, done.stdout
    assert counts["refused"] >= counts["calls"] / 10, done.stdout


def test_a_failure_tells_how_to_repeat_it(tmp_path: Path) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(FUZZER.parents[2])!r})\n"
        "from tests import fuzzing\n"
        "class Target:\n"
        "    def attempt(self, draw):\n"
        "        if draw.random() > 0.9:\n"
        "            os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        return 'survived'\n"
        "fuzzing.main('Crashes.', 'calls', 1000, Target)\n"
    )
    found = subprocess.run([sys.executable, str(crash)], capture_output=True, text=True)
    assert found.returncode == 1 and "ended by SIGSEGV" in found.stderr
    again = re.search(r"--seed 0 --first (\d+) --calls 1", found.stderr)
    assert again is not None
    command = [sys.executable, str(crash), *again[0].split()]
    assert "ended by SIGSEGV" in subprocess.run(command, capture_output=True, text=True).stderr
    number = int(again[1])
    command = [sys.executable, str(crash), "--calls", str(number)]
    assert subprocess.run(command, capture_output=True).returncode == 0
