"""Sketched 1-D and 3-D convolutions: what they compute, fit and keep."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.nn import SKConv1d, SKConv3d, dense_arguments

DENSE: dict[str, nn.Module] = {
    "1d": nn.Conv1d(8, 12, 3, padding=1),
    "1d strided": nn.Conv1d(8, 12, 4, stride=2, padding=3, dilation=2, groups=2, bias=False),
    "1d same": nn.Conv1d(8, 12, 4, padding="same"),
    "1d circular": nn.Conv1d(8, 12, 3, padding=2, padding_mode="circular"),
    "3d": nn.Conv3d(8, 12, 3, padding=1, bias=False),
    "3d strided": nn.Conv3d(8, 12, (3, 1, 2), (2, 3, 1), (1, 0, 1), groups=2),
    "3d same": nn.Conv3d(8, 12, (2, 3, 1), padding="same", dilation=(1, 2, 3)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "channel": {"mixing": "channel", "num_sketches": 2, "rank": 1},
    "blocks": {"blocks": 2, "signs": "hadamard"},
    "frame": {"frame": "signs"},
}


def sketched(name: str, options: str, **factory: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = type(DENSE[name])(**dense_arguments(DENSE[name]), **factory)
    kind = SKConv1d if isinstance(dense, nn.Conv1d) else SKConv3d
    return dense, kind.from_conv(dense, **{"rank": 2, "seed": 3} | OPTIONS[options])


def example(layer: nn.Module, **factory: Any) -> Tensor:
    return torch.randn(2, 8, *(9, 6, 7)[: len(layer.kernel_size)], **factory)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", DENSE)
def test_computes_the_convolution_with_its_weight(name: str, options: str) -> None:
    dense, layer = sketched(name, options, dtype=torch.float64)
    input, folded = example(dense, dtype=torch.float64), sketchlayers.fold(layer)
    assert type(folded) is type(dense) and repr(folded) == repr(dense)
    for _ in range(2):  # training, then with the weight kept
        torch.testing.assert_close(layer(input), folded(input))
        torch.testing.assert_close(layer(input[0]), folded(input[0]))
        layer.eval()
    told = ((layer.weight - dense.weight).norm() / dense.weight.norm()).item()
    assert layer.fit_error == pytest.approx(told, rel=1e-6) and told < 1


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["1d strided", "3d strided"])
def test_derivatives(name: str, options: str) -> None:
    _, layer = sketched(name, options, dtype=torch.float64)
    input = example(layer, dtype=torch.float64).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def outputs(input: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), input)

    torch.autograd.gradcheck(outputs, (input, *values), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["1d", "3d"])
def test_copies_states_and_files(name: str, options: str, tmp_path: Any) -> None:
    dense, layer = sketched(name, options)
    layer.eval()
    input = example(dense)
    again = type(layer).from_config(layer.config()).eval()
    again.load_state_dict(layer.state_dict())
    path = sketchlayers.save(nn.Sequential(layer), tmp_path / "layer.safetensors")
    loaded = sketchlayers.load(path, into=nn.Sequential(copy.deepcopy(dense))).eval()[0]
    for other in (again, loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(input), layer(input))
    assert repr(again) == repr(layer)


@pytest.mark.parametrize("name", ["1d", "3d"])
def test_compresses_exports_and_compiles(name: str) -> None:
    dense, _ = sketched(name, "paper")
    model = nn.Sequential(dense, nn.ReLU(), nn.AdaptiveAvgPool1d(1) if name == "1d" else nn.ReLU())
    method = methods.Sketch()
    rank = method.ranks(dense)[-1]
    built = method.build(dense, rank, init="fit", seed=0)
    assert method.parameters(dense, rank) == sum(p.numel() for p in built.parameters())
    small, report = sketchlayers.compress(
        model, "sketch", rate=0.6, init="fit", keep_first=False, progress=False
    )
    assert isinstance(small[0], SKConv1d | SKConv3d) and report.parameters_after > 0
    input = example(dense)
    program = torch.export.export(small.eval(), (input,))
    torch.testing.assert_close(program.module()(input), small(input))
    fast, _ = sketchlayers.optimize_for_inference(small, input, seconds=0.01)
    torch.testing.assert_close(fast(input), small(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["1d", "3d"])
def test_plans(name: str) -> None:
    dense, layer = sketched(name, "paper")
    shape = example(dense).shape
    assert layer.plan(shape).path in ("factored", "folded")
    assert layer.multiply_adds(shape) > 0
    if name == "3d":
        assert layer.plan(shape).path == "folded"
        with pytest.raises(ValueError, match="for a convolution of three axes"):
            layer.path = "factored"
    else:
        layer.path = "factored"
        torch.testing.assert_close(layer(example(dense)[:0]).shape, torch.Size([0, 12, 9]))


@pytest.mark.parametrize("name", ["1d", "3d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(name: str, dtype: torch.dtype) -> None:
    dense, layer = sketched(name, "paper", dtype=dtype)
    input = example(dense, dtype=dtype)
    expected = layer.fold().double()(input.double())
    assert layer(input).dtype == dtype
    torch.testing.assert_close(layer(input).double(), expected, rtol=0.05, atol=0.05)


def test_memory_format() -> None:
    dense, _ = sketched("3d", "paper")
    layer = SKConv3d.from_conv(dense.to(memory_format=torch.channels_last_3d), rank=2)
    assert layer.fold().weight.stride() == dense.weight.stride()
    assert layer.s1.is_contiguous(memory_format=torch.channels_last_3d)
    input = example(dense).to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(layer(input), layer.fold()(input))
