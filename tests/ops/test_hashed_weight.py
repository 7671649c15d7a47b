"""Hashed weights: the format bit for bit, values and derivatives, on the CPU and on a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from sketchlayers import ops

from . import reference
from .problems import DTYPES

TABLES = {"first": [0, 5, 5, 9], "buckets": [5, 4, 4, 1]}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def reference_entries(seed: int, rows: int, columns: int, first: list, buckets: list) -> Tensor:
    """Places of all entries, the complement where the sign is negative; by the definition."""
    entries = np.empty((rows, columns), dtype=np.int64)
    for row in range(rows):
        for column in range(columns):
            counter = np.array([[column >> 2, row, 0, 2]], dtype=np.uint64)
            word = int(reference.philox_4x32_10(counter, seed)[0][column % 4])
            table = column % len(first)
            place = first[table] + ((word >> 1) * buckets[table] >> 31)
            entries[row, column] = ~place if word & 1 else place
    return torch.from_numpy(entries)


def split(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Places and signs."""
    return torch.where(entries < 0, ~entries, entries), torch.where(entries < 0, -1.0, 1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [0, 2018, 2**40 + 7, 2**63 - 1])
def test_entries_are_those_of_the_format(seed: int, device: str) -> None:
    number = torch.tensor(seed, device=device)
    entries = ops.hash_entries(number, 5, 8, 10, **TABLES)
    assert torch.equal(entries.cpu(), reference_entries(seed, 5, 8, **TABLES))
    entries = ops.hash_entries(number, 3, 70, 2**31)
    assert torch.equal(entries.cpu(), reference_entries(seed, 3, 70, [0], [2**31]))


def test_first_entries_never_change() -> None:
    """A checkpoint holds the seed and the values alone."""
    assert ops.hash_entries(torch.tensor(0), 1, 8, 1000)[0].tolist() == FIRST_OF_SEED_0
    assert ops.hash_entries(torch.tensor(2018), 4, 8, 1000)[3].tolist() == FOURTH_OF_SEED_2018


def test_buckets_and_signs_are_used_evenly() -> None:
    places, signs = split(ops.hash_entries(torch.tensor(3), 500, 400, 100))
    counts = torch.bincount(places.flatten(), minlength=100)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)
    assert signs.mean().abs() < 5 / math.sqrt(signs.numel())
    # The sign tells nothing of the bucket, nor an entry of its neighbour.
    assert (signs * (places - 49.5)).mean().abs() < 5 * 29 / math.sqrt(signs.numel())
    assert (signs[:, 1:] * signs[:, :-1]).mean().abs() < 5 / math.sqrt(signs.numel())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tables", [{}, TABLES])
def test_values_and_sums(dtype: torch.dtype, tables: dict, device: str) -> None:
    """Values exactly; their gradients as near as PyTorch's own sum in the same type."""
    seed, rows, columns = torch.tensor(11, device=device), 90, 204
    values = torch.randn(10, dtype=dtype, device=device, requires_grad=True)
    places, signs = split(ops.hash_entries(seed, rows, columns, 10, **tables))
    weight = ops.hashed_weight(values, seed, rows, columns, **tables)
    assert weight.dtype == dtype and weight.shape == (rows, columns)
    assert torch.equal(weight, values[places] * signs.to(dtype))

    grad = torch.randn(rows, columns, dtype=dtype, device=device)
    (summed,) = torch.autograd.grad(weight, values, grad)
    assert summed.dtype == dtype
    exact = torch.zeros(10, dtype=torch.float64, device=device)
    exact.index_add_(0, places.flatten(), (grad.double() * signs).flatten())
    theirs = torch.stack([(grad * signs.to(dtype))[places == i].sum() for i in range(10)])
    error, bound = ((x.double() - exact).norm() / exact.norm() for x in (summed, theirs))
    assert error <= 2 * bound + 4 * torch.finfo(dtype).eps


@given(
    rows=st.integers(0, 40),
    columns=st.integers(0, 150),
    count=st.integers(1, 300),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_size(rows: int, columns: int, count: int, seed: int) -> None:
    number = torch.tensor(seed)
    values = torch.randn(count, dtype=torch.float64)
    places, signs = split(ops.hash_entries(number, rows, columns, count))
    weight = ops.hashed_weight(values, number, rows, columns)
    assert torch.equal(weight, values[places] * signs)
    grad = torch.randn(rows, columns, dtype=torch.float64)
    summed = torch.ops.sketchlayers.hashed_weight_backward(grad, number, count)
    expected = torch.zeros(count, dtype=torch.float64)
    expected.index_add_(0, places.flatten(), (grad * signs).flatten())
    torch.testing.assert_close(summed, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_the_same_whatever_the_threads(device: str) -> None:
    seed = torch.tensor(5, device=device)
    grad = torch.randn(501, 333, device=device)
    sums = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(2):
            summed = torch.ops.sketchlayers.hashed_weight_backward(grad, seed, 4000)
            sums.add(summed.cpu().numpy().tobytes())
    assert len(sums) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_overflow_is_not_hidden(bad: float, device: str) -> None:
    seed, grad = torch.tensor(5, device=device), torch.ones(20, 30, device=device)
    grad[7, 4] = bad
    summed = torch.ops.sketchlayers.hashed_weight_backward(grad, seed, 50)
    place = split(ops.hash_entries(seed, 20, 30, 50))[0][7, 4]
    assert not summed[place].isfinite()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tables", [{}, TABLES])
def test_derivatives(tables: dict, device: str) -> None:
    seed = torch.tensor(3, device=device)
    values = torch.randn(10, dtype=torch.float64, device=device, requires_grad=True)

    def square(values: Tensor) -> Tensor:
        return ops.hashed_weight(values, seed, 6, 8, **tables).square()

    assert gradcheck(square, (values,))
    assert gradgradcheck(square, (values,))


def test_transforms() -> None:
    seed, values = torch.tensor(3), torch.randn(10, dtype=torch.float64)

    def form(values: Tensor) -> Tensor:
        return ops.hashed_weight(values, seed, 6, 8, **TABLES)

    tangent = torch.randn(10, dtype=torch.float64)
    _, moved = torch.func.jvp(form, (values,), (tangent,))
    torch.testing.assert_close(moved, form(tangent))
    jacobian = torch.func.jacrev(form)(values)
    torch.testing.assert_close(jacobian @ tangent, form(tangent))
    many = torch.stack([values, tangent])
    torch.testing.assert_close(torch.func.vmap(form)(many), torch.stack([form(x) for x in many]))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    seed = torch.tensor(3, device=device)
    values = torch.randn(10, device=device, requires_grad=True)
    grad = torch.randn(6, 8, device=device, requires_grad=True)
    library = torch.ops.sketchlayers
    opcheck(library.hashed_weight, (values, seed, 6, 8), TABLES)
    opcheck(library.hashed_weight_backward, (grad, seed, 10), TABLES)
    opcheck(library.hashed_weight_backward, (grad.mT, seed, 10))
    opcheck(library.hash_entries, (seed, 6, 8, 10), TABLES)
    basis = torch.randn(4, 4, device=device)
    opcheck(library.fresh_weight, (values, seed, basis, 6, 8), TABLES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fresh_weight_is_hashed_filters_times_a_basis(dtype: torch.dtype, device: str) -> None:
    seed = torch.tensor(3, device=device)
    values = torch.randn(10, dtype=dtype, device=device)
    basis = torch.randn(4, 4, dtype=torch.promote_types(dtype, torch.float32), device=device)
    with torch.autocast(device, torch.bfloat16):  # leaves the weight alone
        weight = ops.fresh_weight(values, seed, basis, 6, 8, **TABLES)
    filters = ops.hashed_weight(values.double(), seed, 6, 8, **TABLES).reshape(-1, 4)
    exact = (filters @ basis.double()).reshape(6, 8)
    assert weight.dtype == dtype
    assert (weight - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": torch.ones(3, dtype=torch.int64)}, TypeError, "values must be float32"),
        ({"values": torch.ones(3).to(torch.float8_e4m3fn)}, TypeError, "values must be float32"),
        ({"values": torch.ones(3, 1)}, RuntimeError, r"values must have 1 dimension\(s\)"),
        ({"values": torch.ones(0)}, ValueError, "values must be at least 1"),
        ({"seed": torch.tensor(1.0)}, TypeError, "seed must be int64"),
        ({"seed": torch.tensor([1, 2])}, RuntimeError, "seed must be one number"),
        ({"rows": -1}, ValueError, r"rows must be in \[0, 2\^32\]"),
        ({"columns": 2**35}, ValueError, r"columns must be in \[0, 2\^34\]"),
        ({"first": [0]}, ValueError, "one number for each table"),
        ({"first": [0, 2], "buckets": [2, 2]}, ValueError, "every table must lie in the 3 values"),
        ({"first": [0], "buckets": [0]}, ValueError, "every table must lie in"),
        ({"first": [-1], "buckets": [1]}, ValueError, "every table must lie in"),
        ({"first": [0] * 3, "buckets": [1] * 3}, ValueError, "divisible by the number of tables"),
        ({"first": [0] * 257, "buckets": [1] * 257}, ValueError, "at most 256 tables"),
        ({"seed": torch.tensor(1, device="meta")}, RuntimeError, "on the same device"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    given = {"values": torch.ones(3), "seed": torch.tensor(1), "rows": 2, "columns": 4} | change
    with pytest.raises(error, match=f"hashed_weight: .*{message}"):
        ops.hashed_weight(**given)


def test_bad_basis() -> None:
    values, seed = torch.ones(3), torch.tensor(1)
    tables = {"first": [0, 1], "buckets": [1, 2]}
    with pytest.raises(RuntimeError, match="basis must have a row and a column for each of the 2"):
        ops.fresh_weight(values, seed, torch.eye(3), 2, 4, **tables)
    with pytest.raises(TypeError, match="basis must be float32 or float64"):
        ops.fresh_weight(values, seed, torch.eye(2, dtype=torch.half), 2, 4, **tables)


def test_on_the_meta_device() -> None:
    seed = torch.tensor(1, device="meta")
    weight = ops.hashed_weight(torch.ones(3, device="meta"), seed, 5, 6)
    assert weight.shape == (5, 6) and weight.is_meta


FIRST_OF_SEED_0 = [864, -680, 902, 826, 728, -393, -726, -895]
FOURTH_OF_SEED_2018 = [86, -725, -186, 593, -575, 906, -50, 775]
