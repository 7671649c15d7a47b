"""Writing a compressed model as ONNX; see ``docs/export.md``."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened, written_whole
from sketchlayers.cli.messages import WrongInput, tell

_PACKAGES = ("onnx", "onnxscript")


def check_onnx(path: Path) -> None:
    """Raises unless a model could be written there.

    Raises:
        ImportError: a package that PyTorch needs for it is missing.
        WrongInput: the file has another ending.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ImportError(missing("--onnx", package, "onnx"))
    if path.suffix.lower() != ".onnx":
        raise WrongInput(f"--onnx must be a file that ends in .onnx (got {path})")


def write_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Writes a model for batches of any size; for the size of the example where it needs that.

    Args:
        model: in evaluation mode, on the CPU.
        example: a batch of inputs.
        path: of the file, weights included.

    Raises:
        WrongInput: PyTorch cannot export the model.
    """
    batch = torch.export.Dim("batch")
    try:
        program = _exported(model, example, ({0: batch},))
    except Exception:
        tell(f"--onnx: the model does not allow batches of any size: it gets {len(example)} images")
        try:
            program = _exported(model, example, None)
        except Exception as error:
            raise WrongInput(
                f"--onnx: PyTorch cannot export this model ({type(error).__name__}: "
                f"{shortened(error)})"
            ) from error
    with written_whole(path) as temporary:
        program.save(temporary, external_data=False)


def _exported(
    model: nn.Module, example: Tensor, shapes: tuple[dict[int, object], ...] | None
) -> torch.onnx.ONNXProgram:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of how PyTorch does it
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes
        )
    assert program is not None
    return program
