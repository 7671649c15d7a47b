"""Layers, each usable alone.

Loaded on first use. Sketched and hashed layers compute with the operators of the compiled
extension; all others work without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._config import Configured, dense_arguments
    from ._sketch import Plan
    from .conv import SKConv2d
    from .cp import CPConv2d
    from .dictionary import DictionaryConv2d, DictionaryLinear
    from .fresh import FreshConv2d
    from .hashed import HashedConv2d, HashedLinear
    from .linear import SKLinear
    from .low_rank import LowRankLinear
    from .low_rank_conv import LowRankConv2d
    from .tucker import TuckerConv2d

_PUBLIC = {
    "CPConv2d": "cp",
    "Configured": "_config",
    "DictionaryConv2d": "dictionary",
    "DictionaryLinear": "dictionary",
    "FreshConv2d": "fresh",
    "HashedConv2d": "hashed",
    "HashedLinear": "hashed",
    "LowRankConv2d": "low_rank_conv",
    "LowRankLinear": "low_rank",
    "Plan": "_sketch",
    "SKConv2d": "conv",
    "SKLinear": "linear",
    "TuckerConv2d": "tucker",
    "dense_arguments": "_config",
}

__all__ = [
    "CPConv2d",
    "Configured",
    "DictionaryConv2d",
    "DictionaryLinear",
    "FreshConv2d",
    "HashedConv2d",
    "HashedLinear",
    "LowRankConv2d",
    "LowRankLinear",
    "Plan",
    "SKConv2d",
    "SKLinear",
    "TuckerConv2d",
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
