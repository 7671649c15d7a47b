"""Folders of images: what is found, how it is spread, and inputs as torchvision makes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from sketchlayers.cli.folders import (
    ImageBatches,
    LabelledImages,
    Preparation,
    find_images,
    spread,
)
from sketchlayers.cli.messages import WrongInput

from .photos import write_photos

models = pytest.importorskip("torchvision.models")
Image = pytest.importorskip("PIL.Image")


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", ["b", "a/deep/er", ".hidden"], 3)
    (folder / "notes.txt").write_text("no image")
    (folder / "._000.jpg").write_bytes(b"what other systems leave behind")
    (folder / "top.JPG").write_bytes((folder / "b" / "001.jpg").read_bytes())
    (folder / "b" / "again").symlink_to(folder)  # links may lead in circles
    elsewhere = write_photos(tmp_path / "elsewhere", ["x"], 1)
    (folder / "linked").symlink_to(elsewhere / "x")
    found = [str(path.relative_to(folder)) for path in find_images(folder)]
    inside = [f"{parent}/{name}" for parent in ("a/deep/er", "b") for name in NAMES]
    assert found == [*inside, "linked/000.png", "top.JPG"]


NAMES = ["000.png", "001.jpg", "002.webp"]


def test_spread_takes_all_folders_in_turn() -> None:
    sizes = {"a": 50, "b": 3, "c": 20}
    files = [Path(name, f"{i:02d}.jpg") for name, count in sizes.items() for i in range(count)]
    chosen = spread(files, 30)
    assert chosen == spread(files, 73)[:30] and len(set(chosen)) == 30
    counts = Counter(path.parent.name for path in chosen)
    assert counts["b"] == 3 and abs(counts["a"] - counts["c"]) <= 1
    assert Counter(path.parent.name for path in chosen[:9]) == dict.fromkeys("abc", 3)
    assert sorted(spread(files, 1000)) == sorted(files)
    # A part of one folder comes from all over it.
    alone = sorted(int(path.stem) for path in spread(files[:50], 10))
    assert alone[0] < 15 and alone[-1] > 35


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "efficientnet_b1"])
@pytest.mark.parametrize("size", [(300, 231), (231, 300), (640, 480), (50, 31)])
def test_inputs_are_those_of_the_weights(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    write_photos(tmp_path, ["."], 1, size=size)
    image = Image.open(tmp_path / "000.png")
    expected = models.get_model_weights(name).DEFAULT.transforms()(image)
    prepare = Preparation.of(name, None)
    (found,) = ImageBatches([tmp_path / "000.png"], prepare, 4)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_other_sizes_are_cropped_alike(tmp_path: Path) -> None:
    from torchvision.transforms import functional

    write_photos(tmp_path, ["."], 1, size=(90, 70))
    path = tmp_path / "000.png"
    square = Preparation.of(None, (3, 28, 28)).load(path)
    image = functional.center_crop(functional.resize(Image.open(path), [32]), [28, 28])
    assert torch.equal(square, functional.pil_to_tensor(image))
    assert Preparation.of("resnet18", (3, 20, 64)).load(path).shape == (3, 20, 64)
    # An image of just the size is left as it is.
    whole = Preparation.of("resnet18", (3, 70, 90)).load(path)
    assert torch.equal(whole, functional.pil_to_tensor(Image.open(path)))
    grey = Preparation.of(None, (1, 28, 28))
    assert grey.normalise(grey.load(path)[None]).shape == (1, 1, 28, 28)
    assert len(grey.mean) == 1


def test_batches_come_in_order_and_again(tmp_path: Path) -> None:
    files = find_images(write_photos(tmp_path, ["a", "b"], 5, size=(16, 16)))
    prepare = Preparation.of(None, (3, 16, 16))
    batches = ImageBatches(files, prepare, 4)
    first, second = list(batches), list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2] and len(batches) == 3
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(first, batches.in_memory(), strict=True))
    one = prepare.normalise(prepare.load(files[5])[None])
    assert torch.equal(first[1][1], one[0])
    assert batches.nbytes == sum(batch.nbytes for batch in first)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    files = find_images(write_photos(tmp_path, ["a"], 200, size=(16, 16), endings=[".jpg"]))
    prepare = Preparation.of(None, (3, 16, 16))
    files[150].write_bytes(files[150].read_bytes()[:-100])
    with pytest.raises(WrongInput, match=r"cannot read .*150\.jpg: "):
        list(ImageBatches(files, prepare, 4))
    files[3].write_text("no image")
    with pytest.raises(WrongInput, match=r"cannot read .*003\.jpg: not an image, or damaged"):
        list(ImageBatches(files, prepare, 4))
    with pytest.raises(WrongInput, match=r"such as 3x224x224 or 1x28x28 \(got 4x8x8\)"):
        Preparation.of(None, (4, 8, 8))
    with pytest.raises(WrongInput, match="no such folder: "):
        find_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WrongInput, match=r"no image in .*empty \(looked for .* \.jpeg "):
        find_images(tmp_path / "empty")


def test_labels_follow_the_order_of_names(tmp_path: Path) -> None:
    write_photos(tmp_path, ["n02", "n01/deeper", "n10"], 2)
    images = LabelledImages.find(tmp_path)
    assert images.classes == ("n01", "n02", "n10") and len(images) == 6
    assert [path.relative_to(tmp_path).parts[0] for path in images.files] == [
        images.classes[label] for label in images.labels
    ]
    with pytest.raises(WrongInput, match=r"one folder of images for each class \(got none\)"):
        LabelledImages.find(tmp_path / "n02")
    (tmp_path / "n05").mkdir()
    with pytest.raises(WrongInput, match=r"no image in .*n05"):
        LabelledImages.find(tmp_path)
