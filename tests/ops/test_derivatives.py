"""First and second derivatives by finite differences, and which of them are computed at all."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from .problems import GRADIENTS, Conv, Linear, Operands, paths, relative_error

LAYERS = {
    "spatial": Conv(batch=2, in_channels=2, out_channels=3, kernel=(2, 2), size=(3, 4), rank=1,
                    num_sketches=2, padding=(1, 0)),
    "channel": Conv(batch=2, in_channels=4, out_channels=4, kernel=(3, 2), size=(6, 5), rank=2,
                    mixing="channel", groups=2, stride=(2, 1), dilation=(2, 1)),
    "frame": Conv(batch=1, in_channels=2, out_channels=2, kernel=(2, 2), size=(3, 3), rank=1,
                  frame=True),
    "unbatched": Conv(batch=None, in_channels=2, out_channels=2, kernel=(2, 1), size=(3, 3)),
    "linear": Linear(lead=(2, 2), in_channels=5, out_channels=3, rank=2, scale=0.7),
    "linear with frame": Linear(lead=(2,), in_channels=5, out_channels=3, frame=True),
    "blocks": Conv(batch=2, in_channels=4, out_channels=4, kernel=(2, 2), size=(3, 4), rank=1,
                   padding=(1, 0), mixing="channel", blocks=2),
    "spatial blocks": Conv(batch=2, in_channels=2, out_channels=4, kernel=(2, 1), size=(3, 4),
                           rank=1, padding=(1, 0), blocks=2),
    "linear with blocks": Linear(lead=(2, 2), in_channels=6, out_channels=4, rank=2, blocks=2),
}  # fmt: skip
CASES = [(name, path) for name, layer in LAYERS.items() for path in paths(layer)[:-1]]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_gradients(name: str, path: str):
    layer = LAYERS[name]
    leaves = layer.operands().requiring(*GRADIENTS)
    assert gradcheck(lambda *tensors: layer(Operands(*tensors), path), tuple(leaves))


@pytest.mark.parametrize(("name", "path"), CASES)
def test_second_derivatives(name: str, path: str):
    layer = LAYERS[name]
    leaves = layer.operands().requiring(*GRADIENTS)
    assert gradgradcheck(
        lambda *tensors: layer(Operands(*tensors), path), tuple(leaves), fast_mode=True
    )


@pytest.mark.parametrize(
    "name", ["spatial", "channel", "frame", "linear", "blocks", "spatial blocks"]
)
def test_derivatives_of_the_weight(name: str):
    layer = LAYERS[name]
    leaves = layer.operands().requiring("s1", "s2")

    def weight(s1, s2):
        return layer.weight(Operands(leaves.input, s1, s2, None))

    assert gradcheck(weight, (leaves.s1, leaves.s2))
    # The weight is affine in s1 and s2: a square makes its second derivative something to check.
    assert gradgradcheck(lambda *s: weight(*s).square(), (leaves.s1, leaves.s2))


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "linear", "blocks", "linear with blocks"])
def test_both_paths_have_the_same_second_derivatives(name: str, path: str):
    """The gradient of a gradient penalty, against the folded weight in PyTorch's own layer."""
    layer = LAYERS[name]

    def penalty_gradients(forward):
        leaves = layer.operands().requiring(*GRADIENTS)
        gradients = torch.autograd.grad(
            forward(leaves).square().sum(), list(leaves), create_graph=True
        )
        penalty = sum(gradient.square().sum() for gradient in gradients)
        return torch.autograd.grad(penalty, list(leaves))

    def by_definition(leaves):
        weight = layer.weight(leaves)
        return layer.dense(leaves.input, weight, leaves.bias)

    expected = penalty_gradients(by_definition)
    for actual, wanted in zip(
        penalty_gradients(lambda leaves: layer(leaves, path)), expected, strict=True
    ):
        assert relative_error(actual, wanted) < 1e-11


SUBSETS = [
    subset for size in range(5) for subset in itertools.combinations(GRADIENTS, size)
]  # every choice of what requires a gradient, none included


@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
@pytest.mark.parametrize("path", ["factored", "folded"])
def test_only_what_is_asked_for_gets_a_gradient(name: str, path: str):
    layer = LAYERS[name]
    grad = torch.randn(layer.output_shape(), dtype=torch.float64)
    everything = layer.gradients(layer.operands(), grad, path)
    for subset in SUBSETS:
        leaves = layer.operands().requiring(*subset)
        output = layer(leaves, path)
        assert output.requires_grad == bool(subset)
        if not subset:
            continue
        output.backward(grad)
        for operand, leaf in leaves.named().items():
            if operand in subset:
                assert relative_error(leaf.grad, everything[operand]) < 1e-13, (subset, operand)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("name", ["spatial", "channel", "frame", "linear"])
def test_no_graph_without_gradients(name: str):
    layer = LAYERS[name]
    leaves = layer.operands().requiring(*GRADIENTS)
    for path in paths(layer):
        with torch.no_grad():
            without = layer(leaves, path)
        with torch.inference_mode():
            inference = layer(leaves, path)
        recorded = layer(leaves, path)
        assert not without.requires_grad
        assert not inference.requires_grad
        assert recorded.requires_grad
        # No path may depend on the plan for training being another one.
        assert relative_error(without, recorded) < 1e-13
        assert torch.equal(without, inference)


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_gradients_accumulate_over_calls(name: str, path: str):
    layer = LAYERS[name]
    once = layer.operands().requiring(*GRADIENTS)
    twice = layer.operands().requiring(*GRADIENTS)
    layer(once, path).sum().backward()
    for _ in range(2):
        layer(twice, path).sum().backward()
    for a, b in zip(once, twice, strict=True):
        assert torch.allclose(2 * a.grad, b.grad, rtol=1e-13)


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_changing_a_saved_tensor_in_place_is_noticed(name: str, path: str):
    layer = LAYERS[name]
    leaves = layer.operands().requiring("s1", "s2", "bias")
    output = layer(leaves, path).sum()
    output.backward(retain_graph=True)
    leaves.input.add_(1)
    with pytest.raises(RuntimeError):  # PyTorch's own, of saved tensors
        output.backward()


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_batch_zero_gives_zero_gradients(name: str, path: str):
    layer = LAYERS[name]
    empty = layer.replace(lead=(0,)) if isinstance(layer, Linear) else layer.replace(batch=0)
    leaves = empty.operands().requiring(*GRADIENTS)
    output = empty(leaves, path)
    assert output.shape == empty.output_shape()
    output.sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


@pytest.mark.parametrize("name", ["spatial", "channel", "linear"])
def test_activation_checkpointing(name: str):
    layer = LAYERS[name]
    for path in paths(layer):
        plain, recomputed = (layer.operands().requiring(*GRADIENTS) for _ in range(2))
        layer(plain, path).square().sum().backward()
        checkpoint(
            lambda *tensors, path=path: layer(Operands(*tensors), path),
            *recomputed,
            use_reentrant=False,
        ).square().sum().backward()
        for a, b in zip(plain, recomputed, strict=True):
            assert torch.equal(a.grad, b.grad)
