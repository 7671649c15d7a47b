"""Ranks and blocks of sketched layers: whole numbers in, whole numbers out.

A fully connected layer is a convolution with kernel size (1, 1).
"""

from __future__ import annotations

import math

from sketchlayers.nn._geometry import Geometry


def weights_per_rank(geometry: Geometry, num_sketches: int) -> int:
    """Weights of a sketched layer for each rank, ``l h w (d1 + d2)``.

    The count does not depend on the number of groups: each of the groups has its own ``s1`` over
    ``d2 / groups`` channels and its own rows of ``s2``.
    """
    channels = geometry.in_channels + geometry.out_channels
    return num_sketches * math.prod(geometry.kernel_size) * channels


def max_rank(geometry: Geometry, num_sketches: int) -> int:
    """Largest rank with ``num_sketches * rank <= min(d1, d2) / groups``; 0 if there is none."""
    return min(geometry.group_inputs, geometry.group_outputs) // num_sketches


def fitting_blocks(inputs: int, outputs: int, *, blocks: int) -> int:
    """The largest number up to ``blocks`` that divides inputs and outputs, those of a group."""
    common = math.gcd(inputs, outputs)
    return max(number for number in range(1, blocks + 1) if common % number == 0)
