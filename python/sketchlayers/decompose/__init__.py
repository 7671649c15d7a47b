"""Tensors in, factors out: decompositions of a layer's weight, without any module."""

from .sketch import SketchFactors, sketch_least_squares, unbiased_sketch
from .svd import LowRankFactors, svd, svd_errors

__all__ = [
    "LowRankFactors",
    "SketchFactors",
    "sketch_least_squares",
    "svd",
    "svd_errors",
    "unbiased_sketch",
]
