"""A fixed list of corrupted files; ``fuzz.py`` tries any number of others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import sketchlayers

from .fuzz import Files, Target, fuzzing
from .networks import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sketchlayers.save(tiny(), folder / "good.safetensors")
    return folder


def test_a_corrupted_file_is_refused_or_sound() -> None:
    outcomes = fuzzing.attempt_all(Files(), fuzzing.Plan(seed=0, count=400))
    assert outcomes["refused"] > 200 and outcomes["loaded"] > 20


def test_any_flipped_bit_is_seen(folder: Path) -> None:
    good, target = (folder / "good.safetensors").read_bytes(), Target()
    bad = folder / "flipped.safetensors"
    draw = random.Random(0)
    places = {*range(16), *(draw.randrange(len(good)) for _ in range(150))}
    for place in places:
        flipped = bytearray(good)
        flipped[place] ^= 1 << draw.randrange(8)
        if flipped[place : place + 1].isspace() and good[place : place + 1].isspace():
            continue  # between the header and the data
        bad.write_bytes(flipped)
        target.attempt(bad)
    assert target.outcomes.keys() == {"refused"}
