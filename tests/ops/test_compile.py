"""opcheck, torch.compile, torch.export, torch.func and the meta device."""

from collections.abc import Callable

import pytest
import torch
from selection import slow_except
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sketchlayers import ops

from .problems import GRADIENTS, Conv, Layer, Linear, Operands, paths, relative_error

LAYERS = {
    "spatial": Conv(batch=4, padding=(1, 1)),
    "channel": Conv(batch=4, mixing="channel", groups=2, stride=(2, 1)),
    "frame": Conv(batch=4, frame=True),
    "linear": Linear(lead=(4,), num_sketches=2),
    "blocks": Conv(batch=4, mixing="channel", padding=(1, 1), blocks=2),
    "linear with blocks": Linear(lead=(4,), blocks=2),
}
# ``auto`` takes one of the other two paths before anything is traced: two layers show that.
CASES = [
    (name, path)
    for name, layer in LAYERS.items()
    for path in paths(layer)
    if path != "auto" or name in ("channel", "linear")
]


def stepper(layer: Layer, path: str) -> Callable[..., tuple[Tensor, ...]]:
    """A training step as one function of tensors: output and every gradient."""
    signs = layer.packed_signs()

    def step(*tensors: Tensor) -> Tensor:
        return layer.forward(Operands(*tensors), path, signs)

    return step


def outcome(forward, layer: Layer, operands: Operands) -> list[Tensor]:
    leaves = operands.requiring(*GRADIENTS)
    output = forward(*leaves)
    output.square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.stride() == b.stride()
        assert relative_error(a, b) < 1e-12


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "path"), CASES)
def test_compiled_step_equals_eager(name, path):
    layer = LAYERS[name]
    step = stepper(layer, path)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    operands = layer.operands()
    assert_close(outcome(compiled, layer, operands), outcome(step, layer, operands))


# The C++ compiler takes ten seconds for each.
@pytest.mark.parametrize(
    ("name", "path"),
    slow_except(
        [("channel", "factored")],
        [("spatial", "folded"), ("channel", "factored"), ("linear", "factored")],
    ),
)
def test_inductor_step_equals_eager(name, path):
    layer = LAYERS[name]
    step = stepper(layer, path)
    operands = layer.operands()
    compiled = torch.compile(step, fullgraph=True)
    # Not vectorised: for a capability without vectors Inductor writes code that does not compile.
    with torch._inductor.config.patch({"cpp.simdlen": 0}):
        assert_close(outcome(compiled, layer, operands), outcome(step, layer, operands))


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_symbolic_batch_compiles_once(name, path):
    """A dynamic batch adds no guard, so that a second batch size does not compile anew."""
    layer = LAYERS[name]
    counter = CompileCounterWithBackend("aot_eager")
    step = stepper(layer, path)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for batch in (4, 7, 33):
        resized = (
            layer.replace(lead=(batch,))
            if isinstance(layer, Linear)
            else layer.replace(batch=batch)
        )
        operands = resized.operands().requiring(*GRADIENTS)
        torch._dynamo.mark_dynamic(operands.input, 0)
        output = compiled(*operands)
        assert relative_error(output, resized(operands, path)) < 1e-12
        output.sum().backward()
    assert counter.frame_count == 1


class Module(nn.Module):
    """A layer as the exporter sees it: parameters, packed signs as buffers and a frozen path."""

    def __init__(self, layer: Layer, path: str) -> None:
        super().__init__()
        self.layer, self.path = layer, path
        operands = layer.operands()
        self.s1, self.s2 = nn.Parameter(operands.s1), nn.Parameter(operands.s2)
        self.bias = nn.Parameter(operands.bias)
        for name, packed in layer.packed_signs().items():
            self.register_buffer(name, packed)

    def forward(self, x: Tensor) -> Tensor:
        signs = {name: getattr(self, name) for name in ("u1", "u2", "frame")}
        return self.layer.forward(Operands(x, self.s1, self.s2, self.bias), self.path, signs)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_export_with_a_dynamic_batch(name, path):
    layer = LAYERS[name]
    module = Module(layer, path)
    x = layer.operands().input
    batch = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
    assert exported.range_constraints
    for size in (1, 4, 9):
        x = torch.randn(size, *x.shape[1:], dtype=x.dtype)
        assert relative_error(exported.module()(x), module(x)) < 1e-12


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_saved_program_computes_the_same(name, path, tmp_path):
    module = Module(LAYERS[name], path)
    x = LAYERS[name].operands().input
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    assert relative_error(loaded.module()(x), module(x)) < 1e-12


@pytest.mark.parametrize(("name", "path"), CASES)
def test_every_size_may_be_symbolic(name, path):
    """Batch, height and width that change from call to call: one graph after the first."""
    layer = LAYERS[name]
    counter = CompileCounterWithBackend("aot_eager")
    module = Module(layer, path)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    shape = layer.operands().input.shape
    for more in (1, 2, 5):  # from sizes that differ from each other and from the channels
        sizes = [shape[0] + 4 * more, *shape[1:]]
        if isinstance(layer, Conv):
            sizes[2:] = [shape[2] + 2 * more, shape[3] + 3 * more]
        x = torch.randn(sizes, dtype=torch.float64)
        assert relative_error(compiled(x), module(x)) < 1e-12
    assert counter.frame_count == 1


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_batch_whose_size_depends_on_data(name, path):
    """Samples picked by a mask: the compiler never knows how many there are."""
    layer = LAYERS[name]
    module = Module(layer, path)

    def pick(x: Tensor, keep: Tensor) -> Tensor:
        return module(x[keep])

    x, keep = layer.operands().input, torch.tensor([True, False, True, True])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(pick, fullgraph=True, backend="aot_eager")
        output = compiled(x, keep)
        output.sum().backward()
    assert relative_error(output, pick(x, keep)) < 1e-12


@pytest.mark.parametrize("name", ["spatial", "channel", "frame", "linear"])
def test_a_compiled_function_may_draw_its_signs(name):
    """sign_matrix has no tensor argument: compiling it needs the fake kernel and the device."""
    layer = LAYERS[name]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def draw() -> Tensor:
        packed = ops.sign_matrix(layer.seed, 1, 5, 200, device="cpu")
        return ops.unpack_signs(packed, 200)

    assert torch.equal(draw(), ops.unpack_signs(ops.sign_matrix(layer.seed, 1, 5, 200), 200))


def signs_of(layer: Layer) -> tuple[tuple, dict]:
    packed = layer.packed_signs()
    arguments = {"num_sketches": layer.num_sketches, "scale": layer.scale}
    if isinstance(layer, Conv):
        arguments["mixing"] = layer.mixing
    return (packed["u1"], packed["u2"]), arguments


TESTS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def opcheck(op, args, kwargs=None) -> None:
    outcomes = torch.library.opcheck(op, args, kwargs or {}, test_utils=TESTS)
    assert set(outcomes.values()) == {"SUCCESS"}


def test_opcheck_of_the_signs():
    op = torch.ops.sketchlayers
    opcheck(op.sign_matrix.default, (3, 1, 4, 70), {"device": torch.device("cpu")})
    opcheck(op.hadamard_signs.default, (3, 1, 4, 70), {"device": torch.device("cpu")})
    packed = ops.sign_matrix(3, 1, 4, 70)
    opcheck(op.unpack_signs.default, (packed, 70))
    opcheck(op.unpack_signs.default, (packed, 33), {"dtype": torch.bfloat16})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_opcheck_of_the_weight(name, dtype):
    layer = LAYERS[name]
    leaves = layer.operands(dtype).requiring("s1", "s2")
    signs, arguments = signs_of(layer)
    arguments["frame"] = layer.packed_signs()["frame"]
    op = torch.ops.sketchlayers
    opcheck(op.sk_weight.default, (leaves.s1, leaves.s2, *signs), arguments)
    grad = torch.randn_like(layer.weight(leaves)).requires_grad_()
    opcheck(op.sk_weight_backward.default, (grad, *signs), arguments)


FEWER_TRAINED = [
    (name, path, trained)
    for name, path in CASES
    for trained in (("s1", "bias"), ())
    if name in ("channel", "linear") and path != "auto"
]


@pytest.mark.parametrize(
    ("name", "path", "trained"), [*((*case, GRADIENTS) for case in CASES), *FEWER_TRAINED], ids=str
)
def test_opcheck_of_the_layers(name, path, trained):
    layer = LAYERS[name]
    leaves = layer.operands().requiring(*trained)
    (u1, u2), arguments = signs_of(layer)
    arguments |= {"frame": layer.packed_signs()["frame"], "path": path}
    positional = (leaves.input, leaves.s1, leaves.s2, u1, u2, leaves.bias)
    if isinstance(layer, Conv):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        opcheck(torch.ops.sketchlayers.sk_conv2d.default, (*positional, *geometry), arguments)
    else:
        opcheck(torch.ops.sketchlayers.sk_linear.default, positional, arguments)


MASKS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]


@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_opcheck_of_the_factored_leaves(name, mask):
    layer = LAYERS[name]
    wanted = [operand for operand, want in zip(GRADIENTS, mask, strict=False) if want]
    leaves = layer.operands().requiring(*wanted)
    signs, arguments = signs_of(layer)
    three = (leaves.input, leaves.s1, leaves.s2)
    grad = torch.randn(layer.output_shape(), dtype=torch.float64).requires_grad_()
    op = torch.ops.sketchlayers
    if isinstance(layer, Conv):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        forward, backward = op.sk_conv2d_factored, op.sk_conv2d_factored_backward
    else:
        geometry = ()
        forward, backward = op.sk_linear_factored, op.sk_linear_factored_backward
    opcheck(forward.default, (*three, *signs, leaves.bias, *geometry), arguments)
    opcheck(backward.default, (grad, *three, *signs, mask, *geometry), arguments)


def test_every_operator_is_checked():
    """A new operator comes with an opcheck, here or in the file of its own tests."""
    checked = {
        *("sign_matrix", "hadamard_signs", "unpack_signs", "sk_weight", "sk_weight_backward"),
        *("sk_linear", "sk_linear_factored", "sk_linear_factored_backward"),
        *("sk_conv2d", "sk_conv2d_factored", "sk_conv2d_factored_backward"),
        *("hashed_weight", "hashed_weight_backward", "hash_entries", "fresh_weight"),
        *("tucker_conv2d", "tucker_conv2d_fused", "cp_conv2d", "low_rank_conv2d"),
    }
    registered = {
        schema.name.removeprefix("sketchlayers::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("sketchlayers::")
    }
    assert registered == checked


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_torch_func(name):
    """torch.func refuses C++ autograd functions: there the operators compose ATen's own."""
    layer = LAYERS[name]
    operands, signs = layer.operands(), layer.packed_signs()

    def loss(input: Tensor, s1: Tensor, s2: Tensor, bias: Tensor) -> Tensor:
        return layer.forward(Operands(input, s1, s2, bias), "auto", signs).square().sum()

    functional = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*operands)
    leaves = operands.requiring(*GRADIENTS)
    loss(*leaves).backward()
    for gradient, leaf in zip(functional, leaves, strict=True):
        assert relative_error(gradient, leaf.grad) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name):
    """vmap of grad: one gradient of the parameters for each sample."""
    layer = LAYERS[name]
    one = layer.replace(lead=()) if isinstance(layer, Linear) else layer.replace(batch=None)
    operands, signs = layer.operands(), layer.packed_signs()

    def loss(s1: Tensor, s2: Tensor, x: Tensor) -> Tensor:
        return one.forward(Operands(x, s1, s2, operands.bias), "auto", signs).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))
    stacked = per_sample(operands.s1, operands.s2, operands.input)
    for i, x in enumerate(operands.input):
        leaves = operands.requiring("s1", "s2")
        loss(leaves.s1, leaves.s2, x).backward()
        for gradients, leaf in zip(stacked, (leaves.s1, leaves.s2), strict=True):
            assert relative_error(gradients[i], leaf.grad) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_inputs(name):
    layer = LAYERS[name]
    operands = layer.operands()
    stacked = torch.stack([operands.input, 2 * operands.input])
    signs = layer.packed_signs()

    def one(x: Tensor) -> Tensor:
        return layer.forward(Operands(x, operands.s1, operands.s2, operands.bias), "auto", signs)

    actual = torch.func.vmap(one)(stacked)
    for i in range(2):
        assert relative_error(actual[i], one(stacked[i])) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode_derivatives(name):
    """Along a tangent they agree with reverse mode."""
    layer = LAYERS[name]
    operands, signs = layer.operands(), layer.packed_signs()
    tangents = tuple(torch.randn_like(operand) for operand in operands)

    def output(*operands: Tensor) -> Tensor:
        return layer.forward(Operands(*operands), "auto", signs)

    with torch.autograd.forward_ad.dual_level():
        duals = map(torch.autograd.forward_ad.make_dual, operands, tangents)
        forward = torch.autograd.forward_ad.unpack_dual(output(*duals)).tangent
    _, backward = torch.autograd.functional.jvp(output, tuple(operands), tangents)
    assert relative_error(forward, backward) < 1e-12
