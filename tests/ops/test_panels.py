"""Layers in bfloat16, which processors with AMX multiply by panels of columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from sketchlayers import ops
from sketchlayers.nn import SKConv2d, SKLinear

SHAPES = {  # inputs, outputs, rows, rate
    "small": (64, 48, 5, 0.3),
    "odd": (33, 47, 9, 0.4),
    "one row": (256, 192, 1, 0.1),
    "no whole line": (130, 70, 64, 0.3),
    "rows of a page": (1024, 512, 33, 0.1),
    "groups of rows": (96, 80, 1100, 0.3),
    "panels of columns": (80, 700, 300, 0.3),
    "steps of depth": (1600, 64, 40, 0.2),
}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_errors_are_of_a_few_roundings(name: str, threads: int) -> None:
    """Twice those of PyTorch's layer at most: features are rounded, too."""
    inputs, outputs, rows, rate = SHAPES[name]
    torch.manual_seed(0)
    layer = SKLinear(inputs, outputs, rate=rate).bfloat16()
    exact = SKLinear(inputs, outputs, rate=rate).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(rows, inputs).bfloat16().requires_grad_()
    x64 = x.detach().double().requires_grad_()
    seed = torch.randn(rows, outputs).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = layer(x)
        gradients = torch.autograd.grad(got, [x, *layer.parameters()], seed)
    finally:
        torch.set_num_threads(before)
    want = exact(x64)
    wanted = torch.autograd.grad(want, [x64, *exact.parameters()], seed.double())
    dense = exact.fold().bfloat16()
    plain = error(dense(x), torch.nn.functional.linear(x64, dense.weight.double(), exact.bias))
    assert error(got, want) <= 2 * plain
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert error(mine, theirs) <= 2 * torch.finfo(torch.bfloat16).eps / 2


def test_infinities_and_nans_stay_in_their_rows() -> None:
    layer = SKLinear(130, 70, rate=0.3).bfloat16()
    x = torch.randn(20, 130).bfloat16()
    clean = layer(x).detach()
    x[3, 7], x[5, 1] = float("inf"), float("nan")
    got = layer(x).detach()
    assert not got[[3, 5]].isfinite().all(dim=1).any()
    others = [i for i in range(20) if i not in (3, 5)]
    assert torch.equal(got[others], clean[others])


class Conv(NamedTuple):
    inputs: int
    outputs: int
    kernel: int | tuple[int, int]
    size: tuple[int, int, int]  # batch, height, width
    options: dict[str, Any]
    rate: float = 0.2


CONVS = {
    "plain": Conv(64, 48, 3, (3, 8, 8), {"padding": 1}),
    "pointwise": Conv(96, 70, 1, (2, 9, 7), {}),
    "pointwise with a border": Conv(40, 70, 1, (2, 5, 6), {"padding": 2, "stride": 3}),
    "odd channels": Conv(33, 47, 3, (5, 7, 9), {"padding": 1}),
    "rows of a page": Conv(512, 80, 3, (2, 7, 7), {"padding": 1}, 0.05),
    "steps of depth": Conv(600, 64, (1, 3), (1, 6, 7), {}, 0.05),
    "many features": Conv(96, 96, 5, (2, 6, 6), {"padding": 2}, 0.9),
    "panels of columns": Conv(64, 300, 3, (1, 6, 6), {"padding": 1}),
    "images of a tile": Conv(64, 64, 3, (40, 6, 6), {"padding": 1}),
    "rows of an image": Conv(32, 32, 3, (1, 50, 60), {"padding": 1}),
    "stride": Conv(64, 48, 3, (9, 8, 7), {"padding": 1, "stride": 2}),
    "rows that nothing reads": Conv(64, 70, (2, 4), (9, 8, 30), {"stride": 3}),
    "dilation": Conv(64, 48, (3, 2), (3, 12, 10), {"padding": (2, 1), "dilation": (2, 3)}),
    "wide padding": Conv(48, 64, 3, (2, 4, 4), {"padding": 4}),
}


def build(conv: Conv) -> tuple[SKConv2d, SKConv2d]:
    """The layer in bfloat16, and the same numbers in float64."""
    torch.manual_seed(0)

    def layer() -> SKConv2d:
        made = SKConv2d(
            conv.inputs,
            conv.outputs,
            conv.kernel,
            rate=conv.rate,
            mixing="channel",
            **conv.options,
        )
        made.path = "factored"
        return made

    rounded, exact = layer().bfloat16(), layer().double()
    exact.load_state_dict(rounded.state_dict())
    return rounded, exact


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_errors_of_convolutions_are_of_a_few_roundings(name: str, channels_last: bool) -> None:
    conv = CONVS[name]
    layer, exact = build(conv)
    batch, height, width = conv.size
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, conv.inputs, height, width).bfloat16().to(memory_format=layout)
    x.requires_grad_()
    x64 = x.detach().double().requires_grad_()
    got, want = layer(x), exact(x64)
    seed = torch.randn_like(got)
    gradients = torch.autograd.grad(got, [x, *layer.parameters()], seed)
    wanted = torch.autograd.grad(want, [x64, *exact.parameters()], seed.double())
    dense = exact.fold()
    plain = error(dense.bfloat16()(x), nn.Conv2d.forward(exact.fold(), x64))
    assert got.is_contiguous(memory_format=layout)
    assert error(got, want) <= 2 * plain
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert error(mine, theirs) <= 2 * torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("name", ["images of a tile", "rows of an image", "rows of a page"])
def test_bits_do_not_depend_on_threads(name: str) -> None:
    conv = CONVS[name]
    layer, _ = build(conv)
    batch, height, width = conv.size
    x = torch.randn(batch, conv.inputs, height, width).bfloat16().requires_grad_()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            got = layer(x)
            results.append((got, *torch.autograd.grad(got.sum(), [x, *layer.parameters()])))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_infinities_stay_in_the_pixels_that_read_them() -> None:
    layer, _ = build(CONVS["plain"])
    x = torch.randn(2, 64, 8, 8).bfloat16()
    clean = layer(x).detach()
    x[1, 5, 4, 4] = float("inf")
    got = layer(x).detach()
    assert not got[1, :, 3:6, 3:6].isfinite().all(dim=0).any()
    mask = torch.ones_like(got, dtype=torch.bool)
    mask[1, :, 3:6, 3:6] = False
    assert torch.equal(got[mask], clean[mask])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [3, 5, (1, 3)])
def test_dense_weights_are_rounded_once(kernel: int | tuple[int, int], channels_last: bool) -> None:
    layer = SKConv2d(40, 70, kernel, rate=0.2, mixing="spatial").bfloat16()
    exact = SKConv2d(40, 70, kernel, rate=0.2, mixing="spatial").double()
    exact.load_state_dict(layer.state_dict())
    if channels_last:
        layer.to(memory_format=torch.channels_last)
    weights = [
        ops.sk_weight(own.s1, own.s2, own.u1, own.u2, mixing="spatial") for own in (layer, exact)
    ]
    seed = torch.randn_like(weights[0])
    got = torch.autograd.grad(weights[0], [layer.s1, layer.s2], seed)
    want = torch.autograd.grad(weights[1], [exact.s1, exact.s2], seed.double())
    for mine, theirs in zip([weights[0], *got], [weights[1], *want], strict=True):
        assert error(mine, theirs) <= torch.finfo(torch.bfloat16).eps / 2
