"""The reference itself: known answers, PyTorch's convolution and the definition of an adjoint."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from . import reference
from .problems import Conv, conv_layers

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40)


def test_philox_gives_the_published_words():
    words = reference.philox_4x32_10(np.zeros((1, 4), dtype=np.uint64), key=0)
    assert [f"{word:08x}" for word in words[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known answers that come with Random123 (kat_vectors, philox4x32 10).
        (
            [0xFFFFFFFF] * 4,
            0xFFFFFFFFFFFFFFFF,
            ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = reference.philox_4x32_10(np.array([counter], dtype=np.uint64), key)
    assert [f"{word:08x}" for word in words[0]] == expected


@SETTINGS
@given(conv_layers())
def test_loops_equal_the_convolution_of_pytorch(layer: Conv):
    layer = layer.replace(batch=layer.batch or 2)
    operands = layer.operands()
    filters = torch.randn(
        layer.out_channels, layer.in_channels // layer.groups, *layer.kernel, dtype=torch.float64
    )
    leaves = [operands.input.requires_grad_(), filters.requires_grad_()]
    expected = functional.conv2d(
        *leaves, operands.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    grad = torch.randn_like(expected)
    bias = None if operands.bias is None else operands.bias.numpy()
    x, w = (leaf.detach().numpy() for leaf in leaves)
    np.testing.assert_allclose(
        reference.convolve(x, w, bias, layer.geometry), expected.detach().numpy(), atol=1e-12
    )
    adjoints = reference.convolve_adjoint(grad.numpy(), x, w, layer.geometry)
    for actual, wanted in zip(adjoints, torch.autograd.grad(expected, leaves, grad), strict=False):
        np.testing.assert_allclose(actual, wanted.numpy(), atol=1e-12)
    np.testing.assert_allclose(adjoints[2], grad.sum((0, 2, 3)).numpy(), atol=1e-12)


@SETTINGS
@given(conv_layers())
def test_weight_adjoint_is_the_adjoint_of_the_weight(layer: Conv):
    operands = layer.operands()
    s1, s2 = operands.s1.numpy(), operands.s2.numpy()
    grad = np.random.default_rng(0).standard_normal(layer.reference_weight(operands).shape)
    grad_s1, grad_s2 = reference.weight_adjoint(
        grad, s1.shape, s2.shape, layer.signs(), layer.sketch
    )
    constant = reference.weight(0 * s1, 0 * s2, layer.signs(), layer.sketch)
    linear_part = reference.weight(s1, s2, layer.signs(), layer.sketch) - constant
    np.testing.assert_allclose(
        np.sum(linear_part * grad), np.sum(s1 * grad_s1) + np.sum(s2 * grad_s2), atol=1e-10
    )


def test_weight_of_one_entry_by_hand():
    """Two sketches of rank 1 of a 1x1 layer: W_hat = frame / 4 sum_i (u1_i s1_i + s2_i u2_i)."""
    layer = Conv(in_channels=1, out_channels=1, kernel=(1, 1), rank=1, num_sketches=2)
    signs = reference.Signs(
        u1=np.array([[[1.0], [-1.0]]]),
        u2=np.array([[[-1.0], [-1.0]]]),
        frame=np.array([[[-1.0]]]),
    )
    s1, s2 = np.array([3.0, 5.0]).reshape(2, 1, 1, 1), np.array([7.0, 11.0]).reshape(1, 2, 1, 1)
    value = reference.weight(s1, s2, signs, layer.sketch)
    np.testing.assert_allclose(value.item(), -(3 - 5 - 7 - 11) / 4)
