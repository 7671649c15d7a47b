"""Label-free distillation: a smaller network learns to give the original one's outputs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.nn._checks import whole_number
from sketchlayers.surgery.batches import count_images
from sketchlayers.surgery.sample import Sample, outputs_of, select, squared_distance

BATCH_SIZE = 32
"""Images of a step, unless something else is asked for."""
_SAME_OUTPUTS = 0.03
"""Relative change of outputs up to which a batch of another size gives the same: bfloat16 may."""

Augmentation = Callable[[Any], Any]
"""Changes a batch at random; the original network is shown the same."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How to refine; ``compress(..., refine=True)`` takes these defaults.

    Attributes:
        epochs: passes over the images, at most.
        learning_rate: of Adam at its highest: it rises for one epoch and then falls to 0 along a
            cosine.
        batch_size: images of a step; they all have one size (texts, one length), so there may be
            fewer. None: 32, or those of the loader's first batch where the model does not run with
            32, or returns something else for them than in the loader's batches; then the held-out
            images are whole batches, too.
        blocks: weight of the blocks' outputs in the loss, beside the network's own; 0 for none.
        held_out: share of the images, the last ones, that are not trained on: they tell which
            epoch's factors to keep.
        patience: stop after so many epochs without a new best on the held-out images. Where little
            was lost, the first epochs lose more, which the last ones win back and more.
        augment: "images" mirrors and shifts batches of images at random, None leaves them, a
            function is called with every batch. Whatever it shows, the target is what the original
            network says of it.
        seconds: start no epoch after so long; None for no limit.

    Raises:
        TypeError: an attribute of another type.
        ValueError: an attribute out of its range.
    """

    epochs: int = 32
    learning_rate: float = 2e-3
    batch_size: int | None = None
    blocks: float = 5.0
    held_out: float = 0.1
    patience: int = 16
    augment: str | Augmentation | None = "images"
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if name != "batch_size" or self.batch_size is not None:
                whole_number("Refinement", name, getattr(self, name))
        for name in ("learning_rate", "blocks", "held_out", "seconds"):
            value = getattr(self, name)
            unlimited = name == "seconds" and value is None
            if not unlimited and (isinstance(value, bool) or not isinstance(value, Real)):
                raise TypeError(f"Refinement: {name} must be a number (got {type(value).__name__})")
        if not self.learning_rate > 0:
            raise ValueError(
                f"Refinement: learning_rate must be positive (got {self.learning_rate})"
            )
        if not self.blocks >= 0:
            raise ValueError(f"Refinement: blocks must not be negative (got {self.blocks})")
        if not 0 < self.held_out < 1:
            raise ValueError(f"Refinement: held_out must be in (0, 1) (got {self.held_out})")
        if isinstance(self.augment, str) and self.augment != "images":
            raise ValueError(
                f"Refinement: augment must be 'images', None or a function (got {self.augment!r})"
            )

    def rate_after(self, epochs: float) -> float:
        """Returns the learning rate of the step that ends then."""
        falling = math.cos(math.pi * epochs / self.epochs) / 2 + 0.5
        return self.learning_rate * min(epochs, 1.0) * falling


@dataclass(frozen=True)
class Refined:
    """What a refinement has done.

    Attributes:
        epochs: that were run.
        before: change of the outputs relative to them, on the held-out images, before.
        after: the same afterwards; never more.
        seconds: that it took.
    """

    epochs: int
    before: float
    after: float
    seconds: float


def refine(
    original: nn.Module,
    model: nn.Module,
    layers: Sequence[nn.Module],
    sample: Sample,
    settings: Refinement,
    processes: Processes,
    *,
    seed: int,
    progress: bool | None = None,
) -> Refined:
    """Trains the layers of a smaller network until its outputs are like the original one's.

    Both networks are in evaluation mode: batch norms are frozen and nothing is dropped out. The
    loss is the squared difference of the outputs; labels are not needed. After every epoch the
    average of the factors over about an epoch is tried on the held-out images; the best is kept,
    and if none was better than those from before, these.

    Args:
        original: the network to be like, in evaluation mode; it does not change.
        model: the smaller network, in evaluation mode; parameters of ``layers`` change.
        layers: parts of ``model`` to train.
        sample: the images.
        settings: see `Refinement`.
        processes: that share the work; gradients are averaged.
        seed: of the order of the images and their augmentation.
        progress: draw a progress bar.

    Raises:
        ValueError: there are fewer than 2 images, or 2 batches of a model that needs whole ones.
    """
    if sample.images < 2:
        raise ValueError(
            f"compress: refine needs at least 2 calibration images (got {sample.images})"
        )
    begin = time.perf_counter()
    batch_size, whole = settings.batch_size or BATCH_SIZE, False
    if settings.batch_size is None and not _runs_with(original, sample, BATCH_SIZE):
        batch_size, whole = count_images(sample.batches[0]), True
        if len(sample.batches) < 2:
            raise ValueError(
                "compress: refine needs at least 2 calibration batches (got 1) of a model that "
                f"does not run with {min(BATCH_SIZE, sample.images)} images as it does with the "
                "whole batch; Refinement(batch_size=...) sets the number of images of a step"
            )
    training, held_out = sample.split(settings.held_out, whole=whole)
    factors = _Factors(layers)
    best = average = factors.copies()
    outputs = OriginalOutputs(original, held_out, processes, most_bytes=sys.maxsize)
    before = lowest = outputs.relative_change(model)
    epochs = steps = since_best = 0
    optimizer = torch.optim.Adam(factors.values, lr=settings.learning_rate)
    batches = _Batches(training, batch_size, settings.augment, processes, seed)
    loss = _Loss(original, model, layers, sample, settings.blocks)
    with (
        loss,
        _only_these_learn(model, factors.parameters),
        progress_bar("refining", settings.epochs * len(batches), unit="step", show=progress) as bar,
    ):
        for epoch in range(settings.epochs):
            late = settings.seconds is not None and time.perf_counter() - begin > settings.seconds
            if processes.least(not late) == 0 or not factors.values or not math.isfinite(before):
                break
            for step, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate_after(epoch + (step + 1) / len(batches))
                with torch.enable_grad():
                    factors.differentiate(loss(batch), processes)
                optimizer.step()
                factors.show(factors.values)
                steps += 1
                average = factors.averaged(average, 1 / (1 + min(steps, len(batches))))
                bar(1)
            factors.show(average)
            epochs, distance = epoch + 1, outputs.relative_change(model)
            factors.show(factors.values)
            if distance < lowest:
                lowest, since_best = distance, 0
                best = average
            else:
                since_best += 1
                if since_best >= settings.patience:
                    break
    factors.show(best)
    return Refined(epochs, before, lowest, time.perf_counter() - begin)


def _runs_with(model: nn.Module, sample: Sample, images: int) -> bool:
    """Whether so many images at once give the outputs that they have in the loader's batches."""
    first = sample.first(images).like_the_first()
    with torch.no_grad():
        wanted = [outputs_of(call(model)) for call in first.calls()]
        try:
            fewer = Sample((select(first.joined()[0], slice(images)),), first.forward)
            found = outputs_of(fewer.calls()[0](model))
            like = [torch.cat(parts)[: len(found[0])] for parts in zip(*wanted, strict=True)]
            change = squared_distance(found, like)
        except Exception:  # whatever a model raises that needs a batch of another size
            return False
    size = sum(float(x.float().square().sum()) for x in like)
    return float(change) <= _SAME_OUTPUTS**2 * size


class _Batches:
    """The images in a new order and newly augmented, epoch by epoch.

    Only images of one size make a step: texts that were padded to one length, for example.
    """

    def __init__(
        self,
        sample: Sample,
        batch_size: int,
        augment: str | Augmentation | None,
        processes: Processes,
        seed: int,
    ) -> None:
        self._groups = sample.joined()
        self._batch_size = batch_size
        # Every step is one of all processes, whose parts of the images may differ in size.
        counts = map(count_images, self._groups)
        self._steps = processes.least(sum(max(1, count // batch_size) for count in counts))
        self._augment = augment
        self._generator = torch.Generator("cpu").manual_seed((seed + processes.rank) % 2**63)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        steps = [(group, indices) for group in self._groups for indices in self._parts(group)]
        if len(self._groups) > 1:
            order = torch.randperm(len(steps), generator=self._generator, device="cpu").tolist()
            steps = [steps[place] for place in order]
        for group, indices in steps[: self._steps]:
            part = select(group, indices)
            if callable(self._augment):
                part = self._augment(part)
            elif self._augment == "images":
                part = tree_map(lambda x: mirrored_and_shifted(x, self._generator), part)
            yield part

    def _parts(self, group: Any) -> Sequence[Tensor]:
        """The images of a group in parts of a batch each; those that are left over wait."""
        count = count_images(group)
        order = torch.randperm(count, generator=self._generator, device="cpu")
        return order[: max(1, count // self._batch_size) * self._batch_size].split(self._batch_size)


def mirrored_and_shifted(value: Any, generator: torch.Generator) -> Any:
    """Mirrors each image (N, C, H, W) with even odds and moves it by up to an eighth of its size.

    Edges are filled with zeros, which is what padding layers do. What is no batch of images stays.
    """
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        return value
    count, _, *size = value.shape
    indices = []
    padded = F.pad(value, (size[1] // 8, size[1] // 8, size[0] // 8, size[0] // 8))
    for axis, length in enumerate(size):
        starts = torch.randint(2 * (length // 8) + 1, (count, 1), generator=generator, device="cpu")
        positions = starts + torch.arange(length, device="cpu")
        if axis == 1:
            flipped = torch.rand(count, 1, generator=generator, device="cpu") < 0.5
            positions = torch.where(flipped, positions.flip(1), positions)
        indices.append(positions.to(value.device))
    rows, columns = indices
    images = torch.arange(count, device=value.device)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Factors:
    """What is trained: parameters, and values that the steps add up in, apart from them.

    The values are float32 at least: in half types steps would be lost in rounding.

    Attributes:
        parameters: of some layers, each once.
        values: theirs.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        found = {id(p): p for layer in layers for p in layer.parameters() if p.is_floating_point()}
        self.parameters = list(found.values())
        types = [torch.promote_types(p.dtype, torch.float32) for p in self.parameters]
        self.values = [
            p.detach().to(dtype, copy=True) for p, dtype in zip(self.parameters, types, strict=True)
        ]
        # The smallest gradients that float16 knows are large for this loss.
        self._scale = 1024.0 if any(p.dtype == torch.float16 for p in self.parameters) else 1.0

    def copies(self) -> list[Tensor]:
        """Returns the present values, to keep."""
        return [value.clone() for value in self.values]

    def averaged(self, average: Sequence[Tensor], share: float) -> list[Tensor]:
        """Mixes ``average`` with this share of the present values."""
        return [a.lerp(value, share) for a, value in zip(average, self.values, strict=True)]

    def show(self, values: Sequence[Tensor]) -> None:
        """Gives the parameters some values."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def differentiate(self, loss: Tensor, processes: Processes) -> None:
        """Sets the gradients of the values, their mean over the processes.

        Raises:
            ValueError: the loss has no gradients.
        """
        if not loss.requires_grad:
            raise ValueError(
                "compress: refine needs a model whose outputs have gradients (got outputs that "
                "were computed under no_grad, or detached)"
            )
        gradients = torch.autograd.grad(loss * self._scale, self.parameters, allow_unused=True)
        for value, gradient in zip(self.values, gradients, strict=True):
            gradient = torch.zeros_like(value) if gradient is None else gradient.to(value)
            value.grad = processes.sum(gradient) / (processes.count * self._scale)


class _Loss:
    """Squared change of the outputs of the network and of its blocks, each relative to them.

    The blocks are the innermost modules around the trained layers, such as residual blocks. A
    context manager: while it is open, hooks keep the blocks' outputs.
    """

    def __init__(
        self,
        original: nn.Module,
        model: nn.Module,
        layers: Sequence[nn.Module],
        sample: Sample,
        weight: float,
    ) -> None:
        self._networks = (original, model)
        self._forward = sample.forward
        self._weight = weight
        self._blocks = _blocks_around(model, layers) if weight else []
        self._outputs: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._handles: list[Any] = []

    def __call__(self, batch: Any) -> Tensor:
        """A scalar; differentiable in the model's parameters."""
        original, model = self._networks
        with torch.no_grad():
            targets = outputs_of(self._forward(original, batch))
        results = outputs_of(self._forward(model, batch))
        loss = _relative(results, targets)
        wanted, found = self._outputs
        blocks = [
            _relative([found[name]], [wanted[name]])
            for name in self._blocks
            if name in found and name in wanted
        ]
        if blocks:
            loss = loss + self._weight * torch.stack(blocks).mean()
        for kept in self._outputs:
            kept.clear()
        return loss

    def __enter__(self) -> None:
        for network, kept in zip(self._networks, self._outputs, strict=True):
            for name in self._blocks:
                block = network.get_submodule(name)
                self._handles.append(block.register_forward_hook(_keep_output(kept, name)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for kept in self._outputs:
            kept.clear()


def _blocks_around(model: nn.Module, layers: Sequence[nn.Module]) -> list[str]:
    """Names of the innermost modules that hold one of the layers; the model itself is none."""
    found = set(layers)
    return [
        name
        for name, module in model.named_modules()
        if name and any(child in found for child in module.children())
    ]


def _keep_output(kept: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            kept[name] = output

    return keep


def _relative(results: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    size = sum(target.float().square().sum() for target in targets)
    return squared_distance(results, targets) / (size + torch.finfo(torch.float32).tiny)


class _only_these_learn:
    """Gradients for these parameters of a model alone; all flags are put back afterwards."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._flags = {p: p.requires_grad for p in model.parameters()}
        self._learn = set(parameters)

    def __enter__(self) -> None:
        for parameter in self._flags:
            parameter.requires_grad_(parameter in self._learn)

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._flags.items():
            parameter.requires_grad_(flag)
