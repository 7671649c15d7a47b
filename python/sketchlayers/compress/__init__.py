"""Whole models: survey -> calibrate -> allocate -> fit -> swap -> refine -> report.

The package shares its name with its main function, and importing a submodule binds the package's
name in the parent. So the module itself can be called: ``sketchlayers.compress(model, rate=0.2)``
works whichever of the two the name stands for.
"""

import sys
from types import ModuleType

from sketchlayers.compress._seeds import layer_seed
from sketchlayers.compress.convert import Compressed, compress, fold, inspect
from sketchlayers.compress.refine import Refinement
from sketchlayers.compress.report import Inspection, LayerInspection, LayerReport, Report

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


class _CallableModule(ModuleType):
    __call__ = staticmethod(compress)


sys.modules[__name__].__class__ = _CallableModule
