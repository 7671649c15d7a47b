"""Parameter counts, ranks and rates of sketched layers: whole numbers in, whole numbers out.

A fully connected layer is a convolution with kernel size (1, 1). The rate of a layer is
parameters after / parameters before, bias included on both sides; smaller is stronger.
"""

from __future__ import annotations

import math


def dense_parameters(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int] = (1, 1),
    *,
    groups: int = 1,
    bias: bool = True,
) -> int:
    """Number of parameters of ``nn.Conv2d`` or ``nn.Linear`` with these sizes."""
    return out_channels * (in_channels // groups) * math.prod(kernel_size) + (
        out_channels if bias else 0
    )


def sketch_parameters(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int] = (1, 1),
    *,
    rank: int,
    num_sketches: int = 1,
    bias: bool = True,
) -> int:
    """Number of parameters of the sketched layer, ``l k h w (d1 + d2)`` and the bias.

    The count does not depend on the number of groups: each of the groups has its own ``s1`` over
    ``d2 / groups`` channels and its own rows of ``s2``.
    """
    per_channel = num_sketches * rank * math.prod(kernel_size)
    return per_channel * (in_channels + out_channels) + (out_channels if bias else 0)


def fitting_blocks(in_channels: int, out_channels: int, *, blocks: int, groups: int = 1) -> int:
    """The largest number up to ``blocks`` that divides inputs and outputs of a group."""
    common = math.gcd(in_channels // groups, out_channels // groups)
    return max(number for number in range(1, blocks + 1) if common % number == 0)


def max_rank(in_channels: int, out_channels: int, *, groups: int = 1, num_sketches: int = 1) -> int:
    """Largest rank with ``num_sketches * rank <= min(d1, d2) / groups``; 0 if there is none."""
    return min(in_channels, out_channels) // groups // num_sketches


def rank_for_rate(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int] = (1, 1),
    *,
    rate: float,
    num_sketches: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> int:
    """Whole rank whose rate comes nearest to ``rate``, at least 1 and at most `max_rank`.

    Raises:
        ValueError: the rate is not in (0, 1], or even rank 1 is above the layer.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rank_for_rate: rate must be in (0, 1] (got rate={rate})")
    largest = max_rank(in_channels, out_channels, groups=groups, num_sketches=num_sketches)
    if largest < 1:
        raise ValueError(
            "rank_for_rate: num_sketches must be at most min(in_channels, out_channels) / groups "
            f"= {min(in_channels, out_channels) // groups} (got num_sketches={num_sketches})"
        )
    kept = out_channels if bias else 0
    dense = dense_parameters(in_channels, out_channels, kernel_size, groups=groups, bias=bias)
    per_rank = num_sketches * math.prod(kernel_size) * (in_channels + out_channels)
    return min(max(1, round((rate * dense - kept) / per_rank)), largest)
