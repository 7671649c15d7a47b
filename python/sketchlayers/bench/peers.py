"""Other packages' compressed layers and plain PyTorch, beside ours at equal parameter count.

All are optional; ``pip install --no-build-isolation ".[bench]"`` brings those that can be
installed.

* ``compiled``: the factored form as plain PyTorch modules with float signs, under
  ``torch.compile`` (needs a C++ compiler on the CPU, Triton on a GPU).
* ``tensorly-torch``: ``FactorizedConv`` with Tucker factors (kernel positions kept) and with CP
  factors, ``FactorizedLinear`` with CP factors, which form the weight first: the quicker of its two
  ways where features are not split into several axes.
* ``panther-ml``: ``SKLinear`` with the same number and rank of sketches and ``SKConv2d``, which
  sketches the outputs alone. Its wheels (0.1.3) are for CPython 3.12 alone and there are no
  sources on the index, so with any other Python it cannot be installed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn import SKConv2d, SKLinear

from .cases import Case

Layer = SKConv2d | SKLinear


@dataclass(frozen=True)
class Peer:
    """A way to build a layer of the shape and size of a sketched one.

    ``build`` raises where there is no such layer. ``per_mixing``: it differs with
    the mixing of the layer that it stands beside. ``linear``: it has a fully connected layer.
    """

    name: str
    build: Callable[[Case, Layer], nn.Module]
    per_mixing: bool = False
    linear: bool = True


class _Plain(nn.Module):
    """The factors of a sketched layer, and its signs as float buffers that hold the scale."""

    enter: Tensor
    leave: Tensor

    def __init__(self, layer: Layer, enter: Tensor, leave: Tensor) -> None:
        super().__init__()
        self.register_buffer("enter", enter.clone())
        self.register_buffer("leave", leave.clone())
        self.s1 = nn.Parameter(layer.s1.detach().clone())
        self.s2 = nn.Parameter(layer.s2.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())


class PlainConv2d(_Plain):
    """An `SKConv2d` that `plain` takes: ``(N, d2, H, W)`` to ``(N, d1, H', W')``."""

    def __init__(self, layer: SKConv2d) -> None:
        kernel = (1, 1) if layer.mixing == "channel" else layer.kernel_size
        taps = math.prod(kernel)
        scale = layer.scale / math.sqrt(layer.rank)
        columns = layer.in_channels * taps
        enter = ops.unpack_signs(layer.u2[0], columns, scale=scale / math.sqrt(taps))
        leave = ops.unpack_signs(layer.u1[0], layer.out_channels, scale=scale)
        super().__init__(
            layer,
            enter.view(-1, layer.in_channels, *kernel),
            leave.t().reshape(layer.out_channels, -1, 1, 1),
        )
        self.channel = layer.mixing == "channel"
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, input: Tensor) -> Tensor:
        """Two convolutions for either half."""
        first = F.conv2d(self._slide(input, self.s1), self.leave)
        if self.channel:
            return first + self._slide(F.conv2d(input, self.enter), self.s2, self.bias)
        gathered = self._slide(input, self.enter)
        return first + F.conv2d(gathered, self.s2.flatten(1)[:, :, None, None], self.bias)

    def _slide(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A convolution with the layer's stride, padding and dilation."""
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation)


class PlainLinear(_Plain):
    """An `SKLinear` that `plain` takes: ``(*, d2)`` to ``(*, d1)``."""

    def __init__(self, layer: SKLinear) -> None:
        scale = layer.scale / math.sqrt(layer.rank)
        enter = ops.unpack_signs(layer.u2[0], layer.in_features, scale=scale)
        leave = ops.unpack_signs(layer.u1[0], layer.out_features, scale=scale)
        super().__init__(layer, enter, leave.t().contiguous())

    def forward(self, input: Tensor) -> Tensor:
        """Two products for either half."""
        first = F.linear(F.linear(input, self.s1), self.leave)
        return first + F.linear(F.linear(input, self.enter), self.s2, self.bias)


def plain(layer: Layer) -> nn.Module:
    """The factored form of a sketched layer in PyTorch's own calls, with the same values.

    Raises:
        ValueError: the layer has groups, blocks or a frame, or does not pad with zeros.
    """
    padding = getattr(layer, "padding_mode", "zeros")
    if getattr(layer, "groups", 1) != 1 or layer.blocks != 1 or layer.frame or padding != "zeros":
        raise ValueError(
            "the plain form has neither groups, blocks nor a frame, and pads with zeros"
        )
    return PlainConv2d(layer) if isinstance(layer, SKConv2d) else PlainLinear(layer)


def _build_compiled(case: Case, layer: Layer) -> nn.Module:
    torch.compiler.reset()  # or many shapes would use up the limit of recompilations
    module = plain(layer)
    module.compile(dynamic=False)
    return module


def factor_parameters(layer: Layer) -> int:
    """What the factors hold, the bias not counted."""
    return layer.s1.numel() + layer.s2.numel()


def tucker_ranks(case: Case, budget: int) -> tuple[int, int]:
    """Output and input rank, in proportion to the channels, whose parameters are nearest to budget.

    A factor for each kernel axis, square, is counted.
    """
    d1, d2, side = case.out_channels, case.in_channels, case.kernel
    a, b = d1 * d2 * case.taps, d1**2 + d2**2
    left = max(0, budget - 2 * side**2)
    part = (math.sqrt(b * b + 4 * a * left) - b) / (2 * a)
    return max(1, round(part * d1)), max(1, round(part * d2))


def cp_rank(case: Case, budget: int) -> int:
    """The rank whose parameters, the weights of the components included, are nearest to budget."""
    modes = (2 * case.kernel if case.size else 0) + case.in_channels + case.out_channels + 1
    return max(1, round(budget / modes))


def _tensorly(factorization: str) -> Callable[[Case, Layer], nn.Module]:
    def build(case: Case, layer: Layer) -> nn.Module:
        if case.size == 0:
            return _tensorly_linear(case, factor_parameters(layer))
        budget = factor_parameters(layer)
        ranks: object = cp_rank(case, budget)
        if factorization == "tucker":
            ranks = (*tucker_ranks(case, budget), case.kernel, case.kernel)
        return _initialised(
            importlib.import_module("tltorch").FactorizedConv(
                case.in_channels,
                case.out_channels,
                case.kernel,
                order=2,
                stride=case.stride,
                padding=case.padding,
                bias=layer.bias is not None,
                factorization=factorization,
                rank=ranks,
                implementation="factorized",
            )
        )

    return build


def _tensorly_linear(case: Case, budget: int) -> nn.Module:
    """Formed first: the package's other way holds ``rank * d1 * d2`` numbers and is slower."""
    return _initialised(
        importlib.import_module("tltorch").FactorizedLinear(
            (case.in_channels,),
            (case.out_channels,),
            factorization="cp",
            rank=cp_rank(case, budget),
            implementation="reconstructed",
        )
    )


def _initialised(module: nn.Module) -> nn.Module:
    """Small random values, where the package leaves memory as it found it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.02)
    return module


def _build_panther(case: Case, layer: Layer) -> nn.Module:
    panther = importlib.import_module("panther.nn")
    if isinstance(layer, SKLinear):
        linear: nn.Module = panther.SKLinear(
            layer.in_features,
            layer.out_features,
            layer.num_sketches,
            layer.rank,
            bias=layer.bias is not None,
        )
        return linear
    rank = round(factor_parameters(layer) / (2 * case.taps * case.in_channels))
    conv: nn.Module = panther.SKConv2d(
        case.in_channels,
        case.out_channels,
        (case.kernel, case.kernel),
        (case.stride, case.stride),
        (case.padding, case.padding),
        layer.bias is not None,
        num_terms=1,
        low_rank=max(1, rank),
    )
    return conv


COMPILED = Peer("compiled", _build_compiled, per_mixing=True)
_TENSORLY = (
    Peer("tensorly Tucker", _tensorly("tucker"), linear=False),
    Peer("tensorly CP", _tensorly("cp")),
)
_PANTHER = (Peer("Panther", _build_panther),)
_PACKAGES = {"tltorch": ("tensorly-torch", _TENSORLY), "panther.nn": ("panther-ml", _PANTHER)}


def available() -> tuple[tuple[Peer, ...], list[str]]:
    """The peers whose packages can be imported, and for each other package one line that says why.

    Both are imported here, before anything is measured.
    """
    found: list[Peer] = [COMPILED]
    missing: list[str] = []
    for module, (package, peers) in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken install fails in many ways
            missing.append(f"{package} is left out: {error}")
        else:
            found += peers
    return tuple(found), missing
