"""Folders of images that tests make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


def write_photos(
    folder: Path,
    classes: Sequence[str],
    count: int,
    *,
    size: tuple[int, int] = (40, 48),
    endings: Sequence[str] = (".png", ".jpg", ".webp"),
) -> Path:
    """So many images (width, height) of noise in a folder for each class, each class of a hue."""
    from PIL import Image

    generator = torch.Generator().manual_seed(len(classes))
    for label, name in enumerate(classes):
        inside = folder / name
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = torch.randint(0, 120, (size[1], size[0], 3), generator=generator)
            noise[..., label % 3] += 120 if label < 3 else 40
            image = Image.fromarray(noise.byte().numpy())
            image.save(inside / f"{number:03d}{endings[number % len(endings)]}")
    return folder
