"""Whole numbers of a few bits as bytes, with their scales."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sketchlayers.decompose._integers import largest_integer, step_of
from sketchlayers.nn._rounding import FEWEST_BITS, MOST_BITS, Rounding, rows_of, stored_bytes

from ._container import DTYPES, Entry, WrongFileError

_AT_ONCE = 2**20
"""Numbers that are packed at once, a multiple of 8: each takes a byte for every bit meanwhile."""


_MOST_AXES, _LONGEST_AXIS = 16, 2**40


def packed(integers: Tensor, rounding: Rounding) -> Tensor:
    """The bytes of a parameter: its scales in bfloat16, then its numbers, one after the other.

    A number is stored as its place among those of so many bits, in binary, from the lowest on.
    """
    bits, smallest = rounding.bits, -largest_integer(rounding.bits)
    numbers = ((integers.reshape(-1) - smallest) // step_of(bits)).int()
    places = torch.arange(bits, dtype=torch.int32)
    weights = 2 ** torch.arange(8, dtype=torch.int32)
    parts = [rounding.scale.bfloat16().reshape(-1).view(torch.uint8)]
    for some in numbers.split(_AT_ONCE):
        flags = (some[:, None] >> places & 1).reshape(-1)
        flags = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).reshape(-1, 8)
        parts.append((flags * weights).sum(1).to(torch.uint8))
    return torch.cat(parts)


def unpacked(stored: Tensor, description: PackedDescription) -> tuple[Tensor, Rounding]:
    """The values, and how they follow from whole numbers.

    Raises:
        WrongFileError: a scale is not finite or below 0, or a number is out of range.
    """
    bits, scales = description.bits, description.scales
    scale = stored[: 2 * scales].clone().view(torch.bfloat16).float()
    if not bool((scale.isfinite() & (scale >= 0)).all()):
        raise WrongFileError(f"the scales of {description.name} must be finite and at least 0")
    numbers = _numbers(stored[2 * scales :], bits, math.prod(description.entry.shape))
    most, step = largest_integer(bits), step_of(bits)
    numbers = numbers * step - most
    if numbers.numel() and int(numbers.max()) > most:
        raise WrongFileError(
            f"the numbers of {description.name} must be from {-most} to {most} "
            f"(got {int(numbers.max())})"
        )
    entry = description.entry
    rounding = Rounding(bits, scale.reshape(description.blocks, description.groups))
    rows = rows_of(entry.shape) // description.blocks
    integers = numbers.reshape(description.blocks, rows, description.groups, -1)
    return rounding.values(integers, entry.shape, entry.dtype), rounding


def _numbers(stored: Tensor, bits: int, count: int) -> Tensor:
    weights = 2 ** torch.arange(bits, dtype=torch.int32)
    places = torch.arange(8, dtype=torch.int32)
    parts = []
    for some in stored.split(_AT_ONCE * bits // 8):
        flags = (some.int()[:, None] >> places & 1).reshape(-1)
        flags = flags[: len(flags) // bits * bits]  # the last byte may be filled up
        parts.append((flags.reshape(-1, bits) * weights).sum(1, dtype=torch.int32))
    return torch.cat(parts)[:count] if parts else torch.empty(0, dtype=torch.int32)


class PackedDescription:
    """What a file's JSON says of a packed parameter.

    Attributes:
        name: of the parameter.
        bits: of each number.
        blocks: of rows, each with its scales.
        groups: of the numbers of a row, each with its scale.
        entry: the parameter's shape and type.
    """

    def __init__(self, name: str, said: Any, stored: Entry) -> None:
        """Takes what JSON holds, of any type and contents, and the tensor that the file has.

        Raises:
            WrongFileError: they are no description of a packed parameter.
        """
        self.name = name
        if not isinstance(said, dict):
            raise WrongFileError(f"what it says of the bits of {name} must be a JSON object")
        bits: Any = said.get("bits")
        groups: Any = said.get("groups", 1)
        shape: Any = said.get("shape")
        blocks: Any = said.get("blocks", rows_of(shape) if isinstance(shape, list) else None)
        dtype = DTYPES.get(said.get("dtype", "F32")) if _is_text(said.get("dtype", "")) else None
        if not _is_whole(bits) or not FEWEST_BITS <= bits <= MOST_BITS:
            raise WrongFileError(
                f"the bits of {name} must be a whole number from {FEWEST_BITS} to {MOST_BITS} "
                f"(got {_shown(bits)})"
            )
        if not _is_shape(shape):
            raise WrongFileError(f"the shape of {name} must be a list of whole numbers above 0")
        if dtype is None or not dtype.is_floating_point or dtype.itemsize < 2:
            raise WrongFileError(f"the type of {name} must be F16, BF16, F32 or F64")
        entries, rows = math.prod(shape), rows_of(shape)
        if not _is_whole(groups) or groups < 1 or entries // rows % groups:
            raise WrongFileError(
                f"the groups of {name} must divide the {entries // rows} numbers of a row "
                f"(got {_shown(groups)})"
            )
        if not _is_whole(blocks) or blocks < 1 or rows % blocks:
            raise WrongFileError(
                f"the blocks of {name} must divide its {rows} rows (got {_shown(blocks)})"
            )
        self.bits: int = bits
        self.blocks: int = blocks
        self.groups: int = groups
        self.entry = Entry(dtype, tuple(shape))
        expected = stored_bytes(entries, self.scales, bits)
        if stored != Entry(torch.uint8, (expected,)):
            raise WrongFileError(
                f"{name} must have {expected:,} bytes, {bits} bits for each of {entries:,} numbers "
                f"and {self.scales:,} scales (got {stored})"
            )

    @property
    def scales(self) -> int:
        """Their number."""
        return self.blocks * self.groups


def described(values: Tensor, rounding: Rounding) -> dict[str, Any]:
    """What JSON holds of a packed parameter, for `PackedDescription`."""
    said: dict[str, Any] = {"bits": rounding.bits, "shape": list(values.shape)}
    blocks, groups = rounding.scale.shape
    if blocks != rows_of(values.shape):
        said["blocks"] = blocks
    if groups != 1:
        said["groups"] = groups
    if values.dtype != torch.float32:
        said["dtype"] = next(name for name, dtype in DTYPES.items() if dtype == values.dtype)
    return said


def _shown(value: object) -> str:
    return " ".join(str(value)[:40].split())


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _is_shape(shape: object) -> bool:
    """Whether it is one that a tensor can have."""
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        return False
    return all(_is_whole(size) and 0 < size <= _LONGEST_AXIS for size in shape)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
