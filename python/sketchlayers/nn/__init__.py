"""Layers, each usable alone.

Loaded on first use. Sketched and hashed layers compute with the operators of the compiled
extension; all others work without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sketchlayers.nn._config import Configured, dense_arguments
    from sketchlayers.nn.factored.cp import CPConv2d
    from sketchlayers.nn.factored.embedding import LowRankEmbedding
    from sketchlayers.nn.factored.low_rank import LowRankLinear
    from sketchlayers.nn.factored.low_rank_conv import LowRankConv2d
    from sketchlayers.nn.factored.other_axes import (
        CPConv1d,
        CPConv3d,
        CPConvTranspose1d,
        CPConvTranspose2d,
        CPConvTranspose3d,
        TuckerConv1d,
        TuckerConv3d,
        TuckerConvTranspose1d,
        TuckerConvTranspose2d,
        TuckerConvTranspose3d,
    )
    from sketchlayers.nn.factored.tucker import TuckerConv2d
    from sketchlayers.nn.generated.dictionary import DictionaryConv2d, DictionaryLinear
    from sketchlayers.nn.generated.fresh import FreshConv2d
    from sketchlayers.nn.generated.hashed import HashedConv2d, HashedLinear
    from sketchlayers.nn.plain.form import PlainForm
    from sketchlayers.nn.sketch._layer import Plan
    from sketchlayers.nn.sketch.conv import SKConv1d, SKConv2d, SKConv3d
    from sketchlayers.nn.sketch.linear import SKLinear

_PUBLIC = {
    "CPConv1d": "factored.other_axes",
    "CPConv2d": "factored.cp",
    "CPConv3d": "factored.other_axes",
    "CPConvTranspose1d": "factored.other_axes",
    "CPConvTranspose2d": "factored.other_axes",
    "CPConvTranspose3d": "factored.other_axes",
    "Configured": "_config",
    "DictionaryConv2d": "generated.dictionary",
    "DictionaryLinear": "generated.dictionary",
    "FreshConv2d": "generated.fresh",
    "HashedConv2d": "generated.hashed",
    "HashedLinear": "generated.hashed",
    "LowRankConv2d": "factored.low_rank_conv",
    "LowRankEmbedding": "factored.embedding",
    "LowRankLinear": "factored.low_rank",
    "PlainForm": "plain.form",
    "Plan": "sketch._layer",
    "SKConv1d": "sketch.conv",
    "SKConv2d": "sketch.conv",
    "SKConv3d": "sketch.conv",
    "SKLinear": "sketch.linear",
    "TuckerConv1d": "factored.other_axes",
    "TuckerConv2d": "factored.tucker",
    "TuckerConv3d": "factored.other_axes",
    "TuckerConvTranspose1d": "factored.other_axes",
    "TuckerConvTranspose2d": "factored.other_axes",
    "TuckerConvTranspose3d": "factored.other_axes",
    "dense_arguments": "_config",
}

__all__ = [
    "CPConv1d",
    "CPConv2d",
    "CPConv3d",
    "CPConvTranspose1d",
    "CPConvTranspose2d",
    "CPConvTranspose3d",
    "Configured",
    "DictionaryConv2d",
    "DictionaryLinear",
    "FreshConv2d",
    "HashedConv2d",
    "HashedLinear",
    "LowRankConv2d",
    "LowRankEmbedding",
    "LowRankLinear",
    "PlainForm",
    "Plan",
    "SKConv1d",
    "SKConv2d",
    "SKConv3d",
    "SKLinear",
    "TuckerConv1d",
    "TuckerConv2d",
    "TuckerConv3d",
    "TuckerConvTranspose1d",
    "TuckerConvTranspose2d",
    "TuckerConvTranspose3d",
    "dense_arguments",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sketchlayers.nn' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
