"""Files of calibrations: safetensors with the moments of every layer and, as metadata, the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sketchlayers._runtime.files import check_safetensors, shortened, written_whole
from sketchlayers._version import __version__
from sketchlayers.compression.calibration.moments import LayerMoments
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.survey.reasons import Reason

_FORMAT = "sketchlayers.calibration"
_FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Stored:
    """What a file of a calibration holds.

    Attributes:
        moments: by the layer's name.
        images: how many they were measured on.
        missing: reasons of the layers without moments.
    """

    moments: Mapping[str, LayerMoments]
    images: int
    missing: Mapping[str, Reason]


def write(path: Path, stored: Stored) -> None:
    """Writes the whole file, or nothing if that fails.

    Raises:
        ValueError: the path does not end in ``.safetensors``.
    """
    check_safetensors("Calibration.save", path, "")
    tensors = {}
    for name, moments in stored.moments.items():
        tensors[f"{name}.second_moment"] = moments.second_moment.contiguous()
        tensors[f"{name}.mean"] = moments.mean.contiguous()
    layers = {
        name: {"count": moments.count, **dataclasses.asdict(moments.geometry)}
        for name, moments in stored.moments.items()
    }
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "sketchlayers": __version__,
        "images": str(stored.images),
        "layers": json.dumps(layers),
        "missing": json.dumps({n: [r.kind, r.text] for n, r in stored.missing.items()}),
    }
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: Path) -> Stored:
    """Reads and checks a file; the moments stay in it until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is another one, or damaged; the message says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            return _parsed(metadata, file)
    except SafetensorError as error:
        raise ValueError(
            f"Calibration.load: {path} is no safetensors file, or damaged ({shortened(error)})"
        ) from error
    except _DamagedError as error:
        raise ValueError(f"Calibration.load: {path} is damaged: {error}") from error


class _DamagedError(Exception):
    """What is wrong with a file of moments."""


def _parsed(metadata: Mapping[str, str], file: Any) -> Stored:
    try:
        layers = json.loads(metadata["layers"])
        counts = {name: int(values.pop("count")) for name, values in layers.items()}
        geometries = {name: _geometry(values) for name, values in layers.items()}
        images = int(metadata["images"])
        stored_reasons = json.loads(metadata["missing"])
        missing = {name: _reason(value) for name, value in stored_reasons.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _DamagedError(
            f"its metadata are wrong ({type(error).__name__}: {shortened(error)})"
        ) from error
    stored = set(file.keys())
    moments = {}
    for name, geometry in geometries.items():
        tensors = []
        for part in ("second_moment", "mean"):
            if f"{name}.{part}" not in stored:
                raise _DamagedError(f"the {part} of layer {name!r} is missing")
            tensors.append(file.get_tensor(f"{name}.{part}"))
        moments[name] = LayerMoments(tensors[0], tensors[1], counts[name], geometry)
        _check_stored(name, moments[name])
    return Stored(moments, images, missing)


def _geometry(values: Mapping[str, Any]) -> PatchGeometry:
    """The geometry that JSON has made lists of."""
    whole: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return PatchGeometry(**whole)


def _reason(stored: object) -> Reason:
    """A reason from kind and text; the first files had the text alone."""
    if isinstance(stored, str):
        never = stored == Reason.NEVER_CALLED.text
        return Reason.NEVER_CALLED if never else Reason(stored)
    kind, text = map(str, stored)  # type: ignore[call-overload]
    return Reason(text, kind)


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    found = metadata.get("format")
    if found != _FORMAT:
        raise ValueError(
            f"Calibration.load: {path} must be a file of Calibration.save "
            f"(got a safetensors file {f'in the format {found!r}' if found else 'of another kind'})"
        )
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"Calibration.load: {path} was written by sketchlayers {metadata.get('sketchlayers')} "
            f"in version {version} of the format (this one reads {_FORMAT_VERSION}); update "
            "sketchlayers, or calibrate again"
        )


def _check_stored(name: str, moments: LayerMoments) -> None:
    groups, n = moments.geometry.groups, moments.geometry.inputs
    for part, shape in (("second_moment", (groups, n, n)), ("mean", (groups, n))):
        tensor = getattr(moments, part)
        if tensor.dtype != torch.float64 or tensor.shape != shape:
            raise _DamagedError(
                f"the {part} of layer {name!r} must be {shape} float64 "
                f"(got {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')})"
            )
    energy = moments.second_moment.diagonal(dim1=1, dim2=2)
    # A sum is finite only where all are, and takes no memory.
    sums = moments.mean.sum(), moments.second_moment.sum()
    sound = all(bool(total.isfinite()) for total in sums) and bool((energy >= 0).all())
    if not sound or not moments.count >= 1:
        raise _DamagedError(f"the moments of layer {name!r} are no moments")
