"""Putting new layers in the place of old ones, in a copy of the model or in the model itself."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import prune
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sketchlayers.nn import Configured
from sketchlayers.nn._rounding import NOTES

# What a hook was registered with (`with_kwargs`, `always_call`) is kept in dicts by the same ids.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Returns a deep copy; ``memo`` says by ``id`` what takes the place of which object.

    Works also for models whose modules hold computed tensors, as the old ``weight_norm`` does.

    Raises:
        TypeError: something in the model cannot be copied.
        MemoryError, RuntimeError: there is not enough memory for the copy.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise TypeError(
            "compress: the model must allow copy.deepcopy, or be changed with inplace=True, and by "
            "calibration=sketchlayers.calibrate(model, images) in place of images "
            f"(got {type(error).__name__}: {error})"
        ) from error


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode that shares the parameters and has buffers of its own."""
    return copy_model(model, {id(p): p for p in model.parameters()}).eval()


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether memory has run out: Python's, a GPU's, or PyTorch's, which says so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def replace_layers(
    model: nn.Module, replacements: Mapping[nn.Module, nn.Module], *, inplace: bool
) -> nn.Module:
    """Returns the model with new layers in place of old ones, wherever the old ones are registered.

    Hooks and attributes that a user has set on an old layer carry over to its replacement: moved
    when ``inplace`` (the handles of hooks stay valid), copied with the model otherwise. If anything
    fails the model is as it was.

    Args:
        model: a module; itself unchanged unless ``inplace``.
        replacements: what to replace by what.
        inplace: change ``model`` itself.

    Raises:
        ValueError: ``inplace`` and the model itself is to be replaced, so that nothing holds it.
        TypeError: the model cannot be copied.
    """
    if inplace:
        _replace_inplace(model, replacements)
        return model
    memo: dict[int, Any] = {id(old): new for old, new in replacements.items()}
    result = copy_model(model, memo)
    for old, new in replacements.items():
        _carry_over(old, new, memo)
    # A __deepcopy__ of its own may have made copies of the old layers regardless of the memo.
    for name, old in model.named_modules(remove_duplicate=False):
        if name and old in replacements:
            parent, _, child = name.rpartition(".")
            if result.get_submodule(parent)._modules[child] is not replacements[old]:
                result.get_submodule(parent)._modules[child] = replacements[old]
    return result


def _replace_inplace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    if model in replacements:
        raise ValueError(
            "compress: inplace must be False where the model itself is the layer to replace "
            f"(got {type(model).__name__})"
        )
    places = [
        (parent, child, old)
        for parent in list(model.modules())
        for child, old in parent._modules.items()
        if old is not None and old in replacements
    ]
    # New layers share these with the old ones, and add hooks of their own.
    hooks = [getattr(old, kind) for old in replacements for kind in _HOOKS]
    before = [dict(registered) for registered in hooks]
    try:
        for old, new in replacements.items():
            _carry_over(old, new, None)
        for parent, child, old in places:
            parent._modules[child] = replacements[old]
    except BaseException:
        for parent, child, old in places:
            parent._modules[child] = old
        for registered, kept in zip(hooks, before, strict=True):
            registered.clear()
            registered.update(kept)
        raise


def _carry_over(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None) -> None:
    """Gives ``new`` the hooks and the user's own attributes of ``old``: copies, if there is a memo.

    Not carried: attributes of the weight tensor itself, and what ``Module.compile`` left behind.
    """
    carry_hooks(old, new, memo)
    standard = _standard_attributes(old) | _standard_attributes(new)
    for name, value in vars(old).items():
        if name not in standard:
            vars(new)[name] = value if memo is None else copy.deepcopy(value, memo)


def carry_hooks(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None) -> None:
    """Gives ``new`` the mode and the hooks of ``old``: copies, if there is a memo."""
    take = (lambda x: x) if memo is None else functools.partial(copy.deepcopy, memo=memo)
    new.training = old.training
    for kind in _HOOKS:
        theirs, own = getattr(old, kind), getattr(new, kind)
        hooks = take(_without_computed(theirs))
        if kind.startswith("_load_state_dict") and memo is None:
            for key, hook in hooks.items():
                if isinstance(hook, _WrappedHook) and hook.with_module:
                    hooks[key] = _WrappedHook(hook.hook, new)
        hooks.update({key: hook for key, hook in own.items() if key not in hooks})
        setattr(new, kind, hooks)
    new._is_full_backward_hook = old._is_full_backward_hook


def _without_computed(hooks: Any) -> Any:
    """Hooks but for those that compute a tensor of the old layer, by pruning or normalisation."""
    computing = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    if not any(isinstance(hook, computing) for hook in hooks.values()):
        return hooks
    kept = type(hooks)()
    kept.update({key: hook for key, hook in hooks.items() if not isinstance(hook, computing)})
    return kept


def _standard_attributes(layer: nn.Module) -> set[str]:
    """Names in ``vars`` of a layer of this class, and of plain ones, as they come new.

    And of their parameters, which pruning computes and keeps in ``vars``.
    """
    new: list[nn.Module] = [nn.Conv2d(8, 8, 3, device="meta"), nn.Linear(8, 8, device="meta")]
    if isinstance(layer, Configured):
        kind = type_before_parametrizations(layer)
        assert issubclass(kind, Configured)
        new.append(kind.from_config(layer.config(), device="meta"))
    parameters = (module._parameters for module in new)
    return {"_compiled_call_impl", NOTES}.union(*map(vars, new), *parameters)
