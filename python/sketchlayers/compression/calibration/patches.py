"""Which vectors a layer multiplies by its weight: the patches of its input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sketchlayers.nn._geometry import padding_amounts

PART_BYTES = 64 << 20
"""About how much memory a working copy of patches or of a feature map may take."""
PART_POSITIONS = 4096
"""At most so many patches are summed in the input's own type before float64 takes the sum."""

_TRANSPOSED = "conv_transpose"


class Phase(NamedTuple):
    """Output positions of a transposed convolution that see the same taps of its kernel.

    Attributes:
        taps: their numbers, row by row.
        geometry: of the ordinary convolution with these taps alone.
    """

    taps: list[int]
    geometry: PatchGeometry


@dataclass(frozen=True)
class PatchGeometry:
    """How a layer cuts its input into patches; a linear layer is a 1x1 convolution here.

    A patch has `inputs` values in the order (channel, row, column), that of
    ``weight.flatten(1)`` and of ``torch.nn.functional.unfold``; with groups there is one patch a
    group at every output position. Padding counts as data. A one-dimensional convolution has rows
    of one pixel; a three-dimensional one has planes, rows and columns.

    A transposed convolution is an ordinary one, with the stride 1, of its input with ``stride - 1``
    zeros after each pixel: its patches are those, and its padding is that around the zeros.

    Attributes:
        kind: "linear", or "conv" or "conv_transpose" and "1d", "2d" or "3d".
        channels: input channels of all groups together; features of a linear layer.
        kernel_size: (rows, columns).
        stride: (rows, columns).
        padding: what is added before and after each axis of the map, (top, bottom, left, right);
            negative where a transposed convolution leaves something out.
        padding_mode: as for ``nn.Conv2d``.
        dilation: (rows, columns).
        groups: number of groups.
    """

    kind: str
    channels: int
    kernel_size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    padding_mode: str = "zeros"
    dilation: tuple[int, ...] = (1, 1)
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
        axes = len(sizes.get("kernel_size", ()))
        if axes not in (1, 2, 3):
            raise TypeError(
                "PatchGeometry: the layer must be a convolution or a linear layer "
                f"(got {type(layer).__name__})"
            )
        # Not among the attributes of an object where it is one of its class.
        is_transposed: bool = getattr(layer, "transposed", False)
        padding = _around_zeros(layer) if is_transposed else padding_amounts(layer)
        return cls(
            f"{_TRANSPOSED if is_transposed else 'conv'}{axes}d",
            sizes["in_channels"],
            _planar(sizes["kernel_size"], 1),
            _planar(sizes["stride"], 1),
            tuple(side for sides in _planar(padding, (0, 0)) for side in sides),
            sizes["padding_mode"],
            _planar(sizes["dilation"], 1),
            sizes["groups"],
        )

    @property
    def inputs(self) -> int:
        """Length n of a patch: channels of one group times kernel positions."""
        return self.channels // self.groups * math.prod(self.kernel_size)

    @property
    def is_transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.kind.startswith(_TRANSPOSED)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Padding before and after each axis."""
        return list(zip(self.padding[::2], self.padding[1::2], strict=True))

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Counts output positions for a map of this size before padding; zeros if too small."""
        if self.is_transposed:  # zeros after all pixels but the last
            size = tuple((n - 1) * step + 1 for n, step in zip(size, self.stride, strict=True))
        steps = [1] * len(size) if self.is_transposed else self.stride
        spans = (1 + d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        sizes = [
            (n + before + after - span) // step + 1 if n + before + after >= span else 0
            for n, (before, after), span, step in zip(size, self.sides, spans, steps, strict=True)
        ]
        return tuple(sizes) if all(sizes) else (0,) * len(sizes)

    def is_one_image(self, inputs: Tensor) -> bool:
        """Whether this is the input of a convolution without an axis for images."""
        return self.kind != "linear" and inputs.ndim == self._axes + 1

    def maps(self, inputs: Tensor) -> Tensor:
        """Returns the layer's input as (images, channels, rows, columns).

        An image without batch dimension gets one; every row of the flattened leading dimensions of
        a linear layer's input becomes an image of one pixel. Half types become float32.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        if inputs.element_size() < 4:
            inputs = inputs.float()
        if self.kind == "linear":
            if inputs.ndim and inputs.shape[-1] == self.channels:
                return inputs.reshape(-1, self.channels, 1, 1)
            expected = f"(..., {self.channels})"
        else:
            batched = inputs.unsqueeze(0) if self.is_one_image(inputs) else inputs
            if batched.ndim == self._axes + 2 and batched.shape[1] == self.channels:
                return batched.unsqueeze(2) if self._axes == 1 else batched
            size = ", ".join(("D", "H", "W")[3 - self._axes :])
            expected = f"(N, {self.channels}, {size}) or ({self.channels}, {size})"
        raise RuntimeError(
            f"moments: inputs must have shape {expected} (got {tuple(inputs.shape)})"
        )

    @property
    def _axes(self) -> int:
        """Of the layer's maps; a map here has two at least."""
        return int(self.kind[-2])

    def count(self, maps: Tensor) -> int:
        """Returns how many patches a group has in these maps."""
        return maps.shape[0] * math.prod(self.output_size(*maps.shape[2:]))

    def pad(self, maps: Tensor) -> Tensor:
        """Returns the maps with their padding; as they are for a transposed convolution."""
        if self.is_transposed or not any(self.padding):
            return maps
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        amounts = [side for sides in reversed(self.sides) for side in sides]
        return F.pad(maps, amounts, mode=mode)

    def convolution(self) -> tuple[Any, ...]:
        """Arguments of ``torch.convolution`` after the bias, for maps that have been padded."""
        none = [0] * len(self.kernel_size)
        if not self.is_transposed:
            return self.stride, none, self.dilation, False, none, self.groups
        reaches = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        padding = [reach - before for reach, (before, _) in zip(reaches, self.sides, strict=True)]
        output_padding = [after - before for before, after in self.sides]
        return self.stride, padding, self.dilation, True, output_padding, self.groups

    def phases(self) -> list[Phase]:
        """The ordinary convolutions, of stride 1, that a transposed one consists of.

        Output position ``o`` sees a pixel under tap ``a`` if ``o + a * dilation - padding`` is a
        multiple of the stride. So do all positions that are a multiple of the stride away, and one
        of these sees the next pixel. No zeros are multiplied.
        """
        axes = zip(self.kernel_size, self.stride, self.dilation, self.sides, strict=True)
        found = []
        for parts in product(*(_axis_phases(*axis) for axis in axes)):
            taps = [0]
            for part, kernel in zip(parts, self.kernel_size, strict=True):
                taps = [tap * kernel + own for tap in taps for own in part.taps]
            geometry = dataclasses.replace(
                self,
                kind="conv",
                kernel_size=tuple(len(part.taps) for part in parts),
                stride=(1,) * len(parts),
                padding=tuple(side for part in parts for side in part.padding),
                dilation=tuple(part.dilation for part in parts),
            )
            found.append(Phase(taps, geometry))
        return found

    def patches(self, maps: Tensor) -> Iterator[Tensor]:
        """Yields all patches of the maps in parts of bounded size, (groups, inputs, positions).

        The maps are (images, channels, rows, columns), of an ordinary convolution; how they are
        parted depends on their shape and type alone.
        """
        size = self.output_size(*maps.shape[2:])
        if not all(size):
            return
        width = self.groups * self.inputs * maps.element_size()
        most = max(1, min(PART_POSITIONS, PART_BYTES // width))
        images = max(1, most // math.prod(size))
        # Rows (or planes) of one image, where an image is too much; of 3-D ones rows of one plane.
        bands = [max(1, most // math.prod(size[axis + 1 :])) for axis in range(len(size) - 1)]
        starts = [range(0, n, band) for n, band in zip(size, bands, strict=False)]
        for part in maps.split(images):
            padded = self.pad(part)
            for start in product(*starts):
                shape = [
                    min(band, n - first) for first, band, n in zip(start, bands, size, strict=False)
                ]
                yield self._patches(padded, start, (*shape, size[-1]))

    def _patches(self, padded: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The patches of some output positions of padded maps: where they start, how many."""
        image_step, channel_step, *steps = padded.stride()
        strides = [step * by for step, by in zip(steps, self.stride, strict=True)]
        taps = [step * by for step, by in zip(steps, self.dilation, strict=True)]
        offset = sum(first * step for first, step in zip(start, strides, strict=False))
        images, channels = padded.shape[:2]
        windows = padded.as_strided(
            (channels, *self.kernel_size, images, *shape),
            (channel_step, *taps, image_step, *strides),
            padded.storage_offset() + offset,
        )
        return windows.reshape(self.groups, self.inputs, images * math.prod(shape))


class _AxisPhase(NamedTuple):
    """One axis of a `Phase`."""

    taps: list[int]
    dilation: int
    padding: tuple[int, int]


def _axis_phases(
    kernel: int, stride: int, dilation: int, sides: tuple[int, int]
) -> Iterator[_AxisPhase]:
    """The phases along one axis; those without taps see no pixel."""
    before, after = sides
    span = 1 + dilation * (kernel - 1)
    for phase in range(stride):
        taps = [tap for tap in range(kernel) if (phase + tap * dilation - before) % stride == 0]
        if not taps:
            continue
        # Positions ``phase + stride * q`` see the pixel ``q + first`` under their first tap.
        first = (phase + taps[0] * dilation - before) // stride
        step = dilation // math.gcd(dilation, stride)
        # A map of n pixels has ``stride * n + rest`` output positions, so this phase ``n + more``.
        rest = 1 - stride + before + after - span + 1
        more = -((phase - rest) // stride)
        yield _AxisPhase(taps, step, (-first, more + first + step * (len(taps) - 1)))


def _around_zeros(layer: nn.Module) -> list[tuple[int, int]]:
    """Padding before and after the stuffed input of a transposed convolution."""
    sizes = vars(layer)
    axes = zip(
        sizes["dilation"],
        sizes["kernel_size"],
        sizes["padding"],
        sizes["output_padding"],
        strict=True,
    )
    return [
        (dilation * (kernel - 1) - padding, dilation * (kernel - 1) - padding + more)
        for dilation, kernel, padding, more in axes
    ]


def _planar(values: Sequence[Any], missing: Any) -> tuple[Any, ...]:
    """With an axis for rows, where there are columns alone."""
    return (missing, *values) if len(values) == 1 else tuple(values)
