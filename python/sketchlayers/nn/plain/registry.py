"""Which kinds of layers have a plain form."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from sketchlayers.nn.plain.form import Plain, PlainForm, Single

Form = type[PlainForm] | Single
"""Makes the plain form of a layer, and says why not."""

_forms: dict[str, Form] = {}


def register_layer(
    kind: type[nn.Module] | str,
    form: type[PlainForm] | None = None,
    *,
    before: Callable[[Any, Tensor], Tensor] | None = None,
    dense: Callable[[Any], Plain] | None = None,
    restore: Callable[[Any, Plain], None] | None = None,
) -> None:
    """Tells ``compress`` how to take layers of a kind that it does not know.

    A layer with one weight is described by functions::

        class PaddedConv2d(nn.Conv2d):                      # pads below and on the right only
            def forward(self, input):
                return super().forward(F.pad(input, (0, 1, 0, 1)))

        sketchlayers.register_layer(PaddedConv2d, before=lambda layer, x: F.pad(x, (0, 1, 0, 1)))

    In the smaller network a `SingleForm` takes its place, which does the padding and calls the
    factored convolution. Layers with several weights have a subclass of `PlainForm`.

    Layers of subclasses are taken too, unless these have a ``forward`` of their own. To register a
    kind again replaces what was known of it.

    Args:
        kind: the class, or its module and name, ``"timm.layers.conv2d_same.Conv2dSame"``, which is
            then not imported; a pattern with ``*`` for several classes.
        form: makes a module of plain layers from a layer of this kind; instead of the functions.
        before: ``before(layer, input)`` is what the plain layer gets for an input of the layer,
            whose parameters are None here; None: the input as it is.
        dense: the plain ``nn.Conv2d`` or ``nn.Linear`` that computes the rest, with parameters
            that share the memory of the layer's; None, for subclasses of these two: that of the
            same arguments, weight and bias.
        restore: ``restore(layer, plain)`` gives a layer, whose parameters are None, those of the
            plain one; None: ``weight`` and ``bias`` as they are.

    Raises:
        TypeError: ``kind`` is no class of modules and no name, or there is a form and functions.
    """
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        kind = _name(kind)
    if not isinstance(kind, str):
        raise TypeError(
            f"register_layer: kind must be a class of modules or its full name (got {kind!r})"
        )
    functions = {"before": before, "dense": dense, "restore": restore}
    if form is not None and any(functions.values()):
        given = ", ".join(name for name, value in functions.items() if value)
        raise TypeError(f"register_layer: form must be given alone (got {given} too)")
    _forms[kind] = form or Single(before, dense, restore)


def form_of(layer: nn.Module) -> Form | None:
    """The form of layers of this kind; None for kinds that are not known."""
    if isinstance(layer, PlainForm) or "forward" in vars(layer):
        return None
    for kind in type(layer).__mro__:
        form = _find(_name(kind))
        if form is not None:
            own = type(layer)
            same = all(
                getattr(own, name, None) is getattr(kind, name, None)
                for name in ("forward", "_conv_forward", "__call__")
            )
            return form if same else None
    return None


def _find(name: str) -> Form | None:
    if name in _forms:
        return _forms[name]
    return next((form for pattern, form in _forms.items() if fnmatchcase(name, pattern)), None)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
