"""Files of version 3 that are wrong in what is theirs alone: one sentence, and nothing changes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.checkpoint import read_description
from sketchlayers.compression.fitting.rounding import round_layer

from .files import Parts
from .test_wrong_files import NothingLarge, refused


class Two(nn.Module):
    """A layer with numbers of 4 bits, and one of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.linear = nn.Linear(6, 4)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    network = Two()
    round_layer(network.conv, 4)
    round_layer(network.linear, 8)
    folder = tmp_path_factory.mktemp("good")
    return sketchlayers.save(network, folder / "it.safetensors").read_bytes()


def said(parts: Parts, name: str = "linear.weight", **changes: Any) -> bytes:
    """What the file says of a tensor's bits in another way; None leaves something out."""
    rounded = parts.model()["rounded"]
    other = rounded[name] | changes
    rounded[name] = {key: value for key, value in other.items() if value is not None}
    return parts.with_model(rounded=rounded).whole()


def at(parts: Parts, place: int, new: bytes, name: str = "linear.weight") -> bytes:
    """Other bytes in a tensor: its scales, then its numbers."""
    begin, end = parts.header[name]["data_offsets"]
    place += begin if place >= 0 else end
    data = parts.data[:place] + new + parts.data[place + len(new) :]
    return Parts(parts.header, data).signed().whole()


def resized(parts: Parts, change: int, name: str = "linear.weight") -> bytes:
    """A tensor of more or fewer bytes."""
    begin, end = parts.header[name]["data_offsets"]
    own = parts.data[begin:end]
    own = own[:change] if change < 0 else own + b"\0" * change
    header, data = {"__metadata__": parts.metadata}, b""
    for key, entry in parts.header.items():
        if key != "__metadata__":
            some = own if key == name else parts.data[slice(*entry["data_offsets"])]
            shape = [len(own)] if key == name else entry["shape"]
            offsets = [len(data), len(data) + len(some)]
            header[key] = entry | {"shape": shape, "data_offsets": offsets}
            data += some
    return Parts(header, data).signed().whole()


def retyped(parts: Parts, dtype: str, shape: list[int], name: str = "linear.weight") -> bytes:
    parts.header[name] |= {"dtype": dtype, "shape": shape}
    return parts.signed().whole()


def scale(value: float) -> bytes:
    """In bfloat16."""
    return struct.pack("<f", value)[2:]


BYTES = 4 * 6 + 2 * 4
WRONG_BITS = "the bits of linear.weight must be a whole number from 2 to 16 (got "
WRONG_GROUPS = "the groups of linear.weight must divide the 6 numbers of a row (got "
WRONG_BLOCKS = "the blocks of linear.weight must divide its 4 rows (got "
WRONG_SHAPE = "the shape of linear.weight must be a list of whole numbers above 0"
WRONG_TYPE = "the type of linear.weight must be F16, BF16, F32 or F64"
WRONG_SCALES = "the scales of linear.weight must be finite and at least 0"

Damage = Callable[[Parts], bytes]

DAMAGED: dict[str, tuple[Damage, str]] = {
    "a byte too few": (lambda parts: resized(parts, -1), f"linear.weight must have {BYTES} bytes"),
    "a byte too many": (lambda parts: resized(parts, 1), "8 bits for each of 24 numbers"),
    "no bytes": (lambda parts: resized(parts, -BYTES), "(got U8 [0])"),
    "half of the scales": (lambda parts: resized(parts, -BYTES + 3), "(got U8 [3])"),
    "other bytes": (lambda parts: retyped(parts, "I8", [BYTES]), f"(got I8 [{BYTES}])"),
    "floats": (lambda parts: retyped(parts, "F32", [BYTES // 4]), f"(got F32 [{BYTES // 4}])"),
    "a table of bytes": (lambda parts: retyped(parts, "U8", [2, BYTES // 2]), "(got U8 [2,"),
    "a number out of range": (
        lambda parts: at(parts, -1, b"\xff"),
        "the numbers of linear.weight must be from -127 to 127 (got 128)",
    ),
    "the first number out of range": (lambda parts: at(parts, 8, b"\xff"), "(got 128)"),
    "NaN": (lambda parts: at(parts, 0, scale(float("nan"))), WRONG_SCALES),
    "infinity": (lambda parts: at(parts, 6, scale(float("inf"))), WRONG_SCALES),
    "minus infinity": (lambda parts: at(parts, 6, scale(-float("inf"))), WRONG_SCALES),
    "below zero": (lambda parts: at(parts, 2, scale(-0.5)), WRONG_SCALES),
    "NaN with another sign": (lambda parts: at(parts, 4, b"\xff\xff"), WRONG_SCALES),
    **{
        f"bits {bits!r}": (lambda parts, bits=bits: said(parts, bits=bits), WRONG_BITS + told)
        for bits, told in (
            *((0, "0)"), (1, "1)"), (17, "17)"), (-8, "-8)"), (2**63, "9223372036854775808)")),
            *((True, "True)"), (8.0, "8.0)"), ("4", "4)"), ([8], "[8])"), (None, "None)")),
            (10**100, "1" + "0" * 39 + ")"),
        )
    },
    "other bits": (lambda parts: said(parts, bits=7), "must have 29 bytes, 7 bits for each of 24"),
    "bits of another size": (lambda parts: said(parts, bits=16), "must have 56 bytes"),
    **{
        f"groups {groups!r}": (
            lambda parts, groups=groups: said(parts, groups=groups),
            WRONG_GROUPS + told,
        )
        for groups, told in (
            *((0, "0)"), (4, "4)"), (-1, "-1)"), (7, "7)"), (2**70, "11805916207174")),
            *((True, "True)"), (2.0, "2.0)"), ("2", "2)"), ([], "[])")),
        )
    },
    "other groups": (lambda parts: said(parts, groups=2), "must have 40 bytes"),
    **{
        f"blocks {blocks!r}": (
            lambda parts, blocks=blocks: said(parts, blocks=blocks),
            WRONG_BLOCKS + told,
        )
        for blocks, told in (
            *((0, "0)"), (3, "3)"), (-4, "-4)"), (8, "8)"), (2**70, "11805916207174")),
            *((False, "False)"), (4.0, "4.0)"), ("4", "4)"), ({}, "{})")),
        )
    },
    "other blocks": (lambda parts: said(parts, blocks=1), "must have 26 bytes"),
    **{
        f"shape {shape!r}": (lambda parts, shape=shape: said(parts, shape=shape), WRONG_SHAPE)
        for shape in ([0, 6], [-4, -6], [4.0, 6], [4, "6"], [True, 24], [4, None], [[4], 6])
    },
    "another number of entries": (lambda parts: said(parts, shape=[4, 7]), "must have 36 bytes"),
    "other rows": (lambda parts: said(parts, shape=[6, 4]), "must have 36 bytes"),
    "another shape": (
        lambda parts: said(parts, shape=[4, 3, 2]),
        "linear.weight must have the network's shape (4, 6) (got (4, 3, 2))",
    ),
    "a huge shape": (lambda parts: said(parts, shape=[2**40, 2**40]), "linear.weight must have "),
    **{
        f"type {dtype!r}": (lambda parts, dtype=dtype: said(parts, dtype=dtype), WRONG_TYPE)
        for dtype in ("U8", "I32", "F8_E4M3", "C64", "BOOL", "f32", "", 32, ["F32"], True, {})
    },
    "an unknown tensor": (
        lambda parts: parts.with_model(
            rounded=parts.model()["rounded"] | {"other.weight": {"bits": 4, "shape": [2, 2]}}
        ).whole(),
        "it must have the tensor other.weight that it says is in few bits",
    ),
    "a tensor of floats": (
        lambda parts: parts.with_model(
            rounded=parts.model()["rounded"] | {"linear.bias": {"bits": 4, "shape": [4]}}
        ).whole(),
        "linear.bias must have 4 bytes, 4 bits for each of 4 numbers and 1 scales (got F32 [4])",
    ),
    "nothing said of a tensor": (
        lambda parts: parts.with_model(
            rounded={"conv.weight": parts.model()["rounded"]["conv.weight"]}
        ).whole(),
        "linear.weight must have the network's shape (4, 6) (got (32,))",
    ),
    **{
        f"a description that is {value!r}": (
            lambda parts, value=value: parts.with_model(
                rounded=parts.model()["rounded"] | {"linear.weight": value}
            ).whole(),
            "what it says of the bits of linear.weight must be a JSON object",
        )
        for value in (None, 4, "4", [4], True)
    },
    **{
        f"rounded {value!r}": (
            lambda parts, value=value: parts.with_model(rounded=value).whole(),
            "what it says of few bits must be a JSON object",
        )
        for value in ([], [1], 4, "conv.weight", True, None)
    },
    "bits changed unsigned": (
        lambda parts: Parts(
            parts.header
            | {
                "__metadata__": parts.metadata
                | {
                    "sketchlayers.model": parts.metadata["sketchlayers.model"].replace(
                        '"bits":8', '"bits":8,"groups":1'
                    )
                }
            },
            parts.data,
        ).whole(),
        "its checksum is ",
    ),
    "a flipped bit": (
        lambda parts: parts.whole()[:-1] + bytes([parts.data[-1] ^ 1]),
        "its checksum is ",
    ),
}


def test_the_file_is_good(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    assert read_description(path).bits == {"conv.weight": 4, "linear.weight": 8}
    sketchlayers.load(path, into=Two())
    path.write_bytes(Parts.of(good).signed().whole())
    sketchlayers.load(path, into=Two())


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files(damage: str, good: bytes, tmp_path: Path) -> None:
    make, message = DAMAGED[damage]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make(Parts.of(good)))
    refused(path, Two().eval(), message)


@pytest.mark.parametrize("damage", ["bits 17", "groups 4", "shape [0, 6]", "a huge shape"])
def test_the_description_alone_refuses_them_too(damage: str, good: bytes, tmp_path: Path) -> None:
    make, message = DAMAGED[damage]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make(Parts.of(good)))
    with pytest.raises(ValueError, match=r"read_description: .* cannot be read: ") as caught:
        read_description(path)
    assert message in str(caught.value)


def test_a_few_bytes_do_not_make_large_tensors(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(said(Parts.of(good), shape=[2**20, 2**20]))
    with torch.device("meta"):
        network = Two()
    network.linear = nn.Linear(2**20, 2**20, device="meta")
    with NothingLarge():
        refused(path, network, "linear.weight must have ")


def test_a_file_of_a_network_of_another_type(good: bytes, tmp_path: Path) -> None:
    """As with floats: the file's types count, where both are floating point."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    network = sketchlayers.load(path, into=Two().double())
    assert network.linear.weight.dtype == torch.float32
    path.write_bytes(said(Parts.of(good), dtype="F64"))
    network = sketchlayers.load(path, into=Two())
    assert network.linear.weight.dtype == torch.float64
