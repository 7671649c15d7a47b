from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from distributed import World, join
from image_data import DataSet
from runs import RunFolder
from training import Recipe, Trainer

from . import ddp_worker

EXPERIMENTS = Path(train.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXPERIMENTS)}
    done = subprocess.run(
        [*TORCHRUN, *command], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


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


def test_train_command_runs_under_torchrun(tmp_path: Path) -> None:
    options = ["--width", "0.1", "--size", "8", "--subset", "64", "--test-subset", "30"]
    sketch = ["--method", "sketch", "--rate", "0.5", "--epochs", "1", "--device", "cpu"]
    out = tmp_path / "run"
    torchrun(str(EXPERIMENTS / "train.py"), *options, *sketch, "--out", str(out))
    folder = RunFolder(out)
    assert '"processes": 2' in folder.summary.read_text()
    assert len(RunFolder.read_checkpoint(folder.checkpoint)["history"]) == 1


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ValueError, match="device: PyTorch must see a GPU"), join("cuda"):
        pass
