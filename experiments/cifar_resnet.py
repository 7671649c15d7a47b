"""The residual networks for CIFAR-10 (He, Zhang, Ren, Sun, CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """3x3 convolutions in stages of 16, 32 and 64 channels, with shortcuts without parameters.

    Modules have the names of the checkpoints of Y. Idelbayev's "Proper ResNet implementation for
    CIFAR10/CIFAR100 in PyTorch": ``conv1``, ``layer1.0.conv2``, ``linear``.

    Args:
        depth: number of layers with weights: 20, 32, 44, 56 or 110 in the paper; 6 n + 2.
        num_classes: number of outputs.

    Shape:
        Images ``(N, 3, 32, 32)`` (any size of at least 4) to logits ``(N, num_classes)``.

    Raises:
        ValueError: if the depth is not 6 n + 2 with n at least 1.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"CifarResNet: depth must be 6 n + 2, n at least 1 (got {depth})")
        self.conv1 = _convolution(3, 16, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and what they are added to; the first may halve the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = _convolution(inputs, outputs, self.stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Shortcut plus residual, ``(N, inputs, H, W)`` to ``(N, outputs, H/stride, W/stride)``."""
        out = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(out)) + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        """Option A: every other pixel, channels of zeros on both sides."""
        if self.stride == 1:
            return images
        missing = self.conv2.out_channels - images.shape[1]
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    first = Block(inputs, outputs)
    return nn.Sequential(first, *(Block(outputs, outputs) for _ in range(blocks - 1)))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
