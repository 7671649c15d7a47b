from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from image_data import (
    Augmentation,
    Batches,
    DataError,
    DataSet,
    EpochOrder,
    ImageFiles,
    Images,
    Normalisation,
    load,
    stratified_indices,
)

CIFAR10_NAMES = [
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


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10_python(root: Path) -> tuple[np.ndarray, list[int]]:
    """Five batches of four images and one of ten, as in the standard download."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = random_pixels(20, 3, 32, 32)
    labels = [index % 10 for index in range(20)]
    parts = {f"data_batch_{n + 1}": slice(4 * n, 4 * n + 4) for n in range(5)}
    for name, part in (parts | {"test_batch": slice(0, 10)}).items():
        batch = {
            "batch_label": "some text",
            "labels": labels[part],
            "data": pixels[part].reshape(-1, 3072),
            "filenames": ["a.png"] * len(labels[part]),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": CIFAR10_NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return pixels, labels


def write_cifar10_binary(folder: Path, train: list[str], test: str) -> tuple[np.ndarray, list[int]]:
    folder.mkdir(exist_ok=True)
    pixels = random_pixels(20, 3, 32, 32)
    labels = [index % 10 for index in range(20)]
    records = np.concatenate(
        [np.array(labels, dtype=np.uint8)[:, None], pixels.reshape(20, -1)], axis=1
    )
    for name, part in zip(train, np.split(records, len(train)), strict=True):
        part.tofile(folder / name)
    records[:10].tofile(folder / test)
    return pixels, labels


def write_image_folder(
    root: Path, *, size: tuple[int, int] = (40, 32), test: str = "test"
) -> dict[str, np.ndarray]:
    """Two classes of three flat-coloured images each in train/ and one in test/."""
    colours = {}
    for split, count in (("train", 3), (test, 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                colour = np.array([200 * label, 30 * index + 10, 128], dtype=np.uint8)
                image = np.broadcast_to(colour, (size[1], size[0], 3))
                Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{index}.png")
                colours[f"{split}/{name}/{index}"] = colour
    return colours


def in_memory(source: Images | ImageFiles) -> Images:
    assert isinstance(source, Images)
    return source


def check_cifar10(root: Path, pixels: np.ndarray, labels: list[int]) -> None:
    data = load("cifar10", root)
    train, test = in_memory(data.train), in_memory(data.test)
    assert data.classes == tuple(CIFAR10_NAMES)
    assert torch.equal(train.pixels, torch.from_numpy(pixels))
    assert train.labels.tolist() == labels
    assert torch.equal(test.pixels, torch.from_numpy(pixels[:10]))
    assert data.augmentation == Augmentation(padding=4, flip=True)


def test_cifar10_python_batches(tmp_path: Path) -> None:
    pixels, labels = write_cifar10_python(tmp_path)
    check_cifar10(tmp_path, pixels, labels)
    check_cifar10(tmp_path / "cifar-10-batches-py", pixels, labels)


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    [
        ("cifar-10-batches-bin", [f"data_batch_{n}.bin" for n in range(1, 6)], "test_batch.bin"),
        (".", ["train.bin"], "test.bin"),
    ],
)
def test_cifar10_binary_batches(tmp_path: Path, folder: str, train: list[str], test: str) -> None:
    pixels, labels = write_cifar10_binary(tmp_path / folder, train, test)
    check_cifar10(tmp_path, pixels, labels)


def test_svhn(tmp_path: Path) -> None:
    pixels = random_pixels(12, 3, 32, 32)
    labels = np.arange(12) % 10
    for split in ("train", "test"):
        # As in the download: images last, and the digit 0 labelled 10.
        contents = {
            "X": pixels.transpose(2, 3, 1, 0),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
        }
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", contents)
    data = load("svhn", tmp_path)
    assert torch.equal(in_memory(data.train).pixels, torch.from_numpy(pixels))
    assert data.train.labels.tolist() == labels.tolist()
    assert not data.augmentation.flip


def test_stl10_is_resized_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = random_pixels(10, 3, 96, 96)
    for split in ("train", "test"):
        # As in the download: columns before rows, labels from 1.
        pixels.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        np.arange(1, 11, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(CIFAR10_NAMES) + "\n")
    data = load("stl10", tmp_path, size=96)
    assert torch.equal(in_memory(data.train).pixels, torch.from_numpy(pixels))
    assert data.train.labels.tolist() == list(range(10))
    assert data.classes == tuple(CIFAR10_NAMES)
    small = in_memory(load("stl10", tmp_path).train)
    assert small.pixels.shape == (10, 3, 32, 32)
    # Shrinking averages: the mean of an image stays.
    means = torch.from_numpy(pixels).float().mean((1, 2, 3))
    assert torch.allclose(small.pixels.float().mean((1, 2, 3)), means, atol=2.0)


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
def test_image_folders(tmp_path: Path, name: str, test: str) -> None:
    colours = write_image_folder(tmp_path, test=test)
    data = load(name, tmp_path, size=16)
    train = in_memory(data.train)
    assert data.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.test) == 2
    expected = [colours[f"train/{name}/{index}"] for name in ("cat", "dog") for index in range(3)]
    for image, colour in zip(train.pixels, expected, strict=True):
        assert torch.equal(image, torch.tensor(colour)[:, None, None].expand(3, 16, 16))


def test_streamed_folder_gives_the_images_of_the_one_in_memory(tmp_path: Path) -> None:
    """Resized, cut and normalised alike, and augmented by the same crops and mirrorings."""
    for split in ("train", "test"):
        (tmp_path / split / "thing").mkdir(parents=True)
        for index, image in enumerate(random_pixels(5, 32, 40, 3)):
            Image.fromarray(image).save(tmp_path / split / "thing" / f"{index}.png")
    kept = load("imagefolder", tmp_path, size=16)
    streamed = load("imagefolder", tmp_path, size=16, stream=True)
    assert isinstance(streamed.train, ImageFiles) and not kept.streamed
    assert streamed.normalisation == kept.normalisation
    assert streamed.augmentation == kept.augmentation == Augmentation(padding=2)

    def pixels(data: DataSet, workers: int) -> Tensor:
        order = EpochOrder(len(data.train), 4, shuffle=False)
        batches = Batches(data.train, order, data.normalisation, size=16, workers=workers)
        return torch.cat([images for images, _ in batches])

    assert torch.equal(pixels(streamed, 1), pixels(kept, 0))


def test_streamed_training_images_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    """Not on who decodes them, nor on what was drawn before."""
    pixels = random_pixels(6, 40, 40, 3)
    for index, image in enumerate(pixels):
        folder = tmp_path / ("train" if index < 5 else "test") / "thing"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = load("imagefolder", tmp_path, size=16, stream=True)

    def images(seed: int = 0, epoch: int = 0, done: int = 0, workers: int = 0) -> Tensor:
        order = EpochOrder(5, 2, shuffle=True, seed=seed)
        order.epoch, order.done = epoch, done
        batches = Batches(
            data.train, order, data.normalisation, data.augmentation, size=16, workers=workers
        )
        return torch.cat([images for images, _ in batches])

    first = images()
    assert first.shape == (4, 3, 16, 16)
    torch.manual_seed(1)
    assert torch.equal(images(workers=2), first)
    assert torch.equal(images(done=1), first[2:])
    assert not torch.equal(images(seed=1), first)
    assert not torch.equal(images(epoch=1), first)


def test_digits_are_split_without_overlap() -> None:
    data = load("digits", size=8)
    train, test = in_memory(data.train), in_memory(data.test)
    assert (len(train), len(test)) == (1442, 355)
    assert min(torch.bincount(test.labels)) >= 34
    train_images = {image.numpy().tobytes() for image in train.pixels}
    assert not any(image.numpy().tobytes() in train_images for image in test.pixels)
    assert train.pixels.max() == 255
    assert load("digits").size == 16


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "must hold cifar-10-batches-py/ with data_batch_1 to data_batch_5"),
        ("svhn", r"must hold train_32x32.mat and test_32x32.mat \(got .*train_32x32.mat"),
        ("stl10", r"must hold stl10_binary/ with train_X.bin, .*\(got .*train_[Xy].bin"),
        ("imagefolder", r"must hold the folders train/CLASS/ .*\(got .*/train"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match=r"the data folder must exist \(got .*nowhere"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"must be given \(--root\)"):
        load(name)


def test_one_missing_batch_is_named(tmp_path: Path) -> None:
    write_cifar10_python(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"\(got .*/data_batch_3"):
        load("cifar10", tmp_path)


def test_truncated_files_give_one_error(tmp_path: Path) -> None:
    write_cifar10_python(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cifar10: .* must hold cifar-10-batches-py/ .* \(got "):
        load("cifar10", tmp_path)
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    write_cifar10_binary(tmp_path, ["train.bin"], "test.bin")
    (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cifar10: .* must hold cifar-10-batches-py/ .* \(got "):
        load("cifar10", tmp_path)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_cifar10_binary(tmp_path, ["train.bin"], "test.bin")
    contents = bytearray((tmp_path / "train.bin").read_bytes())
    contents[0] = 10
    (tmp_path / "train.bin").write_bytes(contents)
    with pytest.raises(DataError, match=r"labels in .* must be below 10 \(got 10\)"):
        load("cifar10", tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images: cannot read .*dog/1.png"):
        load("imagefolder", tmp_path)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"digits: subset must be between 1 and 1442 \(got 1443\)"):
        load("digits", subset=1443)
    with pytest.raises(ValueError, match=r"digits: size must be at least 1 \(got 0\)"):
        load("digits", size=0)
    with pytest.raises(ValueError, match="data: must be one of digits, cifar10"):
        load("mnist")
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"crop_scale must be in \(0, 1\] \(got "):
            load("digits", crop_scale=share)
    with pytest.raises(ValueError, match=r"train_size must be at most the size 16, or .*got 20\)"):
        load("digits", train_size=20)


def test_images_that_are_held_out_are_training_images_outside_the_subset() -> None:
    whole = load("digits")
    data = load("digits", subset=500, held_out=200)
    assert (len(data.train), len(data.test)) == (500, 200)
    assert data.held_out and data.describe()["held_out"] and not whole.held_out
    training = {image.numpy().tobytes() for image in whole.train.pixels}
    used = {image.numpy().tobytes() for image in data.train.pixels}
    held = {image.numpy().tobytes() for image in data.test.pixels}
    assert used | held <= training and not used & held
    assert data.test.labels.bincount().tolist() == [20] * 10
    rest = load("digits", held_out=42)
    assert (len(rest.train), len(rest.test)) == (1400, 42)
    with pytest.raises(ValueError, match=r"together at most 1442 \(got subset=1400, held_out=43"):
        load("digits", subset=1400, held_out=43)


def test_subsets_are_stratified_and_deterministic() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    assert stratified_indices(labels, 6).tolist() == [0, 1, 4, 5, 6, 7]
    assert stratified_indices(labels, 4).tolist() == [0, 1, 4, 6]
    data = load("digits", subset=100)
    assert torch.bincount(data.train.labels).tolist() == [10] * 10


def test_augmentation_crops_and_mirrors_every_image_on_its_own() -> None:
    pixels = torch.from_numpy(random_pixels(200, 3, 6, 5))
    augmented = Augmentation(padding=2, flip=True)(pixels)
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    seen = set()
    for image, source in zip(augmented, padded, strict=True):
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(
                image.flip(2) if mirrored else image, source[:, top : top + 6, left : left + 5]
            )
        ]
        assert matches
        seen.add(matches[0])
    # 50 equally likely outcomes in 200 draws: all but a few turn up.
    assert len(seen) >= 40


def test_resized_crops_have_the_size_asked_for_and_parts_of_their_image() -> None:
    torch.manual_seed(0)
    # Each image is a ramp, so that a part of it has a part of the values, in their order.
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8)
    pixels = ramp.expand(32, 3, 24, 24)
    cropped = Augmentation(flip=False, crop_scale=0.25, size=12)(pixels)
    assert cropped.shape == (32, 3, 12, 12) and cropped.dtype == torch.uint8
    rows = cropped[:, 0, 0].int()
    assert (rows.diff() >= 0).all() and len({tuple(row.tolist()) for row in rows}) > 16
    widths = rows[:, -1] - rows[:, 0]
    assert 40 < widths.min() < 150 < widths.max() <= 230


def test_trivial_augmentation_changes_images_one_by_one() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8).expand(24, -1, -1, -1)
    changed = Augmentation(padding=0, flip=False, trivial=True)(pixels)
    assert changed.shape == pixels.shape and changed.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in changed}) > 12
    assert load("digits", trivial_augment=True).augmentation.trivial


def test_images_to_train_on_may_have_another_size_than_those_to_test_on() -> None:
    data = load("digits", crop_scale=0.5, train_size=12)
    order = EpochOrder(len(data.train), 8, shuffle=True)
    images, _ = next(
        iter(Batches(data.train, order, data.normalisation, data.augmentation, size=16))
    )
    assert images.shape == (8, 3, 12, 12) and data.test.pixels.shape[2:] == (16, 16)
    told = data.describe()
    assert (told["size"], told["train_size"], told["crop_scale"]) == (16, 12, 0.5)
    assert load("digits").describe()["train_size"] == 16


def test_augmentation_can_be_switched_off() -> None:
    pixels = torch.from_numpy(random_pixels(4, 3, 6, 5))
    assert torch.equal(Augmentation(padding=0, flip=False)(pixels), pixels)


def test_normalised_images_have_mean_0_and_variance_1() -> None:
    pixels = torch.from_numpy(random_pixels(50, 3, 8, 8))
    pixels[:, 1] //= 4
    normalised = Normalisation.of(pixels)(pixels)
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(normalised.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def orders(epoch: int, *, world_size: int, shuffle: bool, count: int = 22) -> list[list[list[int]]]:
    found = []
    for rank in range(world_size):
        order = EpochOrder(count, 4, shuffle=shuffle, seed=3, rank=rank, world_size=world_size)
        order.epoch = epoch
        found.append(list(order))
    return found


def test_processes_share_each_batch() -> None:
    (whole,) = orders(1, world_size=1, shuffle=True)
    halves = orders(1, world_size=2, shuffle=True)
    assert len(whole) == 5
    for batch, first, second in zip(whole, *halves, strict=True):
        assert first == batch[::2]
        assert second == batch[1::2]
    assert len({index for batch in whole for index in batch}) == 20


def test_every_epoch_has_its_own_order() -> None:
    assert orders(1, world_size=1, shuffle=True) == orders(1, world_size=1, shuffle=True)
    assert orders(1, world_size=1, shuffle=True) != orders(2, world_size=1, shuffle=True)


def test_evaluation_sees_every_image_once() -> None:
    parts = orders(0, world_size=3, shuffle=False, count=21)
    indices = [index for part in parts for batch in part for index in batch]
    assert sorted(indices) == list(range(21))
    assert all(batch for part in parts for batch in part)
