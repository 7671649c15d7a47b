"""The CPU's own kernels, which take float32 and half types, against the reference in float64."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection import slow_except

from sketchlayers.nn import SKConv2d, SKLinear

from .problems import (
    LAYOUTS,
    Conv,
    Layer,
    Linear,
    conv_layers,
    lay_out,
    linear_layers,
    paths,
    pointwise_layers,
    relative_error,
)
from .reference import weight_adjoint
from .test_values import LARGE, TILED, budget, laid_out, layouts, output_gradient

# A few hundred roundings at most, of numbers of like size.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 4e-2, torch.float16: 6e-3}
NARROW = [torch.float32, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[2])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(layer: Layer, dtype: torch.dtype, layout: dict[str, str], grad_layout: str) -> None:
    """Outputs and gradients on every path; operands are exact in ``dtype``.

    Errors are relative to what is expected or, where that is a sum that nearly cancels, a few
    roundings of what it would be had nothing cancelled.
    """
    operands = laid_out(layer.operands(dtype), layout)
    output = layer.reference_output(operands)
    grad = output_gradient(output.shape, grad_layout).to(dtype)
    expected = {"output": output, **layer.reference_gradients(operands, grad)}
    magnitudes = layer.reference_magnitudes(operands, grad)
    for path in paths(layer):
        actual = {"output": layer(operands, path), **layer.gradients(operands, grad, path)}
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            error = relative_error(value, expected[name]) * float(np.linalg.norm(expected[name]))
            rounding = 4 * torch.finfo(dtype).eps * float(np.linalg.norm(magnitudes[name]))
            allowed = TOLERANCE[dtype] * float(np.linalg.norm(expected[name]))
            assert error <= max(allowed, rounding), f"{path}: {name} by {error}"


@budget(60)
@given(conv_layers(), st.sampled_from(NARROW), layouts, st.sampled_from(LAYOUTS))
def test_conv2d(layer: Conv, dtype: torch.dtype, layout: dict[str, str], grad_layout: str):
    check(layer, dtype, layout, grad_layout)


@budget(40)
@given(pointwise_layers(), st.sampled_from(NARROW), layouts, st.sampled_from(LAYOUTS))
def test_pointwise_conv2d(
    layer: Conv, dtype: torch.dtype, layout: dict[str, str], grad_layout: str
):
    check(layer, dtype, layout, grad_layout)


@budget(40)
@given(linear_layers(), st.sampled_from(NARROW), layouts, st.sampled_from(LAYOUTS))
def test_linear(layer: Linear, dtype: torch.dtype, layout: dict[str, str], grad_layout: str):
    check(layer, dtype, layout, grad_layout)


@budget(40)
@given(
    st.one_of(conv_layers(), pointwise_layers(), linear_layers()), st.sampled_from(NARROW), layouts
)
def test_weight(layer: Layer, dtype: torch.dtype, layout: dict[str, str]):
    operands = laid_out(layer.operands(dtype), layout).requiring("s1", "s2")
    weight = layer.weight(operands)
    expected = layer.reference_weight(operands)
    assert relative_error(weight, expected.reshape(weight.shape)) < TOLERANCE[dtype]
    grad = torch.randn(weight.shape).to(dtype)
    actual = torch.autograd.grad(weight, [operands.s1, operands.s2], lay_out(grad, layout["s1"]))
    grad_array = grad.double().numpy().reshape(expected.shape)
    shapes = [(*t.shape, 1, 1)[:4] for t in (operands.s1, operands.s2)]
    wanted = weight_adjoint(grad_array, *shapes, layer.signs(), layer.sketch)
    for gradient, target in zip(actual, wanted, strict=True):
        assert relative_error(gradient, target.reshape(gradient.shape)) < TOLERANCE[dtype]


# Where the kernels change their way: images of many tiles and rows, strides on them, several small
# images at a time, more channels than a tile holds, kernels larger than the image, rows of whole
# and of broken vectors, channels in step with the cache.
WAYS = [
    Conv(batch=2, in_channels=5, out_channels=7, kernel=(1, 1), size=(66, 71), rank=2,
         stride=(2, 2)),
    Conv(batch=2, in_channels=5, out_channels=7, kernel=(3, 3), size=(65, 63), rank=2,
         stride=(2, 2), padding=(1, 1)),
    Conv(batch=2, in_channels=5, out_channels=7, kernel=(3, 3), size=(65, 63), rank=2,
         stride=(2, 3), padding=(1, 1), mixing="channel"),
    Conv(batch=1, in_channels=6, out_channels=4, kernel=(3, 3), size=(70, 48), rank=2,
         padding=(1, 1), mixing="channel"),
    Conv(batch=1, in_channels=6, out_channels=4, kernel=(3, 3), size=(4, 700), rank=2,
         padding=(1, 1), mixing="channel"),
    Conv(batch=70, in_channels=20, out_channels=36, kernel=(3, 3), size=(4, 4), rank=5,
         padding=(1, 1), mixing="channel"),
    Conv(batch=3, in_channels=600, out_channels=50, kernel=(3, 3), size=(5, 6), rank=12,
         padding=(1, 1), mixing="channel"),
    Conv(batch=2, in_channels=9, out_channels=8, kernel=(7, 7), size=(3, 4), rank=2,
         padding=(3, 3), mixing="channel"),
    Conv(batch=2, in_channels=9, out_channels=8, kernel=(5, 5), size=(6, 6), rank=2,
         padding=(4, 4), dilation=(2, 2)),
    Conv(batch=2, in_channels=40, out_channels=33, kernel=(3, 3), size=(32, 32), rank=4,
         padding=(1, 1), mixing="channel"),
    Conv(batch=1, in_channels=40, out_channels=70, kernel=(1, 1), size=(16, 16), rank=4),
    Conv(batch=2, in_channels=64, out_channels=200, kernel=(3, 3), size=(8, 8), rank=9,
         padding=(1, 1)),
    Conv(batch=2, in_channels=96, out_channels=120, kernel=(5, 5), size=(16, 16), rank=3,
         padding=(2, 2), mixing="channel", blocks=4),
    Conv(batch=2, in_channels=40, out_channels=56, kernel=(3, 3), size=(9, 9), rank=4,
         padding=(1, 1), mixing="channel", blocks=8, groups=1, stride=(2, 2)),
    Conv(batch=2, in_channels=80, out_channels=160, kernel=(3, 3), size=(5, 6), rank=3,
         padding=(1, 1), mixing="channel", blocks=4, groups=2),
    Conv(batch=2, in_channels=150, out_channels=90, kernel=(1, 1), size=(32, 32), rank=7, blocks=5),
    Conv(batch=2, in_channels=12, out_channels=36, kernel=(3, 3), size=(8, 8), rank=2,
         padding=(1, 1), blocks=3),
    Linear(lead=(150,), in_channels=192, out_channels=96, rank=8, blocks=4),
    Linear(lead=(2,), in_channels=192, out_channels=96, rank=8, blocks=2),
    Linear(lead=(4,), in_channels=130, out_channels=70, rank=20),
    Linear(lead=(5,), in_channels=300, out_channels=270, rank=33),
    Linear(lead=(150,), in_channels=64, out_channels=96, rank=8),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layer", WAYS, ids=str)
def test_ways_of_the_kernels(layer: Layer, layout: str, threads: int):
    if isinstance(layer, Linear) and layout == "channels_last":
        pytest.skip("has no such format")
    check(layer, torch.float32, dict.fromkeys(("input", "s1", "s2", "bias"), layout), layout)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("layer", LARGE + TILED, ids=lambda layer: f"{layer.in_channels}")
def test_sizes_of_real_layers(layer: Layer, threads: int):
    check(layer, torch.float32, {}.fromkeys(("input", "s1", "s2", "bias"), "contiguous"),
          "contiguous")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 * 2**30
    or "max_allocation_size_mb" in os.environ.get("ASAN_OPTIONS", ""),
    reason="needs 12 GiB",
)
@pytest.mark.parametrize(
    "layer, sizes",
    [
        (SKLinear(1024, 16, rank=1), (2**21 + 64, 1024)),
        (SKConv2d(64, 8, 3, padding=1, rank=1, mixing="channel"), (2**13 + 2, 64, 64, 64)),
    ],
    ids=["linear", "conv2d"],
)
def test_more_than_2_to_the_31_elements(layer: SKLinear | SKConv2d, sizes, threads: int):
    layer = layer.bfloat16()
    layer.path = "factored"
    data = torch.zeros(sizes, dtype=torch.bfloat16)  # untouched pages take no memory
    assert data.numel() > 2**31
    data[-8:].normal_()
    with torch.no_grad():
        output = layer(data)
        assert torch.equal(output[-8:], layer(data[-8:].clone()))
        assert torch.equal(output[0], layer(data[:8])[0])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="has no wider vectors to hide"
)
@pytest.mark.parametrize("tests", slow_except(["ways"], ["ways", "not ways"]))
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_narrower_vectors(capability: str, tests: str):
    """The same tests with the instruction sets of lesser processors."""
    if os.environ.get("ATEN_CPU_CAPABILITY"):
        pytest.skip("is the inner run")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    finished = subprocess.run(
        [*command, "-m", "not slow", "-k", tests],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
