from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plot
import train
from common import distributed
from common.distributed import World, join
from common.runs import RunFolder
from common.stopping import stoppable
from image_data import DataSet
from training import Recipe, Trainer

from . import ddp_worker, killed_worker

EXPERIMENTS = Path(train.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*command: str, signal: str = "SIGKILL") -> str:
    """Runs a command in two processes; what it printed to stderr.

    Args:
        command: arguments of torchrun.
        signal: what `killed_worker` sends to itself.
    """
    path = os.pathsep.join(filter(None, [str(EXPERIMENTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment["SIGNAL_TO_SEND"] = signal
    done = subprocess.run(
        [*TORCHRUN, *command], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    torchrun(ddp_worker.__file__, str(tmp_path / "two"))
    one = ddp_worker.train(World(), tmp_path / "one")
    shared = RunFolder.read_checkpoint(tmp_path / "two" / "checkpoint.pt")
    alone = RunFolder.read_checkpoint(tmp_path / "one" / "checkpoint.pt")
    for key, value in alone["network"].items():
        torch.testing.assert_close(shared["network"][key], value, rtol=1e-3, atol=1e-5)
    last = shared["history"][-1]
    assert last["train_loss"] == pytest.approx(one.history[-1].train_loss, rel=1e-3)
    assert last["test_loss"] == pytest.approx(one.history[-1].test_loss, rel=1e-3)


OPTIONS = ["--width", "0.1", "--size", "8", "--subset", "128", "--test-subset", "30"]
OPTIONS += ["--method", "sketch", "--rate", "0.5", "--epochs", "3", "--device", "cpu"]


@pytest.mark.slow  # these three start eight jobs of three processes
def test_a_job_goes_on_when_a_process_was_killed(tmp_path: Path) -> None:
    """And ends with the weights of one that was never stopped."""
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    torchrun(train.__file__, *OPTIONS, "--out", str(whole.path))
    assert '"processes": 2' in whole.summary.read_text()
    restarted = torchrun(
        "--max-restarts", "1", killed_worker.__file__, *OPTIONS, "--resume", "--out",
        str(stopped.path),
    )  # fmt: skip
    assert "Signal 9 (SIGKILL)" in restarted or "exitcode: -9" in restarted
    ends = [RunFolder.read_checkpoint(folder.checkpoint) for folder in (whole, stopped)]
    assert [row["epoch"] for row in ends[1]["history"]] == [1, 2, 3]
    for key, value in ends[0]["network"].items():
        assert torch.equal(ends[1]["network"][key], value), key


@pytest.mark.slow
def test_processes_stop_together(tmp_path: Path) -> None:
    """When one of them is asked to, in the middle of an epoch; the job goes on from there."""
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    options = [*OPTIONS[:-4], "--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    torchrun(train.__file__, *options, "--out", str(whole.path))
    command = [killed_worker.__file__, *options, "--resume", "--out", str(stopped.path)]
    with pytest.raises(AssertionError):
        torchrun(*command, signal="SIGTERM")
    state = RunFolder.read_checkpoint(stopped.checkpoint)
    assert len(state["history"]) == 1 and state["part"]["steps"] == 10
    torchrun(train.__file__, *options, "--resume", "--out", str(stopped.path))
    ends = [RunFolder.read_checkpoint(folder.checkpoint) for folder in (whole, stopped)]
    assert ends[0]["history"][1]["train_loss"] == ends[1]["history"][1]["train_loss"]
    for key, value in ends[0]["network"].items():
        assert torch.equal(ends[1]["network"][key], value), key


@pytest.mark.slow
def test_a_figure_runs_under_torchrun(tmp_path: Path) -> None:
    """One process writes; what is there is done by neither again."""
    options = ["--data", "digits", "--size", "8", "--width", "0.1", "--subset", "64"]
    options += ["--test-subset", "30", "--epochs", "1", "--methods", "sketch", "--points"]
    options += ["CONV_8", "--device", "cpu", "--out", str(tmp_path / "out")]
    script = str(EXPERIMENTS / "figure2.py")
    torchrun(script, *options)
    results = tmp_path / "out" / "results.csv"
    assert len(results.read_text().splitlines()) == 3
    summary = tmp_path / "out" / "sketch" / "CONV_8" / "seed_0" / "summary.json"
    before = summary.stat().st_mtime_ns
    torchrun(script, *options)
    assert summary.stat().st_mtime_ns == before


def test_a_batch_must_be_shared_evenly(few_digits: DataSet) -> None:
    with pytest.raises(ValueError, match=r"batch_size: must be a multiple of the 2 processes"):
        Trainer(torch.nn.Flatten(), few_digits, Recipe(batch_size=3), world=World(size=2))


def test_every_script_shares_its_work_or_runs_alone() -> None:
    for path in EXPERIMENTS.glob("*.py"):
        source = path.read_text()
        if '__name__ == "__main__"' in source:
            shares = r"with join\(|main_of\(|run_missing\(|^ +alone\(\)$"
            assert re.search(shares, source, re.MULTILINE), path.name


def test_a_script_for_one_process_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "SIZE", 2)
    monkeypatch.setattr(sys, "argv", ["experiments/plot.py"])
    for rank, text in enumerate(
        ("error: plot.py runs in one process, start it by python instead of torchrun (got 2 ", "")
    ):
        monkeypatch.setattr(distributed, "RANK", rank)
        with pytest.raises(SystemExit) as raised:
            plot.main([])
        assert raised.value.code == 2
        assert capsys.readouterr().err.startswith(text)


def test_processes_share_runs_that_need_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "SIZE", 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "RANK", rank)
        halves.append(distributed.share([1, 2, 3]))
    assert halves == [[1, 3], [2]]


def test_torchrun_stops_its_processes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) != before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ValueError, match="device: PyTorch must see a GPU"), join("cuda"):
        pass
