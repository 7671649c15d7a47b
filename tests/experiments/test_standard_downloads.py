"""Data sets that come as archives or in folders of their own, read by torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import imagenet

from image_data import DataError, ImageFiles, Images, read_split

from . import standard_downloads as downloads


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small archives have not those of the real ones."""
    without = {key: (name, None) for key, (name, _) in imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", without)


def test_cifar100_has_its_fine_classes(tmp_path: Path) -> None:
    downloads.write_cifar100(tmp_path, 120)
    test = read_split("cifar100", tmp_path, train=False)
    assert isinstance(test, Images)
    assert len(test.classes) == 100 and test.classes[7] == "fine 7"
    assert test.labels.tolist() == [index % 100 for index in range(120)]
    expected = np.random.default_rng(1).integers(0, 256, (120, 3072), dtype=np.uint8)
    assert torch.equal(test.pixels, torch.from_numpy(expected.reshape(-1, 3, 32, 32)))
    inner = read_split("cifar100", tmp_path / "cifar-100-python", train=True)
    assert len(inner) == 120


def test_aircraft_has_training_and_validation_images_to_train_on(tmp_path: Path) -> None:
    downloads.write_aircraft(tmp_path, 2)
    train, test = (read_split("aircraft", tmp_path, train=train) for train in (True, False))
    assert isinstance(test, ImageFiles)
    assert train.classes == test.classes == downloads.AIRCRAFT_VARIANTS
    assert test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert Path(test.paths[0]).name == "2000000.jpg"
    assert test.in_memory(20).pixels.shape == (6, 3, 20, 20)


@pytest.mark.usefixtures("no_checksums")
def test_imagenet_is_unpacked_once(tmp_path: Path) -> None:
    downloads.write_imagenet(tmp_path, 2)
    for train in (True, False):
        images = read_split("imagenet", tmp_path, train=train)
        assert isinstance(images, ImageFiles)
        assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert images.classes[0] == "n01440764 word"
    # Validation images come mixed, with their classes in the development kit.
    assert [Path(path).stem[-1] for path in images.paths] == ["1", "4", "2", "5", "3", "6"]
    expected = downloads.jpeg(downloads.random_image(3, (50, 40)))
    assert Path(images.paths[1]).read_bytes() == expected
    for archive in tmp_path.glob("*.tar*"):
        archive.unlink()
    assert len(read_split("imagenet", tmp_path, train=False)) == 6


def test_unpacked_imagenet_needs_its_folders_alone(tmp_path: Path) -> None:
    downloads.write_image_folders(tmp_path, classes=3, images=2)
    assert read_split("imagenet", tmp_path, train=False).labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar100", "must hold cifar-100-python/ with train, test and meta"),
        ("aircraft", "must hold fgvc-aircraft-2013b/data/"),
        ("imagenet", r"must hold ILSVRC2012_devkit_t12.tar.gz, .* train/CLASS/"),
        ("imagenette", r"must hold the folders train/CLASS/"),
    ],
)
def test_missing_downloads_are_named(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_split(name, tmp_path, train=True)


@pytest.mark.usefixtures("no_checksums")
def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    downloads.write_imagenet(tmp_path, 1)
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(DataError, match=r"\(got .*ILSVRC2012_img_train\.tar"):
        read_split("imagenet", tmp_path, train=True)
