"""Sizes near 2^31 and 2^63: right shapes, right values, or an error that says why."""

from __future__ import annotations

import os

import pytest
import torch

from sketchlayers import ops

SIGNS = torch.zeros(1, 2, 4, dtype=torch.int32)


def conv(x: torch.Tensor) -> torch.Tensor:
    """A 1x1 layer, factored, of 3 to 5 channels."""
    s1, s2 = torch.ones(2, 3, 1, 1, device=x.device), torch.ones(5, 2, 1, 1, device=x.device)
    u = SIGNS.to(x.device)
    return torch.ops.sketchlayers.sk_conv2d_factored(x, s1, s2, u, u)


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**33 + 1])
def test_shapes_of_large_results(size):
    assert conv(torch.empty(size, 3, 2, 2, device="meta")).shape == (size, 5, 2, 2)
    s1, s2 = torch.empty(2, 3, device="meta"), torch.empty(5, 2, device="meta")
    x, u = torch.empty(size, 3, device="meta"), SIGNS.to("meta")
    assert torch.ops.sketchlayers.sk_linear_factored(x, s1, s2, u, u).shape == (size, 5)
    packed = torch.empty(size, 4, dtype=torch.int32, device="meta")
    assert torch.ops.sketchlayers.unpack_signs(packed, 100).shape == (size, 100)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_images_that_no_convolution_of_pytorchs_can_hold(device):
    """Height and width have 32 bits there."""
    largest = torch.empty(1, 3, 2**31 - 1, 2, device="meta")
    assert conv(largest).shape == (1, 5, 2**31 - 1, 2)
    for size in (2**31, 2**33 + 1, 2**61):
        for shape in ((1, 3, size, 1), (1, 3, 1, size)):
            with pytest.raises(
                RuntimeError, match=r"height and width must be .* below 2\^31 \(got"
            ):
                conv(torch.zeros(1, 1, 1, 1, device=device).expand(shape))


def test_sizes_that_would_overflow():
    row = torch.empty(0, 2**60, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"fewer than 2\^58 words"):
        torch.ops.sketchlayers.unpack_signs(row, 1)
    seed, values = torch.zeros((), dtype=torch.int64), torch.zeros(3)
    rows, s1, s2 = torch.zeros(1).expand(2**59, 3), torch.zeros(2, 3), torch.zeros(5, 2)
    signs = SIGNS[:, :1].expand(2**58, 1, 4)
    for call in (
        lambda: torch.ops.sketchlayers.hashed_weight(values, seed, 2**32, 2**34),
        lambda: torch.ops.sketchlayers.hash_entries(seed, 2**32, 2**34, 3),
        lambda: torch.ops.sketchlayers.sk_linear_factored(rows, s1, s2, SIGNS, SIGNS),
        lambda: ops.sk_linear(rows, s1, s2, SIGNS, SIGNS, path="folded"),
        lambda: conv(torch.zeros(1).expand(2**58, 3, 1, 1)),
        lambda: ops.unpack_signs(signs, 32),
    ):
        with pytest.raises(ValueError, match=r"result, without zeros, .* below 2\^60 \(got"):
            call()


def test_results_without_elements_take_no_time():
    """2^32 rows, of which nothing is computed."""
    seed = torch.tensor(1)
    assert ops.sign_matrix(1, 0, 2**32, 0).shape == (2**32, 0)
    assert torch.ops.sketchlayers.hash_entries(seed, 2**32, 0, 3).shape == (2**32, 0)
    assert torch.ops.sketchlayers.hashed_weight(torch.ones(3), seed, 2**32, 0).numel() == 0
    grad = torch.empty(2**32, 0)
    assert torch.ops.sketchlayers.hashed_weight_backward(grad, seed, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["hash_entries", "unpack_signs"])
def test_sparse_operands_are_refused(name):
    """They once recursed without end."""
    with pytest.raises(RuntimeError, match="must be a dense tensor"):
        if name == "hash_entries":
            torch.ops.sketchlayers.hash_entries(torch.tensor([1]).to_sparse(), 2, 2, 3)
        else:
            torch.ops.sketchlayers.unpack_signs(SIGNS.to_sparse(), 3)


@pytest.mark.skipif(
    not os.environ.get("SKETCHLAYERS_LARGE_TESTS"),
    reason="takes 5 GiB: set SKETCHLAYERS_LARGE_TESTS=1",
)
def test_values_beyond_the_2_to_the_31st_element():
    rows, columns = 2**16 + 1, 2**15
    packed = ops.sign_matrix(1, 0, rows, columns)
    signs = ops.unpack_signs(packed, columns, dtype=torch.bfloat16)
    assert signs.numel() > 2**31
    for row in (0, 2**16 - 1, 2**16):
        assert torch.equal(signs[row], ops.unpack_signs(packed[row], columns, dtype=torch.bfloat16))
