"""Parameters that are whole numbers times scales, which a file holds in a few bits each.

In memory they are parameters like all others, and a layer computes and trains with them as with
any. That their values can be told from few bits is noted on their module, beside them, until a
step of training moves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sketchlayers.decompose._integers import nearest_integers

FEWEST_BITS, MOST_BITS = 2, 16

NOTES = "_roundings"
"""The attribute of a module that has its notes."""


def rows_of(shape: Sequence[int]) -> int:
    """Rows of a parameter: entries of its first axis, or one."""
    return shape[0] if len(shape) > 1 else 1


@dataclass(frozen=True, eq=False)
class Rounding:
    """How the values of one parameter follow from whole numbers.

    Attributes:
        bits: of each number, 2 to 16; see `step_of` for which there are.
        scale: what the numbers are multiplied by, ``(blocks, groups)``: the rows are cut into as
            many blocks, each row, or all rows together, and a row into as many groups. Numbers of
            bfloat16, at least 0.
    """

    bits: int
    scale: Tensor

    def integers(self, values: Tensor) -> Tensor | None:
        """The whole numbers ``(blocks, rows, groups, width)`` of these; None if they are none."""
        rows, (blocks, groups) = rows_of(values.shape), self.scale.shape
        if not values.numel() or rows % blocks or values.numel() // rows % groups:
            return None
        by_group = values.detach().double().cpu().reshape(blocks, rows // blocks, groups, -1)
        scale = self.scale.double()[:, None, :, None]
        integers = nearest_integers(by_group / scale.where(scale > 0, 1), self.bits).int()
        back = self.values(integers, values.shape, values.dtype)
        return integers if torch.equal(back, values.detach().cpu()) else None

    def values(self, integers: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The parameter's values, of this shape and type."""
        product = torch.promote_types(dtype, torch.float32)
        values = integers.to(product) * self.scale.to(product)[:, None, :, None]
        return values.reshape(tuple(shape)).to(dtype)

    def stored_bytes(self, entries: int) -> int:
        """Of a file, for a parameter of so many entries."""
        return stored_bytes(entries, self.scale.numel(), self.bits)


def stored_bytes(entries: int, scales: int, bits: int) -> int:
    """What a file holds of a parameter in so many bits: its numbers, and scales in bfloat16."""
    return -(-entries * bits // 8) + 2 * scales


def note(module: nn.Module, name: str, rounding: Rounding) -> None:
    """Notes on a module how the values of its own parameter ``name`` follow from few bits."""
    vars(module).setdefault(NOTES, {})[name] = rounding


def forget(module: nn.Module) -> None:
    """Takes from a module, and from no other that it was copied from, what is noted on it."""
    vars(module).pop(NOTES, None)


def roundings(model: nn.Module) -> Iterator[tuple[str, Rounding]]:
    """What is noted in a model, by the qualified names of parameters."""
    for place, module in model.named_modules(remove_duplicate=False):
        for name, rounding in vars(module).get(NOTES, {}).items():
            yield f"{place}.{name}" if place else name, rounding
