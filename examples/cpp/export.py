"""Compresses a torchvision network and packages it for `classify`, the program beside this file.

    python export.py resnet18 --weights FILE --images FOLDER --rate 0.5 --out resnet18.pt2
    python export.py resnet18.safetensors --out resnet18.pt2   # of sketchlayers.save

The package is machine code for this kind of machine (AOTInductor); whatever the network is made of,
the program only hands it images and gets probabilities. `package` does it for a network of yours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import sketchlayers

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class Classifier(nn.Module):
    """Images ``(N, 3, H, W)``, uint8, to probabilities ``(N, classes)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", 255 * torch.tensor(DEVIATION).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Colours as the network is used to them, its outputs as probabilities."""
        return self.network((images - self.mean) / self.deviation).softmax(1)


def package(network: nn.Module, classes: Sequence[str], size: int, out: Path) -> None:
    """Write the package of a network for batches of ``size`` x ``size`` images.

    Args:
        network: takes normalised images, gives a number for each class.
        classes: their names.
        size: height and width of the images.
        out: the file, ``*.pt2``.
    """
    model = Classifier(network).eval()
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():  # layers plan for inference
        program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    metadata = {"classes": "\n".join(classes), "size": str(size)}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(out), inductor_configs={"aot_inductor.metadata": metadata}
    )


def calibration(folder: Path, size: int) -> Iterator[Tensor]:
    """The folder's images in batches, as the network takes them."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import center_crop, normalize, resize

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".png"})
    for start in range(0, len(paths), 32):
        images = [
            center_crop(resize(decode_image(str(path), ImageReadMode.RGB), [size]), [size, size])
            for path in paths[start : start + 32]
        ]
        yield normalize(torch.stack(images) / 255, list(MEAN), list(DEVIATION))


def compressed(arguments: argparse.Namespace) -> nn.Module:
    """A network that was compressed and saved before, or one of torchvision's, compressed now."""
    if arguments.network.endswith(".safetensors"):
        return sketchlayers.load(arguments.network)
    import torchvision

    options = {"num_classes": len(arguments.classes)} if arguments.classes else {}
    network = torchvision.models.get_model(arguments.network, **options)
    if arguments.weights:
        network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    images = list(calibration(arguments.images, arguments.size)) if arguments.images else None
    small, report = sketchlayers.compress(network.eval(), rate=arguments.rate, calibration=images)
    print(report)
    return small


def lines(path: str) -> list[str]:
    """Of a text file."""
    return Path(path).read_text().splitlines()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", help="a name of torchvision's, or a saved file that has one")
    parser.add_argument("--weights", type=Path, help="its state dict")
    parser.add_argument("--classes", type=lines, help="their names, a line each; else numbers")
    parser.add_argument("--images", type=Path, help="folder of some that the network is for")
    parser.add_argument("--rate", type=float, default=0.5, help="parameters left over those before")
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--out", type=Path, required=True, help="file to write, *.pt2")
    arguments = parser.parse_args()

    network = compressed(arguments).eval()
    example = torch.randn(1, 3, arguments.size, arguments.size)
    fast, _ = sketchlayers.optimize_for_inference(network, example)
    outputs = fast(example).shape[1]
    classes = arguments.classes or [str(number) for number in range(outputs)]
    if len(classes) != outputs:
        parser.error(f"--classes: must have {outputs} lines (got {len(classes)})")
    package(fast, classes, arguments.size, arguments.out)


if __name__ == "__main__":
    main()
