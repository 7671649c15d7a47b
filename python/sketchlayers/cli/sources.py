"""Models of other packages and of the user's own code, by name.

``timm/NAME`` is a network of timm, ``hf/FOLDER`` a folder of transformers, and
``package.module:factory`` a function that returns the model. Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened
from sketchlayers.cli.folders import Preparation
from sketchlayers.cli.messages import WrongInput

TIMM, TRANSFORMERS = "timm/", "hf/"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_WEIGHTS = ("model.safetensors*", "pytorch_model*.bin*")


@dataclass(frozen=True)
class Source:
    """A model from elsewhere.

    Attributes:
        model: the model, in evaluation mode.
        imports: Python that imports what ``dense`` needs.
        dense: a Python expression that makes the model again.
        trained: whether it comes with trained weights, as far as is known.
        preparation: of its images; None where it does not say.
    """

    model: nn.Module
    imports: str
    dense: str
    trained: bool
    preparation: Preparation | None = None


def is_source(name: str) -> bool:
    """Tells whether a name is one of this module's kinds."""
    return name.startswith((TIMM, TRANSFORMERS)) or _FACTORY.fullmatch(name) is not None


def open_source(name: str, num_classes: int | None) -> Source:
    """Makes the model.

    Raises:
        WrongInput: there is no such model, or it cannot be made.
        ImportError: its package is not installed.
    """
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), num_classes)
    if name.startswith(TRANSFORMERS):
        if num_classes is not None:
            raise WrongInput("--num-classes does not go with hf/FOLDER, whose config.json has them")
        return _from_transformers(Path(name.removeprefix(TRANSFORMERS)))
    return _from_factory(name, num_classes)


def _from_timm(name: str, num_classes: int | None) -> Source:
    try:
        import timm
    except ImportError as error:
        raise ImportError(missing(f"{TIMM}{name}", "timm")) from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise WrongInput(f"MODEL {TIMM}NAME must name a model of timm (got {name!r}{hint})")
    options = {} if num_classes is None else {"num_classes": num_classes}
    model = timm.create_model(name, pretrained=False, **options).eval()
    given = "".join(f", {key}={value}" for key, value in options.items())
    dense = f"timm.create_model({name!r}{given})"
    return Source(model, "import timm", dense, False, _timm_images(model))


def _timm_images(model: nn.Module) -> Preparation | None:
    said = getattr(model, "pretrained_cfg", None)
    if not isinstance(said, Mapping) or "input_size" not in said:
        return None
    return Preparation(
        size=tuple(said["input_size"]),
        enlarged=1 / (said.get("crop_pct") or 1.0),
        interpolation=_interpolation(said.get("interpolation", "bilinear")),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
    )


def _from_transformers(folder: Path) -> Source:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(missing(f"{TRANSFORMERS}{folder}", "transformers")) from error
    if not (folder / "config.json").is_file():
        raise WrongInput(
            f"MODEL {TRANSFORMERS}FOLDER must be a folder with the config.json of transformers "
            f"(got {folder})"
        )
    trained = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    where = repr(str(folder))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        name = next(iter(getattr(config, "architectures", None) or ()), "AutoModel")
        kind: Any = getattr(transformers, name, None)
        if kind is None:
            raise ValueError(f"transformers has no {name}, which config.json names")
        if trained:
            model = kind.from_pretrained(folder, local_files_only=True)
            dense = f"transformers.{name}.from_pretrained({where})"
        else:
            make = kind.from_config if name == "AutoModel" else kind
            model = make(config)
            method = ".from_config" if name == "AutoModel" else ""
            read = f"transformers.AutoConfig.from_pretrained({where})"
            dense = f"transformers.{name}{method}({read})"
    except Exception as error:  # anything can be wrong with a folder
        raise WrongInput(
            f"transformers cannot open {folder}: {type(error).__name__}: {shortened(error)}"
        ) from error
    images = _transformers_images(folder / "preprocessor_config.json")
    return Source(model.eval(), "import transformers", dense, trained, images)


def _transformers_images(path: Path) -> Preparation | None:
    """How a folder says that images are prepared; None where it does not say it in a known way."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        size = said["size"]
        crop = said.get("crop_size") if said.get("do_center_crop", "crop_size" in said) else None
        if isinstance(size, int):
            size = {"shortest_edge": size}
        if isinstance(crop, int):
            crop = {"height": crop, "width": crop}
        edge = size.get("shortest_edge") or size["height"]
        crop = crop or {"height": edge, "width": size.get("width", edge)}
        normalised = said.get("do_normalize", True)
        mean = tuple(said["image_mean"]) if normalised else (0.0, 0.0, 0.0)
        std = tuple(said["image_std"]) if normalised else (1.0, 1.0, 1.0)
        return Preparation(
            size=(len(mean), crop["height"], crop["width"]),
            enlarged=max(1.0, edge / crop["height"]),
            interpolation=_interpolation(said.get("resample", 2)),
            mean=mean,
            std=std,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _interpolation(name: Any) -> Any:
    """Torchvision's mode: by its name, or by Pillow's number."""
    from torchvision.transforms import InterpolationMode

    numbers = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    try:
        return InterpolationMode(numbers.get(name, name))
    except ValueError:
        return InterpolationMode.BILINEAR


def _from_factory(name: str, num_classes: int | None) -> Source:
    module_name, _, path = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        factory: Any = importlib.import_module(module_name)
        for part in path.split("."):
            factory = getattr(factory, part)
    except ImportError as error:
        raise WrongInput(f"MODEL {name}: cannot import {module_name} ({error})") from error
    except AttributeError as error:
        raise WrongInput(f"MODEL {name}: {error}") from error
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model = factory(**options)
    except Exception as error:
        raise WrongInput(
            f"MODEL {name}: the call failed with {type(error).__name__}: {shortened(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise WrongInput(f"MODEL {name} must return an nn.Module (got {type(model).__name__})")
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    imports = f"from {module_name} import {path.partition('.')[0]}"
    return Source(model.eval(), imports, f"{path}({given})", True)
