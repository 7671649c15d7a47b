"""Fully connected layers in bfloat16, which processors with AMX multiply by panels of columns."""

from __future__ import annotations

import pytest
import torch

from sketchlayers.nn import SKLinear

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
