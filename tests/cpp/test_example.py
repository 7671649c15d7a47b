"""A network compressed in Python, packaged, and run over a folder of images by examples/cpp."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate

import sketchlayers
from sketchlayers import SKConv2d, SKLinear

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
CLASSES = ["tabby cat", "ship", "frog"]
SIZE = 12
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def write_ppm(path: Path, image: Tensor) -> None:
    """An image ``(3, H, W)``, uint8, with a comment in its header as some programs write one."""
    _, height, width = image.shape
    header = f"P6\n# a comment\n{width} {height}\n255\n".encode()
    path.write_bytes(header + image.permute(1, 2, 0).contiguous().numpy().tobytes())


def compressed() -> nn.Module:
    """A factored convolution, a folded one and a fully connected layer, by `compress`."""
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)
    )
    dense.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 3)])
    small, _ = sketchlayers.compress(dense, method="sketch", rate=0.8)
    assert [type(small[i]) for i in (1, 2, 5)] == [SKConv2d, SKConv2d, SKLinear]
    small[1].path, small[2].path = "factored", "folded"
    return small.eval()


def tell_apart(network: nn.Module, images: Tensor) -> None:
    """Moves and scales the last layer so that the images belong to different classes."""
    last = network[6]
    with torch.no_grad():
        inputs = network[:6]((images / 255 - MEAN) / DEVIATION)
        last.weight.mul_(3 / torch.nn.functional.linear(inputs, last.weight).std(0)[:, None])
        last.bias.copy_(-torch.nn.functional.linear(inputs, last.weight).mean(0))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export", EXAMPLE / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(network: nn.Module, out: Path) -> None:
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        script().package(network, CLASSES, SIZE, out)


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network((images / 255 - MEAN) / DEVIATION).softmax(1)


@pytest.mark.slow  # compiles the program and the network
@pytest.mark.filterwarnings("ignore")  # of the compiler's
def test_a_folder_of_images_is_classified(program: Callable[[str], Path], tmp_path: Path) -> None:
    network = compressed()
    colours, noise = torch.randint(192, (5, 3, 1, 1)), torch.randint(64, (5, 3, SIZE, SIZE))
    images = list((colours + noise).to(torch.uint8))
    wide = torch.randint(256, (3, SIZE + 9, 2 * SIZE + 18), dtype=torch.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate([*images, wide]):
        write_ppm(folder / f"{number}.ppm", image)
    resized = interpolate(wide[None].float(), (SIZE, 2 * SIZE), mode="bilinear", antialias=True)
    middle = resized[0, :, :, SIZE // 2 : SIZE // 2 + SIZE].round().clamp(0, 255)
    tell_apart(network, torch.stack([*images, middle]))
    export(network, tmp_path / "network.pt2")
    command = [program("examples/cpp/classify.cpp"), tmp_path / "network.pt2", folder]

    output = subprocess.run([*command, "4"], capture_output=True, text=True, check=True).stdout
    *lines, speed = output.splitlines()
    expected = probabilities(network, torch.stack([*images, middle]))
    assert len(set(expected.argmax(1).tolist())) > 1
    for number, (line, row) in enumerate(zip(lines, expected, strict=True)):
        found = re.fullmatch(rf"{number}\.ppm: (.*) \((.*) %\)", line)
        assert found, line
        assert found[1] == CLASSES[int(row.argmax())]
        assert float(found[2]) == pytest.approx(100 * float(row.max()), abs=0.06)
    assert re.fullmatch(r"6 images in [\d.]+ s: [\d.]+ images per second", speed)

    (folder / "5.ppm").write_bytes(b"P6\n12 12\n255\n too short")
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert re.search(r"classify: .*5\.ppm ends before its last pixel", failed.stderr)


def test_a_saved_network_is_packaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = torchvision.models.squeezenet1_1(num_classes=3).eval()
    network, _ = sketchlayers.compress(dense, "hashednet", rate=0.5, init="random", seed=0)
    saved, names = tmp_path / "small.safetensors", tmp_path / "names.txt"
    architecture = {"name": "squeezenet1_1", "num_classes": 3}
    sketchlayers.save(network, saved, architecture=architecture)
    names.write_text("\n".join(CLASSES))
    packaged: list[tuple[nn.Module, list[str], int, Path]] = []
    module = script()
    monkeypatch.setattr(module, "package", lambda *arguments: packaged.append(arguments))
    command = ["export.py", str(saved), "--size", "64", "--out", str(tmp_path / "small.pt2")]
    images = torch.randn(2, 3, 64, 64)

    monkeypatch.setattr("sys.argv", [*command, "--classes", str(names)])
    module.main()
    [(found, classes, size, out)] = packaged
    assert (classes, size, out) == (CLASSES, 64, tmp_path / "small.pt2")
    with torch.no_grad():
        torch.testing.assert_close(found(images), network(images), rtol=1e-4, atol=1e-5)

    names.write_text("one\ntwo")
    with pytest.raises(SystemExit):
        module.main()
    assert "--classes: must have 3 lines (got 2)" in capsys.readouterr().err
