"""What a training step keeps: the dense layer's tensors and the two parameters, no float signs."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sketchlayers.bench.cases import NINN, build_dense, build_sketch
from sketchlayers.bench.memory import step_memory

from .problems import GRADIENTS, Conv, Layer, Linear, paths

LAYERS = {
    "spatial": Conv(batch=2, in_channels=64, out_channels=96, kernel=(3, 3), size=(8, 8), rank=4),
    "channel": Conv(batch=2, in_channels=64, out_channels=96, kernel=(3, 3), size=(8, 8), rank=4,
                    mixing="channel", groups=2),
    "frame": Conv(batch=2, in_channels=64, out_channels=96, kernel=(3, 3), size=(8, 8), rank=4,
                  frame=True),
    "blocks": Conv(batch=2, in_channels=64, out_channels=96, kernel=(3, 3), size=(8, 8), rank=4,
                   mixing="channel", blocks=8),
    "linear": Linear(lead=(16,), in_channels=512, out_channels=384, rank=8, num_sketches=2),
}  # fmt: skip
CASES = [(name, path) for name, layer in LAYERS.items() for path in paths(layer)[:-1]]


def saved_bytes(forward, leaves) -> int:
    """Bytes of the distinct storages that the graph of ``forward(leaves)`` keeps."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward(leaves)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_training_step_keeps_no_more_than_the_dense_layer(name: str, path: str, dtype):
    layer: Layer = LAYERS[name]
    leaves = layer.operands(dtype).requiring(*GRADIENTS)
    signs = layer.packed_signs()
    weight = layer.weight(leaves).detach().view(layer.out_channels, -1, *layer.kernel_size)
    weight.requires_grad_()
    dense = saved_bytes(lambda leaf: layer.dense(leaf.input, weight, leaf.bias), leaves)
    packed = sum(tensor.nbytes for tensor in signs.values() if tensor is not None)
    parameters = leaves.s1.nbytes + leaves.s2.nbytes
    kept = saved_bytes(lambda leaf: layer.forward(leaf, path, signs), leaves)
    assert kept <= dense + parameters + packed
    if path == "factored":
        # The operator's own graph needs the input, the parameters and the packed signs: not W_hat.
        assert kept <= leaves.input.nbytes + parameters + packed


def test_a_frozen_layer_keeps_nothing_for_its_parameters():
    """With only the input trained the gradient needs the weight, not the input."""
    layer = LAYERS["linear"]
    signs = layer.packed_signs()
    leaves = layer.operands(torch.float32).requiring("input")
    packed = sum(tensor.nbytes for tensor in signs.values() if tensor is not None)
    kept = saved_bytes(lambda leaf: layer.forward(leaf, "factored", signs), leaves)
    assert kept <= leaves.input.nbytes + leaves.s1.nbytes + leaves.s2.nbytes + packed


@pytest.mark.parametrize(("name", "path"), CASES)
def test_no_tensor_of_float_signs_outlives_the_call(name: str, path: str):
    """Unpacked signs may live in tiles during a call; afterwards only the output is new."""
    layer: Layer = LAYERS[name]
    operands, signs = layer.operands(torch.float32), layer.packed_signs()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        output = layer.forward(operands, path, signs)
    assert output.nbytes > 0
    allocated = sum(event.self_cpu_memory_usage for event in profile.events())
    assert allocated == output.nbytes


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize("case", [NINN[0], NINN[4]], ids=lambda case: case.name)
def test_a_training_step_peaks_no_higher_than_the_dense_one(case, mixing):
    data = torch.randn(64, case.in_channels, case.size, case.size, requires_grad=True)
    dense = step_memory(build_dense(case), data)
    sketch = step_memory(build_sketch(case, 0.1, mixing, "auto"), data)
    assert sketch <= 1.05 * dense
