"""Whole models: survey -> calibrate -> curves -> allocate -> fit -> swap -> finish -> report."""

from sketchlayers.compression.api import compress, fold, inspect, sweep
from sketchlayers.compression.candidates.sweep import Sweep, SweepError
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.compression.result import Compressed
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.reports.candidates import CandidateReport, Evaluation
from sketchlayers.reports.inspection import Inspection, LayerInspection
from sketchlayers.reports.report import Report
from sketchlayers.reports.rows import Latency, LayerReport, OtherParameter
from sketchlayers.reports.unchanged import Kept

__all__ = [
    "CandidateReport",
    "Compressed",
    "Evaluation",
    "Inspection",
    "Kept",
    "Latency",
    "LayerInspection",
    "LayerReport",
    "OtherParameter",
    "Refinement",
    "Report",
    "Sweep",
    "SweepError",
    "compress",
    "fold",
    "inspect",
    "layer_seed",
    "sweep",
]
