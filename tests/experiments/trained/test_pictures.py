from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from image_data import Images, Normalisation
from trained.pictures import Pictures, bits_to_text, paired_difference


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=70))
def test_paired_differences(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (torch.tensor(side) for side in zip(*pairs, strict=True))
    differences = ours.double() - theirs.double()
    expected = 100 * float(differences.mean())
    error = 100 * float(differences.std(correction=0)) / math.sqrt(len(pairs))
    assert paired_difference(ours, theirs) == pytest.approx((expected, error), abs=1e-9)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(bits_to_text(ours)), np.uint8))
    assert bits[: len(ours)].tolist() == ours.tolist()


def test_pictures_are_cut_out_of_the_centre_and_normalised() -> None:
    pixels = torch.randint(256, (5, 3, 10, 10), dtype=torch.uint8)
    pictures = _pictures(pixels, size=6, resize=10)
    (batch, rest) = list(pictures)
    assert len(pictures) == 2 and len(rest) == 2
    expected = (pixels[:3, :, 2:8, 2:8].float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch, expected)


def _pictures(pixels: Tensor, *, size: int, resize: int) -> Pictures:
    images = Images(pixels, torch.zeros(len(pixels), dtype=torch.long), ("one",))
    half = Normalisation((0.5,) * 3, (0.5,) * 3)
    return Pictures(images, size=size, resize=resize, normalisation=half, batch_size=3)
