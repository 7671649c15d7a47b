"""torchvision's classification networks: by name, and as a file names them."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from torch import nn

from sketchlayers._runtime.extras import missing
from sketchlayers.surgery.meta import WithoutValues

from ._container import WrongFileError


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models; none if it is not installed."""
    try:
        from torchvision import models
    except ImportError:
        return []
    return list(models.list_models(module=models))


def build_torchvision(
    name: str,
    num_classes: int | None = None,
    *,
    transform_input: bool = False,
    on_meta: bool = False,
) -> nn.Module:
    """The untrained model, in evaluation mode.

    Args:
        name: what torchvision calls it.
        num_classes: None for its own number.
        transform_input: whether GoogLeNet or Inception normalise inputs as their authors did.
        on_meta: leave the weights on the meta device, without memory and values; small buffers,
            such as the statistics of batch norms, have theirs.
    """
    from torchvision import models

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if transform_input:
        options["transform_input"] = True
    with warnings.catch_warnings(), WithoutValues() if on_meta else contextlib.nullcontext():
        warnings.simplefilter("ignore")  # of how some models initialise themselves
        return models.get_model(name, weights=None, **options).eval()


def build(architecture: Any) -> nn.Module:
    """The network of torchvision that an architecture names, with weights on the meta device.

    Raises:
        ImportError: torchvision is not installed.
        WrongFileError: there is no such network.
    """
    if not isinstance(architecture, dict) or not isinstance(architecture.get("name"), str):
        raise WrongFileError("architecture must have the name of a torchvision network")
    name = architecture["name"]
    unknown = architecture.keys() - {"name", "num_classes", "transform_input"}
    classes = architecture.get("num_classes")
    transformed = architecture.get("transform_input", False)
    wrong = classes is not None and (type(classes) is not int or not 1 <= classes < 2**31)
    if unknown or wrong or type(transformed) is not bool:
        raise WrongFileError(
            "architecture must have no more than name, num_classes (an int above 0) and "
            f"transform_input (a bool) (got {str(architecture)[:200]})"
        )
    names = torchvision_names()
    if not names:
        raise ImportError(missing(f"a network of the name {name[:80]}", "torchvision", "cli"))
    if name not in names:
        raise WrongFileError(f"there is no classification network {name[:80]!r} in torchvision")
    try:
        return build_torchvision(name, classes, transform_input=transformed, on_meta=True)
    except Exception as error:  # options that this network does not take fail in many ways
        raise WrongFileError(
            f"torchvision does not make {name} with {str(architecture)[:200]} "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
