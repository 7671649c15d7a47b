"""Training on with labels, by a plain recipe, and the accuracy on images held out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.cli.folders import ImageBatches, LabelledImages, Preparation
from sketchlayers.compression.finishing.refine import mirrored_and_shifted
from sketchlayers.optim import param_groups
from sketchlayers.surgery.batches import device_of
from sketchlayers.surgery.evaluation import evaluating


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """SGD with Nesterov's momentum; the learning rate falls to 0 along a cosine.

    Images are mirrored and shifted at random. Batch norms are in training mode. What comes out
    after the last epoch is kept: no epoch is chosen, so that held-out images stay held out.

    Attributes:
        epochs: passes over the images.
        learning_rate: at the start; factors of sketched layers have their own (`param_groups`).
        batch_size: images of a step; a smaller rest of an epoch is left out.
        momentum: Nesterov's.
        weight_decay: of weights; biases and normalisations have none.
    """

    epochs: int
    learning_rate: float = 0.01
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-4


def finetune(
    model: nn.Module,
    images: LabelledImages,
    prepare: Preparation,
    settings: FineTuning,
    *,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Trains all parameters; afterwards the model is in evaluation mode.

    Args:
        model: its first output, of the classes' scores, counts where there are several.
        images: with labels.
        prepare: makes inputs of them.
        settings: the recipe.
        seed: of order, augmentation and dropout.
        tell: told of every epoch in one line.

    Raises:
        FolderError: an image cannot be read.
        ValueError: the loss is not finite.
    """
    device = device_of(model) or torch.device("cpu")
    batch_size = min(settings.batch_size, len(images))
    steps = len(images) // batch_size
    optimizer = torch.optim.SGD(
        param_groups(model, settings.learning_rate, settings.weight_decay),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        model.train()
        for epoch in range(1, settings.epochs + 1):
            begin, losses = time.perf_counter(), 0.0
            name = f"training: epoch {epoch} of {settings.epochs}"
            order = torch.randperm(len(images), generator=generator)[: steps * batch_size]
            with progress_bar(name, steps, unit="step") as advance:
                for inputs, labels in _batches(images, prepare, order.tolist(), batch_size):
                    inputs = mirrored_and_shifted(inputs, generator)
                    scores = scores_of(model(inputs.to(device)))
                    loss = F.cross_entropy(scores, labels.to(device))
                    losses += loss.item()
                    if not math.isfinite(losses):
                        raise ValueError(
                            "fine-tuning: the loss must be finite; a lower learning rate may help "
                            f"(got {loss.item()} in epoch {epoch} at {settings.learning_rate})"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    advance(1)
            seconds = time.perf_counter() - begin
            tell(f"{name}: loss {losses / steps:.3f}, {seconds:.0f} s")
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: LabelledImages, prepare: Preparation, batch: int) -> float:
    """Returns the fraction of the images whose class has the highest score."""
    device = device_of(model)
    right = 0
    with (
        evaluating(model),
        progress_bar("accuracy", len(images), unit="image") as advance,
    ):
        for inputs, labels in _batches(images, prepare, range(len(images)), batch):
            right += int((scores_of(model(inputs.to(device))).argmax(1).cpu() == labels).sum())
            advance(len(labels))
    return right / len(images)


def scores_of(output: object) -> Tensor:
    """Returns the scores of the classes in what a model returns, (images, classes).

    Raises:
        ValueError: there are none.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor) and first.ndim == 2:
        return first
    got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
    raise ValueError(f"labels need a model that returns scores, (images, classes) (got {got})")


def _batches(
    images: LabelledImages, prepare: Preparation, order: Sequence[int], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    files = [images.files[number] for number in order]
    labels = iter(torch.tensor([images.labels[number] for number in order]).split(batch_size))
    yield from zip(ImageBatches(files, prepare, batch_size), labels, strict=True)
