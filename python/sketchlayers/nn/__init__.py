"""Layers, each usable alone."""

from ._sketch import Plan
from .conv import SKConv2d
from .linear import SKLinear

__all__ = ["Plan", "SKConv2d", "SKLinear"]
