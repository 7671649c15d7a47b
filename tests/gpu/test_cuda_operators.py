"""Operators on CUDA: bits, values, streams, devices, graphs, mixed precision and memory."""

import pytest
import torch
from ops import reference
from ops.problems import (
    DTYPES,
    GRADIENTS,
    Conv,
    Layer,
    Linear,
    Operands,
    lay_out,
    paths,
    relative_error,
    strides,
)
from ops.test_precision import dense_errors

from sketchlayers import ops
from sketchlayers.bench.timing import captured

pytestmark = pytest.mark.gpu

LAYERS = {
    "spatial": Conv(batch=4, in_channels=24, out_channels=32, kernel=(3, 3), size=(7, 8), rank=4,
                    num_sketches=2, padding=(1, 1)),
    "channel": Conv(batch=3, in_channels=30, out_channels=20, kernel=(5, 3), size=(9, 7), rank=2,
                    groups=2, stride=(2, 1), dilation=(1, 2), mixing="channel"),
    "grouped": Conv(batch=3, in_channels=30, out_channels=21, kernel=(3, 3), size=(9, 7), rank=2,
                    groups=3),
    "1x1": Conv(batch=4, in_channels=96, out_channels=64, kernel=(1, 1), size=(6, 6), rank=6),
    "frame": Conv(batch=2, in_channels=19, out_channels=33, frame=True),
    "unbatched": Conv(batch=None),
    "empty": Conv(batch=0),
    "linear": Linear(lead=(4, 8), in_channels=515, out_channels=259, rank=37, num_sketches=2),
    "linear, one vector": Linear(lead=(), in_channels=130, out_channels=70),
}  # fmt: skip
CASES = [(name, path) for name, layer in LAYERS.items() for path in paths(layer)]
CUDA = torch.device("cuda")


def step(layer: Layer, operands: Operands, path: str, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients."""
    return [layer(operands, path), *layer.gradients(operands, grad, path).values()]


# Signs.


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 1000])
@pytest.mark.parametrize("rows", [0, 1, 33, 700])
def test_bits_are_those_of_the_cpu(rows, columns):
    for seed, matrix in [(0, 0), (2**40 + 7, 3), (2**63 - 1, 2**32 - 1)]:
        packed = ops.sign_matrix(seed, matrix, rows, columns, device=CUDA)
        assert packed.device.type == "cuda"
        assert torch.equal(packed.cpu(), ops.sign_matrix(seed, matrix, rows, columns))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [0, 1, 31, 32, 33, 200])
def test_unpacking_gives_what_the_cpu_gives(columns, dtype):
    packed = ops.sign_matrix(17, 1, 6, 200).view(2, 3, -1)
    on_device = ops.unpack_signs(packed.to(CUDA), columns, dtype=dtype)
    assert torch.equal(on_device.cpu(), ops.unpack_signs(packed, columns, dtype=dtype))


def test_more_signs_than_an_int_can_count():
    rows, columns = 2**11 + 1, 2**20
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of free device memory")
    packed = ops.sign_matrix(1, 2, rows, columns, device=CUDA)
    signs = ops.unpack_signs(packed, columns, dtype=torch.float16)
    assert signs.numel() > 2**31
    last_row = reference.unpack(reference.sign_words(1, 2, rows, columns)[-1:], columns)
    assert torch.equal(signs[-1].cpu().double(), torch.from_numpy(last_row[0]))


# Values.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "path"), CASES)
def test_values_are_as_accurate_as_those_of_the_dense_layer(name, path, dtype):
    """At most twice the error of PyTorch's own layer on the same device, plus 4 eps."""
    layer = LAYERS[name]
    on_cpu = layer.operands(dtype)
    grad = torch.randn(layer.output_shape()).to(dtype)
    expected = layer.reference_gradients(on_cpu, grad)
    expected["output"] = layer.reference_output(on_cpu)
    operands, grad = on_cpu.to(CUDA), grad.to(CUDA)
    allowed = dense_errors(layer, operands, grad)
    actual = {"output": layer(operands, path), **layer.gradients(operands, grad, path)}
    for operand, tensor in actual.items():
        assert tensor.device.type == "cuda"
        assert tensor.dtype == dtype
        error = relative_error(tensor, expected[operand])
        assert error <= 2 * allowed[operand] + 4 * torch.finfo(dtype).eps, operand


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("name", ["spatial", "channel", "frame", "linear"])
def test_operands_of_any_strides(name, layout):
    layer = LAYERS[name]
    plain = layer.operands(torch.float64, CUDA)
    strided = Operands(*(lay_out(tensor, layout) for tensor in plain))
    grad = torch.randn(layer.output_shape(), dtype=torch.float64, device=CUDA)
    for path in paths(layer):
        for a, b in zip(
            step(layer, strided, path, grad), step(layer, plain, path, grad), strict=True
        ):
            assert relative_error(a, b) < 1e-12
    assert len({strides(layer(strided, path)) for path in paths(layer)}) == 1


@pytest.mark.parametrize(("name", "path"), CASES)
def test_gradcheck(name, path):
    layer = LAYERS[name]
    leaves = layer.operands(device=CUDA).requiring(*GRADIENTS)

    def forward(*tensors):
        return layer(Operands(*tensors), path)

    assert torch.autograd.gradcheck(forward, tuple(leaves), fast_mode=True)
    if layer.output_shape()[0:1] != (0,):
        assert torch.autograd.gradgradcheck(forward, tuple(leaves), fast_mode=True)


# Streams and devices.


@pytest.mark.parametrize(("name", "path"), CASES)
def test_work_runs_on_the_current_stream(name, path):
    """The input is written late on a side stream: kernels on another would read it too early."""
    layer = LAYERS[name]
    operands = layer.operands(torch.float32, CUDA)
    expected = layer(operands, path)
    late = Operands(torch.zeros_like(operands.input), operands.s1, operands.s2, operands.bias)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.input.copy_(operands.input)
        actual = layer(late, path)
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_signs_are_drawn_on_the_current_stream():
    """The default stream is busy: signs drawn there would not be ready on the side stream."""
    expected = ops.sign_matrix(3, 1, 64, 4096)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    torch.cuda._sleep(500_000_000)
    with torch.cuda.stream(stream):
        packed = ops.sign_matrix(3, 1, 64, 4096, device=CUDA)
        signs = ops.unpack_signs(packed, 4096)
        packed, signs = packed.cpu(), signs.cpu()
    assert torch.equal(packed, expected)
    assert torch.equal(signs, ops.unpack_signs(expected, 4096))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("name", "path"), CASES)
def test_the_device_of_the_operands_computes(name, path):
    layer = LAYERS[name]
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        operands = layer.operands(torch.float64, other)
        grad = torch.randn(layer.output_shape(), dtype=torch.float64, device=other)
        results = step(layer, operands, path, grad)
        expected = step(layer, operands.to("cpu"), path, grad.cpu())
        assert torch.cuda.current_device() == 0
        packed = ops.sign_matrix(3, 1, 5, 200, device=other)
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.device == other
        assert relative_error(actual, wanted) < 1e-12
    assert packed.device == other
    assert torch.equal(packed.cpu(), ops.sign_matrix(3, 1, 5, 200))


def test_operands_on_two_devices_are_refused():
    operands, signs = Conv().operands(device=CUDA), Conv().packed_signs("cpu")
    for path in ("factored", "folded"):
        with pytest.raises(RuntimeError, match=r"^sk_conv2d: u1.* device.*\(got .+\)"):
            Conv().forward(operands, path, signs)


# Training in graphs, with mixed precision, deterministically, within the dense layer's memory.


@pytest.mark.parametrize(
    ("name", "path"), [case for case in CASES if case[0] not in ("empty", "unbatched")]
)
def test_a_captured_step_replays_with_new_values(name, path):
    layer = LAYERS[name]
    leaves = layer.operands(torch.float32, CUDA).requiring(*GRADIENTS)
    grad = torch.randn(layer.output_shape(), device=CUDA)
    signs = layer.packed_signs(CUDA)

    def run() -> list[torch.Tensor]:
        output = layer.forward(leaves, path, signs)
        return [output, *torch.autograd.grad(output, list(leaves), grad)]

    results = {}

    def step() -> None:
        results["captured"] = run()

    replay = captured(step)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(-0.5)
    replay()
    for actual, expected in zip(results["captured"], run(), strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "path"), CASES)
def test_autocast(name, path, dtype):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32, CUDA)
    leaves = operands.requiring(*GRADIENTS)
    grad = torch.randn(layer.output_shape(), device=CUDA).to(dtype)
    with torch.autocast("cuda", dtype=dtype):
        output = layer(leaves, path)
        weight = layer.weight(operands)
    output.backward(grad)
    assert output.dtype == dtype
    assert weight.dtype == torch.float32
    tolerance = 4 * torch.finfo(dtype).eps
    assert relative_error(output, layer.reference_output(operands)) < tolerance
    expected = layer.reference_gradients(operands, grad)
    for operand, leaf in leaves.named().items():
        assert leaf.grad.dtype == torch.float32
        assert relative_error(leaf.grad, expected[operand]) < tolerance


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_deterministic_algorithms_give_the_same_bits(name, path):
    layer = LAYERS[name]
    operands = layer.operands(torch.float32, CUDA)
    grad = torch.randn(layer.output_shape(), device=CUDA)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [step(layer, operands, path, grad) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "path"), [("spatial", "folded"), ("channel", "factored"),
                                            ("linear", "factored")])  # fmt: skip
def test_compiled_step_equals_eager(name, path):
    layer = LAYERS[name]
    signs = layer.packed_signs(CUDA)

    def forward(*tensors):
        return layer.forward(Operands(*tensors), path, signs)

    compiled = torch.compile(forward, fullgraph=True)
    operands = layer.operands(torch.float32, CUDA)
    results = []
    for function in (forward, compiled):
        leaves = operands.requiring(*GRADIENTS)
        output = function(*leaves)
        output.sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for eager, fused in zip(*results, strict=True):
        assert eager.stride() == fused.stride()
        assert relative_error(fused, eager) < 1e-5


# CONV_4 and CONV_7 of NinN at a tenth of their parameters, and a wide fully connected layer.
TRAINED = {
    "5x5": Conv(batch=64, in_channels=96, out_channels=192, kernel=(5, 5), size=(16, 16),
                padding=(2, 2), rank=6),
    "5x5 channel": Conv(batch=64, in_channels=96, out_channels=192, kernel=(5, 5), size=(16, 16),
                        padding=(2, 2), rank=6, mixing="channel"),
    "3x3": Conv(batch=64, in_channels=192, out_channels=192, kernel=(3, 3), size=(8, 8),
                padding=(1, 1), rank=10),
    "3x3 channel": Conv(batch=64, in_channels=192, out_channels=192, kernel=(3, 3), size=(8, 8),
                        padding=(1, 1), rank=10, mixing="channel"),
    "1x1": Conv(batch=64, in_channels=192, out_channels=192, kernel=(1, 1), size=(16, 16), rank=10),
    "linear": Linear(lead=(64,), in_channels=4096, out_channels=4096, rank=204),
}  # fmt: skip


def peak_bytes(layer: Layer, dtype: torch.dtype, sketched: bool) -> int:
    """The most memory that a training step of the layer holds at a time, operands included."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    operands = layer.operands(dtype, CUDA)
    if sketched:
        signs = layer.packed_signs(CUDA)
        leaves = operands.requiring(*GRADIENTS)

        def forward() -> torch.Tensor:
            return layer.forward(leaves, "auto", signs)
    else:
        weight = layer.weight(operands).view(layer.out_channels, -1, *layer.kernel_size)
        leaves = Operands(operands.input, weight, weight.new_empty(0), operands.bias)
        leaves = leaves.requiring("input", "s1", "bias")

        def forward() -> torch.Tensor:
            return layer.dense(leaves.input, leaves.s1, leaves.bias)

    del operands
    grad = torch.randn(layer.output_shape(), device=CUDA).to(dtype)
    for _ in range(2):  # the first step fills the libraries' workspaces
        torch.cuda.reset_peak_memory_stats()
        for leaf in leaves:
            leaf.grad = None
        forward().backward(grad)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step_needs_no_more_memory_than_the_dense_layer(name, dtype):
    layer = TRAINED[name]
    peak_bytes(layer, dtype, sketched=False)  # handles and workspaces count for neither
    dense, sketched = (peak_bytes(layer, dtype, sketched) for sketched in (False, True))
    assert sketched <= 1.05 * dense
