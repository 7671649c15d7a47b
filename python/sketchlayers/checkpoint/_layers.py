"""The layers of a model as JSON describes them, and such layers made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from sketchlayers import _extension, methods
from sketchlayers._runtime.files import shortened
from sketchlayers._runtime.parallel import own_class
from sketchlayers.nn._config import (
    Configured,
    check_names,
    configuration,
    dense_arguments,
    dense_class,
    needs_extension,
)
from sketchlayers.nn._geometry import CONVOLUTIONS, Geometry
from sketchlayers.nn._seeded import SeededModule
from sketchlayers.nn.plain import PlainForm
from sketchlayers.surgery.meta import WithoutValues

from ._container import WrongFileError

_PLAIN: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, nn.Embedding)

# What all layers together make from their seeds, and no file holds, may take this many times the
# memory of the dense weights, and these bytes a layer, all in float32: what sensible layers need,
# and a bound for a file of few bytes.
_MOST_SEEDED = 16
_SEEDED_BYTES = 2**20


def kinds() -> dict[str, type[nn.Module]]:
    """The classes of layers that files describe, by name."""
    compressed = (kind for kind in methods.compressed_layers() if issubclass(kind, Configured))
    return {kind.__name__: kind for kind in (*_PLAIN, *compressed)}


def describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Every convolution and fully connected layer by its place: its kind and its configuration.

    A layer at several places is described at the first one; the others say ``"same_as"`` which.
    Layers of classes that only derive from those of PyTorch are left to the network's class.

    Raises:
        TypeError: a compressed layer of a class that files do not know.
        ValueError: no file of these layers would be read.
    """
    known = kinds()
    described: dict[str, dict[str, Any]] = {}
    first: dict[nn.Module, str] = {}
    for name, layer in _layers(model):
        kind = own_class(layer)
        if known.get(kind.__name__) is not kind:
            if not isinstance(layer, (Configured, *methods.compressed_layers())):
                continue
            raise TypeError(
                "save: a compressed layer must be of one of the classes "
                f"{', '.join(sorted(known))} (got {kind.__name__} at {name or 'the top'!r}); "
                f"{_remedy(layer)}"
            )
        if layer in first:
            described[name] = {"same_as": first[layer]}
            continue
        first[layer] = name
        described[name] = {"kind": kind.__name__, **_config(layer)}
    try:
        _check_seeded(first)
    except WrongFileError as error:
        raise ValueError(f"save: {error}") from error
    return described


def plain_forms(model: nn.Module) -> list[str]:
    """Where the model has the plain form of a layer of another kind."""
    places = model.named_modules(remove_duplicate=False)
    return [name for name, module in places if isinstance(module, PlainForm)]


def forms_of(part: Mapping[str, Any]) -> list[str]:
    """Where a file's network has plain forms.

    Raises:
        WrongFileError: it is no description.
    """
    names = part.get("plain_forms", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WrongFileError("its plain_forms must be a list of names")
    return names


def _remedy(layer: nn.Module) -> str:
    """What to do with a compressed layer that files do not know."""
    if is_parametrized(layer):
        return "remove its parametrisation before"
    if not isinstance(layer, Configured):
        return "derive the class from sketchlayers.nn.Configured, or fold the layer before"
    return (
        "put the class, under a name of its own, into the layers of a method and register that "
        "(sketchlayers.methods.register), or fold the layer before"
    )


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers at all their places; what a compressed layer is made of is not looked into."""
    compressed: tuple[type[nn.Module], ...] = (Configured, *methods.compressed_layers())
    layers = (*_PLAIN, *compressed)
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if inside and name.startswith(inside):
            continue
        if isinstance(module, compressed):
            inside = (*inside, f"{name}." if name else "")
        if isinstance(module, layers):
            yield name, module


def _config(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, Configured):
        return layer.config()
    return configuration(own_class(layer), dense_arguments(layer))


def new_layers(model: nn.Module, described: Any) -> dict[str, nn.Module]:
    """The layers that take the place of others to make a model what the description says.

    A compressed layer stays if it has the configuration, and a plain one unless it is compressed in
    ``model``. Nothing is changed, and the new layers are on the meta device, without memory.

    Args:
        model: the network as its class makes it, or compressed.
        described: as from `describe`, but of any type and contents.

    Raises:
        ImportError: a layer needs the compiled extension, which cannot be used.
        WrongFileError: it is no description, or one of another network.
    """
    if not isinstance(described, dict):
        raise WrongFileError("its layers must be a JSON object")
    modules = dict(model.named_modules(remove_duplicate=False))
    known = kinds()
    layers: tuple[type[nn.Module], ...] = (*_PLAIN, Configured)
    new: dict[str, nn.Module] = {}
    after: list[nn.Module] = []
    for name, entry in described.items():
        if not isinstance(entry, dict):
            raise WrongFileError(f"the description of layer {name!r} must be a JSON object")
        old = modules.get(name)
        if not isinstance(old, layers):
            raise WrongFileError(
                f"the network must have a convolution, a fully connected layer or a table {name!r} "
                f"(got {'nothing' if old is None else type(old).__name__} there)"
            )
        if "same_as" in entry:
            _take_again(name, entry["same_as"], old, modules, new)
            continue
        kind = known.get(entry.get("kind", "")) if isinstance(entry.get("kind"), str) else None
        if kind is None:
            raise WrongFileError(
                f"layer {name!r} must be of a kind that is known (got {entry.get('kind')!r})"
            )
        config = {key: value for key, value in entry.items() if key != "kind"}
        _check_sizes(name, kind, config, old)
        stays = own_class(old) is kind and _config(old) == config
        if not stays and (issubclass(kind, Configured) or isinstance(old, Configured)):
            new[name] = _made(name, kind, config, old)
        after.append(new.get(name, old))
    _check_seeded(after)
    return new


def _take_again(
    name: str,
    source: Any,
    old: nn.Module,
    modules: Mapping[str, nn.Module],
    new: dict[str, nn.Module],
) -> None:
    """Puts what replaces a layer at its first place at another one, too."""
    if not isinstance(source, str) or modules.get(source) is not old:
        raise WrongFileError(
            f"the network must have the same layer at {str(source)[:80]!r} and at {name!r}"
        )
    if source in new:
        new[name] = new[source]


def _check_sizes(
    name: str, kind: type[nn.Module], config: Mapping[str, Any], old: nn.Module
) -> None:
    """Raises unless the dense layer of this configuration is that which the network has."""
    own = dense_arguments(old)
    plain = dense_class(old)
    expected = configuration(plain, own)
    found = {key: value for key, value in config.items() if key in own}
    is_same_kind = issubclass(kind, (plain, Configured))
    if issubclass(kind, Configured):  # other sizes do not fit its constructor
        is_same_kind = getattr(kind, "transposed", False) == getattr(old, "transposed", False)
    if found != expected or not is_same_kind:
        raise WrongFileError(
            f"the network must have a layer {name!r} with {_listed(found)} "
            f"(got {type(old).__name__} with {_listed(expected)})"
        )


def _listed(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value)[:40]}" for name, value in list(config.items())[:12])


def _made(name: str, kind: type[nn.Module], config: dict[str, Any], old: nn.Module) -> nn.Module:
    """A layer of this kind on the meta device, whose parameters are trained as the old one's are.

    What JSON says can be wrong in any way, so any error means that, unless nobody could make a
    layer of this kind here.

    Raises:
        ImportError: it needs the compiled extension, which cannot be used.
        WrongFileError: the configuration is wrong.
    """
    if needs_extension(kind):
        _extension.require(f"load: the file's layer {name!r} ({kind.__name__})")
    try:
        with WithoutValues():
            if issubclass(kind, Configured):
                layer: nn.Module = kind.from_config(config, device="meta")
            else:
                check_names(kind, config)
                layer = kind(**config, device="meta")
    except Exception as error:
        raise WrongFileError(
            f"the configuration of layer {name!r} is wrong "
            f"({type(error).__name__}: {shortened(error)})"
        ) from error
    _train_alike(layer, old)
    return layer


def _check_seeded(layers: Iterable[nn.Module]) -> None:
    """Raises if layers hold too much beside their tensors; each of them is given once."""
    needed = most = 0
    for layer in layers:
        needed += 4 * _seeded_entries(layer)
        most += 4 * _MOST_SEEDED * Geometry.of(layer).weights + _SEEDED_BYTES
    if needed > most:
        raise WrongFileError(
            f"its layers must need at most {most:,} bytes beside their tensors, {_MOST_SEEDED} "
            f"times the dense weights and {_SEEDED_BYTES:,} for each (got {needed:,}; what a layer "
            "makes from its seed shrinks with its rank, blocks and columns)"
        )


def _seeded_entries(layer: nn.Module) -> int:
    """Of what is made from a seed, four bytes each: words of signs, or float32."""
    if not isinstance(layer, SeededModule):
        return 0
    made = (getattr(layer, name) for name in layer._fixed if name not in layer._buffers)
    return sum(tensor.numel() for tensor in made if tensor is not None)


def _train_alike(new: nn.Module, old: nn.Module) -> None:
    """Gives the new parameters the ``requires_grad`` of the old weight, and of the old bias."""
    bias, former = getattr(new, "bias", None), getattr(old, "bias", None)
    trained = any(weight.requires_grad for weight in old.parameters() if weight is not former)
    new.requires_grad_(trained)
    if isinstance(bias, nn.Parameter) and isinstance(former, nn.Parameter):
        bias.requires_grad_(former.requires_grad)
