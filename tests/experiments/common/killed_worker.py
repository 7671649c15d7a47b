"""The training command, in which a process gets a signal within the second epoch, once."""

from __future__ import annotations

import os
import signal
import sys

from torch import Tensor

import train
import training

_STEP = training.Trainer._step


def step(self: training.Trainer, *batch: Tensor) -> Tensor:
    first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_start and self.world.rank == 1 and len(self.history) == 1 and not self.part.steps:
        signal.raise_signal(signal.Signals[os.environ["SIGNAL_TO_SEND"]])
    return _STEP(self, *batch)


if __name__ == "__main__":
    training.Trainer._step = step  # type: ignore[method-assign]
    sys.exit(train.main())
