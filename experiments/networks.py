"""The networks that are trained here, most of all those of the tensor-sketching paper.

That is Kasiviswanathan, Narodytska, Jin, IJCAI 2018.

Network-in-Network (Lin, Chen, Yan, ICLR 2014) and its variant with fully connected layers for 32x32
images, GoogLeNet with batch norm for Places2, the residual networks for CIFAR-10, and torchvision's
ResNet-18 and MobileNetV2. Convolutions of Network-in-Network carry the paper's names, CONV_1 to
CONV_9, so that patterns such as ``CONV_[2-7]`` pick layers for compression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception
from torchvision.models.resnet import conv3x3

_NINN_WIDTHS = (192, 160, 96, 192, 192, 192, 192, 192)
_NINN_KERNELS = (5, 1, 1, 5, 1, 1, 3, 1)
_POOL_AFTER: dict[int, Callable[..., nn.Module]] = {3: nn.MaxPool2d, 6: nn.AvgPool2d}
"""A pooling layer and dropout follow these convolutions (the second pool averages, as in Caffe)."""


def ninn(
    num_classes: int = 10,
    *,
    width: float = 1.0,
    batch_norm: bool = True,
    dropout: float = 0.5,
    fully_connected: bool = False,
) -> nn.Sequential:
    """Network-in-Network for 32x32 images: ``(N, 3, H, W)`` to logits ``(N, num_classes)``.

    Args:
        num_classes: number of outputs.
        width: factor on the number of channels of CONV_1 to CONV_8.
        batch_norm: normalise after every convolution but the last. Without it compressed networks
            need smaller learning rates, and some methods do not train
            (docs/negative_results.md).
        dropout: probability, applied after both pooling layers.
        fully_connected: FC_1 and FC_2 in place of CONV_9 (paper, Figure 3). CONV_8's map is
            averaged to 2x2, so FC_1 is 768x768 and FC_2 768x10 at width 1.

    Returns:
        A sequence of named layers; at width 1 and 10 classes the nine convolutions have 966,986
        parameters.

    Raises:
        ValueError: if an argument is out of range.
    """
    if num_classes < 1:
        raise ValueError(f"ninn: num_classes must be at least 1 (got {num_classes})")
    if not width > 0:
        raise ValueError(f"ninn: width must be positive (got {width})")
    if not 0 <= dropout < 1:
        raise ValueError(f"ninn: dropout must be in [0, 1) (got {dropout})")
    body = nn.Sequential()
    channels = 3
    for index, (base, kernel) in enumerate(zip(_NINN_WIDTHS, _NINN_KERNELS, strict=True), 1):
        outputs = max(1, round(base * width))
        body.add_module(f"CONV_{index}", nn.Conv2d(channels, outputs, kernel, padding=kernel // 2))
        if batch_norm:
            body.add_module(f"NORM_{index}", nn.BatchNorm2d(outputs))
        body.add_module(f"RELU_{index}", nn.ReLU(inplace=True))
        if index in _POOL_AFTER:
            body.add_module(f"POOL_{index}", _POOL_AFTER[index](3, 2, ceil_mode=True))
            body.add_module(f"DROPOUT_{index}", nn.Dropout(dropout))
        channels = outputs
    if fully_connected:
        features = 4 * channels
        body.add_module("POOL_8", nn.AdaptiveAvgPool2d(2))
        body.add_module("FLATTEN", nn.Flatten())
        body.add_module("FC_1", nn.Linear(features, features))
        if batch_norm:
            body.add_module("NORM_FC_1", nn.BatchNorm1d(features))
        body.add_module("RELU_FC_1", nn.ReLU(inplace=True))
        body.add_module("FC_2", nn.Linear(features, num_classes))
    else:
        body.add_module("CONV_9", nn.Conv2d(channels, num_classes, 1))
        body.add_module("POOL_9", nn.AdaptiveAvgPool2d(1))
        body.add_module("FLATTEN", nn.Flatten())
    _kaiming(body)
    return body


ninn_fc = partial(ninn, fully_connected=True)


def googlenet_bn(num_classes: int = 365, *, dropout: float = 0.2) -> nn.Module:
    """GoogLeNet with batch norm and 5x5 kernels in the "5x5" branches, without auxiliary heads.

    torchvision's network has 3x3 kernels in that branch (5,974,029 parameters at 365 classes); the
    paper's has 6,354,957. Input ``(N, 3, 224, 224)``, output ``(N, num_classes)``.
    """
    network = GoogLeNet(num_classes, aux_logits=False, init_weights=False, dropout=dropout)
    for block in network.modules():
        if isinstance(block, Inception):
            inputs, outputs = block.branch3[1].conv.in_channels, block.branch3[1].conv.out_channels
            block.branch3[1] = BasicConv2d(inputs, outputs, kernel_size=5, padding=2)
    _kaiming(network)
    return network


class CifarResNet(nn.Module):
    """3x3 convolutions in stages of 16, 32 and 64 channels, with shortcuts without parameters.

    After He, Zhang, Ren, Sun (CVPR 2016, section 4.2).

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
        self.conv1 = conv3x3(3, 16)
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
        self.conv1 = conv3x3(inputs, outputs, self.stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Shortcut plus residual, ``(N, inputs, H, W)`` to ``(N, outputs, H/stride, W/stride)``."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(images, out.shape[1]))

    def _shortcut(self, images: Tensor, channels: int) -> Tensor:
        """Option A: every other pixel, channels of zeros on both sides."""
        if self.stride == 1:
            return images
        missing = channels - images.shape[1]
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    first = Block(inputs, outputs)
    return nn.Sequential(first, *(Block(outputs, outputs) for _ in range(blocks - 1)))


def with_small_stem(network: models.ResNet) -> models.ResNet:
    """The network with a first layer for images of 32x32: 3x3, stride 1, and no pooling after it.

    It is changed in place; the new layer's weights are drawn as torchvision draws the others'.
    """
    network.conv1 = conv3x3(3, network.conv1.out_channels)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def resnet18(num_classes: int = 1000) -> nn.Module:
    """torchvision's: ``(N, 3, 224, 224)`` to logits ``(N, num_classes)``; other sizes also work."""
    return models.resnet18(num_classes=num_classes)


def mobilenet_v2(num_classes: int = 1000, *, dropout: float = 0.2) -> nn.Module:
    """torchvision's: ``(N, 3, 224, 224)`` to logits ``(N, num_classes)``; other sizes also work."""
    return models.mobilenet_v2(num_classes=num_classes, dropout=dropout)


def resnet18_small_stem(num_classes: int = 10) -> nn.Module:
    """Torchvision's ResNet-18 for images of 32x32: ``(N, 3, 32, 32)`` to ``(N, num_classes)``."""
    return with_small_stem(models.resnet18(num_classes=num_classes))


CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)
}

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ninn": ninn,
    "ninn_fc": ninn_fc,
    "googlenet_bn": googlenet_bn,
    **CIFAR_RESNETS,
    "resnet18_small_stem": resnet18_small_stem,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}

IMAGE_SIZES = {"googlenet_bn": 224, "resnet18": 224, "mobilenet_v2": 224}
"""Height and width of the images of networks that are not made for a data set's small ones."""


def convolutions_and_linears(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yields name and layer of every dense convolution and fully connected layer, in order."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield name, module


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values; buffers are not counted."""
    return sum(parameter.numel() for parameter in network.parameters())


def _kaiming(network: nn.Module) -> None:
    """Draws convolutions and fully connected layers with variance 2 / inputs; biases are 0."""
    for _, layer in convolutions_and_linears(network):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
