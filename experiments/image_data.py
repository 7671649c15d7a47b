"""Image data sets: read, cut down, resized, augmented and handed out in batches.

Small images (CIFAR-10, SVHN, STL-10, digits, resized folders) are decoded once into one uint8
tensor. Folders of large images are streamed: worker processes decode them in every epoch, and the
augmentation of an image depends on the seed, the epoch and the image alone. Resizing, augmentation
and normalisation are the same for both. The order of the images is a function of seed and epoch, so
a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets
from torchvision.transforms import v2

from common.stopping import InputError

MEMORY_LIMIT = 2 << 30
"""Bytes; folders that would need more than this when decoded are streamed."""
MEASURED_IMAGES = 2048
"""So many images of a streamed folder are decoded to measure the mean and deviation of channels."""


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

    def contents(self) -> Iterator[Any]:
        """The bytes that tell these images from others: pixels and labels."""
        yield self.pixels.contiguous().numpy()
        yield self.labels.numpy()


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
            pixels[index] = _decoded(self.paths[index], size)

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(self)), chunksize=256))
        return Images(pixels, self.labels, self.classes)

    def contents(self) -> Iterator[Any]:
        """The bytes that tell these images from others: names of files and labels."""
        yield from ("/".join(Path(path).parts[-2:]).encode() for path in self.paths)
        yield self.labels.numpy()


def _decoded(path: str, size: int) -> Tensor:
    """The image of a file as uint8 ``(3, size, size)``: shorter side scaled, centre cut out."""
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except OSError as error:
        raise DataError(f"images: cannot read {path} ({error})") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random crop and random mirroring.

    Attributes:
        padding: pixels of zeros on every side of an image before it is cropped.
        flip: whether to mirror.
        crop_scale: in place of padding, crop at least this share of the image's area in a random
            shape, and resize it (Szegedy et al., CVPR 2015, section 6); None pads.
        size: height and width of what is cropped; None takes those of the images.
        trivial: then change shape or colours, one of fourteen ways in a random strength
            (TrivialAugment: Mueller, Hutter, ICCV 2021).
    """

    padding: int = 4
    flip: bool = True
    crop_scale: float | None = None
    size: int | None = None
    trivial: bool = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """Augments every image of ``(N, C, H, W)`` on its own, drawing from torch's generator."""
        size = list(pixels.shape[2:]) if self.size is None else [self.size, self.size]
        crop = (
            v2.RandomCrop(size, padding=self.padding)
            if self.crop_scale is None
            else v2.RandomResizedCrop(size, scale=(self.crop_scale, 1.0))
        )
        steps = [crop, v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)]
        if self.trivial:
            steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
        augment = v2.Compose(steps)
        return torch.stack([augment(image) for image in pixels])


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


@dataclass(eq=False)
class EpochOrder(Sampler[list[int]]):
    """Index lists of one epoch's batches: the part of every batch that falls to one process.

    Training shuffles by ``(seed, epoch)`` and drops an incomplete last batch; evaluation goes
    through the images in order and keeps it. `batch_size` counts the batch over all processes.
    Attributes `epoch` and `done`, the batches to leave out at its start, are set from outside.
    """

    count: int
    batch_size: int
    _: KW_ONLY
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.count)

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


@dataclass(frozen=True)
class Batches:
    """One split of a data set, as normalised batches ``(images float32, labels int64)``.

    Iterating yields one epoch; `order.epoch` chooses which.
    """

    source: Images | ImageFiles
    order: EpochOrder
    normalisation: Normalisation
    augmentation: Augmentation | None = None
    _: KW_ONLY
    size: int
    workers: int = 0
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        in_memory = isinstance(self.source, Images)
        for pixels, labels in self._from_memory() if in_memory else self._from_files():
            on_device = pixels.to(self.device, non_blocking=True)
            yield self.normalisation(on_device), labels.to(self.device, non_blocking=True)

    def _from_memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.order:
            yield self.prepared(torch.tensor(indices))

    def _from_files(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from DataLoader(
            _Streamed(self),
            batch_sampler=self.order,
            num_workers=self.workers,
            pin_memory=torch.device(self.device).type == "cuda",
        )

    def prepared(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images with these indices, resized and augmented, and their labels."""
        images = self.source.take(indices).in_memory(self.size)
        pixels = images.pixels if self.augmentation is None else self.augmentation(images.pixels)
        return pixels, images.labels


class _Streamed(Dataset[tuple[Tensor, Tensor]]):
    """One image at a time, whose random numbers are a function of seed, epoch and its index."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        order = self.batches.order
        with torch.random.fork_rng(devices=[]):  # those of the training itself go on as they were
            torch.manual_seed(mixed_seed(order.seed, order.epoch, index))
            pixels, labels = self.batches.prepared(torch.tensor([index]))
        return pixels[0], labels[0]


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
        value = 0
        for source in (self.train, self.test):
            for part in source.contents():
                value = zlib.crc32(part, value)
        return f"{value:08x}"

    def describe(self) -> dict[str, object]:
        """What the results should say about the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.classes),
            "size": self.size,
            "crop_scale": self.augmentation.crop_scale,
            "train_size": self.augmentation.size or self.size,
            "trivial_augment": self.augmentation.trivial,
            "normalisation": asdict(self.normalisation),
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
    crop_scale: float | None = None,
    train_size: int | None = None,
    trivial_augment: bool = False,
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
        crop_scale: as in `Augmentation`.
        train_size: height and width of the images to train on, which crops make them; None means
            `size`. Objects in resized crops are larger, so that a larger size suits the test
            (Touvron et al., NeurIPS 2019).
        trivial_augment: ``trivial`` of `Augmentation`.

    Raises:
        DataError: if files are missing or unreadable; the message names them.
        ValueError: if a size is not positive, a share of the area not in (0, 1], or a subset is
            not within the data set.
    """
    reader = _reader(name)
    size = reader.size if size is None else size
    if size < 1:
        raise ValueError(f"{name}: size must be at least 1 (got {size})")
    if crop_scale is not None and not 0 < crop_scale <= 1:
        raise ValueError(f"{name}: crop_scale must be in (0, 1] (got {crop_scale})")
    if train_size is not None and train_size > size and crop_scale is None:
        raise ValueError(
            f"{name}: train_size must be at most the size {size}, or crop_scale be given "
            f"(got {train_size})"
        )
    train = read_split(name, root, train=True)
    if held_out is None:
        train = _cut(name, train, subset)
        test = _cut(name, read_split(name, root, train=False), test_subset)
    else:
        train, test = _held_out(name, train, subset, held_out)
    if train.classes != test.classes:
        raise DataError(
            f"{name}: training and test folders must hold the same classes "
            f"(got {len(train.classes)} and {len(test.classes)} in {root})"
        )
    if stream is None:
        stream = (len(train) + len(test)) * 3 * size * size > MEMORY_LIMIT
    if stream and isinstance(train, ImageFiles):
        some = train.take(stratified_indices(train.labels, MEASURED_IMAGES)).in_memory(size)
    else:
        train = some = train.in_memory(size)
        test = test.in_memory(size)
    return DataSet(
        name,
        train,
        test,
        size,
        Normalisation.of(some.pixels),
        Augmentation(size // 8, reader.flip, crop_scale, train_size, trivial_augment),
        held_out=held_out is not None,
    )


def read_split(name: str, root: Path | str | None, *, train: bool) -> Images | ImageFiles:
    """Reads the training or the test images of a data set as they are; arguments as for `load`.

    Raises:
        DataError: if files are missing or unreadable; the message names them.
        ValueError: if there is no data set of this name.
    """
    reader = _reader(name)
    folder = _existing_folder(name, root) if reader.files else Path()
    try:
        images = reader.read(folder, train)
    # Unreadable data shows as anything from EOFError to the errors of the file format's reader.
    except Exception as error:
        raise DataError(
            f"{name}: {folder} must hold {reader.files} (got {type(error).__name__}: {error})"
        ) from error
    largest = int(images.labels.max())
    if int(images.labels.min()) < 0 or largest >= len(images.classes):
        raise DataError(
            f"{name}: labels in {folder} must be below {len(images.classes)} (got {largest})"
        )
    return images


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


class _Unchecked:
    """Lets torchvision's readers take files of other checksums, such as smaller ones."""

    def _check_integrity(self) -> bool:
        return True


class _Cifar10(_Unchecked, datasets.CIFAR10):
    meta: ClassVar[dict[str, str | None]] = {**datasets.CIFAR10.meta, "md5": None}


class _Cifar100(_Unchecked, datasets.CIFAR100):
    meta: ClassVar[dict[str, str | None]] = {**datasets.CIFAR100.meta, "md5": None}


class _Stl10(_Unchecked, datasets.STL10):
    pass


class _Svhn(_Unchecked, datasets.SVHN):
    pass


def _as_images(pixels: np.ndarray, labels: object, classes: Sequence[object]) -> Images:
    """From uint8 pixels ``(N, 3, H, W)`` of any layout in memory."""
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.as_tensor(labels, dtype=torch.int64),
        tuple(map(str, classes)),
    )


def _as_files(paths: Sequence[object], labels: object, classes: Sequence[str]) -> ImageFiles:
    return ImageFiles(
        tuple(map(str, paths)), torch.as_tensor(labels, dtype=torch.int64), tuple(classes)
    )


def _read_cifar10(root: Path, train: bool) -> Images | ImageFiles:
    """CIFAR-10 as python batches, as binary batches or as folders of images, whichever is there."""
    if (_above(root, _Cifar10.base_folder) / _Cifar10.base_folder).is_dir():
        return _read_cifar(_Cifar10, root, train)
    batches = (
        [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    )
    for folder in (root, root / "cifar-10-batches-bin"):
        for names in (["train.bin" if train else "test.bin"], batches):
            if (folder / names[0]).is_file():
                return _read_cifar10_binary([folder / name for name in names])
    return _read_image_folder(root, train)


def _read_cifar10_binary(files: Sequence[Path]) -> Images:
    """Records of one label byte and 3,072 bytes of pixels: the planes R, G, B, row by row."""
    parts = [np.fromfile(file, dtype=np.uint8).reshape(-1, 3073) for file in files]
    records = np.concatenate(parts)
    return _as_images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], _CIFAR10_CLASSES)


_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def _read_cifar(reader: type[datasets.CIFAR10], root: Path, train: bool) -> Images:
    data = reader(_above(root, reader.base_folder), train=train)
    return _as_images(data.data.transpose(0, 3, 1, 2), data.targets, data.classes)


def _read_cifar100(root: Path, train: bool) -> Images:
    return _read_cifar(_Cifar100, root, train)


def _read_svhn(root: Path, train: bool) -> Images:
    data = _Svhn(root, split="train" if train else "test")
    return _as_images(data.data, data.labels, range(10))


def _read_stl10(root: Path, train: bool) -> Images:
    data = _Stl10(_above(root, _Stl10.base_folder), split="train" if train else "test")
    return _as_images(data.data, data.labels, getattr(data, "classes", range(10)))


def _above(root: Path, name: str) -> Path:
    """The folder that holds the standard download's folder, which may be given itself."""
    return root.parent if root.name == name else root


def _read_image_folder(root: Path, train: bool) -> ImageFiles:
    """Folders train/CLASS/ and test/CLASS/ or val/CLASS/ (ImageNet, Places365 "easyformat")."""
    test = "test" if (root / "test").is_dir() else "val"
    data = datasets.ImageFolder(root / ("train" if train else test))
    return _as_files([path for path, _ in data.samples], data.targets, data.classes)


def _read_imagenet(root: Path, train: bool) -> ImageFiles:
    """ImageNet: its archives (torchvision unpacks them), or folders train/CLASS/ and val/CLASS/."""
    if not any((root / name).is_file() for name in ("meta.bin", _IMAGENET_KIT)):
        return _read_image_folder(root, train)
    data = datasets.ImageNet(root, "train" if train else "val")
    classes = [names[0] for names in data.classes]
    return _as_files([path for path, _ in data.samples], data.targets, classes)


_IMAGENET_KIT = "ILSVRC2012_devkit_t12.tar.gz"


def _read_aircraft(root: Path, train: bool) -> ImageFiles:
    """FGVC-Aircraft with its 100 variants as classes; training and validation images together."""
    data = datasets.FGVCAircraft(root, "trainval" if train else "test")
    return _as_files(data._image_files, data._labels, data.classes)


def _read_digits(_: Path, train: bool) -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; every fifth of a class is for tests."""
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = _as_images(np.repeat(grey[:, None], 3, axis=1), digits.target, range(10))
    is_test = positions_in_class(images.labels) % 5 == 4
    return images.take(torch.nonzero(~is_test if train else is_test).flatten())


@dataclass(frozen=True)
class Reader:
    """How a data set is read: ``read(root, train)``, and what is peculiar to it.

    Attributes:
        files: what the folder must hold, in words; empty where there are no files to read.
        flip: whether mirroring keeps the classes.
        size: height and width of the images handed out unless something else is asked for.
        margin: to test, scale an image's shorter side to this multiple of the size that the network
            gets, then cut out the centre.
        imagenet_classes: where the classes stand among ImageNet's 1,000.
    """

    read: Callable[[Path, bool], Images | ImageFiles]
    files: str = "the folders train/CLASS/ and test/CLASS/ or val/CLASS/"
    flip: bool = True
    size: int = 32
    margin: float = 1.0
    imagenet_classes: tuple[int, ...] | None = None


DATA_SETS: dict[str, Reader] = {
    "digits": Reader(_read_digits, files="", flip=False, size=16),
    "cifar10": Reader(
        _read_cifar10,
        "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta, or "
        "cifar-10-batches-bin/ with the same as .bin, or the folders train/CLASS/ and test/CLASS/",
    ),
    "cifar100": Reader(_read_cifar100, "cifar-100-python/ with train, test and meta"),
    "svhn": Reader(_read_svhn, "train_32x32.mat and test_32x32.mat", flip=False),
    "stl10": Reader(
        _read_stl10, "stl10_binary/ with train_X.bin, train_y.bin, test_X.bin and test_y.bin"
    ),
    "imagefolder": Reader(_read_image_folder),
    "imagenet": Reader(
        _read_imagenet,
        f"{_IMAGENET_KIT}, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or the folders "
        "train/CLASS/ and val/CLASS/",
        size=224,
        margin=8 / 7,
    ),
    "imagenette": Reader(
        _read_image_folder,
        imagenet_classes=(0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    ),
    "aircraft": Reader(
        _read_aircraft,
        "fgvc-aircraft-2013b/data/ with images/, variants.txt, images_variant_trainval.txt and "
        "images_variant_test.txt",
        size=224,
        margin=8 / 7,
    ),
    "places365": Reader(_read_image_folder, size=224),
}
