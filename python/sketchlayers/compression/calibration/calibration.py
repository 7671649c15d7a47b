"""The moments of the inputs of a model's layers, as `calibrate` measures them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from torch import nn
from torch.nn.parameter import is_lazy

from sketchlayers.compression.calibration.file import Stored, read, write
from sketchlayers.compression.calibration.moments import LayerMoments, pooled_moments
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.survey.layers import dense_layers
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.reports.table import Footnotes, Table, quantity
from sketchlayers.surgery.forms import in_plain_form

ADVISED_PATCHES = 5
"""Patches for each input that a second moment should have: with fewer it is noisy."""


class Calibration(Mapping[str, LayerMoments]):
    """Holds the moments of each layer's input patches by the layer's name; prints as a table.

    Attributes:
        images: how many images they were measured on.
        missing: the other convolutions and linear layers of the model, each with the reason why it
            has no moments.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> calibration = sketchlayers.calibrate(model, [torch.randn(16, 3, 8, 8)])
        >>> calibration["0"].second_moment.shape
        torch.Size([1, 27, 27])
        >>> calibration.save("moments.safetensors")
    """

    def __init__(
        self,
        moments: Mapping[str, LayerMoments],
        *,
        images: int,
        missing: Mapping[str, Reason] | None = None,
    ) -> None:
        self._moments = dict(moments)
        self.images = images
        self.missing = dict(missing or {})

    def __getitem__(self, name: str) -> LayerMoments:
        return self._moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    @property
    def advised_images(self) -> dict[str, int]:
        """Numbers of images that layers with few patches need, by the layer's name.

        A second moment needs about five patches for each input; with fewer patches than inputs it
        is singular.
        """
        return {
            name: math.ceil(self.images * ADVISED_PATCHES * moments.inputs / moments.count)
            for name, moments in self.items()
            if moments.count < ADVISED_PATCHES * moments.inputs
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Advice for every layer that has seen few patches: how many images would do."""
        return tuple(
            f"{name or 'the model'}: use at least {images:,} images (got {self.images:,}): "
            f"{self[name].count:,} patches for {self[name].inputs:,} inputs"
            f"{' (a singular second moment)' if self[name].count < self[name].inputs else ''}"
            for name, images in self.advised_images.items()
        )

    def check(self, model: nn.Module) -> None:
        """Makes sure that the moments are of this model's layers.

        Raises:
            ValueError: names, sizes, strides or the like differ; the first such layer is named.
        """
        with in_plain_form(model) as plain:
            layers = dense_layers(plain)
        for name, layer in layers.items():
            if name not in self._moments and name not in self.missing:
                _fail_check(f"layer {name!r} of the model was not calibrated")
            if name in self._moments and not any(map(is_lazy, layer.parameters(recurse=False))):
                _compare(name, self[name].geometry, PatchGeometry.of(layer), "the model")
        for name in (*self._moments, *self.missing):
            if name not in layers:
                _fail_check(f"the model has no layer {name!r}, which was calibrated")

    def merge(self, other: Calibration) -> Calibration:
        """Joins two calibrations to that on the images of both, as one run over them would give it.

        Raises:
            ValueError: they are of different models; the first layer that differs is named.
        """
        known, others = (
            {**dict.fromkeys(c._moments), **dict.fromkeys(c.missing)} for c in (self, other)
        )
        for name in (*known, *others):
            if name not in known or name not in others:
                _fail_check(f"only one of two calibrations knows layer {name!r}")
            if name in self and name in other:
                _compare(name, self[name].geometry, other[name].geometry, "the other one")
        moments = {}
        for name in known:
            both = pooled_moments(self.get(name), other.get(name))
            if both is not None:
                moments[name] = both
        missing = {name: reason for name, reason in self.missing.items() if name not in moments}
        return Calibration(moments, images=self.images + other.images, missing=missing)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file: all of it, or nothing if that fails.

        It holds "NAME.second_moment" and "NAME.mean" for each layer; the metadata tell how each
        layer cuts its input into patches, the counts, and what is missing. Of several processes,
        one should write.

        Raises:
            ValueError: the path does not end in ``.safetensors``.
        """
        write(Path(path), Stored(self._moments, self.images, self.missing))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads what `save` wrote; the moments stay in the file until they are used.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is another one, or damaged; the message says what is wrong.
        """
        stored = read(Path(path))
        return cls(stored.moments, images=stored.images, missing=stored.missing)

    def __str__(self) -> str:
        headers = [("", "layer"), ("", "inputs"), ("", "patches"), ("", "patches/input"), ("", "")]
        table, marks = Table(*headers, left=1), Footnotes()
        few = self.advised_images
        advice = (
            f"fewer than {ADVISED_PATCHES} patches for each input: use at least "
            f"{max(few.values(), default=0):,} images (got {self.images:,})"
        )
        for name, moments in self.items():
            groups = moments.geometry.groups
            table.add(
                name or "(the model)",
                f"{groups} x {moments.inputs}" if groups > 1 else str(moments.inputs),
                str(moments.count),
                f"{moments.count / moments.inputs:.3g}",
                marks.mark(advice) if name in few else "",
            )
        for name, reason in self.missing.items():
            table.add(name or "(the model)", "-", "-", "-", marks.mark(reason.text))
        size = sum(moments.second_moment.nbytes for moments in self.values())
        summary = f"{len(self)} layers calibrated on {self.images} images, {quantity(size, 'B')}"
        return "\n".join([str(table), "", summary, *marks.lines()])

    __repr__ = __str__


def _compare(name: str, ours: PatchGeometry, theirs: PatchGeometry, who: str) -> None:
    for part in dataclasses.fields(PatchGeometry):
        a, b = (getattr(geometry, part.name) for geometry in (ours, theirs))
        if a != b:
            what = part.name.replace("_", " ")
            _fail_check(f"layer {name!r} has {what} {_plain(a)} in it and {_plain(b)} in {who}")


def _plain(value: object) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value)


def _fail_check(what: str) -> NoReturn:
    raise ValueError(f"Calibration: it must be of this very model (got another one: {what})")
