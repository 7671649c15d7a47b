"""Packed signs: the file format bit for bit, and its inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sketchlayers import ops

from . import reference
from .problems import DTYPES, sizes

SETTINGS = settings(deadline=None, derandomize=True, max_examples=80)
SEEDS = [2**31, 2**32 - 1, 2**32, 2**63 - 1]
MATRICES = [0, 1, 2**31, reference.FRAME_MATRIX + 7, 2**32 - 1]


@pytest.mark.parametrize(
    ("matrix_of", "seed", "matrix", "row", "signs"),
    [
        (ops.sign_matrix, 0, 0, 0, "-+-++-----++---++---++--"),
        (ops.sign_matrix, 2018, 1, 3, "+++--+-+++++-++--+++-+-+"),
        (ops.sign_matrix, 2**40 + 7, 3, 2, "--+-++-+-+++++-+--+--+--"),
        (ops.hadamard_signs, 0, 0, 2, "+-++-+-+-+++++++-+++-+--"),
        (ops.hadamard_signs, 2018, 1, 5, "--++-+++---++-++-+++++-+"),
        (ops.hadamard_signs, 2**40 + 7, 3, 30, "+---++-++++++-+-+---+-+-"),
    ],
)
def test_signs_of_the_format(matrix_of, seed, matrix, row, signs):
    unpacked = ops.unpack_signs(matrix_of(seed, matrix, row + 1, len(signs)), len(signs))
    assert "".join("+-"[int(sign < 0)] for sign in unpacked[row]) == signs
    assert torch.equal(unpacked.abs(), torch.ones_like(unpacked))


@pytest.mark.parametrize(
    ("matrix", "rows", "columns"), [(-1, 1, 1), (2**29, 1, 1), (0, -1, 1), (0, 1, 0), (0, 1, 2**32)]
)
def test_hadamard_signs_refuse_numbers_out_of_range(matrix, rows, columns):
    with pytest.raises(ValueError, match=r"hadamard_signs: \w+ must be in"):
        ops.hadamard_signs(0, matrix, rows, columns)


def test_first_words_are_those_of_the_generator():
    """Row 0 of matrix 0 uses counter (0, 0, 0, 1): the version is the fourth word."""
    packed = ops.sign_matrix(0, 0, 1, 128)
    counter = np.array([[0, 0, 0, 1]], dtype=np.uint64)
    words = reference.philox_4x32_10(counter, 0)[0]
    assert [word & 0xFFFFFFFF for word in packed[0].tolist()] == words.tolist()


@SETTINGS
@given(
    seed=st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(SEEDS)),
    matrix=st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(MATRICES)),
    rows=sizes(0, 70),
    columns=st.one_of(sizes(0, 400), st.sampled_from([127, 128, 129, 255, 256, 257])),
)
def test_bits_equal_the_reference(seed, matrix, rows, columns):
    packed = ops.sign_matrix(seed, matrix, rows, columns)
    expected = torch.from_numpy(reference.sign_words(seed, matrix, rows, columns))
    assert packed.dtype == torch.int32
    assert packed.is_contiguous()
    assert torch.equal(packed, expected)


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_a_large_matrix_equals_the_reference():
    """Large enough for the kernel to split its work among threads, at odd places."""
    packed = ops.sign_matrix(3, 1, 1021, 8191)
    assert torch.equal(packed, torch.from_numpy(reference.sign_words(3, 1, 1021, 8191)))


@SETTINGS
@given(rows=sizes(1, 20), columns=sizes(1, 300), more_rows=sizes(0, 9), more_columns=sizes(0, 300))
def test_an_entry_does_not_depend_on_the_size_of_its_matrix(rows, columns, more_rows, more_columns):
    small = ops.unpack_signs(ops.sign_matrix(11, 2, rows, columns), columns)
    large_columns = columns + more_columns
    large = ops.unpack_signs(ops.sign_matrix(11, 2, rows + more_rows, large_columns), large_columns)
    assert torch.equal(small, large[:rows, :columns])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 0), (1, 0)),  # seeds
        ((0, 0), (2**32, 0)),  # the high word of the seed
        ((7, 0), (7, 1)),  # matrices
        ((7, 0), (7, 2**31)),
        ((7, 2**31), (7, reference.FRAME_MATRIX)),
    ],
)
def test_seeds_and_matrices_are_independent(first, second):
    rows, columns = 64, 512
    a, b = (
        ops.unpack_signs(ops.sign_matrix(*key, rows, columns), columns) for key in (first, second)
    )
    # The mean of 2^15 products of independent signs has standard deviation 2^-7.5.
    assert abs(float((a * b).mean())) < 5 * 2**-7.5


def test_rows_columns_and_their_means_are_independent():
    size = 256
    signs = ops.unpack_signs(ops.sign_matrix(1, 0, size, size), size, dtype=torch.float64)
    for gram in (signs @ signs.T, signs.T @ signs):
        off_diagonal = gram - size * torch.eye(size, dtype=torch.float64)
        # Each entry is a sum of 256 signs (standard deviation 16); 65,280 entries stay below 6.
        assert off_diagonal.abs().max() < 6 * 16
    assert abs(float(signs.mean())) < 5 / size


def test_the_same_call_gives_the_same_bits():
    assert torch.equal(ops.sign_matrix(9, 4, 33, 1000), ops.sign_matrix(9, 4, 33, 1000))


def test_a_negative_seed_is_the_key_with_the_same_bits():
    assert torch.equal(
        ops.sign_matrix(-1, 2, 3, 300), torch.from_numpy(reference.sign_words(2**64 - 1, 2, 3, 300))
    )


def test_the_device_is_the_default_one_unless_given():
    with torch.device("meta"):
        assert ops.sign_matrix(0, 0, 2, 5).device.type == "meta"
        assert ops.sign_matrix(0, 0, 2, 5, device="cpu").device.type == "cpu"
    assert ops.sign_matrix(0, 0, 2, 5).device.type == "cpu"
    meta = ops.sign_matrix(0, 0, 2, 129, device=torch.device("meta"))
    assert (meta.shape, meta.dtype) == ((2, 8), torch.int32)
    assert ops.unpack_signs(meta, 129, dtype=torch.bfloat16).shape == (2, 129)


@given(
    start=sizes(0, 140),
    columns=sizes(0, 140),
    scale=st.sampled_from([1.0, 0.25, -3.0]),
    dtype=st.sampled_from(DTYPES),
)
@SETTINGS
def test_unpacking_a_range_of_columns(start, columns, scale, dtype):
    packed = ops.sign_matrix(23, 1, 5, 300)
    part = ops.unpack_signs(packed, columns, start=start, dtype=dtype, scale=scale)
    whole = torch.from_numpy(reference.unpack(packed.numpy(), 300))
    assert part.dtype == dtype
    assert torch.equal(part.double(), scale * whole[:, start : start + columns])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 128, 200])
def test_unpacking_gives_every_bit_in_any_type(dtype, columns):
    packed = ops.sign_matrix(17, 1, 6, 200).view(2, 3, -1)
    unpacked = ops.unpack_signs(packed, columns, dtype=dtype)
    expected = torch.from_numpy(reference.unpack(packed.numpy(), columns))
    assert unpacked.dtype == dtype
    assert unpacked.shape == (2, 3, columns)
    assert torch.equal(unpacked.double(), expected)


def test_unpacking_takes_any_strides_and_no_rows():
    packed = ops.sign_matrix(17, 1, 6, 200)
    expected = ops.unpack_signs(packed, 200)
    stepped = torch.stack([packed, packed], dim=1)[:, 0]
    transposed = packed.t().contiguous().t()
    assert torch.equal(ops.unpack_signs(stepped, 200), expected)
    assert torch.equal(ops.unpack_signs(transposed, 200), expected)
    assert ops.unpack_signs(packed[:0], 200).shape == (0, 200)
    assert ops.unpack_signs(packed[:2], 0).shape == (2, 0)
    assert ops.sign_matrix(0, 0, 0, 5).shape == (0, 4)
    assert ops.sign_matrix(0, 0, 3, 0).shape == (3, 0)


def test_default_type_of_unpacking_is_float32():
    assert ops.unpack_signs(ops.sign_matrix(0, 0, 1, 4), 4).dtype == torch.float32
