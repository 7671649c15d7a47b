"""What the groups of a layer are fitted to, and in which norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Group(NamedTuple):
    """What one group of a layer is fitted to, and in which norm."""

    weight: Tensor
    second_moment: Tensor | None
    sensitivity: Tensor | None

    @property
    def norm(self) -> dict[str, Any]:
        """By the names that decompositions give its parts."""
        return {"second_moment": self.second_moment, "sensitivity": self.sensitivity}

    @property
    def square(self) -> float:
        """``tr(F W Sigma W^T)``, the squared size of the weight in the norm."""
        matrix = self.weight.detach().double().flatten(1)
        image = matrix
        if self.second_moment is not None:
            image = image @ self.second_moment.double()
        if self.sensitivity is not None:
            weights = self.sensitivity.double()
            image = weights @ image if weights.dim() == 2 else weights[:, None] * image
        return max(0.0, float((matrix * image).sum()))


def groups_of(
    owner: str,
    weight: Tensor,
    groups: int,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> Iterator[Group]:
    """Each group's weight ``(T, S, h, w)``, second moment and sensitivity, on its device.

    Args:
        owner: name of the caller, for messages.
        weight: ``(groups * T, S, h, w)`` or ``(T, S)``.
        groups: number of groups.
        second_moment: ``(n, n)`` for all groups, or ``(groups, n, n)``.
        sensitivity: ``(groups * T,)`` or ``(groups, T)``; ``(groups, T, T)``, or ``(T, T)`` for
            one group.

    Raises:
        RuntimeError: wrong shapes.
    """
    outputs, patch = weight.shape[0] // groups, weight[0].numel()
    if second_moment is not None:
        if second_moment.shape not in {(patch, patch), (groups, patch, patch)}:
            raise RuntimeError(
                f"{owner}: second_moment must have shape ({patch}, {patch}) or "
                f"({groups}, {patch}, {patch}) (got shape={tuple(second_moment.shape)})"
            )
        second_moment = second_moment.to(weight.device).expand(groups, patch, patch)
    if sensitivity is not None:
        sensitivity = sensitivity_by_group(owner, sensitivity, groups, outputs).to(weight.device)
    for index, part in enumerate(weight.unflatten(0, (groups, outputs))):
        yield Group(
            part,
            None if second_moment is None else second_moment[index],
            None if sensitivity is None else sensitivity[index],
        )


def sensitivity_by_group(owner: str, sensitivity: Tensor, groups: int, outputs: int) -> Tensor:
    """``(groups, T, T)``, or ``(groups, T)`` of a diagonal.

    Raises:
        RuntimeError: wrong shape.
    """
    shape = tuple(sensitivity.shape)
    if shape == (groups * outputs,):
        return sensitivity.reshape(groups, outputs)
    if groups == 1 and shape == (outputs, outputs):
        return sensitivity[None]
    if shape in {(groups, outputs), (groups, outputs, outputs)}:
        return sensitivity
    raise RuntimeError(
        f"{owner}: sensitivity must have shape ({groups * outputs},), or ({groups}, {outputs}, "
        f"{outputs}) with one matrix for each group (got shape={shape})"
    )


def overall_error(groups: Sequence[Group], errors: Sequence[float]) -> float:
    """Relative error of all groups together from that of each, in the norm without sensitivity."""
    if len(groups) == 1:
        return errors[0]
    sizes = [group._replace(sensitivity=None).square for group in groups]
    if not sum(sizes):
        return max(errors)
    squares = [size * error**2 for size, error in zip(sizes, errors, strict=True) if size]
    return math.sqrt(sum(squares) / sum(sizes))
