"""Which vectors a layer multiplies by its weight: the patches of its input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

PART_BYTES = 64 << 20
"""About how much memory a working copy of patches or of a feature map may take."""
PART_POSITIONS = 4096
"""At most so many patches are summed in the input's own type before float64 takes the sum."""


class Padding(NamedTuple):
    """Rows and columns that are added around a feature map."""

    top: int
    bottom: int
    left: int
    right: int


_NONE = Padding(0, 0, 0, 0)


@dataclass(frozen=True)
class PatchGeometry:
    """How a layer cuts its input into patches; a linear layer is a 1x1 convolution here.

    A patch has `inputs` values in the order (channel, row, column), that of
    ``weight.flatten(1)`` and of ``torch.nn.functional.unfold``; with groups there is one patch a
    group at every output position. Padding counts as data.

    Attributes:
        kind: "conv2d" or "linear".
        channels: input channels of all groups together; features of a linear layer.
        kernel_size: (rows, columns).
        stride: (rows, columns).
        padding: what is added around the map.
        padding_mode: as for ``nn.Conv2d``.
        dilation: (rows, columns).
        groups: number of groups.
    """

    kind: Literal["conv2d", "linear"]
    channels: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = _NONE
    padding_mode: str = "zeros"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module) -> PatchGeometry:
        """Reads the geometry of a convolution, a linear layer or one with their attributes.

        Raises:
            TypeError: the layer is of another kind.
        """
        sizes = vars(layer)
        if "in_features" in sizes and "out_features" in sizes:
            return cls("linear", sizes["in_features"])
        kernel = sizes.get("kernel_size", ())
        if len(kernel) != 2 or sizes.get("transposed"):
            raise TypeError(
                "PatchGeometry: the layer must be a two-dimensional convolution or a linear layer "
                f"(got {type(layer).__name__})"
            )
        return cls(
            "conv2d",
            sizes["in_channels"],
            tuple(kernel),
            tuple(sizes["stride"]),
            _padding(sizes["padding"], kernel, sizes["dilation"]),
            sizes["padding_mode"],
            tuple(sizes["dilation"]),
            sizes["groups"],
        )

    @property
    def inputs(self) -> int:
        """Length n of a patch: channels of one group times kernel positions."""
        return self.channels // self.groups * math.prod(self.kernel_size)

    def output_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Counts output positions for a map of this size before padding; (0, 0) if too small."""
        top, bottom, left, right = self.padding
        padded = (rows + top + bottom, columns + left + right)
        spans = (1 + d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        sizes = [
            (size - span) // step + 1 if size >= span else 0
            for size, span, step in zip(padded, spans, self.stride, strict=True)
        ]
        return (sizes[0], sizes[1]) if all(sizes) else (0, 0)

    def maps(self, inputs: Tensor) -> Tensor:
        """Returns the layer's input as (images, channels, rows, columns).

        An image without batch dimension gets one; every row of the flattened leading dimensions of
        a linear layer's input becomes an image of one pixel. Half types become float32.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        if inputs.element_size() < 4:
            inputs = inputs.float()
        if self.kind == "linear" and inputs.ndim and inputs.shape[-1] == self.channels:
            return inputs.reshape(-1, self.channels, 1, 1)
        if self.kind == "conv2d" and inputs.ndim in (3, 4) and inputs.shape[-3] == self.channels:
            return inputs if inputs.ndim == 4 else inputs.unsqueeze(0)
        expected = (
            f"(..., {self.channels})"
            if self.kind == "linear"
            else f"(N, {self.channels}, H, W) or ({self.channels}, H, W)"
        )
        raise RuntimeError(
            f"moments: inputs must have shape {expected} (got {tuple(inputs.shape)})"
        )

    def count(self, maps: Tensor) -> int:
        """Returns how many patches a group has in these maps."""
        return maps.shape[0] * math.prod(self.output_size(*maps.shape[2:]))

    def pad(self, maps: Tensor) -> Tensor:
        """Returns the maps with their padding."""
        top, bottom, left, right = self.padding
        if not any(self.padding):
            return maps
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(maps, (left, right, top, bottom), mode=mode)

    def patches(self, maps: Tensor) -> Iterator[Tensor]:
        """Yields all patches of the maps in parts of bounded size, (groups, inputs, positions).

        The maps are (images, channels, rows, columns); how they are parted depends on their shape
        and type alone.
        """
        rows, columns = self.output_size(*maps.shape[2:])
        if rows * columns == 0:
            return
        width = self.groups * self.inputs * maps.element_size()
        most = max(1, min(PART_POSITIONS, PART_BYTES // width))
        images = max(1, most // (rows * columns))
        band = max(1, most // columns)  # rows of one image, where an image is too much
        for part in maps.split(images):
            padded = self.pad(part)
            for start in range(0, rows, band):
                yield self._patches(padded, start, min(rows, start + band), columns)

    def _patches(self, padded: Tensor, start: int, stop: int, columns: int) -> Tensor:
        """The patches of the output rows from ``start`` to ``stop`` of padded maps."""
        (down, right), (row, column) = self.stride, self.dilation
        image_step, channel_step, row_step, column_step = padded.stride()
        windows = padded.as_strided(
            (padded.shape[1], *self.kernel_size, padded.shape[0], stop - start, columns),
            (
                channel_step,
                row * row_step,
                column * column_step,
                image_step,
                down * row_step,
                right * column_step,
            ),
            padded.storage_offset() + start * down * row_step,
        )
        positions = padded.shape[0] * (stop - start) * columns
        return windows.reshape(self.groups, self.inputs, positions)


def _padding(
    padding: str | tuple[int, int], kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> Padding:
    """As numbers; an odd row or column of "same" goes to the bottom and to the right."""
    if padding == "valid":
        return _NONE
    if isinstance(padding, str):
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
        return Padding(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    rows, columns = padding
    return Padding(rows, rows, columns, columns)
