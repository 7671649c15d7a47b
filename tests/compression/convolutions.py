"""Small networks, with random weights, of 1-D, 3-D and transposed convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple
from torchvision.models.video.swin_transformer import SwinTransformer3d


class UNet3d(nn.Module):
    """Two levels; up by a transposed convolution to the size of what is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = self._block(2, 8)
        self.down = nn.Sequential(nn.MaxPool3d(2), self._block(8, 16))
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.join = self._block(16, 8)
        self.leave = nn.Conv3d(8, 3, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(),
        )

    def forward(self, input: Tensor) -> Tensor:
        fine = self.enter(input)
        coarse = self.up(self.down(fine), output_size=fine.shape[2:])
        return self.leave(self.join(torch.cat([fine, coarse], 1)))


class WaveNet(nn.Module):
    """Dilated, causal convolutions of a signal with gates, residuals and skips."""

    def __init__(self, channels: int = 12, layers: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, channels, 1)
        self.filters, self.gates, self.residuals, self.skips = (
            nn.ModuleList(make(step) for step in range(count))
            for count, make in (
                (layers, lambda step: nn.Conv1d(channels, channels, 3, dilation=2**step)),
                (layers, lambda step: nn.Conv1d(channels, channels, 3, dilation=2**step)),
                (layers - 1, lambda _: nn.Conv1d(channels, channels, 1)),
                (layers, lambda _: nn.Conv1d(channels, 2 * channels, 1)),
            )
        )
        self.leave = nn.Sequential(
            nn.ReLU(), nn.Conv1d(2 * channels, 16, 1), nn.ReLU(), nn.Conv1d(16, 16, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        x, total = self.enter(input), torch.zeros(())
        for step in range(len(self.filters)):
            past = F.pad(x, (2 * 2**step, 0))
            gated = self.filters[step](past).tanh() * self.gates[step](past).sigmoid()
            total = total + self.skips[step](gated)
            if step < len(self.residuals):
                x = x + self.residuals[step](gated)
        return self.leave(total)


def dcgan_generator() -> nn.Sequential:
    """From vectors to images of 16x16 pixels."""
    return nn.Sequential(
        nn.ConvTranspose2d(20, 32, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def r3d() -> nn.Sequential:
    """The blocks of torchvision's R3D-18, with fewer channels."""
    stride = Conv3DSimple.get_downsample_stride(2)
    short = nn.Sequential(nn.Conv3d(8, 16, 1, stride=stride, bias=False), nn.BatchNorm3d(16))
    return nn.Sequential(
        nn.Conv3d(3, 8, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(8), nn.ReLU(),
        BasicBlock(8, 8, Conv3DSimple), BasicBlock(8, 16, Conv3DSimple, 2, short),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def swin3d() -> nn.Module:
    """Torchvision's video transformer, small: its patches are embedded by a 3-D convolution."""
    return SwinTransformer3d([2, 4, 4], 24, [2, 2], [2, 2], [2, 4, 4], num_classes=10)
