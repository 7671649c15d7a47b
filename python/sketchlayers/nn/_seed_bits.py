"""A seed as floating-point zeros and ones, which averages and casts of a network leave alone.

Averages of weights over time, steps or clients, and interpolations between checkpoints, treat all
tensors of a state dict as real numbers. A seed among them, as an integer of 63 bits, would come out
as another one. Of equal zeros and ones any weighted mean is the same to within rounding, in half
precision too, and means of different ones are told by entries that are neither.

An entry for each bit, least significant first: 64 of the seed and 32 of a CRC-32, which also covers
the layer's configuration, so that a seed is not taken for one of a layer to which it does not
belong. The C++ modules write the same (``csrc/nn/seed_bits.h``): part of the file format.
"""

from __future__ import annotations

import operator
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

SEED_LIMIT = 2**63
LENGTH = 96

_SEED_LENGTH = 64
_MOST_ROUNDING = 1 / 16  # of an entry; a mean of different seeds with a smaller share goes unseen


def described(values: Mapping[str, object]) -> str:
    """What a seed belongs to, as text: the same in Python and in C++."""
    return ";".join(f"{name}={_exact(value)}" for name, value in values.items())


def encode(seed: int, configuration: str) -> list[float]:
    """The entries of a seed of a layer of this configuration."""
    number = seed | _checksum(seed, configuration) << _SEED_LENGTH
    return [float(number >> place & 1) for place in range(LENGTH)]


def decode(entries: Sequence[float], configuration: str) -> int:
    """The seed of these entries.

    Raises:
        ValueError: they are those of no seed, or of a layer of another configuration.
    """
    bits = [round(entry) if -1 < entry < 2 else -1 for entry in entries]
    off = sum(
        bit not in (0, 1) or abs(entry - bit) > _MOST_ROUNDING
        for bit, entry in zip(bits, entries, strict=True)
    )
    if off:
        raise ValueError(
            f"must hold zeros and ones (got {off} of {len(bits)} entries that are neither, as a "
            "mean of layers with different seeds has them: only layers with the same seed can be "
            "averaged, such as copies of one network)"
        )
    number = sum(bit << place for place, bit in enumerate(bits))
    seed = number % 2**_SEED_LENGTH
    if seed >= SEED_LIMIT or number >> _SEED_LENGTH != _checksum(seed, configuration):
        raise ValueError(
            "must be the seed of a layer of this configuration (its checksum is that of another "
            f"one, or the entries were overwritten; this layer has {configuration})"
        )
    return seed


def checked_seed(owner: str, seed: object) -> int:
    """The seed as an ``int``.

    Raises:
        TypeError: not a whole number.
        ValueError: not in ``[0, 2**63)``.
    """
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{owner}: seed must be an int or None (got {type(seed).__name__})"
        ) from None
    if not 0 <= value < SEED_LIMIT:
        raise ValueError(f"{owner}: seed must be in [0, 2**63) (got seed={value})")
    return value


def _checksum(seed: int, configuration: str) -> int:
    return zlib.crc32(f"seed={seed};{configuration}".encode())


def _exact(value: object) -> str:
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_exact, value))
    return str(value)
