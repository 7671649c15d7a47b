"""Graphs of the layers: one for all seeds, whole, with any batch."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.export import Dim, export

from sketchlayers.nn import SKConv2d, SKLinear

LAYERS = [
    lambda seed=None: SKConv2d(8, 12, 3, padding=1, rank=2, seed=seed),
    lambda seed=None: SKConv2d(8, 12, (2, 3), padding="same", rank=1, mixing="channel",
                               num_sketches=2, groups=2, padding_mode="reflect", seed=seed),
    lambda seed=None: SKConv2d(8, 12, 1, rank=2, frame="signs", seed=seed),
    lambda seed=None: SKLinear(6, 10, rank=2, scale="normalized", seed=seed),
]  # fmt: skip


def sample(layer, batch=3):
    return torch.randn(batch, 6) if isinstance(layer, SKLinear) else torch.randn(batch, 8, 6, 6)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("make", LAYERS)
def test_compiles_into_one_graph(make):
    layer = make()
    value = sample(layer).requires_grad_()
    expected = layer(value)
    output = torch.compile(layer, fullgraph=True, backend="aot_eager")(value)
    torch.testing.assert_close(output, expected)
    learned = [value, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), learned),
        torch.autograd.grad(expected.square().sum(), learned),
    )


@pytest.mark.parametrize("make", LAYERS)
def test_layers_with_other_seeds_share_the_graph(make):
    counter = CompileCounter()
    run = torch.compile(lambda layer, value: layer(value), fullgraph=True, backend=counter)
    for seed in (1, 2, 3):
        layer = make(seed)
        run(layer, sample(layer))
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("path", ["auto", "folded"])
def test_exports_with_any_batch(make, path):
    layer = make()
    layer.path = path
    dynamic = ({0: Dim("batch", min=1, max=1024)},)
    program = export(layer.eval(), (sample(layer),), dynamic_shapes=dynamic, strict=False)
    for batch in (1, 5):
        value = sample(layer, batch)
        torch.testing.assert_close(program.module()(value), layer(value))
