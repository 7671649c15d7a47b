"""Whole models: survey -> calibrate -> allocate -> fit -> swap -> finish -> report."""

from sketchlayers.compression.api import Compressed, compress, fold, inspect
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.reports.inspection import Inspection, LayerInspection
from sketchlayers.reports.report import Report
from sketchlayers.reports.rows import LayerReport

__all__ = [
    "Compressed",
    "Inspection",
    "LayerInspection",
    "LayerReport",
    "Refinement",
    "Report",
    "compress",
    "fold",
    "inspect",
    "layer_seed",
]
