"""Tensors in, factors out: decompositions of a layer's weight, without any module."""

from .sketch import SketchFactors, sketch_least_squares, unbiased_sketch

__all__ = ["SketchFactors", "sketch_least_squares", "unbiased_sketch"]
