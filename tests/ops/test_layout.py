"""Types, shapes and memory formats: the same on every path and on the meta device."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .problems import GRADIENTS, Conv, Layer, Linear, Operands, lay_out, paths

LAYERS = {
    "spatial": Conv(padding=(1, 1)),
    "channel": Conv(mixing="channel", groups=2, stride=(2, 1)),
    "base": Conv(base=True, frame=True),
    "1x1": Conv(kernel=(1, 1)),
    "unbatched": Conv(batch=None),
    "empty": Conv(batch=0),
    "linear": Linear(),
    "linear, one vector": Linear(lead=()),
    "linear, more axes": Linear(lead=(2, 3)),
}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def formatted(layer: Layer, input_format: str, s1_format: str, **kwargs) -> Operands:
    operands = layer.operands(**kwargs)
    return Operands(
        lay_out(operands.input, input_format),
        lay_out(operands.s1, s1_format),
        operands.s2,
        operands.bias,
    )


BOTH_FORMATS = list(itertools.product(FORMATS, FORMATS))


@pytest.mark.parametrize(
    ("name", "input_format", "s1_format"),
    [(name, *both) for name in ("spatial", "channel", "base") for both in BOTH_FORMATS]
    # A 1x1 kernel has the same strides in both formats: the input decides.
    + [("1x1", "channels_last", s1_format) for s1_format in FORMATS],
)
def test_output_is_channels_last_if_the_input_or_s1_is(name, input_format, s1_format):
    layer = LAYERS[name]
    operands = formatted(layer, input_format, s1_format)
    last = "channels_last" in (input_format, s1_format)
    expected = FORMATS["channels_last" if last else "contiguous"]
    for path in paths(layer):
        assert layer(operands, path).is_contiguous(memory_format=expected), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("input_format", "s1_format"), BOTH_FORMATS)
def test_paths_and_the_meta_device_agree_on_strides(name, input_format, s1_format, dtype):
    layer = LAYERS[name]
    operands = formatted(layer, input_format, s1_format, dtype=dtype)
    expected = torch.Size(layer.output_shape())
    for path in paths(layer):
        real = layer(operands, path)
        meta = layer(operands.to("meta"), path)
        assert real.shape == expected
        assert real.dtype == meta.dtype == dtype
        assert meta.device.type == "meta"
        assert meta.shape == real.shape
        assert meta.stride() == real.stride(), path


@pytest.mark.parametrize("name", LAYERS)
def test_fake_gradients_look_like_the_real_ones(name):
    """What compilers see of the backward pass has the strides of what runs."""
    layer = LAYERS[name]
    for path, format_ in itertools.product(paths(layer), FORMATS):
        operands = formatted(layer, format_, "contiguous")
        grad = torch.ones(layer.output_shape(), dtype=torch.float64)
        real = layer.gradients(operands, grad, path)
        with FakeTensorMode() as mode:
            fake_operands = Operands(
                *(None if t is None else mode.from_tensor(t) for t in operands)
            )
            signs = {
                name: None if packed is None else mode.from_tensor(packed)
                for name, packed in layer.packed_signs().items()
            }
            leaves = fake_operands.requiring(*GRADIENTS)
            output = layer.forward(leaves, path, signs)
            named = leaves.named()
            fake = torch.autograd.grad(output, list(named.values()), mode.from_tensor(grad))
        for (operand, expected), gradient in zip(real.items(), fake, strict=True):
            assert gradient.shape == expected.shape
            assert gradient.dtype == expected.dtype
            assert gradient.stride() == expected.stride(), (path, format_, operand)


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "1x1"])
def test_values_do_not_depend_on_the_memory_format(name, path):
    layer = LAYERS[name]
    plain = layer(formatted(layer, "contiguous", "contiguous"), path)
    for input_format, s1_format in BOTH_FORMATS:
        other = layer(formatted(layer, input_format, s1_format), path)
        assert torch.allclose(other, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["spatial", "channel", "base", "linear"])
def test_the_weight_has_the_format_of_s1(name):
    layer = LAYERS[name]
    for format_, memory_format in FORMATS.items():
        operands = formatted(layer, "contiguous", format_)
        if operands.s1.dim() != 4:
            memory_format = torch.contiguous_format
        weight = layer.weight(operands)
        assert weight.is_contiguous(memory_format=memory_format)
        assert layer.weight(operands.to("meta")).stride() == weight.stride()
