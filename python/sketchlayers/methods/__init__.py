"""Compression methods: one file each, found by name.

A method is a config dataclass (`Method`) that knows which layers it takes, how many parameters a
replacement has at a rank, and how to build the replacement. Every module of this package whose
name has no leading underscore is imported here, so a new method is a new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from sketchlayers.methods._method import (
    Method,
    compressed_layers,
    get,
    names,
    register,
)
from sketchlayers.methods._rank import Candidate, Rank
from sketchlayers.methods.auto import Auto
from sketchlayers.methods.cp import CP
from sketchlayers.methods.dictionary import Dictionary
from sketchlayers.methods.freshnet import FreshNet
from sketchlayers.methods.hashednet import HashedNet
from sketchlayers.methods.lowrank import LowRank
from sketchlayers.methods.sketch import Sketch, scale_argument
from sketchlayers.methods.svd import SVD
from sketchlayers.methods.tucker2 import Tucker2

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CP",
    "SVD",
    "Auto",
    "Candidate",
    "Dictionary",
    "FreshNet",
    "HashedNet",
    "LowRank",
    "Method",
    "Rank",
    "Sketch",
    "Tucker2",
    "compressed_layers",
    "get",
    "names",
    "register",
    "scale_argument",
]
