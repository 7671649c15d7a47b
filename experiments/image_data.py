"""Image data sets: read, cut down, resized, augmented and handed out in batches.

Small images (CIFAR-10, SVHN, STL-10, digits, resized folders) are decoded once into one uint8
tensor and augmented a batch at a time. Folders of large images are streamed through worker
processes, and the augmentation of an image depends on the seed, the epoch and the image alone. The
order of the images is a function of seed and epoch, so a resumed run sees what the uninterrupted
one would have seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets
from torchvision.transforms import v2

from common.stopping import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEMORY_LIMIT = 2 << 30
"""Bytes; folders that would need more than this when decoded are streamed."""


class DataError(InputError):
    """A data set is missing or unreadable; the message names the folder and the files expected."""


@dataclass(frozen=True)
class Images:
    """Images in memory: uint8 ``(N, 3, H, W)``, labels int64 ``(N,)``, names of the classes."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """The images with these indices, in this order."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def in_memory(self, size: int) -> Images:
        """The same images with height and width `size`."""
        if self.pixels.shape[2:] == (size, size):
            return self
        chunks = [
            F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
            for chunk in self.pixels.split(1024)
        ]
        return replace(self, pixels=torch.cat([chunk.round().to(torch.uint8) for chunk in chunks]))

    def crc32(self, value: int) -> int:
        """The checksum of what came before, gone on with pixels and labels."""
        return _crc32(self.labels, _crc32(self.pixels, value))


@dataclass(frozen=True)
class ImageFiles:
    """Images as files: paths, labels int64 ``(N,)``, names of the classes."""

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageFiles:
        """The images with these indices, in this order."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def in_memory(self, size: int) -> Images:
        """Decodes all files: shorter side scaled to `size`, centre cut out.

        Raises:
            DataError: if a file is not a readable image.
        """
        pixels = torch.empty(len(self), 3, size, size, dtype=torch.uint8)

        def decode(index: int) -> None:
            image = _fit(_open_image(self.paths[index]), size)
            pixels[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(self)), chunksize=256))
        return Images(pixels, self.labels, self.classes)

    def crc32(self, value: int) -> int:
        """The checksum of what came before, gone on with names of files and labels."""
        for path in self.paths:
            value = zlib.crc32("/".join(Path(path).parts[-2:]).encode(), value)
        return _crc32(self.labels, value)


def _crc32(tensor: Tensor, value: int) -> int:
    contents: Any = tensor.contiguous().numpy()
    return zlib.crc32(contents, value)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding (pixels on every side) and random mirroring."""

    padding: int = 4
    flip: bool = True

    def __call__(self, pixels: Tensor) -> Tensor:
        """Augments every image of ``(N, C, H, W)`` on its own, drawing from torch's generator."""
        augment = v2.Compose(self.steps(pixels.shape[2:], self.padding))
        return torch.stack([augment(image) for image in pixels])

    def steps(self, size: Sequence[int], padding: int | None = None) -> list[nn.Module]:
        """The transforms for images of this height and width, or larger ones."""
        flip = v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)
        return [v2.RandomCrop(size, padding=padding), flip]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, for values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(pixels: Tensor) -> Normalisation:
        """Measured on uint8 images ``(N, C, H, W)``."""
        chunks = pixels.split(4096)
        count = pixels.numel() // pixels.shape[1]
        total = sum(chunk.sum((0, 2, 3), dtype=torch.float64) for chunk in chunks)
        squares = sum(chunk.double().square().sum((0, 2, 3)) for chunk in chunks)
        mean = torch.as_tensor(total) / count
        variance = torch.as_tensor(squares) / count - mean.square()
        std = variance.clamp_min(1.0).sqrt()
        return Normalisation(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalises uint8 ``(N, C, H, W)`` into float32."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return pixels.float().sub_(255 * mean).div_(255 * std)


class EpochOrder(Sampler[list[int]]):
    """Index lists of one epoch's batches: the part of every batch that falls to one process.

    Training shuffles by ``(seed, epoch)`` and drops an incomplete last batch; evaluation goes
    through the images in order and keeps it. `batch_size` counts the batch over all processes.
    Attributes `epoch` and `done`, the batches to leave out at its start, are set from outside.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.done = 0

    def __len__(self) -> int:
        if self.shuffle:
            return self.count // self.batch_size
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.arange(self.count)
        for number in range(self.done, len(self)):
            start = number * self.batch_size
            batch = order[start : start + self.batch_size][self.rank :: self.world_size].tolist()
            if batch:
                yield batch


class Batches:
    """One split of a data set, as normalised batches ``(images float32, labels int64)``.

    Iterating yields one epoch; `order.epoch` chooses which.
    """

    def __init__(
        self,
        source: Images | ImageFiles,
        order: EpochOrder,
        normalisation: Normalisation,
        augmentation: Augmentation | None = None,
        *,
        size: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.order = order
        self.normalisation = normalisation
        self.augmentation = augmentation
        self.size = size
        self.workers = workers
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pixel_batches = (
            self._from_memory(self.source)
            if isinstance(self.source, Images)
            else self._from_files(self.source)
        )
        for pixels, labels in pixel_batches:
            on_device = pixels.to(self.device, non_blocking=True)
            yield self.normalisation(on_device), labels.to(self.device, non_blocking=True)

    def _from_memory(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.order:
            pixels = images.pixels[indices]
            if self.augmentation is not None:
                pixels = self.augmentation(pixels)
            yield pixels, images.labels[indices]

    def _from_files(self, files: ImageFiles) -> Iterator[tuple[Tensor, Tensor]]:
        seeds = (self.order.seed, self.order.epoch)
        loader = DataLoader(
            _DecodedFiles(files, self.size, self.augmentation, seeds),
            batch_sampler=self.order,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        yield from loader


class _DecodedFiles(Dataset[tuple[Tensor, int]]):
    """Decodes one file at a time; crops at random when augmenting, at the centre otherwise.

    An image's random numbers are a function of `seeds` and its index, whichever process decodes it.
    """

    def __init__(
        self,
        files: ImageFiles,
        size: int,
        augmentation: Augmentation | None,
        seeds: tuple[int, ...],
    ) -> None:
        self.files = files
        self.seeds = seeds
        cut = [v2.CenterCrop(size)] if augmentation is None else augmentation.steps((size, size))
        self.transform = v2.Compose([v2.Resize(size * 8 // 7), *cut])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = _open_image(self.files.paths[index])
        with torch.random.fork_rng(devices=[]):  # those of the training itself go on as they were
            torch.manual_seed(mixed_seed(*self.seeds, index))
            image = self.transform(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, int(self.files.labels[index])


def mixed_seed(*parts: int) -> int:
    """A seed for a generator, different for any other parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True)
class DataSet:
    """Training and test images of one data set and how they are prepared."""

    name: str
    train: Images | ImageFiles
    test: Images | ImageFiles
    size: int
    normalisation: Normalisation
    augmentation: Augmentation
    held_out: bool = False
    """Whether ``test`` holds training images that are kept apart, for choices to be made by."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.classes

    @property
    def streamed(self) -> bool:
        """Whether images are decoded again in every epoch."""
        return isinstance(self.train, ImageFiles)

    @cached_property
    def fingerprint(self) -> str:
        """CRC-32 of the images in memory, or of the names of files, and of all labels."""
        return f"{self.test.crc32(self.train.crc32(0)):08x}"

    def describe(self) -> dict[str, object]:
        """What the results should say about the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.classes),
            "size": self.size,
            "streamed": self.streamed,
            "held_out": self.held_out,
        }


def load(
    name: str,
    root: Path | str | None = None,
    *,
    size: int | None = None,
    subset: int | None = None,
    test_subset: int | None = None,
    held_out: int | None = None,
    stream: bool | None = None,
) -> DataSet:
    """Reads a data set that lies on this machine; nothing is downloaded.

    Args:
        name: one of `DATA_SETS`.
        root: folder with the standard download's files; not needed for ``"digits"``.
        size: height and width of the images handed out; None means 32 (digits: 16).
        subset: number of training images, evenly over the classes; None means all.
        test_subset: the same for the test images.
        held_out: in place of the test images this many training images outside the subset, evenly
            over the classes: settings can be chosen by them, and the test images stay unseen.
        stream: decode folders of images again in every epoch instead of once into memory; None
            decides by the memory needed.

    Raises:
        DataError: if files are missing or unreadable; the message names them.
        ValueError: if a size is not positive or a subset is not within the data set.
    """
    reader = _reader(name)
    size = reader.size if size is None else size
    if size < 1:
        raise ValueError(f"{name}: size must be at least 1 (got {size})")
    if held_out is None:
        train = _cut(name, read_split(name, root, train=True), subset)
        test = _cut(name, read_split(name, root, train=False), test_subset)
    else:
        train, test = _held_out(name, read_split(name, root, train=True), subset, held_out)
    if train.classes != test.classes:
        raise DataError(
            f"{name}: training and test folders must hold the same classes "
            f"(got {len(train.classes)} and {len(test.classes)} in {root})"
        )
    if stream is None:
        stream = (len(train) + len(test)) * 3 * size * size > MEMORY_LIMIT
    if stream and isinstance(train, ImageFiles):
        normalisation = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    else:
        train, test = train.in_memory(size), test.in_memory(size)
        normalisation = Normalisation.of(train.pixels)
    augmentation = Augmentation(padding=size // 8, flip=reader.flip)
    return DataSet(
        name, train, test, size, normalisation, augmentation, held_out=held_out is not None
    )


def read_split(name: str, root: Path | str | None, *, train: bool) -> Images | ImageFiles:
    """Reads the training or the test images of a data set as they are; arguments as for `load`.

    Raises:
        DataError: if files are missing or unreadable; the message names them.
        ValueError: if there is no data set of this name.
    """
    reader = _reader(name)
    return reader.read(_existing_folder(name, root) if reader.needs_root else Path(), train)


def stratified_indices(labels: Tensor, count: int) -> Tensor:
    """The first `count` images with equal shares of all classes, in their order; deterministic.

    Where the shares cannot be equal the earlier images get the remaining places.
    """
    by_position = torch.argsort(positions_in_class(labels), stable=True)
    return by_position[:count].sort().values


def positions_in_class(labels: Tensor) -> Tensor:
    """For each image how many images of its class come before it."""
    positions = torch.empty_like(labels)
    for label in labels.unique().tolist():
        members = labels == label
        positions[members] = torch.arange(int(members.sum()))
    return positions


def _reader(name: str) -> Reader:
    if name not in DATA_SETS:
        raise ValueError(f"data: must be one of {', '.join(DATA_SETS)} (got {name!r})")
    return DATA_SETS[name]


def _cut(name: str, source: Images | ImageFiles, count: int | None) -> Images | ImageFiles:
    if count is None:
        return source
    if not 1 <= count <= len(source):
        raise ValueError(f"{name}: subset must be between 1 and {len(source)} (got {count})")
    return source.take(stratified_indices(source.labels, count))


def _held_out(
    name: str, source: Images | ImageFiles, subset: int | None, count: int
) -> tuple[Images | ImageFiles, Images | ImageFiles]:
    """The training images, and others that come after them in their classes."""
    subset = len(source) - count if subset is None else subset
    if count < 1 or subset < 1 or subset + count > len(source):
        raise ValueError(
            f"{name}: subset and held_out must be at least 1 and together at most {len(source)} "
            f"(got subset={subset}, held_out={count})"
        )
    chosen = stratified_indices(source.labels, subset)
    rest = torch.ones(len(source), dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    return source.take(chosen), _cut(name, source.take(rest), count)


def _existing_folder(name: str, root: Path | str | None) -> Path:
    if root is None:
        raise DataError(f"{name}: the folder with the data set must be given (--root)")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{name}: the data folder must exist (got {folder}, no such folder)")
    return folder


def _read_files(
    name: str, folder: Path, files: tuple[str, ...], read: Callable[[], Images]
) -> Images:
    """Calls `read` when all files are there and turns whatever it raises into a `DataError`."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{name}: {folder} must hold {', '.join(files)} (missing: {', '.join(missing)})"
        )
    try:
        images = read()
    # Unreadable data shows as anything from EOFError to the errors of the file format's reader.
    except Exception as error:
        raise DataError(f"{name}: cannot read the files in {folder} ({error})") from error
    largest = int(images.labels.max())
    if int(images.labels.min()) < 0 or largest >= len(images.classes):
        raise DataError(
            f"{name}: labels in {folder} must be below {len(images.classes)} (got {largest})"
        )
    return images


def _as_images(pixels: np.ndarray, labels: object, classes: object) -> Images:
    """From uint8 pixels ``(N, 3, H, W)`` of any layout in memory."""
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.as_tensor(labels, dtype=torch.int64),
        tuple(str(name) for name in classes),  # type: ignore[attr-defined]
    )


_CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_CIFAR10_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


# torchvision's readers of a folder that holds the files, without their checksums.
class _Cifar10(datasets.CIFAR10):
    base_folder = ""
    train_list: ClassVar[list[tuple[str, None]]] = [(name, None) for name in _CIFAR10_BATCHES]
    test_list: ClassVar[list[tuple[str, None]]] = [("test_batch", None)]
    meta: ClassVar[dict[str, str | None]] = {**datasets.CIFAR10.meta, "md5": None}


class _Cifar100(datasets.CIFAR100):
    base_folder = ""
    train_list: ClassVar[list[tuple[str, None]]] = [("train", None)]
    test_list: ClassVar[list[tuple[str, None]]] = [("test", None)]
    meta: ClassVar[dict[str, str | None]] = {**datasets.CIFAR100.meta, "md5": None}


class _Stl10(datasets.STL10):  # for the labelled images alone
    base_folder = ""
    train_list: ClassVar[list[tuple[str, None]]] = [("train_X.bin", None), ("train_y.bin", None)]
    test_list: ClassVar[list[tuple[str, None]]] = [("test_X.bin", None), ("test_y.bin", None)]


class _Svhn(datasets.SVHN):
    split_list: ClassVar[dict[str, tuple[str, str, None]]] = {
        split: ("", f"{split}_32x32.mat", None) for split in ("train", "test")
    }


def _read_cifar10(root: Path, train: bool) -> Images | ImageFiles:
    """CIFAR-10 as python batches, as binary batches or as folders of images, whichever is there."""
    for folder in (root, root / "cifar-10-batches-py"):
        if (folder / "batches.meta").is_file() or (folder / "data_batch_1").is_file():
            return _read_cifar10_python(folder, train)
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "data_batch_1.bin").is_file() or (folder / "train.bin").is_file():
            return _read_cifar10_binary(folder, train)
    if (root / "train").is_dir():
        return _read_image_folder(root, train)
    raise DataError(
        f"cifar10: {root} must hold cifar-10-batches-py/ with data_batch_1 to data_batch_5, "
        "test_batch and batches.meta, or cifar-10-batches-bin/ with the same as .bin, "
        "or image folders train/CLASS/ and test/CLASS/ (found none of them)"
    )


def _read_cifar10_python(folder: Path, train: bool) -> Images:
    files = (*_CIFAR10_BATCHES, "test_batch", "batches.meta")
    return _read_files("cifar10", folder, files, lambda: _of_cifar(_Cifar10(folder, train=train)))


def _of_cifar(data: datasets.CIFAR10) -> Images:
    return _as_images(data.data.transpose(0, 3, 1, 2), data.targets, data.classes)


def _read_cifar10_binary(folder: Path, train: bool) -> Images:
    """Records of one label byte and 3,072 bytes of pixels: the planes R, G, B, row by row."""
    if (folder / "train.bin").is_file():
        names: tuple[str, ...] = ("train",) if train else ("test",)
    else:
        names = _CIFAR10_BATCHES if train else ("test_batch",)
    files = tuple(f"{name}.bin" for name in names)

    def read() -> Images:
        parts = [np.fromfile(folder / file, dtype=np.uint8) for file in files]
        records = np.concatenate([part.reshape(-1, 3073) for part in parts])
        pixels = records[:, 1:].reshape(-1, 3, 32, 32)
        return _as_images(pixels, records[:, 0], _CIFAR10_CLASSES)

    return _read_files("cifar10", folder, files, read)


def _read_cifar100(root: Path, train: bool) -> Images:
    folder, files = _inner(root, "cifar-100-python"), ("train", "test", "meta")
    return _read_files("cifar100", folder, files, lambda: _of_cifar(_Cifar100(folder, train=train)))


def _read_svhn(root: Path, train: bool) -> Images:
    def read() -> Images:
        data = _Svhn(root, split="train" if train else "test")
        return _as_images(data.data, data.labels, range(10))

    return _read_files("svhn", root, ("train_32x32.mat", "test_32x32.mat"), read)


def _read_stl10(root: Path, train: bool) -> Images:
    folder = _inner(root, "stl10_binary")

    def read() -> Images:
        data = _Stl10(folder, split="train" if train else "test")
        return _as_images(data.data, data.labels, getattr(data, "classes", range(10)))

    files = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
    return _read_files("stl10", folder, files, read)


def _inner(root: Path, name: str) -> Path:
    """The folder of the standard download, or the one that is given if it is that one."""
    return root / name if (root / name).is_dir() else root


def _read_image_folder(root: Path, train: bool) -> ImageFiles:
    """Folders train/CLASS/ and test/CLASS/ or val/CLASS/ (ImageNet, Places365 "easyformat")."""
    names = ("train",) if train else ("test", "val")
    for folder in (root / name for name in names):
        if folder.is_dir():
            break
    else:
        raise DataError(
            f"imagefolder: {root} must hold the folders train/CLASS/ and test/CLASS/ or val/CLASS/ "
            f"(missing: {' or '.join(names)})"
        )
    try:
        data = datasets.ImageFolder(folder)
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"imagefolder: cannot read {folder} ({error})") from error
    labels = torch.tensor(data.targets, dtype=torch.int64)
    return ImageFiles(tuple(path for path, _ in data.samples), labels, tuple(data.classes))


def _read_imagenet(root: Path, train: bool) -> ImageFiles:
    """ImageNet: its archives (torchvision unpacks them), or folders train/CLASS/ and val/CLASS/."""
    if not any((root / name).is_file() for name in ("meta.bin", _IMAGENET_KIT)):
        return _read_image_folder(root, train)
    try:
        data = datasets.ImageNet(root, "train" if train else "val")
    # What torchvision says of a missing archive names it and where to get it.
    except (RuntimeError, OSError) as error:
        raise DataError(f"imagenet: cannot read {root} ({error})") from error
    labels = torch.tensor(data.targets, dtype=torch.int64)
    classes = tuple(names[0] for names in data.classes)
    return ImageFiles(tuple(path for path, _ in data.samples), labels, classes)


_IMAGENET_KIT = "ILSVRC2012_devkit_t12.tar.gz"


def _read_aircraft(root: Path, train: bool) -> ImageFiles:
    """FGVC-Aircraft with its 100 variants as classes; training and validation images together."""
    try:
        data = datasets.FGVCAircraft(root, "trainval" if train else "test")
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"aircraft: {root} must hold fgvc-aircraft-2013b/data/ with images/, variants.txt, "
            f"images_variant_trainval.txt and images_variant_test.txt ({error})"
        ) from error
    labels = torch.tensor(data._labels, dtype=torch.int64)
    return ImageFiles(tuple(map(str, data._image_files)), labels, tuple(data.classes))


def _read_digits(_: Path, train: bool) -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; every fifth of a class is for tests."""
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    is_test = positions_in_class(labels) % 5 == 4
    return _as_images(pixels, labels, range(10)).take(
        torch.nonzero(~is_test if train else is_test).flatten()
    )


def _open_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"images: cannot read {path} ({error})") from error


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to `size` and cuts out the centre."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Reader:
    """How a data set is read: ``read(root, train)``, and what is peculiar to it.

    Attributes:
        flip: whether mirroring keeps the classes.
        size: height and width of the images handed out unless something else is asked for.
        needs_root: whether there are files to read.
        margin: to test, scale an image's shorter side to this multiple of the size that the network
            gets, then cut out the centre.
        imagenet_classes: where the classes stand among ImageNet's 1,000.
    """

    read: Callable[[Path, bool], Images | ImageFiles]
    flip: bool = True
    size: int = 32
    needs_root: bool = True
    margin: float = 1.0
    imagenet_classes: tuple[int, ...] | None = None


DATA_SETS: dict[str, Reader] = {
    "digits": Reader(_read_digits, flip=False, size=16, needs_root=False),
    "cifar10": Reader(_read_cifar10),
    "cifar100": Reader(_read_cifar100),
    "svhn": Reader(_read_svhn, flip=False),
    "stl10": Reader(_read_stl10),
    "imagefolder": Reader(_read_image_folder),
    "imagenet": Reader(_read_imagenet, size=224, margin=8 / 7),
    "imagenette": Reader(
        _read_image_folder,
        imagenet_classes=(0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    ),
    "aircraft": Reader(_read_aircraft, size=224, margin=8 / 7),
    "places365": Reader(_read_image_folder, size=224),
}
