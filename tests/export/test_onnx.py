"""Plain ``torch.onnx.export``: standard operators, small files, ONNX Runtime's outputs."""

import numpy as np
import pytest
import torch
from selection import slow_except
from torch import nn
from torch.export import Dim

import sketchlayers
from sketchlayers.nn import FreshConv2d, HashedLinear, SKConv2d, SKLinear

from .networks import KINDS, compressed, images

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BATCH = ({0: Dim("batch", max=1024)},)


def exported(network, value, dynamic_shapes=BATCH):
    """The model of one export, checked."""
    program = torch.onnx.export(
        network.eval(), (value,), dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
    )
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}  # ONNX's own operators
    assert not model.functions
    return model


def outputs(model, value, options=None):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {session.get_inputs()[0].name: value.numpy()})
    return torch.from_numpy(result)


def assert_same(network, model, *values):
    for value in values:
        with torch.no_grad():
            expected = network(value)
        torch.testing.assert_close(outputs(model, value), expected, rtol=1e-4, atol=1e-4)


def operators(model):
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", KINDS)
def test_networks(name):
    network = compressed(name)
    model = exported(network, images())
    assert_same(network, model, images(1), images(7))


LAYERS = {
    "groups": lambda: SKConv2d(16, 24, (3, 2), stride=(2, 1), padding=1, groups=2, rank=2),
    "channel mixing": lambda: SKConv2d(
        16, 24, 3, stride=2, padding=2, dilation=2, groups=2, rank=2, mixing="channel"
    ),
    "reflected": lambda: SKConv2d(
        16, 24, (3, 4), padding="same", padding_mode="reflect", rank=3, mixing="channel"
    ),
    "blocks": lambda: SKConv2d(16, 24, 3, rank=2, num_sketches=2, blocks=4, mixing="channel"),
    "spatial blocks": lambda: SKConv2d(16, 24, 3, rank=2, blocks=2, groups=2, bias=False),
    "1x1": lambda: SKConv2d(16, 24, 1, stride=2, rank=2, scale="normalized"),
    "channel frame": lambda: SKConv2d(16, 24, 3, rank=2, mixing="channel", frame="signs"),
    "frequencies": lambda: FreshConv2d(16, 24, 3, groups=2, rate=0.3),
}


QUICK = ("channel mixing", "reflected", "spatial blocks", "frequencies")


@pytest.mark.parametrize("name", slow_except(QUICK, LAYERS))
def test_convolutions(name):
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    model = exported(layer, torch.randn(2, 16, 9, 8))
    assert_same(layer, model, torch.randn(1, 16, 9, 8), torch.randn(5, 16, 9, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SKLinear(16, 24, rank=3, num_sketches=2, signs="hadamard"),
        lambda: SKLinear(16, 32, rank=2, blocks=2, bias=False),
        lambda: HashedLinear(16, 24, rate=0.3),
    ],
    ids=["linear", "blocks", "hashed"],
)
def test_fully_connected_layers(make):
    layer = make()
    model = exported(layer, torch.randn(2, 5, 16))
    assert_same(layer, model, torch.randn(1, 5, 16), torch.randn(4, 5, 16))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: SKLinear(512, 384, rank=32), (2, 512)),
        (lambda: SKConv2d(256, 256, 3, rank=40, mixing="channel"), (1, 256, 5, 5)),
    ],
    ids=["linear", "convolution"],
)
def test_factors_stay_and_signs_are_bytes(layer, shape):
    """The file grows with the factors and a byte a sign, not with the dense weight."""
    layer = layer()
    model = exported(layer, torch.randn(shape))
    assert_same(layer, model, torch.randn(3, *shape[1:]))
    initializers = model.graph.initializer
    signs = [tensor for tensor in initializers if tensor.data_type == onnx.TensorProto.INT8]
    entries = layer.rank * (layer.s1.shape[1] + layer.s2.shape[0])
    assert sum(np.prod(tensor.dims) for tensor in signs) == entries
    for tensor in signs:
        assert set(np.unique(onnx.numpy_helper.to_array(tensor))) == {-1, 1}
    assert "Cast" in operators(model)
    stored = 4 * sum(parameter.numel() for parameter in layer.parameters()) + entries
    assert stored <= model.ByteSize() <= 1.02 * stored + 10_000


@pytest.mark.parametrize("layer", ["spatial", "hashed"])
def test_a_folded_weight_is_formed_once_when_the_model_is_loaded(layer, tmp_path):
    network = nn.Sequential(
        SKConv2d(32, 64, 3, rank=8)
        if layer == "spatial"
        else sketchlayers.nn.HashedConv2d(32, 64, 3, rate=0.2)
    )
    model = exported(network, torch.randn(1, 32, 6, 6))
    assert len(operators(model)) > 1  # what forms the weight
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    value = torch.randn(2, 32, 6, 6)
    torch.testing.assert_close(outputs(model, value, options), network(value), rtol=1e-4, atol=1e-4)
    assert operators(onnx.load(options.optimized_model_filepath)) == {"Conv"}


def test_the_path_decides_where_both_are_possible():
    layer = SKConv2d(64, 64, 3, padding=1, rank=4, mixing="channel")
    value = torch.randn(1, 64, 6, 6)
    factored = exported(layer, value)
    layer.path = "folded"
    folded = exported(layer, value)
    count = [
        sum(node.op_type == "Conv" for node in model.graph.node) for model in (factored, folded)
    ]
    assert count == [4, 1]
    assert_same(layer, folded, value)


def test_image_sizes_may_be_open():
    network = compressed("channel")
    sizes = ({0: Dim("batch", max=64), 2: Dim("height", min=4), 3: Dim("width", min=4)},)
    model = exported(network, images(), sizes)
    assert_same(network, model, images(3, 8), torch.randn(2, 3, 13, 6))


def test_half_types():
    network = SKConv2d(16, 24, 3, rank=2, mixing="channel").half()
    model = exported(network, torch.randn(1, 16, 6, 6).half())
    value = torch.randn(2, 16, 6, 6).half()
    with torch.no_grad():
        expected = network(value)
    torch.testing.assert_close(outputs(model, value), expected, rtol=1e-2, atol=1e-2)


def test_exporting_leaves_the_model_as_it_was():
    network = SKConv2d(16, 24, 3, rank=2, mixing="channel").eval()
    value = torch.randn(2, 16, 6, 6)
    before, state = network(value), network.state_dict()
    exported(network, value)
    assert torch.equal(network(value), before)
    assert list(network.state_dict()) == list(state)
    assert not any(type(tensor) is not torch.Tensor for tensor in network.buffers())
