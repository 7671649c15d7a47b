"""Outputs and gradients against PyTorch's layers with the weight of equation (1)."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from sketchlayers.nn import SKConv2d, SKLinear

from .equations import paper_weight

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "mixing": "channel"},
    {"kernel_size": 3, "padding": (2, 1), "stride": (2, 1), "num_sketches": 2},
    {"kernel_size": (3, 1), "padding": "same", "bias": False},
    {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 3)},
    {"kernel_size": (2, 3), "padding": "valid", "stride": 2, "mixing": "channel"},
    {"kernel_size": 1, "stride": 2, "scale": "normalized", "num_sketches": 3, "rank": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "num_sketches": 2, "rank": 1},
    {"kernel_size": 3, "groups": 2, "mixing": "channel", "padding_mode": "circular", "padding": 1},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"kernel_size": (3, 2), "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 5, "padding": (2, 0), "padding_mode": "circular", "stride": 3, "scale": 0.3},
]
SKETCH_ARGUMENTS = ("mixing", "num_sketches", "scale", "rank")


def dense_arguments(arguments):
    return {name: value for name, value in arguments.items() if name not in SKETCH_ARGUMENTS}


def gradients(output, tensors):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of nn.Conv2d
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
@pytest.mark.parametrize("path", ["auto", "factored", "folded"])
def test_convolution_equals_the_dense_one(arguments, path):
    torch.manual_seed(1)
    arguments = {"rank": 2} | arguments
    layer = SKConv2d(6, 8, **arguments, dtype=torch.float64)
    layer.path = path
    dense = nn.Conv2d(6, 8, **dense_arguments(arguments), dtype=torch.float64)
    image = torch.randn(3, 6, 9, 10, dtype=torch.float64, requires_grad=True)
    learned = [image, *layer.parameters()]

    weight = paper_weight(layer, layer.s1, layer.s2)
    torch.testing.assert_close(layer.weight, weight)
    values = {"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias}
    expected = functional_call(dense, values, image)
    output = layer(image)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, learned), gradients(expected, learned))
    torch.testing.assert_close(layer(image[0]), expected[0])
    torch.testing.assert_close(layer.fold()(image), expected)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 5, 6), (0, 6)])
@pytest.mark.parametrize("path", ["auto", "factored", "folded"])
def test_linear_equals_the_dense_one(shape, path):
    torch.manual_seed(1)
    layer = SKLinear(6, 8, rank=2, num_sketches=2, dtype=torch.float64)
    layer.path = path
    dense = nn.Linear(6, 8, dtype=torch.float64)
    batch = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    learned = [batch, *layer.parameters()]

    weight = paper_weight(layer, layer.s1, layer.s2)
    torch.testing.assert_close(layer.weight, weight)
    expected = functional_call(dense, {"weight": weight, "bias": layer.bias}, batch)
    output = layer(batch)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, learned), gradients(expected, learned))
    torch.testing.assert_close(layer.fold()(batch), expected)


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_frame_multiplies_the_sketch_by_signs(mixing, groups):
    torch.manual_seed(1)
    arguments = {"rank": 2, "num_sketches": 2, "groups": groups, "mixing": mixing, "seed": 5}
    plain, framed = (
        SKConv2d(8, 12, 3, dtype=torch.float64, frame=frame, **arguments)
        for frame in (None, "signs")
    )
    framed.load_state_dict(dict(plain.named_parameters()), strict=False)
    frame = framed.weight / plain.weight
    torch.testing.assert_close(frame.abs(), torch.ones_like(frame))
    assert abs(frame.sign().mean()) < 5 / frame.numel() ** 0.5
    image = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(framed(image), framed.fold()(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["spatial", "channel", "linear"])
def test_precision_is_that_of_the_dense_layer(dtype, kind):
    torch.manual_seed(1)
    if kind == "linear":
        layer, value = SKLinear(96, 64, rank=8, dtype=dtype), torch.randn(10, 96, dtype=dtype)
    else:
        layer = SKConv2d(24, 32, 3, padding=1, rank=4, mixing=kind, dtype=dtype)
        value = torch.randn(2, 24, 8, 8, dtype=dtype)
    output, dense = layer(value), layer.fold()(value)
    exact = layer.double().fold()(value.double())

    def error(result):
        return ((result.double() - exact).norm() / exact.norm()).item()

    assert output.dtype == dtype
    assert error(output) <= 2 * error(dense) + 4 * torch.finfo(dtype).eps


def test_memory_format_of_the_output_is_that_of_the_dense_layer():
    layer = SKConv2d(8, 12, 3, padding=1, rank=2)
    image = torch.randn(2, 8, 6, 6)
    for parameters in (torch.contiguous_format, torch.channels_last):
        for inputs in (torch.contiguous_format, torch.channels_last):
            layer.to(memory_format=parameters)
            given = image.to(memory_format=inputs)
            expected = layer.fold()(given)
            output = layer(given)
            assert output.stride() == expected.stride()
            torch.testing.assert_close(output, expected)


def test_evaluation_mode_changes_nothing():
    layer = SKConv2d(8, 12, 3, rank=2)
    image = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer.train()(image), layer.eval()(image))


def test_wrong_inputs():
    layer = SKConv2d(8, 12, 3, padding=1, rank=2)
    with pytest.raises(RuntimeError, match=r"input must have .*8.*\(got"):
        layer(torch.randn(2, 7, 6, 6))
    with pytest.raises(RuntimeError, match=r"input must have .*\(got"):
        layer(torch.randn(6, 6))
    with pytest.raises(RuntimeError, match=r"sk_linear.*6"):
        SKLinear(6, 8, rank=2)(torch.randn(2, 5))
