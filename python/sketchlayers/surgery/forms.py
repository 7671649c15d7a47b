"""Layers of many kinds, seen as modules of plain layers, in a model and back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

from sketchlayers import methods
from sketchlayers.nn._rounding import roundings
from sketchlayers.nn.plain import PlainForm, form_of
from sketchlayers.surgery.replace import carry_hooks, evaluation_copy, replace_layers

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_plain_forms(
    function: Callable[Concatenate[nn.Module, Arguments], Result],
) -> Callable[Concatenate[nn.Module, Arguments], Result]:
    """Makes a function of a model see it, and an ``original`` of it, `in_plain_form`.

    Raises:
        ValueError: it works in place, and the model itself is a layer that has a plain form.
    """

    @functools.wraps(function)
    def call(model: Any, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not isinstance(model, nn.Module):
            return function(model, *args, **kwargs)  # that says what it must be
        inplace, original = bool(kwargs.get("inplace")), kwargs.get("original")
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(in_plain_form(model, itself=not inplace))
            if isinstance(original, nn.Module) and original is not model:
                kwargs["original"] = stack.enter_context(in_plain_form(original))
            if inplace and plain is not model:
                raise ValueError(
                    f"{function.__name__}: inplace must be False where the model itself is the "
                    f"layer to replace (got {type(model).__name__})"
                )
            return function(plain, *args, **kwargs)

    return call


@contextlib.contextmanager
def in_plain_form(model: nn.Module, *, itself: bool = True) -> Iterator[nn.Module]:
    """Puts the plain forms of layers into the model, and the layers back afterwards.

    The forms compute the same and share the parameters' memory. They stay where one of their parts
    has been compressed meanwhile; a layer whose parts have other weights now is made anew.

    Args:
        model: any module.
        itself: whether the model may be put into plain form where only modules in it have weights.

    Yields:
        The model; its form, if it is such a layer itself.
    """
    forms = {layer: _form(layer) for layer in _layers(model, itself)}
    parts = {form: dict(form.named_modules()) for form in forms.values()}
    places = _places(model, forms)
    try:
        for parent, key, layer in places:
            parent._modules[key] = forms[layer]
        yield forms.get(model, model)
    finally:
        for parent, key, layer in places:
            form = forms[layer]
            if needed(form, parent):
                _own_memory(form)
            elif not form.looks_inside and dict(form.named_modules()) != parts[form]:
                parent._modules[key] = _original(form)
            else:
                parent._modules[key] = layer


def without_needless(model: nn.Module) -> nn.Module:
    """Returns the model, changed: layers in place of the plain forms that have no smaller part."""
    root = nn.ModuleList([model])
    for parent in list(root.modules()):
        for key, form in parent._modules.items():
            if isinstance(form, PlainForm) and not needed(form, parent):
                parent._modules[key] = _original(form)
    return root[0]


def folded_forms(model: nn.Module) -> nn.Module:
    """Returns the model, changed: layers of the original kinds in place of all plain forms."""
    root = nn.ModuleList([model])
    for parent in list(root.modules()):
        for key, form in parent._modules.items():
            if isinstance(form, PlainForm):
                parent._modules[key] = _original(form)
    return root[0]


def folded_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Returns the plain layer with the same outputs for every compressed layer."""
    kinds = methods.compressed_layers()
    return {layer: layer.fold() for layer in model.modules() if isinstance(layer, kinds)}  # type: ignore[operator]


def folded_copy(model: nn.Module) -> nn.Module:
    """Returns a copy with plain layers in place of compressed ones, in evaluation mode.

    Of large batches these compute the same in less time. Everything else is as in
    `evaluation_copy`.
    """
    root = nn.ModuleList([evaluation_copy(model)])
    replace_layers(root, folded_layers(root), inplace=True)
    return root[0].eval()


def needed(form: PlainForm, parent: nn.Module) -> bool:
    """Tells whether the layer cannot stand in its place again.

    An attention layer cannot where PyTorch would then compute the layer around it from the weights
    of all, which are multiplied out for that. Matrices that a file holds in few bits stay apart.
    """
    around = parent if isinstance(parent, nn.TransformerEncoderLayer) else form
    compressed = methods.compressed_layers()
    if any(isinstance(part, compressed) for part in around.modules()):
        return True
    return next(roundings(around), None) is not None


class FormError(ValueError):
    """A network has no layer with a plain form where it should."""


@contextlib.contextmanager
def with_forms_at(model: nn.Module, names: Collection[str]) -> Iterator[nn.Module]:
    """Puts the plain forms in place of the layers of these names, and of no others.

    If the body fails, the model is as it was.

    Raises:
        FormError: there is no layer of a kind that has a plain form at one of the names.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    new: dict[nn.Module, nn.Module] = {}
    for name in names:
        layer = modules.get(name)
        if isinstance(layer, PlainForm):
            continue
        form = None if layer is None else form_of(layer)
        if layer is None or form is None or form.refusal(layer) is not None:
            got = "nothing" if layer is None else type(layer).__name__
            raise FormError(
                f"the network must have a layer that has a plain form at {str(name)[:80]!r} "
                f"(got {got}; sketchlayers.register_layer makes a kind known)"
            )
        new[layer] = _form(layer)
    for name, module in modules.items():
        if isinstance(module, PlainForm) and name not in names:
            new[module] = _original(module)
    places = _places(model, new)
    try:
        for parent, key, layer in places:
            parent._modules[key] = new[layer]
        yield new.get(model, model)
    except BaseException:
        for parent, key, layer in places:
            parent._modules[key] = layer
        raise


def form_refusal(model: nn.Module, layer: nn.Module) -> str | None:
    """Says why a layer has no plain form; None if it has one."""
    form = form_of(layer)
    if form is None:
        return f"{type(layer).__name__} is of no registered kind"
    return form.refusal(layer) or _tied(model, layer)


def _tied(model: nn.Module, layer: nn.Module) -> str | None:
    own = {id(parameter): name for name, parameter in layer.named_parameters()}
    inside = set(layer.modules())
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in own and module not in inside:
                return f"tied: its {own[id(parameter)]} is also {f'{prefix}.{key}'.strip('.')!r}"
    return None


def _layers(model: nn.Module, itself: bool) -> Iterator[nn.Module]:
    """Layers that have a plain form, none of them a part of another one or a compressed layer."""
    compressed = methods.compressed_layers()
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        form = form_of(module)
        taken = form is not None and form_refusal(model, module) is None
        around = form is not None and form.looks_inside
        if (taken and not around) or isinstance(module, compressed):
            inside.append(f"{name}." if name else "")
        if taken and (itself or module is not model or not around):
            yield module


def _form(layer: nn.Module) -> PlainForm:
    make = form_of(layer)
    assert make is not None
    form = make(layer)
    carry_hooks(layer, form, None)
    return form


def _original(form: PlainForm) -> nn.Module:
    layer = form.original()
    carry_hooks(form, layer, None)
    return layer


def _places(
    model: nn.Module, layers: Collection[nn.Module]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Where these layers are: parent, key and layer."""
    return [
        (parent, key, child)
        for parent in list(model.modules())
        for key, child in parent._modules.items()
        if child is not None and child in layers
    ]


def _own_memory(form: nn.Module) -> None:
    """Gives parameters that are parts of larger tensors memory of their own."""
    for parameter in form.parameters():
        if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
            parameter.data = parameter.data.clone()
