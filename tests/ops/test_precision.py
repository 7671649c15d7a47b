"""Rounding: at most twice the error of PyTorch's own layer with the folded weight, plus 4 eps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from .problems import DTYPES, Conv, Layer, Linear, Operands, as_array, paths, relative_error
from .reference import Array, convolve_adjoint

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
    "base and frame": Conv(
        batch=4, in_channels=24, out_channels=32, kernel=(3, 3), size=(7, 8), rank=4, base=True,
        frame=True,
    ),
    "linear": Linear(lead=(32,), in_channels=256, out_channels=192, rank=10),
    "long linear": Linear(lead=(2,), in_channels=3000, out_channels=40, rank=16, num_sketches=2),
}  # fmt: skip


def dense_step(layer: Layer, operands: Operands, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of PyTorch's layer, its weight the exact W_hat rounded once."""
    weight = torch.from_numpy(layer.reference_weight(operands)).to(operands.s1)
    leaves = {"input": operands.input, "weight": weight, "bias": operands.bias}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    output = layer.dense(*leaves.values())
    gradients = torch.autograd.grad(output, list(leaves.values()), grad)
    return output, dict(zip(leaves, gradients, strict=True))


def dense_errors(layer: Layer, operands: Operands, grad: Tensor) -> dict[str, float]:
    """Relative errors of the dense layer: output and gradients, its weight's for s1 and s2."""
    output, gradients = dense_step(layer, operands, grad)
    expected = layer.reference_gradients(operands, grad)
    x = layer.as_batch(as_array(operands.input))
    grad_weight = convolve_adjoint(
        layer.as_batch(as_array(grad)), x, layer.reference_weight(operands), layer.geometry
    )[1]
    weight_error = relative_error(gradients["weight"], grad_weight)
    return {
        "output": relative_error(output, layer.reference_output(operands)),
        "input": relative_error(gradients["input"], expected["input"]),
        "bias": relative_error(gradients["bias"], expected["bias"]),
        "s1": weight_error,
        "s2": weight_error,
    }


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
