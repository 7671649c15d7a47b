"""Whether a file fits a network, and the network with what the file holds."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sketchlayers._runtime.parallel import has_shards
from sketchlayers.nn._geometry import CHANNELS_LAST
from sketchlayers.nn._seeded import SeededModule
from sketchlayers.surgery.replace import replace_layers

from ._container import Entry, WrongFileError
from ._layers import new_layers

_MOST_NAMED = 3
_EARLIER_SEED = Entry(torch.int64, ())  # of version 1


@dataclass(frozen=True)
class Match:
    """A network and a file that fit each other.

    Attributes:
        model: the network, as it was.
        new: layers to put in place of others.
        state: tensors that the network then has in its state dict.
        sources: the stored tensor of each of them.
        channels_last: which of them lie in memory with the channels innermost.
        device: where all of the network is to be; None: where it has its own tensors, on the CPU
            for those on meta.
    """

    model: nn.Module
    new: Mapping[str, nn.Module]
    state: Mapping[str, Tensor]
    sources: Mapping[str, str]
    channels_last: frozenset[str]
    device: torch.device | None = None

    @property
    def has_values(self) -> bool:
        """Whether the network is to have any; on the meta device there are none."""
        return self.device is None or self.device.type != "meta"

    def take(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with the new layers and these tensors; it is as it was if that fails.

        Raises:
            WrongFileError: a seed among the tensors is none of its layer.
        """
        tensors = self._with_seeds(tensors)
        if has_shards(self.model):
            return self._take_shards(tensors)
        replacements = {self.model.get_submodule(name): layer for name, layer in self.new.items()}
        values = self._values(tensors)
        with _as_it_was_on_failure(self.model):
            result = replace_layers(
                self.model, replacements, inplace=self.model not in replacements
            )
            result.load_state_dict(_with_versions(values, result), assign=True)
            if self.device is not None and self.has_values:
                result.to(self.device)  # what no file holds
        return result

    def _with_seeds(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, every seed among them checked and as today's state dicts have it."""
        checked = dict(tensors)
        for place, module in _modules_after(self.model, self.new):
            name = f"{_prefix(place)}seed_bits"
            if not isinstance(module, SeededModule) or name not in self.sources:
                continue
            source = self.sources[name]
            try:
                checked[source] = module._checked_bits(tensors[source])
            except ValueError as error:
                raise WrongFileError(f"{name}: {error}") from None
        return checked

    def _take_shards(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with this process's part of the tensors, in the types that it has."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        values: dict[str, Any] = {name: tensors[key] for name, key in self.sources.items()}
        set_model_state_dict(self.model, values, options=StateDictOptions(full_state_dict=True))
        return self.model

    def _values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What to load: one tensor for those that are one in the network, each of its own else."""
        devices = self._devices()
        made: dict[int, Tensor] = {}
        used: set[str] = set()
        for name, own in self.state.items():
            if id(own) in made:
                continue
            source = self.sources[name]
            value = tensors[source].clone() if source in used else tensors[source]
            used.add(source)
            value = value.to(devices[name])
            if name in self.channels_last:
                # Not `contiguous`, to which all strides of a 1x1 kernel are good enough.
                inner = torch.empty_like(value, memory_format=CHANNELS_LAST[value.dim()])
                value = inner.copy_(value)
            if isinstance(own, nn.Parameter):
                trained = own.requires_grad and (value.is_floating_point() or value.is_complex())
                value = nn.Parameter(value, requires_grad=trained)
            made[id(own)] = value
        return {name: made[id(own)] for name, own in self.state.items()}

    def _devices(self) -> dict[str, torch.device]:
        """Where the network has its tensors, and where the layers were that new ones replace."""
        devices = {name: own.device for name, own in self.state.items()}
        for place, layer in self.new.items():
            old = self.model.get_submodule(place)
            device = next((t.device for t in (*old.parameters(), *old.buffers())), _CPU)
            for name in layer.state_dict(prefix=_prefix(place)):
                devices[name] = device
        if self.device is not None:
            return dict.fromkeys(devices, self.device)
        return {name: _CPU if at.type == "meta" else at for name, at in devices.items()}


_CPU = torch.device("cpu")


def match(
    model: nn.Module,
    part: Any,
    entries: Mapping[str, Entry],
    *,
    device: torch.device | None = None,
) -> Match:
    """Compares a file's header with a network; nothing is changed, and nothing allocated.

    Args:
        model: the network as its class makes it, or compressed.
        part: the file's description of the model.
        entries: its tensors.
        device: as of a `Match`; on meta the network has no values.

    Raises:
        WrongFileError: they do not fit each other, or the description is wrong.
    """
    new = new_layers(model, _object(part, "layers"))
    if new and has_shards(model):
        raise WrongFileError(
            f"the network must have the file's layers before fully_shard (got others for "
            f"{', '.join(map(repr, list(new)[:_MOST_NAMED]))}; make it by "
            "load(path, into=network, device='meta'))"
        )
    _check_one_for_each(model, new)
    state = _state(model, new)
    aliases = _object(part, "aliases")
    if not all(isinstance(source, str) and source in entries for source in aliases.values()):
        raise WrongFileError("its aliases must name tensors of the file")
    sources = {name: name for name in entries} | aliases
    earlier = _rename_earlier_seeds(sources, state)
    _check_names(state.keys(), sources.keys())
    for name, own in state.items():
        expected = _EARLIER_SEED if name in earlier else Entry.of(own)
        _check_entry(name, expected, entries[sources[name]])
    _check_ties(state, sources)
    channels_last = part.get("channels_last", [])
    if not isinstance(channels_last, list) or not all(
        isinstance(name, str) and name in state and state[name].dim() in CHANNELS_LAST
        for name in channels_last
    ):
        raise WrongFileError(
            "its channels_last must be a list of tensors of four or five dimensions"
        )
    found = Match(model, new, state, sources, frozenset(channels_last), device)
    if found.has_values:
        _check_kept_buffers(model, new)
    return found


def _object(part: Any, key: str) -> dict[str, Any]:
    value = part.get(key, {}) if isinstance(part, dict) else None
    if not isinstance(value, dict):
        raise WrongFileError(f"its {key} must be a JSON object")
    return value


def _prefix(place: str) -> str:
    return f"{place}." if place else ""


def _state(model: nn.Module, new: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The state dict that the network has with the new layers."""
    replaced = tuple(map(_prefix, new))
    state: dict[str, Any] = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if not (replaced and name.startswith(replaced))
    }
    for place, layer in new.items():
        state |= layer.state_dict(prefix=_prefix(place), keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            what = "a tensor with its sizes" if isinstance(value, Tensor) else "a tensor"
            raise WrongFileError(f"{name} must be {what} in the network")
    return state


def _modules_after(
    model: nn.Module, new: Mapping[str, nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that the network has with the new layers, by name."""
    replaced = tuple(map(_prefix, new))
    for name, module in model.named_modules():
        if not (replaced and f"{name}.".startswith(replaced)):
            yield name, module
    for place, layer in new.items():
        yield from layer.named_modules(prefix=place)


def _check_one_for_each(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """A layer that the network has at several places is one layer in the file, too."""
    replacements: dict[nn.Module, nn.Module] = {}
    for place, layer in new.items():
        if replacements.setdefault(model.get_submodule(place), layer) is not layer:
            raise WrongFileError(f"{place!r} must be one of several places of a layer in the file")
    for name, module in model.named_modules(remove_duplicate=False):
        if module in replacements and name not in new:
            raise WrongFileError(f"the file must have a layer {name!r}, as the network does")


def _check_names(own: Any, stored: Any) -> None:
    missing, unknown = own - stored, stored - own
    for what, names in (
        ("lacks tensors of the network", missing),
        ("has tensors that the network lacks", unknown),
    ):
        if names:
            listed = ", ".join(sorted(names)[:_MOST_NAMED])
            more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
            raise WrongFileError(f"the file {what}: {listed}{more}")


def _rename_earlier_seeds(sources: dict[str, str], state: Mapping[str, Tensor]) -> set[str]:
    """Takes the seeds of version 1 for those of today; returns their names."""
    renamed = set()
    for name in state:
        earlier = name.removesuffix("_bits")
        if name.endswith("seed_bits") and name not in sources and earlier in sources:
            sources[name] = sources.pop(earlier)
            renamed.add(name)
    return renamed


def _check_entry(name: str, own: Entry, entry: Entry) -> None:
    if own.shape != entry.shape:
        raise WrongFileError(
            f"{name} must have the network's shape {own.shape} (got {entry.shape})"
        )
    real = own.dtype.is_floating_point and entry.dtype.is_floating_point
    if own.dtype != entry.dtype and not real:
        raise WrongFileError(f"{name} must be of type {own.dtype} (got {entry.dtype})")


def _check_ties(state: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    first: dict[int, str] = {}
    for name, own in state.items():
        other = first.setdefault(id(own), name)
        if sources[other] != sources[name]:
            raise WrongFileError(f"{other} and {name} must be one tensor, as in the network")


def _check_kept_buffers(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """No buffer that no file holds may be without values."""
    for name, module in _modules_after(model, new):
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.is_meta:
                raise WrongFileError(
                    f"{_prefix(name)}{key}, a buffer that no file holds, must have values (the "
                    "network was built on the meta device)"
                )


@contextlib.contextmanager
def _as_it_was_on_failure(model: nn.Module) -> Iterator[None]:
    """After an exception all modules have the attributes, tensors and children from before."""
    before = [
        (module, {key: (value, _copied(value)) for key, value in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, attributes in before:
            vars(module).clear()
            for key, (value, items) in attributes.items():
                if items is not None:
                    value.clear()
                    value.extend(items) if isinstance(value, list) else value.update(items)
                vars(module)[key] = value
        raise


def _copied(value: object) -> Any:
    """The items of what a module registers things in; None for any other attribute."""
    if not isinstance(value, dict | set | list):
        return None
    return value.copy() if value else ()  # most are empty, and an OrderedDict is slow to copy


def _with_versions(values: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """The tensors as a state dict of today's versions of the modules, which some ask for."""
    state = OrderedDict(values)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return state
