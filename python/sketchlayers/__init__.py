"""Compression of trained PyTorch networks, and sketched layers for training small ones.

Trained networks: :func:`compress` makes one smaller with some images, without labels, by Tucker-2,
CP or SVD in the norm of the layers' outputs, :func:`sweep` makes several sizes (:class:`Sweep`);
:func:`inspect`, :func:`calibrate`, :func:`fold`, :func:`fuse_batch_norm`,
:func:`optimize_for_inference`, :func:`clear_cache`. Files: :func:`save`, :func:`load`,
:func:`export_onnx`. Several processes: :func:`broadcast_model`. Layers of one's own:
:func:`register_layer`.

Layers to train: :class:`SKConv2d`, :class:`SKLinear` (tensor sketching); of other papers
:class:`TuckerConv2d`, :class:`CPConv2d`, :class:`LowRankConv2d`, :class:`LowRankLinear`,
:class:`LowRankEmbedding`, :class:`HashedConv2d`, :class:`HashedLinear`, :class:`FreshConv2d`,
:class:`DictionaryConv2d`, :class:`DictionaryLinear`; :func:`param_groups` for their optimiser,
:func:`benchmark` for the choice of the fastest path.
Operators: :mod:`sketchlayers.ops`.

Sources: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti: "Distribution-Aware Tensor Decomposition for
Compression of Convolutional Neural Networks", NeurIPS 2025; Kasiviswanathan, Narodytska, Jin:
"Network Approximation using Tensor Sketching", IJCAI 2018.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sketchlayers._version import __version__

if TYPE_CHECKING:
    from sketchlayers.checkpoint import load, save
    from sketchlayers.compression import Sweep, compress, fold, inspect, sweep
    from sketchlayers.compression.calibration.calibrate import calibrate
    from sketchlayers.compression.calibration.calibration import Calibration
    from sketchlayers.distributed import broadcast_model
    from sketchlayers.inference import clear_cache, optimize_for_inference
    from sketchlayers.nn import (
        CPConv1d,
        CPConv2d,
        CPConv3d,
        CPConvTranspose1d,
        CPConvTranspose2d,
        CPConvTranspose3d,
        DictionaryConv2d,
        DictionaryLinear,
        FreshConv2d,
        HashedConv2d,
        HashedLinear,
        LowRankConv2d,
        LowRankEmbedding,
        LowRankLinear,
        SKConv1d,
        SKConv2d,
        SKConv3d,
        SKLinear,
        TuckerConv1d,
        TuckerConv2d,
        TuckerConv3d,
        TuckerConvTranspose1d,
        TuckerConvTranspose2d,
        TuckerConvTranspose3d,
    )
    from sketchlayers.nn.batch_norm import fuse_batch_norm
    from sketchlayers.nn.plain import register_layer
    from sketchlayers.onnx import export_onnx
    from sketchlayers.optim import param_groups
    from sketchlayers.planning import benchmark

# Loaded on first use, so that `sketchlayers doctor` can tell what is wrong with an installation
# whose compiled extension, or whose PyTorch, does not load.
_OUTSIDE_OF_NN = {
    "Sweep": "sketchlayers.compression",
    "Calibration": "sketchlayers.compression.calibration.calibration",
    "benchmark": "sketchlayers.planning",
    "broadcast_model": "sketchlayers.distributed",
    "calibrate": "sketchlayers.compression.calibration.calibrate",
    "clear_cache": "sketchlayers.inference",
    "compress": "sketchlayers.compression",
    "export_onnx": "sketchlayers.onnx",
    "fold": "sketchlayers.compression",
    "fuse_batch_norm": "sketchlayers.nn.batch_norm",
    "inspect": "sketchlayers.compression",
    "load": "sketchlayers.checkpoint",
    "optimize_for_inference": "sketchlayers.inference",
    "param_groups": "sketchlayers.optim",
    "register_layer": "sketchlayers.nn.plain",
    "save": "sketchlayers.checkpoint",
    "sweep": "sketchlayers.compression",
}

__all__ = [
    "CPConv1d",
    "CPConv2d",
    "CPConv3d",
    "CPConvTranspose1d",
    "CPConvTranspose2d",
    "CPConvTranspose3d",
    "Calibration",
    "DictionaryConv2d",
    "DictionaryLinear",
    "FreshConv2d",
    "HashedConv2d",
    "HashedLinear",
    "LowRankConv2d",
    "LowRankEmbedding",
    "LowRankLinear",
    "SKConv1d",
    "SKConv2d",
    "SKConv3d",
    "SKLinear",
    "Sweep",
    "TuckerConv1d",
    "TuckerConv2d",
    "TuckerConv3d",
    "TuckerConvTranspose1d",
    "TuckerConvTranspose2d",
    "TuckerConvTranspose3d",
    "__version__",
    "benchmark",
    "broadcast_model",
    "calibrate",
    "clear_cache",
    "compress",
    "export_onnx",
    "fold",
    "fuse_batch_norm",
    "inspect",
    "load",
    "optimize_for_inference",
    "param_groups",
    "register_layer",
    "save",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sketchlayers' has no attribute '{name}'")
    module = importlib.import_module(_OUTSIDE_OF_NN.get(name, "sketchlayers.nn"))
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
