"""Devices without kernels of their own: what the dispatcher takes there, and what it computes."""

import pytest
import torch

from sketchlayers import ops

DEVICES = ["MPS", "XPU", "HPU", "PrivateUse1"]
OPERATORS = sorted(
    schema.name
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("sketchlayers::")
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_kernel_and_derivatives(name, device):
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    assert has_kernel(name, device)
    assert has_kernel(name, f"Autograd{device}")


def elsewhere(name, *args, **kwargs):
    """The kernel for devices without one of their own, on the CPU's tensors."""
    operator = getattr(torch.ops.sketchlayers, name).default
    return operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)


@pytest.mark.parametrize("columns", [1, 33, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_signs_are_the_same_bits(columns, dtype):
    packed = ops.sign_matrix(7, 3, 5, columns)
    assert torch.equal(elsewhere("sign_matrix", 7, 3, 5, columns, device="cpu"), packed)
    start = columns // 3
    arguments = {"start": start, "dtype": dtype, "scale": 0.3}
    signs = ops.unpack_signs(packed, columns - start, **arguments)
    assert torch.equal(elsewhere("unpack_signs", packed, columns - start, **arguments), signs)
    stacked = packed.expand(2, *packed.shape)
    assert torch.equal(
        elsewhere("unpack_signs", stacked, columns), ops.unpack_signs(stacked, columns)
    )


@pytest.mark.parametrize("tables", [{}, {"first": [0, 5], "buckets": [5, 12]}])
def test_hashes_are_the_same(tables):
    seed, values = torch.tensor(5), torch.randn(17)
    entries = ops.hash_entries(seed, 6, 10, 17, **tables)
    assert torch.equal(elsewhere("hash_entries", seed, 6, 10, 17, **tables), entries)
    weight = ops.hashed_weight(values, seed, 6, 10, **tables)
    assert torch.equal(elsewhere("hashed_weight", values, seed, 6, 10, **tables), weight)
    grad = torch.randn(6, 10)
    torch.testing.assert_close(
        elsewhere("hashed_weight_backward", grad, seed, 17, **tables),
        torch.ops.sketchlayers.hashed_weight_backward(grad, seed, 17, **tables),
    )


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_convolutions_and_weights(mixing, blocks):
    rank, taps = 3, 9 if mixing == "spatial" else 1
    u1 = ops.sign_matrix(1, 0, blocks * rank, 8).unsqueeze(0)
    u2 = ops.sign_matrix(1, 1, blocks * rank * taps, 6 * taps).unsqueeze(0)
    s1, s2, x = torch.randn(rank, 6, 3, 3), torch.randn(8, rank, 3, 3), torch.randn(2, 6, 7, 7)
    weight = ops.sk_weight(s1, s2, u1, u2, mixing=mixing)
    torch.testing.assert_close(elsewhere("sk_weight", s1, s2, u1, u2, mixing=mixing), weight)
    grad = torch.randn_like(weight)
    arguments = {"mixing": mixing, "blocks": blocks}
    torch.testing.assert_close(
        elsewhere("sk_weight_backward", grad, u1, u2, **arguments),
        torch.ops.sketchlayers.sk_weight_backward(grad, u1, u2, **arguments),
    )
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    output = ops.sk_conv2d(x, s1, s2, u1, u2, None, *geometry, mixing=mixing, path="factored")
    torch.testing.assert_close(
        elsewhere("sk_conv2d_factored", x, s1, s2, u1, u2, None, *geometry, mixing=mixing),
        output,
        rtol=1e-4,
        atol=1e-4,
    )
    grad, mask = torch.randn_like(output), [True, True, True]
    backward = (grad, x, s1, s2, u1, u2, mask, *geometry)
    torch.testing.assert_close(
        elsewhere("sk_conv2d_factored_backward", *backward, mixing=mixing),
        torch.ops.sketchlayers.sk_conv2d_factored_backward(*backward, mixing=mixing),
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("blocks", [1, 2])
def test_fully_connected_layers(blocks):
    u1 = ops.sign_matrix(1, 0, 3 * blocks, 8).unsqueeze(0)
    u2 = ops.sign_matrix(1, 1, 3 * blocks, 6).unsqueeze(0)
    s1, s2, x = torch.randn(3, 6), torch.randn(8, 3), torch.randn(2, 5, 6)
    output = ops.sk_linear(x, s1, s2, u1, u2, path="factored")
    torch.testing.assert_close(elsewhere("sk_linear_factored", x, s1, s2, u1, u2), output)
    backward = (torch.randn_like(output), x, s1, s2, u1, u2, [True, True, True])
    torch.testing.assert_close(
        elsewhere("sk_linear_factored_backward", *backward),
        torch.ops.sketchlayers.sk_linear_factored_backward(*backward),
        rtol=1e-4,
        atol=1e-4,
    )
