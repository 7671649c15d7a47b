"""The one training loop of all experiments: SGD, schedule, mixed precision, DDP, exact resume."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from common.distributed import World
from common.runs import RunFolder
from common.stopping import Signals, StoppedError, noted_signals
from image_data import Batches, DataSet, EpochOrder, mixed_seed
from sketchlayers import broadcast_model, param_groups
from sketchlayers._runtime.files import write_csv
from sketchlayers.surgery.evaluation import evaluating

CHECK_EVERY = 10
"""Steps between looks at the loss; on a GPU each look waits for the device."""

SAVE_SECONDS = 600
"""Between checkpoints within an epoch; signals and the end of an epoch make one at once."""

_MOMENTUM_SWING = 0.05
"""How far the momentum goes from its value in both directions within one cycle."""


def _setting(default: Any, kind: Any, help: str, rule: str = "", holds: Any = None) -> Any:
    """A field of `Recipe`: its type, or the strings that it may be, and what must hold of it."""
    option = {"type": kind}
    if isinstance(kind, tuple):
        rule, holds = f"{', '.join(kind[:-1])} or {kind[-1]}", kind.__contains__
        option = {"choices": kind}
    elif kind is bool:
        option = {"action": "store_true"}
    option |= {"default": default, "help": help}
    return field(default=default, metadata={"rule": rule, "holds": holds, "option": option})


_POSITIVE = ("positive", lambda value: value is None or 0 < value < math.inf)
_AT_LEAST_0 = ("at least 0", lambda value: value >= 0)
_AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
_BELOW_1 = ("in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; each field says what it is, here and in the help of commands.

    Raises:
        ValueError: if a value is out of range.
    """

    epochs: int = _setting(20, int, "passes over the training images", *_AT_LEAST_1)
    batch_size: int = _setting(64, int, "images in a batch, over all processes", *_AT_LEAST_1)
    lr: float = _setting(
        0.05, float, "largest learning rate (commands: what suits each method)", *_POSITIVE
    )
    momentum: float = _setting(0.9, float, "of SGD", *_BELOW_1)
    weight_decay: float = _setting(
        5e-4, float, "of weights; biases and normalisation layers have none", *_AT_LEAST_0
    )
    schedule: Literal["cosine", "one_cycle"] = _setting(
        "cosine",
        ("cosine", "one_cycle"),
        "of the learning rate: up linearly and down as a cosine, or PyTorch's OneCycleLR, in which "
        "the momentum falls and rises again",
    )
    warmup: float = _setting(1.0, float, "epochs in which the learning rate rises", *_AT_LEAST_0)
    label_smoothing: float = _setting(
        0.0, float, "share of each label that all classes get alike", *_BELOW_1
    )
    ema: float = _setting(
        0.0,
        float,
        "decay, each step, of a moving average of the weights, which is tested and kept in the "
        "weights' place; 0: none",
        *_BELOW_1,
    )
    clip: float | None = _setting(None, float, "largest norm of all gradients together", *_POSITIVE)
    amp: Literal["off", "bf16"] = _setting("off", ("off", "bf16"), "type of mixed precision")
    memory_format: Literal["channels_last", "contiguous"] = _setting(
        "channels_last", ("channels_last", "contiguous"), "of weights and images"
    )
    compile: bool = _setting(False, bool, "use torch.compile")
    test_every: int = _setting(
        1, int, "epochs from one test to the next; the last has one", *_AT_LEAST_1
    )
    seed: int = _setting(0, int, "fixes order, augmentation and dropout", *_AT_LEAST_0)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, holds = getattr(self, one.name), one.metadata["holds"]
            if holds is not None and not holds(value):
                raise ValueError(f"{one.name}: must be {one.metadata['rule']} (got {value})")

    def factor(self, epoch: float) -> float:
        """Learning rate of the schedule ``"cosine"``, as a share of `lr`, after `epoch` passes.

        It falls from the end of the warm-up to the last epoch as a cosine, to 0.

        Args:
            epoch: a fraction inside a pass.
        """
        if epoch < self.warmup:
            return epoch / self.warmup
        progress = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def recipe_of(args: argparse.Namespace, **given: Any) -> Recipe:
    """The recipe that options of the same names describe, with some values given instead.

    Raises:
        ValueError: a value is out of range.
    """
    options = {one.name: getattr(args, one.name) for one in fields(Recipe) if one.name in args}
    return Recipe(**(options | given))


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave; accuracies in percent, times in seconds.

    Where the test images were not looked at, their loss and accuracy are None.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    train_seconds: float
    test_seconds: float
    train_images_per_second: float


@dataclass(frozen=True)
class Outcome:
    """How training ended; ``status`` is ``"finished"`` or ``"diverged"``."""

    status: Literal["finished", "diverged"]
    history: list[Epoch] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in percent; NaN when there was none."""
        last = self.history[-1].test_accuracy if self.history else None
        return math.nan if last is None else last

    @property
    def seconds(self) -> float:
        """Time spent in training and testing, over all parts of an interrupted run."""
        return sum(epoch.train_seconds + epoch.test_seconds for epoch in self.history)


@dataclass(frozen=True)
class Score:
    """Mean loss and accuracy (percent) over a set of images."""

    loss: float
    accuracy: float


@dataclass
class EpochPart:
    """What has been done of an epoch that is not finished.

    Attributes:
        steps: taken, and their batches seen.
        totals: as from `_totals`, of this process.
        shared: of all processes, when they last looked.
        seconds: that it took.
    """

    totals: Tensor
    steps: int = 0
    shared: tuple[float, ...] = (0.0, 0.0, 0.0)
    seconds: float = 0.0


class DivergedError(Exception):
    """The training loss is no longer a finite number."""


class Trainer:
    """Trains one network on one data set.

    The state of every random generator before a step is a function of (seed, epoch, step, process),
    so that an exact resume needs weights, optimiser and the number of steps, and no generator's
    state. There is a checkpoint after each epoch, every ten minutes, and where a signal stops it.

    Args:
        network: trained in place; moved to the world's device.
        data: images to train and test on.
        recipe: how to train.
        world: processes of this run.
        folder: where checkpoint and log go; None keeps nothing.
        arguments: further arguments that a resumed run must share, as JSON values.
        name: shown in front of progress.
        workers: processes that decode streamed images.

    Raises:
        ValueError: if the batch cannot be shared out among the processes.
    """

    def __init__(
        self,
        network: nn.Module,
        data: DataSet,
        recipe: Recipe,
        *,
        world: World | None = None,
        folder: RunFolder | None = None,
        arguments: Mapping[str, object] | None = None,
        name: str = "",
        workers: int = 0,
    ) -> None:
        self.world = world or World()
        if recipe.batch_size % self.world.size:
            raise ValueError(
                f"batch_size: must be a multiple of the {self.world.size} processes "
                f"(got {recipe.batch_size})"
            )
        self.recipe = recipe
        self.folder = folder
        self.arguments = {
            **{f"recipe.{key}": value for key, value in asdict(recipe).items()},
            **{f"data.{key}": value for key, value in data.describe().items()},
            "processes": self.world.size,  # decides which random numbers an image meets
            **(arguments or {}),
        }
        self.name = name
        self.history: list[Epoch] = []
        self.memory_format = _memory_format(recipe)
        self.network = network.to(self.world.device).to(memory_format=self.memory_format)
        self.average = _moving_average(self.network, recipe.ema) if recipe.ema else None
        self.train_batches, self.test_batches = make_batches(data, recipe, self.world, workers)
        self.optimizer = _sgd(self.network, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, len(self.train_batches))
        self.forward = self._forward_module()
        self.part = self._new_part()
        self._signals = Signals()
        self._began, self._saved = time.perf_counter(), time.monotonic()

    def fit(self, *, resume: bool = False) -> Outcome:
        """Trains to the last epoch, or from the folder's checkpoint on, or until divergence.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM; all that was done is in the checkpoint.
            RunError: if the checkpoint to resume from cannot be used.
        """
        if resume:
            self._restore()
        try:
            with noted_signals() as self._signals:
                for epoch in range(len(self.history), self.recipe.epochs):
                    self._run_epoch(epoch)
        except DivergedError:
            return Outcome("diverged", self.history)
        return Outcome("finished", self.history)

    @property
    def trained(self) -> nn.Module:
        """What is tested and kept: the network, or the one with the average of its weights."""
        return self.network if self.average is None else self.average.module

    def evaluate(self) -> Score:
        """Loss and accuracy on the test images, in eval mode."""
        return evaluate(
            self.trained,
            self.test_batches,
            world=self.world,
            amp=self.recipe.amp,
            memory_format=self.memory_format,
        )

    def step_seconds(self) -> list[float]:
        """Seconds of every training step of an epoch, at a learning rate of 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0
        self.forward.train()
        seconds = []
        begin = time.perf_counter()
        for images, labels in self.train_batches:
            self._step(images, labels).tolist()  # waits for the device
            seconds.append(time.perf_counter() - begin)
            begin = time.perf_counter()
        return seconds

    def _run_epoch(self, epoch: int) -> None:
        done = epoch + 1
        tested = done % self.recipe.test_every == 0 or done == self.recipe.epochs
        try:
            train = self._train_epoch(epoch)
            begin = time.perf_counter()
            test = self.evaluate() if tested else None
        except StoppedError:
            self._save()
            self.world.wait()  # torchrun ends the others when the first has ended
            raise
        images = len(self.train_batches) * self.train_batches.order.batch_size
        record = Epoch(
            epoch=done,
            learning_rate=self.recipe.lr * _share_of_largest(self.optimizer),
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
            train_seconds=self.part.seconds,
            test_seconds=time.perf_counter() - begin,
            train_images_per_second=images / self.part.seconds,
        )
        self.history.append(record)
        self.part = self._new_part()
        self._save()
        if self.world.is_main:
            self._report(record)

    def _train_epoch(self, epoch: int) -> Score:
        """What is left of an epoch; signals stop it after a step."""
        part, order, steps = self.part, self.train_batches.order, len(self.train_batches)
        order.epoch, order.done = epoch, part.steps
        self.forward.train()
        batches = iter(self.train_batches)
        self._began = time.perf_counter() - part.seconds
        with self._bar(epoch, steps) as bar:
            while part.steps < steps:
                seed_generators(self.recipe.seed, epoch, part.steps, self.world.rank)
                part.totals += self._step(*next(batches))
                self.scheduler.step()
                part.steps += 1
                bar.update()
                # Several processes can only stop together.
                alone = self._signals.noted and self.world.size == 1
                if part.steps % CHECK_EVERY == 0 or part.steps == steps or alone:
                    score = self._look(epoch)
                    bar.set_postfix(loss=f"{score.loss:.3f}", accuracy=f"{score.accuracy:.1f}%")
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self._save()
        return _score(part.shared)

    def _look(self, epoch: int) -> Score:
        """What all processes have done; waits for the device.

        Raises:
            DivergedError: the loss is not finite.
            StoppedError: a process has been asked to stop.
        """
        asked = self.part.totals.new_tensor([self._signals.noted])
        *totals, stops = self.world.total(torch.cat([self.part.totals, asked])).tolist()
        self.part.shared = tuple(totals)
        self.part.seconds = time.perf_counter() - self._began
        score = _score(totals)
        if not math.isfinite(score.loss):
            raise DivergedError(f"loss {score.loss} in epoch {epoch + 1}")
        if stops:
            raise StoppedError
        return score

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.memory_format)
        with _autocast(self.world.device, self.recipe.amp):
            logits = self.forward(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return _totals(loss.detach(), logits.detach(), labels)

    def _forward_module(self) -> nn.Module:
        if self.recipe.compile:
            torch.compiler.reset()  # or the networks before would count against a limit
        module = self.network
        if self.world.size > 1:
            devices = [self.world.device] if self.world.device.type == "cuda" else None
            module = DistributedDataParallel(module, device_ids=devices)
        return torch.compile(module) if self.recipe.compile else module  # type: ignore[return-value]

    def _bar(self, epoch: int, steps: int) -> tqdm[Any]:
        return tqdm(
            total=steps,
            initial=self.part.steps,
            desc=f"{self.name} epoch {epoch + 1}/{self.recipe.epochs}".strip(),
            leave=False,
            # None lets tqdm stay quiet where the output is no terminal.
            disable=None if self.world.is_main else True,
        )

    def _report(self, record: Epoch) -> None:
        left = (self.recipe.epochs - record.epoch) * (record.train_seconds + record.test_seconds)
        test = ""
        if record.test_loss is not None:
            test = f"test loss {record.test_loss:.3f}, test accuracy {record.test_accuracy:.1f} %, "
        tqdm.write(
            f"{self.name} epoch {record.epoch}/{self.recipe.epochs}: "
            f"loss {record.train_loss:.3f}, accuracy {record.train_accuracy:.1f} %, {test}"
            f"{record.train_images_per_second:.0f} images/s, {_duration(left)} left".strip()
        )

    def _new_part(self) -> EpochPart:
        return EpochPart(torch.zeros(3, dtype=torch.float64, device=self.world.device))

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.folder is None or not self.world.is_main:
            return
        rows = [asdict(epoch) for epoch in self.history]
        part = {
            "steps": self.part.steps,
            "totals": list(self.part.shared),
            "seconds": self.part.seconds,
        }
        self.folder.save_checkpoint(
            {
                "arguments": self.arguments,
                "network": self.trained.state_dict(),
                "in_training": None if self.average is None else self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "history": rows,
                "part": part,
            }
        )
        write_csv(self.folder.log, rows)

    def _restore(self) -> None:
        state = self.folder.load_checkpoint(self.arguments) if self.folder else None
        if state is None:
            return
        self.trained.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.network.load_state_dict(state["in_training"])
            self.average.n_averaged.fill_(self.scheduler.last_epoch)
        self.history = [Epoch(**row) for row in state["history"]]
        self.part = self._restored_part(**state["part"])
        if self.world.is_main and self.folder is not None:
            write_csv(self.folder.log, state["history"])

    def _restored_part(self, steps: int, totals: list[float], seconds: float) -> EpochPart:
        part = self._new_part()
        if self.world.is_main:  # or their sum would have them several times
            part.totals += part.totals.new_tensor(totals)
        return replace(part, steps=steps, shared=tuple(totals), seconds=seconds)


def make_batches(
    data: DataSet, recipe: Recipe, world: World, workers: int = 0
) -> tuple[Batches, Batches]:
    """Training batches (shuffled, augmented) and test batches of this process's share."""
    share: dict[str, Any] = {"rank": world.rank, "world_size": world.size}
    form: dict[str, Any] = {"size": data.size, "workers": workers, "device": world.device}
    order = EpochOrder(len(data.train), recipe.batch_size, shuffle=True, seed=recipe.seed, **share)
    train = Batches(data.train, order, data.normalisation, data.augmentation, **form)
    order = EpochOrder(len(data.test), 256, shuffle=False, **share)
    return train, Batches(data.test, order, data.normalisation, **form)


def evaluate(
    network: nn.Module,
    batches: Batches,
    *,
    world: World | None = None,
    amp: str = "off",
    memory_format: torch.memory_format = torch.channels_last,
) -> Score:
    """Mean loss and accuracy of a network in eval mode; its mode is left as it was.

    Where processes train together the network that is evaluated is that of the first, whose batch
    norms have seen other images than those of the others.
    """
    world = world or World()
    if world.size > 1:
        broadcast_model(network)
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)
    with evaluating(network):
        for images, labels in batches:
            with _autocast(world.device, amp):
                logits = network(images.contiguous(memory_format=memory_format)).float()
            totals += _totals(F.cross_entropy(logits, labels), logits, labels)
    return _score(world.total(totals).tolist())


def seed_generators(*parts: int) -> None:
    """Sets the generators of Python, NumPy and PyTorch to what follows from these numbers."""
    value = mixed_seed(*parts)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _sgd(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    groups = param_groups(network, lr=recipe.lr, weight_decay=recipe.weight_decay)
    for group in groups:
        group["largest_lr"] = group["lr"]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def _share_of_largest(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate as a share of the largest, which is the same for all groups."""
    group = optimizer.param_groups[0]
    return group["lr"] / group["largest_lr"]


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> lr_scheduler.LRScheduler:
    """What sets the learning rate after every one of the `steps` of each epoch."""
    if recipe.schedule == "cosine":
        return lr_scheduler.LambdaLR(optimizer, lambda step: recipe.factor(step / steps))
    total = recipe.epochs * steps + 1  # that after the last is where the cycle ends
    rise = min(recipe.warmup / recipe.epochs, 1.0)
    return lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=rise if rise * total > 1 else 0.0,  # or it would divide by a rise of no steps
        cycle_momentum=recipe.momentum > 0,
        base_momentum=max(recipe.momentum - _MOMENTUM_SWING, 0.0),
        max_momentum=min(recipe.momentum + _MOMENTUM_SWING, 0.99),
    )


def _moving_average(network: nn.Module, decay: float) -> AveragedModel:
    averaged = get_ema_multi_avg_fn(decay)

    def update(averages: Any, values: Any, count: Any) -> None:
        if averages[0].is_floating_point():
            averaged(averages, values, count)
        else:  # numbers of batches, signs and indices, which no mean is for
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def _memory_format(recipe: Recipe) -> torch.memory_format:
    contiguous = recipe.memory_format == "contiguous"
    return torch.contiguous_format if contiguous else torch.channels_last


def _autocast(device: torch.device, amp: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


def _totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of losses, number of right answers, number of images."""
    count = torch.tensor(len(labels), device=labels.device)
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.double() * count, right.double(), count.double()])


def _score(totals: Sequence[float]) -> Score:
    loss, right, count = totals
    return Score(loss / count, 100 * right / count)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
