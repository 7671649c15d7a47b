"""torch.compile, torch.export and AOTInductor of whole compressed networks."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from sketchlayers.nn import SKConv2d, SKLinear

from .networks import KINDS, compressed, images


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", KINDS)
def test_compiles_into_one_graph_for_every_batch(name):
    network = compressed(name)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(network, fullgraph=True, backend=counter)
    for count in (5, 7, 13):  # from 16 images on PyTorch's own convolution compiles anew
        value = images(count)
        torch._dynamo.mark_dynamic(value, 0)
        with torch.no_grad():
            torch.testing.assert_close(run(value), network(value))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["channel", "frame", "hashednet"])
def test_a_compiled_training_step_equals_the_eager_one(name):
    network = compressed(name).train()
    value = images(6)
    learned = list(network.parameters())
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    expected = torch.autograd.grad(network(value).square().sum(), learned)
    network.load_state_dict(state)  # batch norm has counted
    run = torch.compile(network, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(run(value).square().sum(), learned)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


DYNAMIC = {0: Dim("batch", max=1024), 2: Dim("height", min=4, max=512), 3: Dim("width", min=4)}


@pytest.mark.parametrize("name", KINDS)
def test_exports_with_any_batch_and_image_size(name, tmp_path):
    network = compressed(name)
    file = tmp_path / "network.pt2"
    torch.export.save(export(network, (images(),), dynamic_shapes=(DYNAMIC,)), file)
    program = torch.export.load(file).module()
    for shape in ((4, 3, 8, 8), (1, 3, 8, 8), (9, 3, 13, 6)):
        value = torch.randn(shape)
        torch.testing.assert_close(program(value), network(value))


def test_an_aot_inductor_package(tmp_path):
    """A batch that was not known when it was compiled, through kernels and formed weights."""
    network = compressed("channel")
    network.body[0] = SKConv2d(16, 24, 3, padding=1, bias=False, rank=2, frame="signs")
    for layer in network.modules():
        if isinstance(layer, SKConv2d | SKLinear) and layer.frame is None:
            layer.path = "factored"
    network.eval()
    program = export(network, (images(),), dynamic_shapes=({0: DYNAMIC[0]},))
    # The kernels are optimised, what calls them need not be.
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        file = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "network.pt2")
        )
    run = torch._inductor.aoti_load_package(file)
    for count in (4, 1, 9):
        value = images(count)
        with torch.no_grad():
            torch.testing.assert_close(run(value), network(value))
