"""Factors of 1-D, 3-D and transposed convolutions: the chain is the layer it stands for."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sketchlayers
from sketchlayers import methods
from sketchlayers.nn import dense_arguments
from sketchlayers.nn._geometry import Geometry

FLOAT = {"dtype": torch.float64}
DENSE: dict[str, nn.Module] = {
    "1d": nn.Conv1d(6, 8, 3, padding=1),
    "1d strided": nn.Conv1d(6, 8, 4, stride=2, padding=3, dilation=2, groups=2, bias=False),
    "1d same": nn.Conv1d(6, 8, 4, padding="same", dilation=3),
    "1d reflect": nn.Conv1d(6, 8, 3, padding=2, padding_mode="reflect"),
    "1d pixel": nn.Conv1d(6, 8, 1, stride=2),
    "3d": nn.Conv3d(6, 8, 3, padding=1, bias=False),
    "3d strided": nn.Conv3d(6, 8, (3, 1, 2), (2, 3, 1), (1, 0, 1), groups=2),
    "3d same": nn.Conv3d(6, 8, (2, 3, 1), padding="same", dilation=(1, 2, 3)),
    "3d circular": nn.Conv3d(6, 8, (2, 1, 3), padding=(1, 0, 2), padding_mode="circular"),
    "3d replicate": nn.Conv3d(6, 8, 2, padding="same", padding_mode="replicate"),
    "3d pixel": nn.Conv3d(6, 8, 1, padding=1),
    "transposed 1d": nn.ConvTranspose1d(6, 8, 4, 2, 1, bias=False),
    "transposed 1d dilated": nn.ConvTranspose1d(6, 8, 3, 2, 1, 1, dilation=3, groups=2),
    "transposed 2d": nn.ConvTranspose2d(6, 8, 4, 2, 1),
    "transposed 2d uneven": nn.ConvTranspose2d(6, 8, (3, 1), (3, 2), (2, 0), (1, 1), groups=2),
    "transposed 2d pixel": nn.ConvTranspose2d(6, 8, 1, 2, output_padding=1),
    "transposed 3d": nn.ConvTranspose3d(6, 8, 2, stride=2),
    "transposed 3d uneven": nn.ConvTranspose3d(6, 8, (2, 3, 1), (1, 2, 1), (1, 0, 0), dilation=2),
}


def dense(name: str, **factory: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = type(DENSE[name])
    return kind(**dense_arguments(DENSE[name]), **factory)


def example(layer: nn.Module, **factory: Any) -> Tensor:
    return torch.randn(2, 6, *(7, 5, 6)[: len(layer.kernel_size)], **factory)


def full_rank(layer: nn.Module) -> int:
    geometry = Geometry.of(layer)
    return min(geometry.group_inputs, geometry.group_outputs) * geometry.taps


def factored(layer: nn.Module, family: str, **how: Any) -> nn.Module:
    kind = getattr(sketchlayers.nn, f"{family}{type(layer).__name__}")
    if family == "CP":
        return kind.from_conv(layer, min(4, full_rank(layer)), max_sweeps=20, **how)
    return kind.from_conv(layer, (2, 3), **how)


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", DENSE)
def test_computes_the_convolution_with_its_weight(name: str, family: str) -> None:
    layer = dense(name, **FLOAT)
    new, input = factored(layer, family), example(layer, **FLOAT)
    folded = sketchlayers.fold(new)
    assert type(folded) is type(layer) and repr(folded) == repr(layer)
    assert torch.equal(folded.weight, new.weight)
    torch.testing.assert_close(new(input), folded(input))
    torch.testing.assert_close(new(input[0]), folded(input[0]))
    told = ((new.weight - layer.weight).norm() / layer.weight.norm()).detach()
    assert new.fit_error == pytest.approx(float(told), rel=1e-6)
    for attribute in ("stride", "padding", "dilation", "groups", "transposed", "output_padding"):
        assert getattr(new, attribute) == getattr(layer, attribute)


@pytest.mark.parametrize("name", DENSE)
def test_full_rank_is_the_layer(name: str) -> None:
    layer = dense(name, **FLOAT)
    kind = getattr(sketchlayers.nn, f"CP{type(layer).__name__}")
    new, input = kind.from_conv(layer, full_rank(layer)), example(layer, **FLOAT)
    torch.testing.assert_close(new(input), layer(input))


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", DENSE)
def test_derivatives(name: str, family: str) -> None:
    layer = dense(name, **FLOAT)
    new = factored(layer, family)
    input = torch.randn(1, 6, *(4, 3, 3)[: len(layer.kernel_size)], **FLOAT, requires_grad=True)
    names, values = zip(*new.named_parameters(), strict=True)

    def outputs(input: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(new, dict(zip(names, values, strict=True)), input)

    torch.autograd.gradcheck(outputs, (input, *values), fast_mode=True)


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", DENSE)
def test_files_copies_and_states(name: str, family: str) -> None:
    layer = dense(name)
    new, input = factored(layer, family), example(layer)
    kind = type(new)
    again = kind.from_config(new.config())
    assert repr(again) == repr(new)
    again.load_state_dict(new.state_dict())
    for other in (again, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other(input), new(input))
    file = io.BytesIO()
    torch.save(new, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(input), new(input))


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", DENSE)
def test_multiply_adds_and_parameters_are_those_of_the_run(name: str, family: str) -> None:
    layer = dense(name)
    new, input = factored(layer, family), example(layer)
    method = methods.CP() if family == "CP" else methods.Tucker2()
    rank = new.rank if family == "CP" else new.ranks
    assert method.parameters(layer, rank) == sum(p.numel() for p in new.parameters())
    assert new.multiply_adds(input.shape) == method.multiply_adds(layer, rank, input.shape)
    if not new.transposed:  # PyTorch counts what padding cuts off of a transposed one
        with FlopCounterMode(display=False) as counter:
            new(input)
        assert 2 * new.multiply_adds(input.shape) == counter.get_total_flops()


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", DENSE)
def test_batch_norm_becomes_a_part(name: str, family: str) -> None:
    layer = dense(name, **FLOAT).eval()
    new, input = factored(layer, family), example(layer, **FLOAT)
    norm = getattr(nn, f"BatchNorm{len(layer.kernel_size)}d")(8, **FLOAT).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    for one in (layer, new):
        fused = sketchlayers.fuse_batch_norm(one, norm)
        assert type(fused) is type(one)
        torch.testing.assert_close(fused(input), norm(one(input)))


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", [name for name in DENSE if name.startswith("transposed")])
def test_output_size(name: str, family: str) -> None:
    layer = dense(name, **FLOAT)
    new, input = factored(layer, family), example(layer, **FLOAT)
    folded = new.fold()
    smallest = folded(input).shape[2:]
    largest = [
        size - more + stride - 1
        for size, more, stride in zip(smallest, layer.output_padding, layer.stride, strict=True)
    ]
    for size in (largest, [2, 8, *largest]):
        torch.testing.assert_close(new(input, size), folded(input, output_size=size))
    torch.testing.assert_close(new(input[0], largest), folded(input[0], largest))
    with pytest.raises(ValueError):
        new(input, [size + 40 for size in largest])


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", ["1d", "3d", "transposed 1d", "transposed 2d", "transposed 3d"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(name: str, family: str, dtype: torch.dtype) -> None:
    layer = dense(name, dtype=dtype)
    new, input = factored(layer, family), example(layer, dtype=dtype)
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}
    output = new(input)
    assert output.dtype == dtype
    expected = new.fold().double()(input.double())
    torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize(
    ("name", "memory_format"),
    [
        ("3d", torch.channels_last_3d),
        ("transposed 2d", torch.channels_last),
        ("transposed 3d", torch.channels_last_3d),
    ],
)
def test_memory_formats_carry_over(
    name: str, family: str, memory_format: torch.memory_format
) -> None:
    layer = dense(name).to(memory_format=memory_format)
    new, input = factored(layer, family), example(layer).to(memory_format=memory_format)
    for part in (*new.parts(), new.fold()):
        assert part.weight.is_contiguous(memory_format=memory_format)
    # PyTorch's own 3-D convolutions with one position return contiguous tensors.
    torch.testing.assert_close(new(input), new.fold()(input))


@pytest.mark.parametrize("family", ["Tucker", "CP"])
@pytest.mark.parametrize("name", ["1d same", "3d", "transposed 1d", "transposed 2d uneven"])
def test_exports_and_compiles(name: str, family: str) -> None:
    layer = dense(name)
    new, input = factored(layer, family), example(layer)
    program = torch.export.export(new.eval(), (input,))
    torch.testing.assert_close(program.module()(input), new(input))
    compiled = torch.compile(new, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input), new(input))


@pytest.mark.parametrize("name", ["1d", "3d", "transposed 2d"])
def test_refusals(name: str) -> None:
    layer = dense(name)
    kind = getattr(sketchlayers.nn, f"CP{type(layer).__name__}")
    with pytest.raises(TypeError, match=f"layer must be an nn.{type(layer).__name__}"):
        kind.from_conv(nn.Conv2d(6, 8, 3), 2)
    number = {1: "one", 2: "two", 3: "three"}[len(layer.kernel_size)]
    with pytest.raises(ValueError, match=f"kernel_size must be an int or {number} of them"):
        kind(6, 8, (3, 3, 3, 3), rank=2)
    with pytest.raises(ValueError, match="rank must be at most"):
        kind(6, 8, 3, rank=1000)
    with pytest.raises(RuntimeError, match=r"input_shape must be \(N, 6"):
        kind(6, 8, 3, rank=2).multiply_adds((2, 5, 9, 9, 9))


def test_refusals_of_transposed_layers() -> None:
    build = sketchlayers.nn.TuckerConvTranspose2d
    with pytest.raises(ValueError, match="output_padding must be smaller than stride or dilation"):
        build(6, 8, 3, stride=2, output_padding=2, ranks=(2, 3))
    with pytest.raises(ValueError, match="padding_mode must be one of 'zeros'"):
        build(6, 8, 3, padding_mode="reflect", ranks=(2, 3))
    with pytest.raises(TypeError, match="padding must be"):
        build(6, 8, 3, padding="same", ranks=(2, 3))
