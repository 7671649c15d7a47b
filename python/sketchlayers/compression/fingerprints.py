"""What results of `compress` depend on, as short texts: the model, the images, functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from sketchlayers._version import __version__
from sketchlayers.compression.cache import digest, hash_of
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.images import Images

_PLAIN = (int, float, complex, str, bytes, bool, type(None))


def of_everything(
    model: nn.Module, calibration: Calibration | None, images: Images | None, memory_budget: int
) -> str:
    """Returns a text that differs where anything that all results depend on does.

    Of the images, those that are held in memory are looked at; of a loader with more, its length.
    """
    data = ["no data"]
    if calibration is not None:
        data = list(_of_calibration(calibration))
    elif images is not None:
        data = list(_of_images(images))
    types = [str(torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    enabled = [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]
    versions = [__version__, torch.__version__, f"{types} {enabled} {memory_budget}"]
    return digest(*versions, *_of_model(model), "data", *data)


def _of_model(model: nn.Module) -> Iterator[str]:
    """Values of all tensors, how the modules are set, and the code that is not PyTorch's."""
    yield re.sub(r"0x[0-9a-f]+", "", repr(model))  # addresses of what has no name
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        yield f"{name} {kind.__module__}.{kind.__qualname__}"
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            known = tensor is not None and not is_lazy(tensor) and not tensor.is_meta
            yield f"{key} {hash_of(tensor) if known and tensor is not None else None}"
        for key, value in sorted(vars(module).items()):
            if key != "training" and _is_plain(value):
                yield f"{key} {value!r}"
        if not kind.__module__.startswith("torch."):
            yield of_function(kind.forward)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def of_function(function: Any) -> str:
    """Returns a text that tells functions apart by their code and what simple values it uses."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        kind = type(function)
        return f"{kind.__module__}.{getattr(function, '__qualname__', kind.__qualname__)}"
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values = [value for value in (*(function.__defaults__ or ()), *cells) if _is_plain(value)]
    return f"{_of_code(code)} {values!r}"


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _of_code(code: CodeType) -> str:
    constants = [
        _of_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts
    ]
    return digest(code.co_code.hex(), *constants, *code.co_names)


def _of_calibration(calibration: Calibration) -> Iterator[str]:
    for name, moments in calibration.items():
        yield f"{name} {moments.count} {moments.geometry}"
        yield hash_of(moments.second_moment)
        yield hash_of(moments.mean)
    yield str(calibration.images)


def _of_images(images: Images) -> Iterator[str]:
    yield of_function(images.sample.forward)
    yield images.more
    for batch in images.sample.batches:
        yield from _of_batch(batch)


def _of_batch(batch: Any) -> Iterable[str]:
    if isinstance(batch, Mapping):
        yield f"keys {list(batch)}"
        batch = list(batch.values())
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Mapping):
            yield from _of_batch(leaf)
        elif isinstance(leaf, Tensor):
            yield hash_of(leaf)
        else:
            yield repr(leaf) if _is_plain(leaf) else type(leaf).__qualname__
