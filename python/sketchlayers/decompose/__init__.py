"""Tensors in, factors out: decompositions of a layer's weight, without any module."""

from .corrected import corrected_weight
from .cp import CPFactors, cp
from .sketch import SketchFactors, sketch_least_squares, unbiased_sketch
from .svd import LowRankFactors, svd, svd_errors
from .tucker import TuckerFactors, tucker2, tucker2_errors

__all__ = [
    "CPFactors",
    "LowRankFactors",
    "SketchFactors",
    "TuckerFactors",
    "corrected_weight",
    "cp",
    "sketch_least_squares",
    "svd",
    "svd_errors",
    "tucker2",
    "tucker2_errors",
    "unbiased_sketch",
]
