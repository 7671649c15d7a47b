"""Folders of images: found, spread over their folders, and made into a model's inputs.

An image is treated as torchvision's evaluation transforms treat it: resized, cropped at the centre,
scaled to [0, 1] and normalised.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened
from sketchlayers._runtime.progress import progress_bar
from sketchlayers.cli.messages import WrongInput
from sketchlayers.reports.table import joined

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

_READ_AHEAD = 128
"""Images that threads read before they are asked for."""


# -------------------------------------------------------------------------------- finding images


def find_images(folder: Path) -> list[Path]:
    """Finds all images below a folder, at any depth, sorted; hidden files are left out.

    Raises:
        WrongInput: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise WrongInput(f"no such folder: {folder}")
    found = []
    seen = set()  # folders by their real path: links may lead in circles
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append(Path(parent, name))
    if not found:
        raise WrongInput(f"no image in {folder} (looked for {' '.join(SUFFIXES)}, at any depth)")
    return sorted(found)


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """Chooses some of the files, from all folders in turn, in a fixed random order.

    Any first part of them is spread over the folders as well.
    """
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    queues = []
    for number, of_one in enumerate(by_folder.values()):
        random.Random(number).shuffle(of_one)
        queues.append(deque(of_one))
    chosen: list[Path] = []
    while queues and len(chosen) < count:
        chosen += [queue.popleft() for queue in queues]
        queues = [queue for queue in queues if queue]
    return chosen[:count]


@dataclass(frozen=True)
class LabelledImages:
    """Images in one folder for each class.

    Attributes:
        classes: names of the folders, sorted; the first belongs to the model's first output.
        files: the images.
        labels: the number of each image's class.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @classmethod
    def find(cls, folder: Path) -> LabelledImages:
        """Reads the names in a folder of class folders.

        Raises:
            WrongInput: there is no such folder, no class folder in it, or no image in one of them.
        """
        if not folder.is_dir():
            raise WrongInput(f"no such folder: {folder}")
        classes = sorted(
            path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."
        )
        if not classes:
            raise WrongInput(f"{folder} must hold one folder of images for each class (got none)")
        found = [find_images(folder / name) for name in classes]
        labels = [[label] * len(files) for label, files in enumerate(found)]
        return cls(tuple(classes), tuple(chain(*found)), tuple(chain(*labels)))

    def __len__(self) -> int:
        return len(self.files)


# -------------------------------------------------------------------------------- reading images


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input.

    Attributes:
        size: of the input: channels (1 or 3), height, width.
        enlarged: height over the input's to which an image is resized before the crop; the same
            for the width, whichever is the larger.
        interpolation: of the resizing, one of torchvision's modes.
        mean: of each channel, subtracted.
        std: of each channel, divided by.
    """

    size: tuple[int, int, int]
    enlarged: float
    interpolation: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(
        cls, name: str | None, size: Sequence[int] | None, usual: Preparation | None = None
    ) -> Preparation:
        """Returns that of torchvision's weights for a model, or ImageNet's where there are none.

        Args:
            name: of the torchvision model; None for another one.
            size: of the input, in place of the usual one.
            usual: what another model says of itself; None: torchvision's.

        Raises:
            WrongInput: the size is none of images.
            ImportError: torchvision is not installed.
        """
        if size is not None and (len(size) != 3 or size[0] not in (1, 3)):
            raise WrongInput(f"images have sizes such as 3x224x224 or 1x28x28 (got {joined(size)})")
        usual = usual or cls._of_torchvision(name)
        channels, height, width = size or usual.size
        mean, std = usual.mean, usual.std
        if channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return cls((channels, height, width), usual.enlarged, usual.interpolation, mean, std)

    @classmethod
    def _of_torchvision(cls, name: str | None) -> Preparation:
        usual = _transforms_of(name)
        (crop, *_), (shorter, *_) = usual.crop_size, usual.resize_size
        mean, std = tuple(usual.mean), tuple(usual.std)
        return cls((3, crop, crop), shorter / crop, usual.interpolation, mean, std)

    def load(self, path: Path) -> Tensor:
        """Reads one image, uint8, and resizes and crops it to the input's size.

        Raises:
            WrongInput: the file is no image, or damaged.
        """
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms import functional as transforms

        channels, height, width = self.size
        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if channels == 3 else "L")
        except UnidentifiedImageError:
            raise WrongInput(f"cannot read {path}: not an image, or damaged") from None
        except Exception as error:  # a damaged file can raise anything
            raise WrongInput(f"cannot read {path}: {shortened(error)}") from error
        if image.size != (width, height):
            size = self._resized(image.width, image.height)
            image = transforms.resize(image, list(size), interpolation=self.interpolation)
            image = transforms.center_crop(image, [height, width])
        return transforms.pil_to_tensor(image)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises a batch of loaded images for the model."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """The least height and width that cover the enlarged input."""
        rows, columns = (round(self.enlarged * side) for side in self.size[1:])
        if width * rows >= height * columns:
            return rows, int(rows * width / height)
        return int(columns * height / width), columns


class ImageBatches:
    """Batches of images, which are read from their files in every pass."""

    def __init__(self, files: Sequence[Path], prepare: Preparation, batch_size: int) -> None:
        self._files = files
        self._prepare = prepare
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._files) // self._batch_size)

    @property
    def nbytes(self) -> int:
        """Bytes of all batches together."""
        channels, height, width = self._prepare.size
        return 4 * channels * height * width * len(self._files)

    def __iter__(self) -> Iterator[Tensor]:
        images = _loaded(self._files, self._prepare)
        while batch := list(islice(images, self._batch_size)):
            yield self._prepare.normalise(torch.stack(batch))

    def in_memory(self) -> list[Tensor]:
        """Reads all of them, with a progress bar."""
        with progress_bar("reading images", len(self._files), unit="image") as advance:
            batches = []
            for batch in self:
                batches.append(batch)
                advance(len(batch))
        return batches


def _loaded(files: Sequence[Path], prepare: Preparation) -> Iterator[Tensor]:
    """The images in order; threads read some ahead."""
    pool = ThreadPoolExecutor()
    waiting: deque[Future[Tensor]] = deque()
    try:
        for file in files:
            waiting.append(pool.submit(prepare.load, file))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _transforms_of(name: str | None) -> Any:
    """The transforms of torchvision's weights for the model; ResNet's if it has none."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(missing("a folder of images", "torchvision", "cli")) from error
    weights = getattr(models.get_model_weights(name), "DEFAULT", None) if name else None
    return (weights or models.ResNet18_Weights.IMAGENET1K_V1).transforms()
