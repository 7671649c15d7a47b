"""Faster inference: what the layers keep, and which form of each of them is the fastest here."""

from __future__ import annotations

from torch import nn

from sketchlayers.nn._sketch import SketchLayer


def clear_cache(model: nn.Module) -> None:
    """Drops the dense weights that the sketched layers of ``model`` keep between inference calls.

    They are formed anew when they are needed. Call this after the factors or signs were written in
    a way that leaves their version counters alone; see `sketchlayers.nn.SKConv2d.clear_cache`.
    """
    for module in model.modules():
        if isinstance(module, SketchLayer):
            module.clear_cache()
