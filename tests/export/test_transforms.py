"""Activation checkpointing and torch.func, on whole compressed networks."""

import copy
import warnings

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from sketchlayers.nn import HashedLinear, SKConv2d, SKLinear

from .networks import METHODS, OWN_OPERATORS, compressed, images


def gradients(network, run):
    value = images(3).requires_grad_()
    output = run(network, value)
    output.square().sum().backward()
    return [output.detach(), value.grad, *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_checkpointing(name, reentrant):
    network = compressed(name)

    def recomputed(network, value):
        return checkpoint(network, value, use_reentrant=reentrant)

    torch.manual_seed(1)
    expected = gradients(copy.deepcopy(network), lambda network, value: network(value))
    torch.manual_seed(1)
    torch.testing.assert_close(gradients(network, recomputed), expected)


def function(network):
    """The network as a function of parameters and images."""
    buffers = dict(network.named_buffers())

    def run(parameters, value):
        return functional_call(network, (parameters, buffers), (value,))

    return {name: p.detach() for name, p in network.named_parameters()}, run


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_every_image(name):
    network = compressed(name)
    parameters, run = function(network)
    value = images(3)

    def loss(parameters, image):
        return run(parameters, image.unsqueeze(0)).square().sum()

    per_image = vmap(grad(loss), in_dims=(None, 0))(parameters, value)
    for index, image in enumerate(value):
        network.zero_grad()
        network(image.unsqueeze(0)).square().sum().backward()
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(per_image[key][index], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_ensembles(name):
    """vmap over parameters: several networks at once, without falling back to a loop."""
    parameters, run = function(compressed(name))
    stacked = {key: torch.stack([tensor, 2 * tensor]) for key, tensor in parameters.items()}
    value = images(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        together = vmap(run, in_dims=(0, None))(stacked, value)
    for index in range(2):
        own = {key: tensor[index] for key, tensor in stacked.items()}
        torch.testing.assert_close(together[index], run(own, value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OWN_OPERATORS)
def test_gradients_through_an_ensemble(name):
    parameters, run = function(compressed(name))
    value = images(3)

    def loss(scale):
        scaled = {key: torch.stack([scale * t, t]) for key, t in parameters.items()}
        return vmap(run, in_dims=(0, None))(scaled, value)[0].sum()

    def reference(scale):
        return run({key: scale * tensor for key, tensor in parameters.items()}, value).sum()

    point = torch.tensor(1.1)
    torch.testing.assert_close(grad(loss)(point), grad(reference)(point), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["spatial", "channel", "blocks"])
def test_a_frozen_factored_path_is_refused(kind):
    network = compressed(kind)
    for layer in network.modules():
        if isinstance(layer, SKConv2d | SKLinear):
            layer.path = "factored"
    parameters, run = function(network)
    with pytest.raises(NotImplementedError, match=r"torch\.func .* need the folded path"):
        grad(lambda parameters: run(parameters, images()).sum())(parameters)


def test_batched_gradients_of_hashed_values():
    layer = HashedLinear(6, 8, rate=0.5)
    output = layer(torch.randn(4, 6))
    directions = torch.randn(3, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (together,) = torch.autograd.grad(
            output, layer.values, directions, is_grads_batched=True, retain_graph=True
        )
    for index, direction in enumerate(directions):
        (own,) = torch.autograd.grad(output, layer.values, direction, retain_graph=True)
        torch.testing.assert_close(together[index], own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_of_many_entries_are_exact_enough(dtype):
    """4,096 entries of each value, all of one sign: a sum in 16 bits would stay at 256."""
    seed, ones = torch.tensor(3), torch.ones(16, dtype=dtype)
    signs = torch.ops.sketchlayers.hashed_weight(ones, seed, 256, 256)
    for function in (composed_gradient, composed_adjoint):
        sums = function(ones, seed, signs)
        counts = torch.ops.sketchlayers.hashed_weight_backward(signs.double(), seed, 16)
        assert counts.min() > 3500
        torch.testing.assert_close(sums.double(), counts, rtol=torch.finfo(dtype).eps, atol=0)


def composed_gradient(ones, seed, signs):
    def loss(values):
        return (torch.ops.sketchlayers.hashed_weight(values, seed, 256, 256) * signs).sum()

    return grad(loss)(ones)


def composed_adjoint(ones, seed, signs):
    return vmap(torch.ops.sketchlayers.hashed_weight_backward, in_dims=(0, None, None))(
        signs[None], seed, len(ones)
    )[0]
