"""Writes small data sets in the formats of the standard downloads."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

IMAGENET_IDS = ("n01440764", "n02102040", "n02979186")
AIRCRAFT_VARIANTS = ("707-320", "A340 200", "Cessna 172")


def random_image(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise, width and height as given."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """An image as the bytes of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_cifar10(root: Path, images: int) -> None:
    """``cifar-10-batches-py``: five training batches and one for testing, of so many images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        _write_batch(folder / name, {"labels": _labels(images, 10)}, seed, images)
    meta = {"label_names": [f"class {label}" for label in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_cifar100(root: Path, images: int) -> None:
    """``cifar-100-python``: train and test, each of so many images, with fine and coarse labels."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        labels = {"fine_labels": _labels(images, 100), "coarse_labels": _labels(images, 20)}
        _write_batch(folder / name, labels, seed, images)
    meta = {
        "fine_label_names": [f"fine {label}" for label in range(100)],
        "coarse_label_names": [f"coarse {label}" for label in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_aircraft(root: Path, images: int) -> None:
    """``fgvc-aircraft-2013b/data`` with so many images of each of three variants in a split."""
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in AIRCRAFT_VARIANTS))
    for seed, split in enumerate(("trainval", "test")):
        lines = []
        for index in range(images * len(AIRCRAFT_VARIANTS)):
            name = f"{1_000_000 * (seed + 1) + index:07d}"
            random_image(index, (60, 40)).save(data / "images" / f"{name}.jpg")
            lines.append(f"{name} {AIRCRAFT_VARIANTS[index % len(AIRCRAFT_VARIANTS)]}\n")
        (data / f"images_variant_{split}.txt").write_text("".join(lines))


def write_imagenet(root: Path, images: int) -> None:
    """The three archives of ILSVRC2012, with so many images of each of three classes in a split."""
    root.mkdir(parents=True, exist_ok=True)
    classes = len(IMAGENET_IDS)
    kit = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{index % classes + 1}\n" for index in range(classes * images))
    with tarfile.open(root / f"{kit}.tar.gz", "w:gz") as archive:
        _add(archive, f"{kit}/data/meta.mat", _synsets())
        _add(archive, f"{kit}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for index in range(classes * images):
            name = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
            _add(archive, name, jpeg(random_image(index, (50, 40))))
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for label, wnid in enumerate(IMAGENET_IDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as folder:
                for index in range(images):
                    image = jpeg(random_image(1000 * (label + 1) + index, (40, 50)))
                    _add(folder, f"{wnid}_{index}.JPEG", image)
            _add(archive, f"{wnid}.tar", inner.getvalue())


def write_image_folders(root: Path, classes: int, images: int) -> None:
    """``train/CLASS`` and ``val/CLASS`` with so many images each."""
    for seed, split in enumerate(("train", "val")):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(images):
                image = random_image(1000 * seed + 10 * label + index, (40, 40))
                image.save(folder / f"{index}.JPEG")


def _labels(images: int, classes: int) -> list[int]:
    return [index % classes for index in range(images)]


def _write_batch(path: Path, labels: dict[str, list[int]], seed: int, images: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, (images, 3072), dtype=np.uint8)
    batch = {"data": data, "batch_label": "some text", "filenames": ["a.png"] * images, **labels}
    path.write_bytes(pickle.dumps(batch, protocol=2))


def _synsets() -> bytes:
    """``meta.mat``: the classes, and one that has children and is none."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    kinds += [("num_children", "O"), ("children", "O"), ("wordnet_height", "O")]
    rows = [
        (number, wnid, f"{wnid} word, other word", "gloss", 0, np.array([]), 0)
        for number, wnid in enumerate(IMAGENET_IDS, 1)
    ]
    rows.append((len(rows) + 1, "n00000001", "entity", "gloss", 2, np.array([1, 2]), 1))
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": np.array(rows, dtype=kinds)})
    return file.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
