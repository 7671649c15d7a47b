"""What other packages offer to make a trained network smaller without training, as a user calls it.

Each function is what the user of a package writes: it takes a network, which it may change, the
share of the parameters that is to stay, and the images of an `Experiment`, and returns the smaller
network. Where a package has no such share, `at_share` looks for the option that gives it.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from networks import count_parameters

Compress = Callable[[nn.Module, float, Any], nn.Module]
"""``(network, share, experiment)`` to the smaller network."""

_STEPS = 12
"""Halvings of the interval in which an option is looked for."""


@dataclass(frozen=True)
class Peer:
    """A way to a smaller network.

    Attributes:
        name: in tables.
        package: that it needs.
        compress: what its user writes.
        rated: whether it takes a share of the parameters; the others have one size.
    """

    name: str
    package: str
    compress: Compress
    rated: bool = True

    @property
    def installed(self) -> bool:
        """Whether the package can be imported."""
        return find_spec(self.package) is not None

    @property
    def lines(self) -> int:
        """Of Python that the user writes: the function's statements, without its docstring."""
        source = textwrap.dedent(inspect.getsource(self.compress))
        (function,) = ast.parse(source).body
        assert isinstance(function, ast.FunctionDef)
        body = function.body[1:] if ast.get_docstring(function) else function.body
        return sum((one.end_lineno or one.lineno) - one.lineno + 1 for one in body)


def at_share(make: Callable[[float], nn.Module], parameters: float) -> nn.Module:
    """The largest of ``make(0)`` to ``make(1)`` that has no more parameters.

    Args:
        make: a network that has the fewer parameters the larger its argument.
        parameters: as many as there may be.
    """
    low, high = 0.0, 1.0
    best, trouble = None, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            network = make(middle)
        # Some packages fail where hardly anything is removed, each in its way.
        except Exception as error:
            low, trouble = middle, error
            continue
        if count_parameters(network) <= parameters:
            best, high = network, middle
        else:
            low = middle
    if best is None:
        raise ValueError("peers: no option gives so few parameters") from trouble
    return best


def convolutions(network: nn.Module) -> list[tuple[str, Any]]:
    """With kernels larger than a pixel, and without groups: what most packages factorise."""
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and max(layer.kernel_size) > 1
    ]


def share_of_layers(network: nn.Module, share: float) -> float:
    """That the convolutions may keep, so that the network keeps its share."""
    whole = count_parameters(network)
    own = sum(layer.weight.numel() for _, layer in convolutions(network))
    return max(0.0, (share * whole - (whole - own)) / own)


def ours(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """This package with its defaults."""
    import sketchlayers

    return sketchlayers.compress(network, rate=share, calibration=experiment.calibration).model


def ours_8_bits(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """The same with weights of 8 bits."""
    import sketchlayers

    images = experiment.calibration
    return sketchlayers.compress(network, rate=share, bits=8, calibration=images).model


def ours_bytes(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Ranks and bits under a budget of bytes: a quarter of the share, as 8 bits have."""
    import sketchlayers

    images = experiment.calibration
    return sketchlayers.compress(network, bytes_rate=share / 4, calibration=images).model


def tensorly_cp(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Tensorly's CP, by alternating least squares from an SVD; the layers are the user's work."""
    import tensorly
    from tensorly.decomposition import parafac

    kept = share_of_layers(network, share)
    for name, layer in convolutions(network):
        weight = layer.weight.detach()
        rank = max(1, int(kept * weight.numel() / sum(weight.shape)))
        with tensorly.backend_context("pytorch"):
            made = parafac(weight, rank, init="svd", random_state=experiment.args.seed)
        scale, (outputs, inputs, rows, columns) = made
        (height, width), (down, right) = layer.kernel_size, layer.stride
        first = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
        second = nn.Conv2d(
            rank, rank, (height, 1), (down, 1), (layer.padding[0], 0), groups=rank, bias=False
        )
        third = nn.Conv2d(
            rank, rank, (1, width), (1, right), (0, layer.padding[1]), groups=rank, bias=False
        )
        last = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
        first.weight.data = inputs.T[:, :, None, None].contiguous()
        second.weight.data = rows.T[:, None, :, None].contiguous()
        third.weight.data = columns.T[:, None, None, :].contiguous()
        last.weight.data = (outputs * scale)[:, :, None, None].contiguous()
        last.bias = layer.bias
        network.set_submodule(name, nn.Sequential(first, second, third, last))
    return network


def tensorly_tucker(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Tensorly's partial Tucker of outputs and inputs; the layers are the user's work."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    def at(removed: float) -> nn.Module:
        small = copy.deepcopy(network)
        for name, layer in convolutions(network):
            ranks = [max(1, round((1 - removed) * size)) for size in layer.weight.shape[:2]]
            weight = layer.weight.detach()
            with tensorly.backend_context("pytorch"):
                (core, (outputs, inputs)), _ = partial_tucker(weight, rank=ranks, modes=[0, 1])
            first = nn.Conv2d(layer.in_channels, ranks[1], 1, bias=False)
            middle = nn.Conv2d(
                ranks[1], ranks[0], layer.kernel_size, layer.stride, layer.padding, bias=False
            )
            last = nn.Conv2d(ranks[0], layer.out_channels, 1, bias=layer.bias is not None)
            first.weight.data = inputs.T[:, :, None, None].contiguous()
            middle.weight.data = core
            last.weight.data = outputs[:, :, None, None].contiguous()
            last.bias = layer.bias
            small.set_submodule(name, nn.Sequential(first, middle, last))
        return small

    return at_share(at, share * count_parameters(network))


def fasterai_tucker(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Fasterai's decomposition of convolutions, Tucker."""
    from fasterai.misc.conv_decomposer import Conv_Decomposer

    def at(removed: float) -> nn.Module:
        return Conv_Decomposer().decompose(network, percent_removed=removed, method="tucker")

    return at_share(at, share * count_parameters(network))


def fasterai_svd(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Fasterai's decomposition of convolutions, SVD of the weight, as packages that do it alone."""
    from fasterai.misc.conv_decomposer import Conv_Decomposer

    def at(removed: float) -> nn.Module:
        return Conv_Decomposer().decompose(network, percent_removed=removed, method="svd")

    return at_share(at, share * count_parameters(network))


def torch_pruning(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Torch-Pruning: the channels of least L2 norm of every layer that it can take."""
    import torch_pruning as tp

    example = next(iter(experiment.calibration))[:1]
    outputs = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]

    def at(removed: float) -> nn.Module:
        small, ignored = copy.deepcopy((network, outputs))
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.MagnitudePruner(
            small, example, importance, pruning_ratio=removed, ignored_layers=ignored
        )
        pruner.step()
        return small

    return at_share(at, share * count_parameters(network))


def aimet_spatial_svd(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """AIMET's spatial SVD, with ranks by its greedy search on labelled calibration images."""
    from decimal import Decimal

    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters as Parameters

    def accuracy(model: nn.Module, iterations: int | None = None, use_cuda: bool = False) -> float:
        found = [model(images).argmax(1) for images in experiment.calibration]
        return float((torch.cat(found) == experiment.calibration.labels).float().mean())

    example = next(iter(experiment.calibration))
    greedy = GreedySelectionParameters(target_comp_ratio=Decimal(str(share)))
    with torch.no_grad():
        small, _ = ModelCompressor.compress_model(
            network,
            accuracy,
            None,
            (1, *example.shape[1:]),
            CompressionScheme.spatial_svd,
            CostMetric.memory,
            Parameters(Parameters.Mode.auto, Parameters.AutoModeParams(greedy)),
        )
    return small


def torchao_int8(network: nn.Module, share: float, experiment: Any) -> nn.Module:
    """Int8 weights of convolutions and fully connected layers, with a scale for each output."""
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_

    def has_weight(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, (nn.Conv2d, nn.Linear))

    quantize_(network, IntxWeightOnlyConfig(torch.int8, PerAxis(0)), has_weight)
    return network


PEERS = (
    Peer("ours, auto", "sketchlayers", ours),
    Peer("ours, auto, 8 bits", "sketchlayers", ours_8_bits),
    Peer("ours, bytes", "sketchlayers", ours_bytes),
    Peer("tensorly, CP", "tensorly", tensorly_cp),
    Peer("tensorly, Tucker", "tensorly", tensorly_tucker),
    Peer("fasterai, Tucker", "fasterai", fasterai_tucker),
    Peer("fasterai, SVD", "fasterai", fasterai_svd),
    Peer("Torch-Pruning", "torch_pruning", torch_pruning),
    Peer("AIMET, spatial SVD", "aimet_torch", aimet_spatial_svd),
    Peer("torchao, int8", "torchao", torchao_int8, rated=False),
)
