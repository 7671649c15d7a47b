"""Training on with labels, by a plain recipe, and the accuracy on images held out."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.cli.folders import ImageBatches, LabelledImages, Preparation
from sketchlayers.cli.messages import WrongInput, tell
from sketchlayers.cli.models import Loaded
from sketchlayers.compression.finishing.refine import mirrored_and_shifted
from sketchlayers.optim import param_groups
from sketchlayers.reports.report import Report
from sketchlayers.reports.table import joined, percent
from sketchlayers.surgery.batches import device_of
from sketchlayers.surgery.evaluation import evaluating

_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4


def finetune(
    model: nn.Module,
    images: LabelledImages,
    prepare: Preparation,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> None:
    """Trains all parameters by SGD; afterwards the model is in evaluation mode.

    The learning rate falls to 0 along a cosine. Images are mirrored and shifted at random. Batch
    norms are in training mode. What comes out after the last epoch is kept: no epoch is chosen, so
    that held-out images stay held out.

    Args:
        model: its first output, of the classes' scores, counts where there are several.
        images: with labels.
        prepare: makes inputs of them.
        epochs: passes over the images.
        learning_rate: at the start; factors of sketched layers have their own (`param_groups`).
        batch_size: images of a step; a smaller rest of an epoch is left out.
        seed: of order, augmentation and dropout.

    Raises:
        WrongInput: an image cannot be read.
        WrongInput: the loss is not finite.
    """
    device = device_of(model) or torch.device("cpu")
    batch_size = min(batch_size, len(images))
    steps = len(images) // batch_size
    optimizer = torch.optim.SGD(
        param_groups(model, learning_rate, _WEIGHT_DECAY),
        lr=learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        model.train()
        for epoch in range(1, epochs + 1):
            begin, losses = time.perf_counter(), 0.0
            name = f"training: epoch {epoch} of {epochs}"
            order = torch.randperm(len(images), generator=generator)[: steps * batch_size]
            with progress_bar(name, steps, unit="step") as advance:
                for inputs, labels in _batches(images, prepare, order.tolist(), batch_size):
                    inputs = mirrored_and_shifted(inputs, generator)
                    scores = scores_of(model(inputs.to(device)))
                    loss = F.cross_entropy(scores, labels.to(device))
                    losses += loss.item()
                    if not math.isfinite(losses):
                        raise WrongInput(
                            "fine-tuning: the loss must be finite; a lower learning rate may help "
                            f"(got {loss.item()} in epoch {epoch} at {learning_rate})"
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
def hits(model: nn.Module, images: LabelledImages, prepare: Preparation, batch: int) -> Tensor:
    """Returns for each image whether its class has the highest score."""
    device = device_of(model)
    found = []
    with (
        evaluating(model),
        progress_bar("accuracy", len(images), unit="image") as advance,
    ):
        for inputs, labels in _batches(images, prepare, range(len(images)), batch):
            found.append(scores_of(model(inputs.to(device))).argmax(1).cpu() == labels)
            advance(len(labels))
    return torch.cat(found)


def scores_of(output: object) -> Tensor:
    """Returns the scores of the classes in what a model returns, (images, classes).

    Raises:
        WrongInput: there are none.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(output, Mapping):
        first = output.get("logits", first)
    if isinstance(first, Tensor) and first.ndim == 2:
        return first
    got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
    raise WrongInput(f"labels need a model that returns scores, (images, classes) (got {got})")


def _batches(
    images: LabelledImages, prepare: Preparation, order: Sequence[int], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    files = [images.files[number] for number in order]
    labels = iter(torch.tensor([images.labels[number] for number in order]).split(batch_size))
    yield from zip(ImageBatches(files, prepare, batch_size), labels, strict=True)


class Labels:
    """What images with labels are for: measuring accuracy, and training on."""

    def __init__(self, args: argparse.Namespace, loaded: Loaded) -> None:
        """Finds the images of ``args.train`` and ``args.val``, and compares their classes.

        Raises:
            WrongInput: they are not those of the model's outputs, or of each other.
        """
        self._args = args
        self._train = None if args.train is None else LabelledImages.find(args.train)
        self._val = None if args.val is None else LabelledImages.find(args.val)
        self._accuracy: dict[str, float] = {}
        if self._train is None and self._val is None:
            return
        self._prepare = loaded.preparation(args.input_size)
        for option, images in (("--train", self._train), ("--val", self._val)):
            if images is not None:
                self._check(option, images, loaded.model)
        if self._train and self._val and self._train.classes != self._val.classes:
            differing = sorted({*self._train.classes} ^ {*self._val.classes})
            raise WrongInput(
                f"--train and --val must have the same classes (got {differing[0]!r} in one only)"
            )

    def hits(self, model: nn.Module) -> Tensor:
        """Returns for each held-out image whether a network is right, always in the same order."""
        assert self._val is not None
        return hits(model, self._val, self._prepare, self._args.batch_size)

    def measure(self, which: str, model: nn.Module) -> None:
        """Takes note of a network's accuracy on held-out images, if there are any."""
        if self._val is not None:
            share = self.hits(model).double().mean().item()
            self._accuracy[which] = share
            tell(f"accuracy on {len(self._val):,} held-out images, {which}: {percent(share)}")

    def finished(self, model: nn.Module, report: Report) -> Report:
        """Trains the smaller network, if that is asked for, and says so in the report."""
        notes, seconds = report.notes, dict(report.seconds)
        if self._train is not None:
            begin = time.perf_counter()
            finetune(
                model,
                self._train,
                self._prepare,
                epochs=self._args.finetune,
                learning_rate=self._args.learning_rate,
                batch_size=self._args.batch_size,
                seed=report.seed,
            )
            seconds["fine-tuning"] = time.perf_counter() - begin
            self.measure("fine-tuned", model)
            notes = (
                *notes,
                f"fine-tuned with labels for {self._args.finetune} epochs on "
                f"{len(self._train):,} images of {len(self._train.classes)} classes; changes and "
                "errors are from before that",
            )
        return dataclasses.replace(
            report,
            notes=notes,
            seconds=seconds,
            accuracy=self._accuracy,
            accuracy_images=None if self._val is None else len(self._val),
        )

    def _check(self, option: str, images: LabelledImages, model: nn.Module) -> None:
        """One folder for every output."""
        like = next(model.parameters())
        one = self._prepare.normalise(self._prepare.load(images.files[0])[None]).to(like)
        try:
            with torch.no_grad(), evaluating(model):
                outputs = scores_of(model(one)).shape[1]
        except (RuntimeError, TypeError, AssertionError) as error:
            size = joined(self._prepare.size)
            raise WrongInput(f"the model must run on an image of {size} ({error})") from error
        if outputs != len(images.classes):
            raise WrongInput(
                f"{option} must hold one folder for each of the model's {outputs:,} outputs, in "
                f"the order of their names (got {len(images.classes):,} folders)"
            )
