"""Rounding: at most twice the error of PyTorch's own layer with the folded weight, plus 4 eps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from .problems import DTYPES, Conv, Layer, Linear, Operands, paths, relative_error
from .reference import Array, per_sketch

LAYERS = {
    "spatial": Conv(
        batch=4, in_channels=24, out_channels=32, kernel=(3, 3), size=(7, 8), padding=(1, 1), rank=4
    ),
    "channel": Conv(
        batch=4, in_channels=24, out_channels=32, kernel=(3, 3), size=(7, 8), padding=(1, 1),
        rank=4, mixing="channel",
    ),
    "many sketches": Conv(
        batch=2, in_channels=30, out_channels=20, kernel=(5, 3), size=(9, 7), rank=2,
        num_sketches=4, groups=2, stride=(2, 1),
    ),
    "many channel sketches": Conv(
        batch=2, in_channels=30, out_channels=20, kernel=(5, 3), size=(9, 7), rank=2,
        num_sketches=4, groups=2, stride=(2, 1), mixing="channel",
    ),
    "1x1": Conv(batch=4, in_channels=96, out_channels=64, kernel=(1, 1), size=(6, 6), rank=6),
    "frame": Conv(
        batch=4, in_channels=24, out_channels=32, kernel=(3, 3), size=(7, 8), rank=4, frame=True,
    ),
    "blocks": Conv(batch=2, in_channels=64, out_channels=96, kernel=(3, 3), size=(8, 8), rank=4,
                   padding=(1, 1), mixing="channel", blocks=8),
    "spatial blocks": Conv(batch=2, in_channels=32, out_channels=48, kernel=(3, 3), size=(8, 8),
                           rank=4, padding=(1, 1), blocks=4),
    "linear blocks": Linear(lead=(32,), in_channels=256, out_channels=192, rank=10, blocks=8),
    "linear": Linear(lead=(32,), in_channels=256, out_channels=192, rank=10),
    "long linear": Linear(lead=(2,), in_channels=3000, out_channels=40, rank=16, num_sketches=2),
}  # fmt: skip


def explicit_weight(layer: Layer, s1: Tensor, s2: Tensor) -> Tensor:
    """Equation (1) as PyTorch computes it from float signs, sketch by sketch."""
    signs, blocks = layer.signs(), []
    groups, outputs = layer.geometry.groups, layer.out_channels // layer.geometry.groups
    for group in range(groups):
        first = s1[group * layer.stacked : (group + 1) * layer.stacked].flatten(1)
        second = s2[group * outputs : (group + 1) * outputs]
        inputs, rows_of = [], []
        for part in range(layer.blocks):
            parts = per_sketch(signs, layer.sketch, group, layer.stacked, layer.kernel_size, part)
            seen = first.chunk(layer.blocks, 1)[part]
            made = second.chunk(layer.blocks, 0)[part]
            inputs.append(sum(torch.from_numpy(u1).to(s1).T @ seen[rows] for rows, u1, _ in parts))
            rows_of.append(
                sum(made[:, rows].flatten(1) @ torch.from_numpy(u2).to(s2) for rows, _, u2 in parts)
            )
        block = layer.sketch.factor * (torch.cat(inputs, 1) + torch.cat(rows_of))
        if signs.frame is not None:
            block = block * torch.from_numpy(signs.frame[group]).to(s1)
        blocks.append(block)
    return torch.cat(blocks).view(layer.out_channels, -1, *layer.kernel_size)


def dense_errors(layer: Layer, operands: Operands, grad: Tensor) -> dict[str, float]:
    """Relative errors of PyTorch's own layer.

    Its weight is the exact W_hat rounded once, for the output and the gradients of the input and
    the bias. For those of s1 and s2 its gradient is pulled back through ``explicit_weight``.
    """
    dtype = operands.s1.dtype
    weight = torch.from_numpy(layer.reference_weight(operands)).to(operands.s1)
    leaves = [leaf.detach().requires_grad_() for leaf in (operands.input, weight, operands.bias)]
    output = layer.dense(*leaves)
    grad_input, grad_weight, grad_bias = torch.autograd.grad(output, leaves, grad)

    accumulation = dtype if dtype == torch.float64 else torch.float32
    factors = [
        factor.detach().to(accumulation).requires_grad_() for factor in (operands.s1, operands.s2)
    ]
    grad_s1, grad_s2 = torch.autograd.grad(
        explicit_weight(layer, *factors), factors, grad_weight.to(accumulation)
    )
    computed = {"input": grad_input, "s1": grad_s1, "s2": grad_s2, "bias": grad_bias}
    expected = layer.reference_gradients(operands, grad)
    errors = {
        name: relative_error(gradient.to(dtype), expected[name])
        for name, gradient in computed.items()
    }
    return {"output": relative_error(output, layer.reference_output(operands)), **errors}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_output_and_gradients_are_as_accurate_as_the_dense_layer(layer: Layer, dtype: torch.dtype):
    operands = layer.operands(dtype)
    grad = torch.randn(layer.output_shape(), generator=torch.Generator()).to(dtype)
    allowed = {
        name: 2 * error + 4 * torch.finfo(dtype).eps
        for name, error in dense_errors(layer, operands, grad).items()
    }
    expected: dict[str, Array] = layer.reference_gradients(operands, grad)
    expected["output"] = layer.reference_output(operands)
    for path in paths(layer):
        actual = {"output": layer(operands, path), **layer.gradients(operands, grad, path)}
        for name, tensor in actual.items():
            assert tensor.dtype == dtype
            error = relative_error(tensor, expected[name])
            assert error <= allowed[name], f"{path}: {name} {error} > {allowed[name]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_weight_is_formed_in_float32_and_rounded_once(layer: Layer, dtype: torch.dtype):
    operands = layer.operands(dtype)
    weight = layer.weight(operands)
    exact = layer.reference_weight(operands).reshape(weight.shape)
    assert weight.dtype == dtype
    # One rounding is half a unit in the last place of each entry; the accumulation comes on top.
    accumulation = np.finfo(np.float64 if dtype == torch.float64 else np.float32).eps
    magnitude = np.abs(exact).max()
    unit = torch.finfo(dtype).eps * np.maximum(np.abs(exact), torch.finfo(dtype).tiny)
    error = np.abs(weight.double().numpy() - exact)
    assert np.all(error <= unit / 2 + 64 * accumulation * magnitude)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["factored", "folded"])
def test_long_sums_of_half_types_are_accumulated_in_float32(dtype, path):
    """Summed in the half type itself, 4096 equal addends would stop growing long before the end."""
    layer = Linear(lead=(2,), in_channels=4096, out_channels=8, rank=4, bias=False)
    operands = layer.operands(dtype)
    operands.input.fill_(0.125)
    operands.s1.abs_().add_(0.5)
    expected = layer.reference_output(operands)
    assert relative_error(layer(operands, path), expected) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["spatial", "channel", "many sketches", "1x1"])
def test_gradients_that_nearly_cancel_over_the_batch(name: str, dtype: torch.dtype):
    """Pairs of images pull the parameters in opposite directions: what is left must be right.

    Rounding to a half type before the sum over the batch, and not after, would drown it.
    """
    layer = LAYERS[name].replace(batch=4)
    operands = layer.operands(dtype)
    operands.input[2:] = operands.input[:2]
    grad = torch.randn(layer.output_shape(), generator=torch.Generator().manual_seed(1)).to(dtype)
    grad[2:] = -grad[:2]
    grad[3, :, 0, 0] += 1
    allowed = {
        parameter: 2 * error + 4 * torch.finfo(dtype).eps
        for parameter, error in dense_errors(layer, operands, grad).items()
    }
    expected = layer.reference_gradients(operands, grad)
    for path in paths(layer):
        gradients = layer.gradients(operands, grad, path)
        for parameter in ("s1", "s2"):
            error = relative_error(gradients[parameter], expected[parameter])
            assert error <= allowed[parameter], f"{path}: {parameter}"


def test_large_and_small_float16_values_survive():
    """Half-type intermediates must not overflow where the dense layer's output does not."""
    layer = Linear(lead=(4,), in_channels=512, out_channels=64, rank=4, bias=False, scale=1e-3)
    operands = layer.operands(torch.float16)
    operands.s1.mul_(200)
    operands.s2.mul_(200)
    expected = layer.reference_output(operands)
    assert np.abs(expected).max() < 6e4
    dense = layer.dense(
        operands.input, torch.from_numpy(layer.reference_weight(operands)).half(), None
    )
    assert bool(dense.isfinite().all())
    for path in paths(layer):
        assert bool(layer(operands, path).isfinite().all()), path
