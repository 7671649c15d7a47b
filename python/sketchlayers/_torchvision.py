"""torchvision's classification networks by name."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from torch import nn

from sketchlayers._meta import WithoutValues


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
