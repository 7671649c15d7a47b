"""Autocast on the CPU: the casts that ``torch.nn.functional.conv2d`` gets, and no more."""

import pytest
import torch

from .problems import GRADIENTS, Conv, Linear, Operands, paths, relative_error

LAYERS = {
    "spatial": Conv(batch=3, in_channels=16, out_channels=24, kernel=(3, 3), size=(6, 7), rank=3),
    "channel": Conv(batch=3, in_channels=16, out_channels=24, kernel=(3, 3), size=(6, 7), rank=3,
                    mixing="channel", groups=2),
    "frame": Conv(in_channels=16, out_channels=24, frame=True),
    "linear": Linear(lead=(7,), in_channels=64, out_channels=48, rank=4),
}  # fmt: skip
HALF = torch.bfloat16


@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_the_factored_path_computes_in_the_half_type(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    by_hand = layer(operands.to(HALF), "factored")
    with torch.autocast("cpu", dtype=HALF):
        automatic = layer(operands, "factored")
    assert automatic.dtype == HALF
    assert torch.equal(automatic, by_hand)


@pytest.mark.parametrize("name", LAYERS)
def test_the_folded_path_forms_the_weight_in_float32(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    weight = layer.weight(operands).to(HALF).view(layer.out_channels, -1, *layer.kernel_size)
    half = operands.to(HALF)
    by_hand = layer.dense(half.input, weight, half.bias)
    with torch.autocast("cpu", dtype=HALF):
        automatic = layer(operands, "folded")
    assert automatic.dtype == HALF
    assert torch.equal(automatic, by_hand)


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_stays_in_float32(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    with torch.autocast("cpu", dtype=HALF):
        weight = layer.weight(operands)
        from_half = layer.weight(operands.to(HALF))
    assert weight.dtype == torch.float32
    assert torch.equal(weight, layer.weight(operands))
    # Half parameters are cast up before the weight is formed, as conv2d's are cast down.
    expected = layer.reference_weight(operands.to(HALF)).reshape(from_half.shape)
    assert relative_error(from_half, expected) < 4 * torch.finfo(HALF).eps


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_arrive_in_the_type_of_the_parameters(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    grad = torch.randn(layer.output_shape()).to(HALF)
    expected = layer.reference_gradients(operands, grad)
    for path in paths(layer):
        leaves = operands.requiring(*GRADIENTS)
        with torch.autocast("cpu", dtype=HALF):
            output = layer(leaves, path)
        output.backward(grad)
        for operand, leaf in leaves.named().items():
            assert leaf.grad.dtype == torch.float32
            assert relative_error(leaf.grad, expected[operand]) < 4 * torch.finfo(HALF).eps


@pytest.mark.parametrize("name", LAYERS)
def test_mixed_types_are_reconciled(name):
    """A half input from the layer before meets float32 parameters: what autocast is for."""
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    mixed = Operands(operands.input.to(HALF), operands.s1, operands.s2, operands.bias)
    for path in paths(layer):
        with torch.autocast("cpu", dtype=HALF):
            assert torch.equal(layer(mixed, path), layer(operands, path))


@pytest.mark.parametrize("name", LAYERS)
def test_double_precision_and_disabled_autocast_are_left_alone(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    for path in paths(layer):
        with torch.autocast("cpu", dtype=HALF), torch.autocast("cpu", enabled=False):
            disabled = layer(operands, path)
        assert disabled.dtype == torch.float32
        assert torch.equal(disabled, layer(operands, path))
        doubles = layer.operands(torch.float64)
        with torch.autocast("cpu", dtype=HALF):
            # As torch.nn.functional.conv2d: only what is of lower precision than double is cast.
            assert layer(doubles, path).dtype == torch.float64


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_autocast_equals_eager_autocast(name):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32)
    signs = layer.packed_signs()
    path = paths(layer)[0]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(*tensors):
        with torch.autocast("cpu", dtype=HALF):
            return layer.forward(Operands(*tensors), path, signs)

    with torch.autocast("cpu", dtype=HALF):
        expected = layer(operands, path)
    assert torch.equal(step(*operands), expected)
