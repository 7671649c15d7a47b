"""Layers of many kinds as modules made of plain ones, and the registry of these kinds."""

from sketchlayers.nn.plain import known as _known
from sketchlayers.nn.plain.form import PlainForm, SingleForm
from sketchlayers.nn.plain.registry import form_of, register_layer

_known.register()

__all__ = ["PlainForm", "SingleForm", "form_of", "register_layer"]
