"""The one training loop of all experiments: SGD, schedule, mixed precision, DDP, exact resume."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from common.distributed import World
from common.runs import RunError, RunFolder
from common.stopping import Signals, StoppedError, noted_signals
from image_data import Batches, DataSet, EpochOrder, mixed_seed
from networks import compressed_weights
from sketchlayers import broadcast_model, param_groups
from sketchlayers.surgery.evaluation import evaluating

CHECK_EVERY = 10
"""Steps between looks at the loss; on a GPU each look waits for the device."""

SAVE_SECONDS = 600
"""Between checkpoints within an epoch; signals and the end of an epoch make one at once."""

PRECISIONS = ("highest", "high", "medium")

_AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all processes.
        lr: largest learning rate.
        momentum: of SGD.
        weight_decay: of weights; biases and normalisation layers have none.
        compressed_lr: factor on the learning rate of the weights of compressed layers.
        gain: of `sketchlayers.param_groups`; ``"none"`` gives a sketch's factors the learning rate
            as it is.
        warmup: epochs in which the learning rate rises linearly from 0.
        schedule: ``"cosine"`` to 0, or ``"step"``: a tenth at half and at three quarters.
        label_smoothing: share of the target given to all classes evenly.
        clip: largest norm of all gradients together; None leaves them as they are.
        amp: ``"off"``, ``"bf16"`` or ``"fp16"``, the type of mixed precision.
        precision: of float32 products and convolutions on GPUs: ``"highest"``, ``"high"`` (TF32)
            or ``"medium"``.
        channels_last: keep images and weights with the channels innermost.
        compile: run the network through ``torch.compile``.
        deterministic: allow deterministic kernels only.
        test_every: epochs from one look at the test images to the next; the last epoch has one.
        seed: fixes order, augmentation and dropout.

    Raises:
        ValueError: if a value is out of range.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    compressed_lr: float = 1.0
    gain: Literal["mean", "none"] = "mean"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 1.0
    schedule: Literal["cosine", "step"] = "cosine"
    label_smoothing: float = 0.0
    clip: float | None = None
    amp: Literal["off", "bf16", "fp16"] = "off"
    precision: Literal["highest", "high", "medium"] = "highest"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    test_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _check("lr", self.lr, 0 < self.lr < math.inf, "positive")
        _check("compressed_lr", self.compressed_lr, 0 < self.compressed_lr < math.inf, "positive")
        _check("gain", self.gain, self.gain in ("mean", "none"), "mean or none")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _check("warmup", self.warmup, self.warmup >= 0, "at least 0")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        _check("clip", self.clip, self.clip is None or self.clip > 0, "positive")
        _check("schedule", self.schedule, self.schedule in ("cosine", "step"), "cosine or step")
        _check("amp", self.amp, self.amp in _AMP_TYPES, "off, bf16 or fp16")
        _check("precision", self.precision, self.precision in PRECISIONS, ", ".join(PRECISIONS))
        _check("test_every", self.test_every, self.test_every >= 1, "at least 1")
        _check("seed", self.seed, self.seed >= 0, "at least 0")

    def factor(self, epoch: float) -> float:
        """Learning rate, as a share of `lr`, after `epoch` passes (a fraction inside a pass)."""
        if epoch < self.warmup:
            return epoch / self.warmup
        if self.schedule == "step":
            return 0.1 ** ((epoch >= self.epochs / 2) + (epoch >= 3 * self.epochs / 4))
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
        tensorboard: write TensorBoard events into the folder as well.

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
        tensorboard: bool = False,
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
        self.memory_format = (
            torch.channels_last if recipe.channels_last else torch.contiguous_format
        )
        self.network = network.to(self.world.device).to(memory_format=self.memory_format)
        self.train_batches, self.test_batches = make_batches(data, recipe, self.world, workers)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.optimizer = _sgd(self.network, recipe)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=recipe.amp == "fp16")
        self.forward = self._forward_module()
        self.events = _event_writer(folder) if tensorboard and folder else None
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
            with _numerics(self.recipe), noted_signals() as self._signals:
                for epoch in range(len(self.history), self.recipe.epochs):
                    self._run_epoch(epoch)
        except DivergedError:
            return Outcome("diverged", self.history)
        finally:
            if self.events is not None:
                self.events.close()
        return Outcome("finished", self.history)

    def evaluate(self) -> Score:
        """Loss and accuracy on the test images, in eval mode."""
        return evaluate(
            self.network,
            self.test_batches,
            world=self.world,
            amp=self.recipe.amp,
            memory_format=self.memory_format,
        )

    def step_seconds(self) -> list[float]:
        """Seconds of every training step of an epoch, at a learning rate of 0."""
        self._set_learning_rate(0)
        self.forward.train()
        seconds = []
        with _numerics(self.recipe):
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
            # Of several processes all go through it, or the others would wait for one for ever.
            with self._signals.raised() if self.world.size == 1 else nullcontext():
                test = self.evaluate() if tested else None
        except StoppedError:
            self._save()
            self.world.wait()  # torchrun ends the others when the first has ended
            raise
        images = len(self.train_batches) * self.train_batches.order.batch_size
        record = Epoch(
            epoch=done,
            learning_rate=self.recipe.lr * self.recipe.factor(done),
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
                self._set_learning_rate(epoch + part.steps / steps)
                part.totals += self._step(*next(batches))
                part.steps += 1
                bar.update()
                # Several processes can only stop together.
                alone = self._signals.noted and self.world.size == 1
                if part.steps % CHECK_EVERY == 0 or part.steps == steps or alone:
                    score = self._look(epoch)
                    bar.set_postfix(loss=f"{score.loss:.3f}", accuracy=f"{score.accuracy:.1f}%")
                    self._save_from_time_to_time()
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
            loss = self.criterion(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return _totals(loss.detach(), logits.detach(), labels)

    def _set_learning_rate(self, epoch: float) -> None:
        factor = self.recipe.factor(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

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
        if self.events is not None:
            known = {key: value for key, value in asdict(record).items() if value is not None}
            for key, value in known.items():
                self.events.add_scalar(key, value, record.epoch)

    def _new_part(self) -> EpochPart:
        return EpochPart(torch.zeros(3, dtype=torch.float64, device=self.world.device))

    def _save_from_time_to_time(self) -> None:
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

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
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": rows,
                "part": part,
            }
        )
        self.folder.write_log(rows)

    def _restore(self) -> None:
        state = self.folder.load_checkpoint(self.arguments) if self.folder else None
        if state is None:
            return
        check_fits(self.network, state["network"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [Epoch(**row) for row in state["history"]]
        self.part = self._restored_part(**state["part"])
        if self.world.is_main and self.folder is not None:
            self.folder.write_log(state["history"])

    def _restored_part(self, steps: int, totals: list[float], seconds: float) -> EpochPart:
        part = self._new_part()
        if self.world.is_main:  # or their sum would have them several times
            part.totals += part.totals.new_tensor(totals)
        return replace(part, steps=steps, shared=tuple(totals), seconds=seconds)


def make_batches(
    data: DataSet, recipe: Recipe, world: World, workers: int = 0
) -> tuple[Batches, Batches]:
    """Training batches (shuffled, augmented) and test batches of this process's share."""
    train = Batches(
        data.train,
        EpochOrder(
            len(data.train),
            recipe.batch_size,
            shuffle=True,
            seed=recipe.seed,
            rank=world.rank,
            world_size=world.size,
        ),
        data.normalisation,
        data.augmentation,
        size=data.size,
        workers=workers,
        device=world.device,
    )
    test = Batches(
        data.test,
        EpochOrder(len(data.test), 256, shuffle=False, rank=world.rank, world_size=world.size),
        data.normalisation,
        size=data.size,
        workers=workers,
        device=world.device,
    )
    return train, test


def evaluate(
    network: nn.Module,
    batches: Batches,
    *,
    world: World | None = None,
    amp: str = "off",
    memory_format: torch.memory_format = torch.contiguous_format,
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
    groups = param_groups(network, lr=recipe.lr, weight_decay=recipe.weight_decay, gain=recipe.gain)
    if recipe.compressed_lr != 1:
        groups = list(_with_own_rate(groups, compressed_weights(network), recipe.compressed_lr))
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _with_own_rate(
    groups: Iterable[dict[str, Any]], weights: set[nn.Parameter], factor: float
) -> Iterator[dict[str, Any]]:
    """The groups, with the learning rate of some parameters multiplied by a factor."""
    for group in groups:
        for chosen, lr in ((True, factor * group["lr"]), (False, group["lr"])):
            parameters = [one for one in group["params"] if (one in weights) == chosen]
            if parameters:
                yield {**group, "params": parameters, "lr": lr}


@contextmanager
def _numerics(recipe: Recipe) -> Iterator[None]:
    """PyTorch computes with the recipe's precision, and as it did before afterwards."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.set_float32_matmul_precision(recipe.precision)
    torch.backends.cudnn.allow_tf32 = recipe.precision != "highest"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def _autocast(device: torch.device, amp: str) -> torch.autocast:
    dtype = _AMP_TYPES[amp]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of losses, number of right answers, number of images."""
    count = torch.tensor(len(labels), device=labels.device)
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.double() * count, right.double(), count.double()])


def _score(totals: Sequence[float]) -> Score:
    loss, right, count = totals
    return Score(loss / count, 100 * right / count)


def check_fits(network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Names and shapes must agree before anything is loaded, so that a misfit changes nothing."""
    here = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    there = {key: tuple(value.shape) for key, value in saved.items()}
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            raise RunError(
                f"checkpoint: {key} must have the network's shape "
                f"(got {there.get(key)}, the network has {here.get(key)})"
            )


def _event_writer(folder: RunFolder) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.path))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name}: must be {rule} (got {value})")
