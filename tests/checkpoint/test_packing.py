"""Whole numbers of a few bits as bytes, and what is noted of a parameter that they make."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from sketchlayers.checkpoint import _packed
from sketchlayers.checkpoint._container import Entry, WrongFileError
from sketchlayers.checkpoint._packed import PackedDescription, described, packed, unpacked
from sketchlayers.nn._rounding import Rounding, note, roundings, rows_of, stored_bytes

EVERY = range(2, 17)


def numbers_of(bits: int, count: int) -> Tensor:
    """Drawn ones, the smallest and the largest among them."""
    most, step = (2**bits - 1, 2) if bits < 8 else (2 ** (bits - 1) - 1, 1)
    numbers = -most + step * torch.randint(2 * most // step + 1, (count,), dtype=torch.int32)
    numbers[-1] = most
    numbers[0] = -most
    return numbers


def there_and_back(values: Tensor, rounding: Rounding) -> tuple[Tensor, Rounding]:
    integers = rounding.integers(values)
    assert integers is not None
    stored = packed(integers, rounding)
    assert stored.dtype == torch.uint8 and stored.dim() == 1
    said = described(values, rounding)
    return unpacked(stored, PackedDescription("it", said, Entry.of(stored)))


@pytest.mark.parametrize("bits", EVERY)
def test_every_count_comes_back_in_as_few_bytes(bits: int) -> None:
    for count in (1, 2, 3, 7, 8, 9, 31, 64, 101):
        rounding = Rounding(bits, torch.tensor([[0.75]]))
        integers = numbers_of(bits, count)
        stored = packed(integers, rounding)
        assert len(stored) == math.ceil(count * bits / 8) + 2 == stored_bytes(count, 1, bits)
        assert len(stored) == rounding.stored_bytes(count)
        description = PackedDescription("it", {"bits": bits, "shape": [count]}, Entry.of(stored))
        values, found = unpacked(stored, description)
        assert torch.equal(values, 0.75 * integers)
        assert found.bits == bits and torch.equal(found.scale, rounding.scale)
        back = found.integers(values)
        assert back is not None and torch.equal(back.reshape(-1), integers)


@pytest.mark.parametrize("bits", EVERY)
def test_bits_are_in_the_order_that_is_told(bits: int) -> None:
    """Scales in bfloat16, then each number's place, from the lowest bit on."""
    rounding = Rounding(bits, torch.tensor([[1.0], [0.5]]))
    integers = numbers_of(bits, 10)
    most, step = (2**bits - 1, 2) if bits < 8 else (2 ** (bits - 1) - 1, 1)
    whole = 0
    for at, number in enumerate(integers.tolist()):
        whole |= ((number + most) // step) << (bits * at)
    expected = bytes.fromhex("803f003f") + whole.to_bytes(math.ceil(10 * bits / 8), "little")
    assert bytes(packed(integers, rounding).tolist()) == expected


@pytest.mark.parametrize("bits", [2, 3, 7, 8, 11, 16])
def test_many_numbers_are_packed_in_parts(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding, integers = Rounding(bits, torch.tensor([[2.0]])), numbers_of(bits, 101)
    stored = packed(integers, rounding)
    monkeypatch.setattr(_packed, "_AT_ONCE", 16)
    assert torch.equal(packed(integers, rounding), stored)
    description = PackedDescription("it", {"bits": bits, "shape": [101]}, Entry.of(stored))
    assert torch.equal(unpacked(stored, description)[0], 2.0 * integers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "blocks", "groups"),
    [
        ((6, 4), 6, 1),
        ((6, 4), 6, 2),
        ((6, 4), 1, 1),
        ((6, 4), 2, 4),
        ((6, 2, 3, 1), 3, 3),
        ((5,), 1, 1),
        ((6,), 1, 3),
        ((3, 1, 1, 1, 7), 3, 7),
    ],
)
def test_shapes_blocks_groups_and_types(
    shape: tuple[int, ...], blocks: int, groups: int, dtype: torch.dtype
) -> None:
    for bits in (2, 5, 8, 12):
        scale = torch.rand(blocks, groups).add(0.25).bfloat16().float()
        rows, integers = rows_of(shape) // blocks, numbers_of(bits, math.prod(shape))
        by_group = integers.reshape(blocks, rows, groups, -1)
        rounding = Rounding(bits, scale)
        values = rounding.values(by_group, shape, dtype)
        assert values.shape == shape and values.dtype == dtype
        exact = by_group.double() * scale.double()[:, None, :, None]
        assert torch.equal(values, exact.reshape(shape).to(dtype))
        loaded, found = there_and_back(values, rounding)
        assert torch.equal(loaded, values) and loaded.dtype == dtype
        assert torch.equal(found.scale, scale) and found.bits == bits


def test_values_that_are_no_whole_numbers() -> None:
    rounding = Rounding(3, torch.tensor([[0.5], [0.25], [0.0]]))
    values = torch.tensor([[-3.5, 0.5], [1.75, -0.25], [0.0, 0.0]])
    integers = rounding.integers(values)
    assert integers is not None and integers.shape == (3, 1, 1, 2)
    assert integers[:2].flatten().tolist() == [-7, 1, 7, -1]
    assert rounding.integers(nn.Parameter(values)) is not None
    for place, other in ((0, 0.5001), (1, 0.0), (0, 4.5), (2, 0.5), (1, torch.nan), (0, torch.inf)):
        changed = values.clone()
        changed[place, 1] = other
        assert rounding.integers(changed) is None, other
    for wrong in (torch.ones(2, 2), torch.ones(4, 2), torch.ones(0, 2), torch.ones(3)):
        assert rounding.integers(wrong) is None
    assert Rounding(3, torch.ones(3, 4)).integers(values) is None


def test_zero_scales_make_zeros() -> None:
    values = torch.zeros(2, 3)
    loaded, found = there_and_back(values, Rounding(4, torch.tensor([[0.0], [1e-38]]) * 0))
    assert torch.equal(loaded, values) and not found.scale.any()


@pytest.mark.parametrize("bits", range(8, 17))
def test_the_place_that_is_no_number(bits: int) -> None:
    """From 8 bits on there is one more place than numbers."""
    rounding = Rounding(bits, torch.tensor([[1.0]]))
    stored = packed(numbers_of(bits, 5), rounding)
    description = PackedDescription("it", {"bits": bits, "shape": [5]}, Entry.of(stored))
    stored[2:] = 255
    most = 2 ** (bits - 1) - 1
    message = rf"the numbers of it must be from -{most} to {most} \(got {most + 1}\)"
    with pytest.raises(WrongFileError, match=message):
        unpacked(stored, description)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_of_few_bits_all_bytes_are_numbers(bits: int) -> None:
    stored = torch.randint(256, (bits + 2,), dtype=torch.uint8)
    stored[:2] = torch.tensor([1.0]).bfloat16().view(torch.uint8)
    description = PackedDescription("it", {"bits": bits, "shape": [8]}, Entry.of(stored))
    values, rounding = unpacked(stored, description)
    integers = rounding.integers(values)
    assert integers is not None and torch.equal(packed(integers, rounding), stored)


def test_notes_have_names_and_are_copied() -> None:
    inner = nn.Linear(3, 2)
    model = nn.Sequential(nn.ReLU(), nn.Sequential(inner))
    assert list(roundings(model)) == []
    note(inner, "weight", Rounding(4, torch.ones(2, 1)))
    note(inner, "bias", Rounding(8, torch.ones(1, 1)))
    assert [(name, one.bits) for name, one in roundings(model)] == [
        ("1.0.weight", 4),
        ("1.0.bias", 8),
    ]
    assert [name for name, _ in roundings(inner)] == ["weight", "bias"]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = dict(roundings(other))
        assert found["1.0.weight"].bits == 4
        assert torch.equal(found["1.0.weight"].scale, torch.ones(2, 1))
        note(other[1][0], "weight", Rounding(5, torch.ones(2, 1)))
    assert dict(roundings(model))["1.0.weight"].bits == 4
    assert model.state_dict().keys() == {"1.0.weight", "1.0.bias"}
