"""Which layers are measured, and how each is built: PyTorch's own and the sketched one."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.nn.sketch._sizes import fitting_blocks


@dataclass(frozen=True)
class Case:
    """A layer and the side length of its square input; ``size`` 0 is a fully connected layer.

    ``label`` says where the layer occurs.
    """

    label: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    size: int = 0
    padding: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """The shape in words: ``5x5 96->192 @16``, ``3x3 128->256 @28 /2``, ``FC 768x768``."""
        if self.size == 0:
            return f"FC {self.in_channels}x{self.out_channels}"
        stride = f" /{self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}"
        return f"{kernel} {self.in_channels}->{self.out_channels} @{self.size}{stride}"

    @property
    def output_size(self) -> int:
        """Side length of the output."""
        if self.size == 0:
            return 0
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def input_pixels(self) -> int:
        """Pixels of an input; 1 for a fully connected layer."""
        return max(1, self.size) ** 2

    @property
    def output_pixels(self) -> int:
        """Pixels of an output; 1 for a fully connected layer."""
        return max(1, self.output_size) ** 2

    @property
    def taps(self) -> int:
        """Positions of the kernel, ``h w``."""
        return self.kernel**2

    @property
    def weights(self) -> int:
        """Numbers of the dense weight."""
        return self.taps * self.in_channels * self.out_channels

    @property
    def elements(self) -> int:
        """Numbers of an input and its output."""
        return self.in_channels * self.input_pixels + self.out_channels * self.output_pixels

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """``(batch, d2, H, W)`` or ``(batch, d2)``."""
        shape = (batch, self.in_channels, self.size, self.size)
        return shape[:2] if self.size == 0 else shape


# Network-in-Network for 32x32 images: the layers that the paper compresses.
NINN = (
    Case("NinN CONV_2", 192, 160, size=32),
    Case("NinN CONV_3", 160, 96, size=32),
    Case("NinN CONV_4", 96, 192, kernel=5, size=16, padding=2),
    Case("NinN CONV_5 and CONV_6", 192, 192, size=16),
    Case("NinN CONV_7", 192, 192, kernel=3, size=8, padding=1),
    Case("NinN CONV_8", 192, 192, size=8),
)
GOOGLENET = (
    Case("GoogLeNet 4a", 96, 208, kernel=3, size=14, padding=1),
    Case("GoogLeNet 5b", 832, 384, size=7),
)
RESNET = (
    Case("ResNet-18 layer1", 64, 64, kernel=3, size=56, padding=1),
    Case("ResNet-18 layer3.0", 128, 256, kernel=3, size=28, padding=1, stride=2),
    Case("ResNet-18 layer4", 512, 512, kernel=3, size=7, padding=1),
)
FULLY_CONNECTED = (
    Case("NinN+FC", 768, 768),
    Case("FC", 1024, 1024),
    Case("FC", 4096, 4096),
)
# Shapes large enough for a data-centre GPU; not in the table of a CPU.
GPU_LAYERS = (
    Case("GPU", 96, 96, kernel=3, size=56, padding=1),
    Case("GPU", 192, 192, kernel=3, size=56, padding=1),
    Case("GPU", 256, 256, kernel=3, size=28, padding=1),
    Case("GPU", 512, 512, kernel=3, size=14, padding=1),
    Case("GPU", 192, 192, kernel=5, size=28, padding=2),
    Case("GPU", 192, 192, size=56),
    Case("GPU", 512, 512, size=28),
    Case("GPU", 8192, 8192),
)


TABLE = (*NINN, *GOOGLENET, *RESNET, *FULLY_CONNECTED)
ALL = (*TABLE, *GPU_LAYERS)


def select(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose name or label matches one of the patterns; all without patterns.

    A pattern is a glob such as ``"3x3*"`` and matches the start of a label: ``"NinN"``.

    Raises:
        ValueError: a pattern matches no case.
    """
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ValueError(
                f"--layers: {pattern!r} matches no layer; there are "
                + ", ".join(case.name for case in cases)
            )
    if not patterns:
        return tuple(cases)
    return tuple(case for case in cases if any(_matches(case, p) for p in patterns))


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch.fnmatchcase(case.name, pattern) or fnmatch.fnmatchcase(case.label, pattern + "*")


def build_dense(case: Case) -> nn.Module:
    """PyTorch's own layer."""
    if case.size == 0:
        return nn.Linear(case.in_channels, case.out_channels)
    return nn.Conv2d(
        case.in_channels,
        case.out_channels,
        case.kernel,
        stride=case.stride,
        padding=case.padding,
    )


def build_sketch(
    case: Case, rate: float, mixing: ops.Mixing, path: ops.Path, blocks: int = 1
) -> SKConv2d | SKLinear:
    """The sketched layer of the same shape, with as many blocks as its sizes allow."""
    layer: SKConv2d | SKLinear
    blocks = fitting_blocks(case.in_channels, case.out_channels, blocks=blocks)
    if case.size == 0:
        layer = SKLinear(case.in_channels, case.out_channels, rate=rate, blocks=blocks)
    else:
        layer = SKConv2d(
            case.in_channels,
            case.out_channels,
            case.kernel,
            stride=case.stride,
            padding=case.padding,
            rate=rate,
            mixing=mixing,
            blocks=blocks,
        )
    layer.path = path
    return layer


def placed(
    layer: nn.Module,
    case: Case,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    channels_last: bool,
) -> tuple[nn.Module, Tensor]:
    """The layer on its device, in its type and memory format, and random numbers as its input."""
    layer.to(device, dtype)
    data = torch.randn(case.input_shape(batch), device=device, dtype=dtype)
    if channels_last and case.size:
        layer.to(memory_format=torch.channels_last)
        data = data.contiguous(memory_format=torch.channels_last)
    return layer, data
