"""The tensor-core and fused kernels of CUDA: that they run, what they compute, graphs, determinism.

Every value is compared with the reference in double precision; the error may be twice that of
PyTorch's own layer on the same device, plus four roundings of the type (of TensorFloat-32 where
float32 may use it).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.problems import GRADIENTS, Conv, Layer, Linear, Operands, lay_out, relative_error
from ops.test_precision import dense_errors

from sketchlayers import ops
from sketchlayers.bench.timing import captured

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
HALVES = [torch.bfloat16, torch.float16]
TENSOR_FLOAT_EPS = 2.0**-10

CONVOLUTIONS = {
    "3x3": Conv(batch=4, in_channels=64, out_channels=96, kernel=(3, 3), size=(14, 14),
                padding=(1, 1), rank=10, mixing="channel"),
    "5x5": Conv(batch=3, in_channels=96, out_channels=192, kernel=(5, 5), size=(16, 16),
                padding=(2, 2), rank=6, mixing="channel"),
    "many channels": Conv(batch=2, in_channels=208, out_channels=136, kernel=(3, 3), size=(7, 7),
                          padding=(1, 1), rank=13, num_sketches=2, mixing="channel"),
    "rank 40": Conv(batch=2, in_channels=64, out_channels=64, kernel=(3, 3), size=(9, 10),
                    rank=20, num_sketches=2, mixing="channel"),
    "rank 64": Conv(batch=2, in_channels=72, out_channels=80, kernel=(3, 3), size=(9, 10),
                    rank=64, padding=(1, 1), mixing="channel"),
    "rank 65": Conv(batch=2, in_channels=72, out_channels=80, kernel=(3, 3), size=(9, 10),
                    rank=65, mixing="channel"),
    "rank 1": Conv(batch=2, in_channels=16, out_channels=8, kernel=(3, 3), size=(9, 10),
                   rank=1, mixing="channel"),
    "odd": Conv(batch=3, in_channels=13, out_channels=7, kernel=(3, 2), size=(11, 5), rank=5,
                padding=(0, 1), mixing="channel"),
    "one pixel": Conv(batch=1, in_channels=1, out_channels=1, kernel=(1, 1), size=(1, 1), rank=1,
                      mixing="channel"),
    "stride": Conv(batch=3, in_channels=32, out_channels=48, kernel=(3, 3), size=(15, 16), rank=8,
                   stride=(2, 3), padding=(1, 1), mixing="channel"),
    "dilation": Conv(batch=3, in_channels=32, out_channels=48, kernel=(3, 3), size=(17, 20),
                     rank=8, padding=(3, 2), dilation=(3, 2), mixing="channel"),
    "groups": Conv(batch=2, in_channels=48, out_channels=96, kernel=(3, 3), size=(9, 9), rank=6,
                   groups=3, padding=(1, 1), mixing="channel"),
    "odd groups": Conv(batch=2, in_channels=15, out_channels=21, kernel=(3, 3), size=(9, 9),
                       rank=3, groups=3, padding=(1, 1), mixing="channel"),
    "1x1": Conv(batch=4, in_channels=96, out_channels=64, kernel=(1, 1), size=(16, 16), rank=6),
    "1x1, stride and padding": Conv(batch=4, in_channels=40, out_channels=24, kernel=(1, 1),
                                    size=(9, 8), rank=6, stride=(2, 1), padding=(1, 0)),
    "wide image": Conv(batch=1, in_channels=16, out_channels=16, kernel=(3, 3), size=(3, 700),
                       rank=4, padding=(1, 1), mixing="channel"),
    "large halo": Conv(batch=1, in_channels=16, out_channels=16, kernel=(3, 3), size=(90, 90),
                       rank=4, dilation=(40, 40), mixing="channel"),
    "no image": Conv(batch=0, mixing="channel"),
}  # fmt: skip

LINEAR = {
    "wide": dict(in_channels=1024, out_channels=768, rank=51),
    "odd": dict(in_channels=515, out_channels=259, rank=37, num_sketches=2),
    "narrow": dict(in_channels=8, out_channels=1, rank=1),
    "long": dict(in_channels=5000, out_channels=70, rank=64, bias=False),
}

WEIGHTS = {
    "spatial": Conv(in_channels=72, out_channels=100, kernel=(3, 3), rank=9),
    "channel": Conv(in_channels=72, out_channels=100, kernel=(3, 3), rank=9, mixing="channel"),
    "groups": Conv(in_channels=15, out_channels=21, kernel=(5, 2), rank=4, groups=3),
    "channel groups": Conv(in_channels=15, out_channels=21, kernel=(5, 2), rank=4, groups=3,
                           mixing="channel"),
    "frame": Conv(in_channels=19, out_channels=33, frame=True),
    "channel frame": Conv(in_channels=19, out_channels=33, frame=True, mixing="channel"),
    "one": Conv(in_channels=1, out_channels=1, kernel=(1, 1), rank=1),
    "linear": Linear(in_channels=515, out_channels=259, rank=37, num_sketches=2),
}  # fmt: skip


@pytest.fixture
def tensor_float():
    """Float32 may take the tensor cores, with 10 bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def kernels_of(function: Callable[[], object]) -> set[str]:
    """Names of the kernels that a function launches."""
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages()}


def launches(names: set[str], kernel: str) -> bool:
    return any(kernel in name for name in names)


def results(layer: Layer, operands: Operands, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients of the factored path."""
    leaves = operands.requiring(*GRADIENTS)
    output = layer(leaves, "factored")
    named = leaves.named()
    gradients = torch.autograd.grad(output, list(named.values()), grad)
    return {"output": output, **dict(zip(named, gradients, strict=True))}


def check(layer: Layer, dtype: torch.dtype, eps: float, layout: str = "contiguous") -> None:
    """Compares all results with the reference."""
    on_cpu = layer.operands(dtype)
    grad = torch.randn(layer.output_shape()).to(dtype)
    expected = layer.reference_gradients(on_cpu, grad)
    expected["output"] = layer.reference_output(on_cpu)
    operands, grad = on_cpu.to(CUDA), lay_out(grad.to(CUDA), layout)
    operands.input = lay_out(operands.input, layout)
    allowed = dense_errors(layer, operands, grad)
    for name, tensor in results(layer, operands, grad).items():
        assert tensor.dtype == dtype
        assert torch.isfinite(tensor).all(), name
        error = relative_error(tensor, expected[name])
        assert error <= 2 * allowed[name] + 4 * eps, name


# Channel mixing and 1x1 on tensor cores.


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "sliced"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_all_sizes_and_strides(name, dtype, layout):
    check(CONVOLUTIONS[name], dtype, torch.finfo(dtype).eps, layout)


@pytest.mark.usefixtures("tensor_float")
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_tensor_float(name, layout):
    check(CONVOLUTIONS[name], torch.float32, TENSOR_FLOAT_EPS, layout)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (4, 1), (5, 5), (7, 7)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_kernel_sizes_and_strides(kernel, stride):
    layer = Conv(batch=2, in_channels=24, out_channels=40, kernel=kernel, size=(13, 12), rank=7,
                 stride=stride, padding=(kernel[0] // 2, kernel[1] // 2),
                 mixing="channel")  # fmt: skip
    check(layer, torch.bfloat16, torch.finfo(torch.bfloat16).eps, "channels_last")


@pytest.mark.parametrize("rank", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40])
def test_every_rank(rank):
    layer = Conv(batch=2, in_channels=40, out_channels=48, kernel=(3, 3), size=(8, 9), rank=rank,
                 padding=(1, 1), mixing="channel")  # fmt: skip
    check(layer, torch.float16, torch.finfo(torch.float16).eps, "channels_last")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_tensor_cores_are_taken(dtype):
    layer = CONVOLUTIONS["3x3"]
    operands = layer.operands(dtype, CUDA)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(dtype)
    names = kernels_of(lambda: results(layer, operands, grad))
    assert launches(names, "channel_conv_kernel")
    assert launches(names, "channel_gradient_kernel")


def test_full_float32_and_double_take_other_kernels():
    layer = CONVOLUTIONS["3x3"]
    for dtype in (torch.float32, torch.float64):
        operands = layer.operands(dtype, CUDA)
        names = kernels_of(lambda operands=operands: layer(operands, "factored"))
        assert not launches(names, "channel_conv_kernel")


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", ["3x3", "groups", "1x1"])
def test_formats_are_those_of_the_dense_layer(name, layout):
    layer = CONVOLUTIONS[name]
    operands = layer.operands(torch.bfloat16, CUDA)
    operands.input = lay_out(operands.input, layout)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(torch.bfloat16)
    actual = results(layer, operands, grad)
    weight = layer.weight(operands)
    assert actual["output"].stride() == layer.dense(operands.input, weight, None).stride()
    assert actual["input"].stride() == operands.input.stride()
    assert actual["s1"].stride() == operands.s1.stride()
    assert actual["s2"].stride() == operands.s2.stride()


def test_each_gradient_alone():
    layer = CONVOLUTIONS["3x3"]
    operands = layer.operands(torch.bfloat16, CUDA)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(torch.bfloat16)
    together = results(layer, operands, grad)
    for name in GRADIENTS:
        leaves = operands.requiring(name)
        (alone,) = torch.autograd.grad(layer(leaves, "factored"), [leaves.named()[name]], grad)
        assert relative_error(alone, together[name]) <= 4 * torch.finfo(torch.bfloat16).eps


def test_large_values_do_not_overflow_between_the_products():
    layer = CONVOLUTIONS["many channels"]
    operands = layer.operands(torch.float16)
    operands.input.mul_(100)
    expected = layer.reference_output(operands)
    output = layer(operands.to(CUDA), "factored")
    assert torch.isfinite(output).all()
    assert relative_error(output, expected) <= 8 * torch.finfo(torch.float16).eps


def test_more_elements_than_an_int_can_count():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free device memory")
    layer = Conv(batch=33, in_channels=64, out_channels=8, kernel=(3, 3), size=(1024, 1024),
                 padding=(1, 1), rank=4, mixing="channel")  # fmt: skip
    small = layer.replace(batch=1)
    operands = small.operands(torch.bfloat16, CUDA)
    many = operands.input.new_zeros((33, 64, 1024, 1024)).to(memory_format=torch.channels_last)
    assert many.numel() > 2**31
    many[-1] = operands.input[0]
    output = layer(Operands(many, operands.s1, operands.s2, operands.bias), "factored")
    assert torch.equal(output[-1], small(operands, "factored")[0])


# A few vectors through a fully connected layer.


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 8, 13, 16, 17])
@pytest.mark.parametrize("name", LINEAR)
def test_a_few_vectors_of_all_sizes_and_strides(name, vectors, dtype):
    layer = Linear(lead=(vectors,), **LINEAR[name])
    on_cpu = layer.operands(dtype)
    expected = layer.reference_output(on_cpu)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(dtype)
    operands = on_cpu.to(CUDA)
    if layer.bias:
        allowed = dense_errors(layer, operands, grad)["output"]
    else:
        dense = layer.dense(operands.input, layer.weight(operands), None)
        allowed = relative_error(dense, expected)
    for layout in ("contiguous", "sliced"):
        operands.input = lay_out(operands.input, layout)
        output = layer(operands, "factored")
        assert relative_error(output, expected) <= 2 * allowed + 4 * torch.finfo(dtype).eps


def test_a_few_vectors_take_their_own_kernels():
    for vectors, expected in ((1, True), (16, True), (17, False)):
        layer = Linear(lead=(vectors,), **LINEAR["wide"])
        operands = layer.operands(torch.bfloat16, CUDA)
        names = kernels_of(lambda layer=layer, operands=operands: layer(operands, "factored"))
        assert launches(names, "narrow_linear_kernel") == expected


# The dense weight.


def weight_arguments(layer: Layer) -> dict[str, object]:
    return dict(
        mixing=layer.sketch.mixing, num_sketches=layer.num_sketches, scale=layer.scale,
        **layer.packed_signs(CUDA),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_their_gradients_of_all_sizes_and_strides(name, dtype, layout):
    layer = WEIGHTS[name]
    on_cpu = layer.operands(dtype)
    operands = on_cpu.to(CUDA)
    s1 = lay_out(operands.s1, layout).requires_grad_()
    s2 = lay_out(operands.s2, layout).requires_grad_()
    arguments = weight_arguments(layer)
    weight = ops.sk_weight(s1, s2, **arguments)
    expected = layer.reference_weight(on_cpu).reshape(weight.shape)
    tolerance = torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 1)
    assert relative_error(weight, expected) <= tolerance
    grad = torch.randn(weight.shape).to(dtype)
    gradients = torch.autograd.grad(weight, (s1, s2), lay_out(grad.to(CUDA), layout))
    on_cpu_leaves = [operand.double().requires_grad_() for operand in (on_cpu.s1, on_cpu.s2)]
    on_cpu_arguments = {**arguments, **layer.packed_signs()}
    exact = torch.autograd.grad(
        ops.sk_weight(*on_cpu_leaves, **on_cpu_arguments), on_cpu_leaves, grad.double()
    )
    for actual, wanted in zip(gradients, exact, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) <= tolerance


def test_weights_take_their_own_kernel():
    layer = WEIGHTS["spatial"]
    operands = layer.operands(torch.float32, CUDA).requiring("s1", "s2")
    arguments = weight_arguments(layer)

    def step() -> None:
        weight = ops.sk_weight(operands.s1, operands.s2, **arguments)
        torch.autograd.grad(weight.sum(), (operands.s1, operands.s2))

    assert launches(kernels_of(step), "decoded_gemm_kernel")


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_weight_gradients_that_are_split_over_blocks(mixing):
    layer = Conv(in_channels=512, out_channels=64, kernel=(3, 3), rank=8, mixing=mixing)
    leaves = layer.operands(torch.float32, CUDA).requiring("s1", "s2")
    exact_leaves = layer.operands(torch.float64, CUDA).requiring("s1", "s2")
    arguments = weight_arguments(layer)
    weight = ops.sk_weight(leaves.s1, leaves.s2, **arguments)
    grad = torch.randn_like(weight)
    actual = torch.autograd.grad(weight, (leaves.s1, leaves.s2), grad)
    exact = torch.autograd.grad(
        ops.sk_weight(exact_leaves.s1, exact_leaves.s2, **arguments),
        (exact_leaves.s1, exact_leaves.s2),
        grad.double(),
    )
    for a, b in zip(actual, exact, strict=True):
        assert relative_error(a, b) < 1e-6


# Determinism, graphs.

STEPS: dict[str, Layer] = {
    "3x3": CONVOLUTIONS["3x3"],
    "groups": CONVOLUTIONS["groups"],
    "1x1": CONVOLUTIONS["1x1"],
    "many images": CONVOLUTIONS["3x3"].replace(batch=64),
    "vector": Linear(lead=(1,), **LINEAR["wide"]),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_same_bits_every_time(name):
    layer = STEPS[name]
    operands = layer.operands(torch.bfloat16, CUDA)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(torch.bfloat16)
    first = results(layer, operands, grad)
    for _ in range(3):
        for key, tensor in results(layer, operands, grad).items():
            assert torch.equal(tensor, first[key])


@pytest.mark.parametrize("name", STEPS)
def test_a_captured_step_in_bfloat16_replays_with_new_values(name):
    layer = STEPS[name]
    leaves = layer.operands(torch.bfloat16, CUDA).requiring(*GRADIENTS)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(torch.bfloat16)
    signs = layer.packed_signs(CUDA)

    def run() -> list[torch.Tensor]:
        output = layer.forward(leaves, "factored", signs)
        return [output, *torch.autograd.grad(output, list(leaves), grad)]

    kept = {}

    def step() -> None:
        kept["captured"] = run()

    replay = captured(step)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(-0.5)
    replay()
    for actual, expected in zip(kept["captured"], run(), strict=True):
        assert torch.equal(actual, expected)
