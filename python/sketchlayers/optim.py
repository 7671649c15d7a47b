"""Parameter groups for PyTorch's optimisers."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sketchlayers.nn.sketch._layer import SketchLayer

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    gain: Literal["mean", "none"] = "mean",
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, with the dense network's learning rate as the unit.

    - Biases and the parameters of normalisation layers get no weight decay.
    - The factors ``s1``, ``s2`` of a sketched layer get ``lr / (2 l c^2)``. A step of SGD on them
      moves ``W_hat`` by ``-lr c^2 sum_i (U1_i^T U1_i G + G U2_i^T U2_i)``, on average over the
      signs ``2 l c^2`` times the dense step; the division makes the mean step the dense one. It
      multiplies ``lr`` by ``2 l`` for the paper's scale, by 1 for ``scale="normalized"``. Their
      weight decay is multiplied by ``2 l c^2``: a step shrinks them as it shrinks a dense weight.
    - Frozen parameters are left out, and a shared parameter comes once.

    The mean is not the largest gain. For ``d1 = d2 = d`` the paper's scale amplifies some direction
    by about ``(sqrt(d) + sqrt(l k))^2 / (2 l^2 k)``, 14.5 for d = 192, k = 10, l = 1, which scaling
    turns into 29: with plain SGD and no normalisation layers a learning rate that is stable for the
    dense network can diverge. Warm up, lower ``lr``, or choose ``gain="none"``. Optimisers whose
    step does not depend on the gradient's size (Adam, AdamW, RMSprop) need no scaling either.

    Args:
        model: any module.
        lr: learning rate of the dense parameters.
        weight_decay: of all that decays.
        gain: ``"mean"`` scales as above, ``"none"`` gives the factors ``lr`` and ``weight_decay``.

    Returns:
        Groups with the keys ``params``, ``lr``, ``weight_decay`` and ``name`` (``"weights"``,
        ``"no_decay"``, or ``"sketch"``, one for each scale), in the order of the parameters.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a negative ``lr`` or ``weight_decay``, or an unknown ``gain``.

    Example:
        >>> model = nn.Sequential(sketchlayers.SKConv2d(3, 16, 3, rank=2), nn.BatchNorm2d(16))
        >>> groups = param_groups(model, lr=0.1, weight_decay=5e-4)
        >>> [(group["name"], group["lr"]) for group in groups]
        [('sketch', 0.2), ('no_decay', 0.1)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups: model must be an nn.Module (got {type(model).__name__})")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"param_groups: {name} must be at least 0 (got {name}={value})")
    if gain not in ("mean", "none"):
        raise ValueError(f"param_groups: gain must be 'mean' or 'none' (got gain={gain!r})")

    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    owned = ((module, *x) for module in model.modules() for x in module._parameters.items())
    for module, name, parameter in owned:
        if parameter is None or id(parameter) in seen or not parameter.requires_grad:
            continue
        seen.add(id(parameter))
        # Recurrent layers call theirs `bias_ih_l0`, attention `in_proj_bias`.
        if name.startswith("bias") or name.endswith("bias") or isinstance(module, _NORMS):
            key = ("no_decay", lr, 0.0)
        elif isinstance(module, SketchLayer):
            factor = 2 * module.num_sketches * module.scale**2 if gain == "mean" else 1.0
            key = ("sketch", lr / factor, weight_decay * factor)
        else:
            key = ("weights", lr, weight_decay)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "name": name}
        for (name, rate, decay), parameters in groups.items()
    ]
