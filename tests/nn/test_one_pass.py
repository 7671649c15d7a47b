"""Layers of factors that one operator computes: when it does, and that it computes the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from sketchlayers import CPConv2d, LowRankConv2d, LowRankLinear, TuckerConv2d
from sketchlayers.nn.factored import _fused

LAYERS: dict[str, Callable[..., Any]] = {
    "cp": lambda **how: CPConv2d(6, 8, 3, padding=1, rank=5, **how),
    "cp of a row": lambda **how: CPConv2d(6, 8, (1, 3), stride=2, padding=1, rank=5, **how),
    "cp of a column": lambda **how: CPConv2d(6, 8, (3, 1), dilation=2, rank=5, **how),
    "cp of 1x1": lambda **how: CPConv2d(6, 8, 1, stride=2, rank=5, **how),
    "cp in groups": lambda **how: CPConv2d(6, 8, 3, groups=2, rank=3, bias=False, **how),
    "tucker": lambda **how: TuckerConv2d(6, 8, 3, stride=2, ranks=(3, 5), **how),
    "tucker without inputs": lambda **how: TuckerConv2d(6, 8, 3, ranks=(None, 5), **how),
    "tucker without outputs": lambda **how: TuckerConv2d(6, 8, 3, ranks=(3, None), **how),
    "tucker in groups": lambda **how: TuckerConv2d(6, 8, 3, groups=2, ranks=(2, 3), **how),
    "same": lambda **how: CPConv2d(6, 8, (2, 4), padding="same", rank=5, **how),
    "reflected": lambda **how: TuckerConv2d(
        6, 8, 3, padding=1, padding_mode="reflect", ranks=(3, 5), **how
    ),
}


class Calls(TorchDispatchMode):
    """How often an operator of ours, and a convolution of PyTorch's, is called."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.convolutions = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.fused += function is torch.ops.sketchlayers.tucker_conv2d_fused.default
        self.convolutions += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


def parts_one_after_the_other(layer: nn.Module, x: Tensor) -> Tensor:
    for part in layer.children():
        x = part(x)
    return x


def counted(layer: nn.Module, x: Tensor) -> Calls:
    with Calls() as calls:
        layer(x)
    return calls


@pytest.mark.parametrize("name", LAYERS)
def test_one_operator_computes_a_layer(name: str) -> None:
    layer = LAYERS[name]()
    for x in (torch.randn(2, 6, 7, 9), torch.randn(6, 7, 9)):
        for format in (torch.contiguous_format, torch.channels_last):
            y = x.to(memory_format=format) if x.dim() == 4 else x
            with torch.no_grad():
                got, calls = layer(y), counted(layer, y)
                torch.testing.assert_close(got, parts_one_after_the_other(layer, y))
                channels_last = format == torch.channels_last
                assert layer.plan(y.shape, channels_last=channels_last).path == "fused"
            assert (calls.fused, calls.convolutions) == (1, 0)
            assert got.is_contiguous(memory_format=format) or x.dim() == 3


@pytest.mark.parametrize("name", LAYERS)
def test_with_gradients_convolutions_of_pytorch_do(name: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64, requires_grad=True)
    calls = counted(layer, x)
    assert calls.fused == 0 < calls.convolutions <= 3
    plan = layer.plan(x.shape)
    assert plan.path == "plain" and "float64" in plan.reason
    assert "gradients" in layer.float().plan(x.shape).reason
    assert plan.multiply_adds == layer.multiply_adds(x.shape)
    leaves = [x, *layer.double().parameters()]
    seed = torch.randn_like(layer(x))
    found = torch.autograd.grad(layer(x), leaves, seed)
    wanted = torch.autograd.grad(parts_one_after_the_other(layer, x), leaves, seed)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def hooked(layer: Any) -> None:
    layer.input.register_forward_hook(lambda *_: None)


def normalised(layer: Any) -> None:
    parametrizations.weight_norm(layer.input)


def pruned(layer: Any) -> None:
    prune.l1_unstructured(layer.input, "weight", 0.3)


def replaced(layer: Any) -> None:
    layer.input = nn.Sequential(layer.input)


def forwarded(layer: Any) -> None:
    forward = layer.input.forward
    layer.input.forward = lambda x: forward(x) * 2


@pytest.mark.parametrize("change", [hooked, normalised, pruned, replaced, forwarded])
@pytest.mark.parametrize("name", ["cp", "tucker"])
def test_parts_that_are_more_than_convolutions_run(
    name: str, change: Callable[[Any], None]
) -> None:
    layer = LAYERS[name]()
    change(layer)
    x = torch.randn(2, 6, 7, 9)
    with torch.no_grad():
        assert counted(layer, x).fused == 0
        assert torch.equal(layer(x), parts_one_after_the_other(layer, x))


def test_large_filters_of_cp_stay_apart() -> None:
    layer = CPConv2d(6, 8, 7, padding=3, rank=4)
    with torch.no_grad():
        assert counted(layer, torch.randn(1, 6, 9, 9)).fused == 0
        assert layer.plan((1, 6, 9, 9)).path == "plain"


def test_without_the_extension_the_parts_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LAYERS["cp"](), torch.randn(2, 6, 7, 9)
    monkeypatch.setattr(_fused, "_has_extension", False)
    with torch.no_grad():
        assert counted(layer, x).fused == 0
        assert torch.equal(layer(x), parts_one_after_the_other(layer, x))
        plan = layer.plan(x.shape)
    assert plan.path == "plain" and "no extension" in plan.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    layer, x = LAYERS["cp"](), torch.randn(2, 6, 7, 9)
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            assert layer(x).dtype == dtype
            path = layer.plan(x.shape).path
        assert path == layer.to(dtype).plan(x.shape).path
        assert counted(layer, x.to(dtype)).fused == (path == "fused")


def test_first_layers_import_little() -> None:
    """All of ``torch._dynamo`` would take seconds."""
    code = (
        "import sys, torch; before = set(sys.modules); import sketchlayers\n"
        "x = torch.randn(1, 8, 8, 8)\n"
        "with torch.no_grad():\n"
        "    for layer in (sketchlayers.SKConv2d(8, 8, 3, rate=.5),\n"
        "                  sketchlayers.CPConv2d(8, 8, 3, rate=.5),\n"
        "                  sketchlayers.TuckerConv2d(8, 8, 3, rate=.5)):\n"
        "        layer(x)\n"
        "print(len(set(sys.modules) - before), 'torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, dynamo = run.stdout.split()
    assert int(count) < 150 and dynamo == "False"


def test_linear_layers_are_two_plain_ones() -> None:
    layer, x = LowRankLinear(6, 8, rank=2), torch.randn(2, 6)
    assert torch.equal(layer(x), parts_one_after_the_other(layer, x))
    calls = []
    layer.first.register_forward_hook(lambda *_: calls.append("first"))
    layer(x)
    assert calls == ["first"]
    layer.second = nn.Sequential(layer.second, nn.ReLU())
    assert torch.equal(layer(x), parts_one_after_the_other(layer, x))


@pytest.mark.parametrize("how", [{}, {"stride": (2, 1), "groups": 2, "bias": False}])
def test_two_operators_compute_a_layer_of_low_rank(how: dict[str, Any]) -> None:
    layer, x = LowRankConv2d(6, 8, 3, padding=1, rank=3, **how), torch.randn(2, 6, 7, 9)
    wanted = parts_one_after_the_other(layer, x)
    with torch.no_grad():
        calls = counted(layer, x)
        assert (calls.fused, calls.convolutions) == (2, 0)
        assert layer.plan(x.shape).path == "fused"
        torch.testing.assert_close(layer(x), wanted)
        x = x.to(memory_format=torch.channels_last)
        calls = counted(layer, x)
        assert (calls.fused, calls.convolutions) == (0, 2)
        assert layer.plan(x.shape, channels_last=True).path == "plain"
        torch.testing.assert_close(layer(x), wanted)
    assert counted(layer, x).fused == 0


def test_what_pytorch_computes_faster_is_left_to_it() -> None:
    layer = TuckerConv2d(512, 512, 3, padding=1, ranks=(256, 256))
    with torch.no_grad():
        assert layer.plan((1, 512, 8, 8)).path == "fused"
        for shape, channels_last in (((1, 512, 8, 8), True), ((32, 512, 8, 8), False)):
            plan = layer.plan(shape, channels_last=channels_last)
            assert plan.path == "plain" and "many features" in plan.reason
        plan = CPConv2d(64, 64, 3, padding=1, rank=137).plan((512, 64, 7, 7))
        assert plan.path == "plain" and "small images" in plan.reason
