"""Loads the compiled part: the operators (``torch.ops.sketchlayers``) and the module ``_C``."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

from sketchlayers import _plan_costs

LIBRARY = Path(__file__).with_name("libsketchlayers.so")


def load() -> ModuleType:
    """Registers the operators with PyTorch and returns the module ``sketchlayers._C``.

    Raises:
        ImportError: The compiled part is missing or does not fit this PyTorch; the message says
            what is wrong and what to type.
    """
    if not LIBRARY.exists():
        raise ImportError(
            f"the compiled part of sketchlayers is missing (no {LIBRARY.name} in {LIBRARY.parent}):"
            " type `pip install --no-build-isolation .` in the folder of the sources"
        )
    try:
        torch.ops.load_library(LIBRARY)
        compiled = importlib.import_module("sketchlayers._C")
    except (OSError, ImportError) as error:
        raise ImportError(
            f"the compiled part of sketchlayers does not load into PyTorch {torch.__version__}"
            f" ({error}): it was probably built for another PyTorch; type `python -m sketchlayers`"
            " for a diagnosis, or build it again with `pip install --no-build-isolation .`"
        ) from error
    _plan_costs.load(compiled)
    return compiled


_C = load()
