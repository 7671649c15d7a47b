from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from torch import Tensor

import train
import training
from common.distributed import World
from common.runs import CHECKPOINT_FORMAT, RunError, RunFolder
from common.stopping import StoppedError, noted_signals
from image_data import load

EXPERIMENTS = Path(train.__file__).parent
SMALL = ["--width", "0.1", "--subset", "320", "--test-subset", "50", "--size", "8"]
SKETCH = ["--method", "sketch", "--rate", "0.5", "--batch-size", "32", "--threads", "1"]
ARGUMENTS = [*SMALL, *SKETCH, "--epochs", "8"]

KILLED_IN_STEP_35 = """
import os, signal, sys
import train, training

steps, step = 0, training.Trainer._step

def counted(self, *batch):
    global steps
    steps += 1
    if steps == 35:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *batch)

training.Trainer._step = counted
train.main(sys.argv[1:])
"""
"""A training that is killed in the middle of its fourth epoch."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train.main([*ARGUMENTS, "--out", str(out)]) == 0
    return RunFolder(out)


def network(folder: RunFolder) -> dict[str, Tensor]:
    return RunFolder.read_checkpoint(folder.checkpoint)["network"]


def check_same_run(folder: RunFolder, other: RunFolder) -> None:
    first, second = network(folder), network(other)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
    histories = [
        [
            {key: value for key, value in row.items() if "second" not in key}
            for row in RunFolder.read_checkpoint(each.checkpoint)["history"]
        ]
        for each in (folder, other)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 8


def test_killed_run_resumes_to_bit_identical_weights(
    tmp_path: Path, uninterrupted: RunFolder
) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", KILLED_IN_STEP_35, *ARGUMENTS, "--out", str(folder.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXPERIMENTS)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert len(RunFolder.read_checkpoint(folder.checkpoint)["history"]) == 3
    assert train.main([*ARGUMENTS, "--out", str(folder.path), "--resume"]) == 0
    check_same_run(folder, uninterrupted)


def test_run_stopped_within_an_epoch_resumes_to_bit_identical_weights(
    tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    steps = 0
    step = training.Trainer._step

    def stop_in_step_25(self: training.Trainer, *batch: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 25:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_step", stop_in_step_25)
        assert train.main([*ARGUMENTS, "--out", str(folder.path)]) == 130
    assert len(RunFolder.read_checkpoint(folder.checkpoint)["history"]) == 2
    assert train.main([*ARGUMENTS, "--out", str(folder.path), "--resume"]) == 0
    check_same_run(folder, uninterrupted)


def test_schedule_and_moving_average_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*ARGUMENTS, "--schedule", "one_cycle", "--ema", "0.9", "--label-smoothing", "0.1"]
    whole, part = (RunFolder(tmp_path / name) for name in ("whole", "part"))
    assert train.main([*options, "--out", str(whole.path)]) == 0
    step = training.Trainer._step

    def stop(self: training.Trainer, *batch: Tensor) -> Tensor:
        if (len(self.history), self.part.steps) == (3, 4):
            signal.raise_signal(signal.SIGTERM)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_step", stop)
        assert train.main([*options, "--out", str(part.path)]) == 130
    assert train.main([*options, "--out", str(part.path), "--resume"]) == 0
    check_same_run(part, whole)
    ends = [RunFolder.read_checkpoint(one.checkpoint)["in_training"] for one in (part, whole)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@pytest.mark.parametrize("where", ["_step", "evaluate"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_a_signal_saves_what_was_done(
    tmp_path: Path,
    uninterrupted: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    kind: signal.Signals,
) -> None:
    """In the fifth step of the third epoch, or while the test images are gone through after it.

    Then a step of the next epoch is the first place to stop.
    """
    folder = RunFolder(tmp_path / "run")
    original = getattr(training.Trainer, where)
    done: list[str] = []

    def stop(self: training.Trainer, *batch: Tensor) -> object:
        done.append(where)
        if len(self.history) == 2 and (where == "evaluate" or self.part.steps == 4):
            signal.raise_signal(kind)
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, where, stop)
        assert train.main([*ARGUMENTS, "--out", str(folder.path)]) == 130
    state = RunFolder.read_checkpoint(folder.checkpoint)
    expected = (2, 5) if where == "_step" else (3, 1)
    assert (len(state["history"]), state["part"]["steps"]) == expected
    before = len(done)
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, where, lambda *args: done.append("") or original(*args))
        assert train.main([*ARGUMENTS, "--out", str(folder.path), "--resume"]) == 0
    assert len(done) - before == (60 - 5 if where == "_step" else 5)  # nothing is done again
    check_same_run(folder, uninterrupted)


def test_signals_are_noted() -> None:
    """However many there were, one is raised in the end; then the handlers are those before."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError), noted_signals() as signals:
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(kind)
            assert signals.noted
        done = True
    assert done
    assert signal.getsignal(signal.SIGTERM) == before


def test_long_epochs_have_checkpoints_of_their_own(
    tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a crash, of which no signal tells, loses minutes."""
    folder = RunFolder(tmp_path / "run")
    save = RunFolder.save_checkpoint

    def crash(self: RunFolder, state: dict[str, Any]) -> None:
        save(self, state)
        if state["part"]["steps"]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_SECONDS", 0)
        patch.setattr(training, "CHECK_EVERY", 4)
        patch.setattr(RunFolder, "save_checkpoint", crash)
        assert train.main([*ARGUMENTS, "--out", str(folder.path)]) == 130
    assert RunFolder.read_checkpoint(folder.checkpoint)["part"]["steps"] == 4
    assert train.main([*ARGUMENTS, "--out", str(folder.path), "--resume"]) == 0
    check_same_run(folder, uninterrupted)


def test_finished_run_is_left_alone_by_resume(uninterrupted: RunFolder) -> None:
    before = uninterrupted.checkpoint.read_bytes()
    assert train.main([*ARGUMENTS, "--out", str(uninterrupted.path), "--resume"]) == 0
    assert uninterrupted.checkpoint.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text", "other format"])
def test_damaged_checkpoint_gives_one_error_and_stays(
    tmp_path: Path,
    uninterrupted: RunFolder,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(tmp_path)
    whole = uninterrupted.checkpoint.read_bytes()
    if damage == "other format":
        torch.save({"weights": torch.ones(2)}, folder.checkpoint)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        contents = {"truncated": whole[:middle], "empty": b"", "text": b"no checkpoint"}
        contents["one bit"] = flipped
        folder.checkpoint.write_bytes(contents[damage])
    before = folder.checkpoint.read_bytes()
    assert train.main([*ARGUMENTS, "--out", str(tmp_path), "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: checkpoint: {folder.checkpoint} must be a ")
    assert error.count("\n") == 1
    assert folder.checkpoint.read_bytes() == before


def test_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"format": CHECKPOINT_FORMAT, "network": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="must be a readable checkpoint"):
        RunFolder(tmp_path).load_checkpoint({})
    assert not (tmp_path / "harm").exists()


def test_other_arguments_are_refused(
    uninterrupted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uninterrupted.checkpoint.read_bytes()
    arguments = [*ARGUMENTS, "--lr", "0.07", "--out", str(uninterrupted.path), "--resume"]
    assert train.main(arguments) == 2
    assert "(got recipe.lr=0.1 then and 0.07 now)" in capsys.readouterr().err
    assert uninterrupted.checkpoint.read_bytes() == before


def test_what_changes_the_random_numbers_of_an_image_is_compared(tmp_path: Path) -> None:
    for name in ("train/cat/0", "train/dog/1", "test/cat/2", "test/dog/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 10)).save(tmp_path / f"{name}.png")
    folder = RunFolder(tmp_path)

    def trainer(*, stream: bool, workers: int, processes: int = 1) -> training.Trainer:
        data = load("imagefolder", tmp_path, size=8, stream=stream)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        # Processes that do not exist cannot be joined.
        with mock.patch.object(training.Trainer, "_forward_module", return_value=network):
            return training.Trainer(
                network,
                data,
                training.Recipe(),
                world=World(size=processes),
                folder=folder,
                workers=workers,
            )

    trainer(stream=True, workers=1)._save()
    trainer(stream=True, workers=2)._restore()
    with pytest.raises(RunError, match=r"data.streamed=True then and False now"):
        trainer(stream=False, workers=1)._restore()
    with pytest.raises(RunError, match=r"\(got processes=1 then and 2 now\)"):
        trainer(stream=True, workers=1, processes=2)._restore()
    other = Image.new("RGB", (10, 10), "white")
    trainer(stream=False, workers=1)._save()
    other.save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(RunError, match=r"data.fingerprint='\w{8}' then and '\w{8}' now"):
        trainer(stream=False, workers=1)._restore()


def test_a_folder_with_a_run_is_not_overwritten(
    uninterrupted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uninterrupted.checkpoint.read_bytes()
    assert train.main([*ARGUMENTS, "--out", str(uninterrupted.path)]) == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert uninterrupted.checkpoint.read_bytes() == before


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with folder.taken():
        assert train.main([*ARGUMENTS, "--out", str(folder.path)]) == 2
    assert "no other process may train" in capsys.readouterr().err
    assert not folder.summary.exists()


def test_the_last_checkpoint_but_one_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(3):
        folder.save_checkpoint({"arguments": {}, "number": number})
    assert RunFolder.read_checkpoint(folder.checkpoint)["number"] == 2
    assert RunFolder.read_checkpoint(folder.previous)["number"] == 1
    folder.checkpoint.unlink()  # as by a kill between the two renames
    with pytest.warns(UserWarning, match=r"going on from checkpoint_before\.pt"):
        state = folder.load_checkpoint({})
    assert state is not None and state["number"] == 1
