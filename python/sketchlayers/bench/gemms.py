"""The two matrix products that channel mixing needs at least, as plain PyTorch calls.

With a pixel in every row of ``X (pixels, d2)`` they are ``Z = X [S1 taps; U2]^T`` and
``Y = Z' [U1^T, S2]^T``; the shift of ``S1``'s taps and the gathering for ``S2`` between them are
left out, the signs are floats, and ``Z`` goes through memory. A layer that keeps ``Z`` in caches
can be faster, one that falls far behind wastes time. For 1x1 and fully connected layers nothing
is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bound import Mode
from .cases import Case
from .timing import Step


def two_gemms(
    case: Case,
    batch: int,
    stacked: int,
    mode: Mode,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Step:
    """A step that computes the products, for training their gradients' products too.

    Args:
        case: The layer.
        batch: Images.
        stacked: ``l k``.
        mode: ``"training"`` adds the gradients of the input and of both trained factors.
        device: Where.
        dtype: Of everything.
    """
    rows = stacked * (case.taps + 1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    pixels = batch * case.input_pixels
    kept = batch * case.output_pixels
    data, enter, leave = (
        random(pixels, case.in_channels),
        random(case.in_channels, rows),
        random(rows, case.out_channels),
    )
    gradient = random(kept, case.out_channels)
    trained = stacked * case.taps

    @torch.no_grad()
    def forward() -> None:
        _resized(data @ enter, kept) @ leave

    @torch.no_grad()
    def training() -> None:
        mixed = _resized(data @ enter, kept)
        mixed @ leave
        back = gradient @ leave.t()
        mixed[:, stacked:].t() @ gradient
        back = _resized(back, pixels)
        back @ enter.t()
        data.t() @ back[:, :trained]

    return training if mode == "training" else forward


def _resized(rows: Tensor, count: int) -> Tensor:
    """As many rows as asked for: with a stride there are fewer pixels behind the layer."""
    if count <= len(rows):
        return rows[:count]
    return rows.new_zeros(count, rows.shape[1])
