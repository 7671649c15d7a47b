"""Types, shapes and memory formats: the same on every path and on the meta device."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .problems import GRADIENTS, Conv, Layer, Linear, Operands, lay_out, paths, strides

LAYERS = {
    "spatial": Conv(padding=(1, 1)),
    "channel": Conv(mixing="channel", groups=2, stride=(2, 1)),
    "frame": Conv(frame=True),
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
    [(name, *both) for name in ("spatial", "channel", "frame") for both in BOTH_FORMATS]
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
@pytest.mark.parametrize(
    ("name", "input_format", "s1_format"),
    [
        (name, *both)
        for name, layer in LAYERS.items()
        for both in (BOTH_FORMATS if isinstance(layer, Conv) else BOTH_FORMATS[:1])
    ],
)
def test_paths_and_fake_tensors_agree_on_strides(name, input_format, s1_format, dtype):
    """Compilers plan with fake tensors: shape, type and strides must be those of what runs."""
    layer = LAYERS[name]
    operands = formatted(layer, input_format, s1_format, dtype=dtype)
    grad = torch.ones(layer.output_shape(), dtype=dtype)
    of_paths = set()
    for path in paths(layer):
        real = [layer(operands, path), *layer.gradients(operands, grad, path).values()]
        with FakeTensorMode() as mode:
            leaves = Operands(*map(mode.from_tensor, operands)).requiring(*GRADIENTS)
            signs = {
                sign: None if packed is None else mode.from_tensor(packed)
                for sign, packed in layer.packed_signs().items()
            }
            output = layer.forward(leaves, path, signs)
            fake = [output, *torch.autograd.grad(output, list(leaves), mode.from_tensor(grad))]
        assert real[0].shape == torch.Size(layer.output_shape())
        for a, b in zip(real, fake, strict=True):
            assert a.dtype == b.dtype == dtype
            assert a.shape == b.shape
            assert strides(a) == strides(b), path
        of_paths.add(strides(real[0]))
    assert len(of_paths) == 1, "the memory format depends on the path"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("format_", FORMATS)
def test_the_meta_device(name, format_):
    layer = LAYERS[name]
    operands = formatted(layer, format_, "contiguous")
    meta = operands.to("meta")
    weight = layer.weight(meta).view(layer.out_channels, -1, *layer.kernel_size)
    for path in paths(layer):
        output = layer(meta, path)
        assert output.device.type == "meta"
        assert output.dtype == torch.float64
        # PyTorch's own convolution forgets the memory format on the meta device.
        expected = (
            layer(operands, path)
            if path == "factored"
            else layer.dense(meta.input, weight, meta.bias)
        )
        assert output.shape == torch.Size(layer.output_shape())
        if path != "auto":
            assert strides(output) == strides(expected)


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "1x1"])
def test_values_do_not_depend_on_the_memory_format(name, path):
    layer = LAYERS[name]
    plain = layer(formatted(layer, "contiguous", "contiguous"), path)
    for input_format, s1_format in BOTH_FORMATS:
        other = layer(formatted(layer, input_format, s1_format), path)
        assert torch.allclose(other, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["spatial", "channel", "frame", "linear"])
def test_the_weight_has_the_format_of_s1(name):
    layer = LAYERS[name]
    for format_, memory_format in FORMATS.items():
        operands = formatted(layer, "contiguous", format_)
        if operands.s1.dim() != 4:
            memory_format = torch.contiguous_format
        weight = layer.weight(operands)
        assert weight.is_contiguous(memory_format=memory_format)
        assert layer.weight(operands.to("meta")).stride() == weight.stride()
