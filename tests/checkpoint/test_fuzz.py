"""Corrupted files, a few of them; ``fuzz.py`` runs any number."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sketchlayers

from .fuzz import Target, corrupted
from .networks import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sketchlayers.save(tiny(), folder / "good.safetensors")
    return folder


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_a_corrupted_file_is_refused_or_sound(folder: Path, draw: random.Random) -> None:
    bad = folder / "bad.safetensors"
    bad.write_bytes(corrupted(draw, (folder / "good.safetensors").read_bytes()))
    Target().attempt(bad)


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
