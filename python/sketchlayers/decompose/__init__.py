"""Tensors in, factors out: decompositions of a layer's weight, without any module."""

from .corrected import corrected_weight
from .cp import CPFactors, cp, cp_errors
from .dictionary import DictionaryFit, dictionary_least_squares
from .hashed import SharedValues, hashed_least_squares
from .rounding import Rounded, rounded
from .sketch import SketchFactors, sketch_least_squares, unbiased_sketch
from .svd import LowRankFactors, svd, svd_errors
from .tucker import TuckerFactors, tucker2, tucker2_errors
from .vertical_horizontal import VerticalHorizontal, vertical_horizontal

__all__ = [
    "CPFactors",
    "DictionaryFit",
    "LowRankFactors",
    "Rounded",
    "SharedValues",
    "SketchFactors",
    "TuckerFactors",
    "VerticalHorizontal",
    "corrected_weight",
    "cp",
    "cp_errors",
    "dictionary_least_squares",
    "hashed_least_squares",
    "rounded",
    "sketch_least_squares",
    "svd",
    "svd_errors",
    "tucker2",
    "tucker2_errors",
    "unbiased_sketch",
    "vertical_horizontal",
]
