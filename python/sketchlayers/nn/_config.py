"""The configuration of a layer: the arguments with which one like it is made, as plain values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from sketchlayers.nn._geometry import Geometry

# Of a constructor's arguments: what tensors say by themselves, and what only helps to find a rank.
NO_PART = frozenset({"covariance", "device", "dtype", "rate", "seed"})


class Configured(nn.Module):
    """A layer that tells its configuration and is made from one, so that files can hold it.

    The base of all compressed layers, and of a layer of one's own that `sketchlayers.save` is to
    write. Such a layer has the constructor of a convolution or of ``nn.Linear`` with more
    arguments, keeps the arguments as attributes of the same names, tuples whole, and tells the
    others by `options`. A file holds it if a registered method has its class among its ``layers``.
    """

    # Whether the layer computes with the operators of this package's compiled extension.
    _needs_extension: ClassVar[bool] = False

    def config(self) -> dict[str, Any]:
        """Arguments of the constructor for a layer of this kind and these sizes.

        Those that are at their defaults are left out, and so are device, dtype and seed, which the
        tensors of a state dict tell. All values are such as JSON has; pairs are lists.
        """
        return configuration(type(self), dense_arguments(self) | self.options())

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, device: torch.device | str | int | None = None
    ) -> Self:
        """A new layer of this configuration, with the seed 0 if it has one.

        Raises:
            TypeError, ValueError: it is not the configuration of such a layer.
        """
        check_names(cls, config)
        seed = {"seed": 0} if _takes_seed(cls) else {}
        return cls(**config, **seed, device=device)

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor that the plain layer does not have, by name.

        Their values are such as JSON has; pairs may be tuples.
        """
        raise NotImplementedError

    def _options_repr(self) -> list[str]:
        """Those that are not at their defaults, for ``extra_repr``."""
        return [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in _without_defaults(type(self), self.options()).items()
        ]


def needs_extension(kind: type[nn.Module]) -> bool:
    """Whether layers of this class compute with the operators of the compiled extension."""
    return issubclass(kind, Configured) and kind._needs_extension


def dense_arguments(layer: Any) -> dict[str, Any]:
    """Arguments of the plain layer of a layer's sizes; it may be one itself.

    Plain layers are convolutions, ``nn.Linear`` and ``nn.Embedding``.

    All but device and dtype, by name; pairs are tuples.
    """
    if hasattr(layer, "num_embeddings"):
        names = ("num_embeddings", "embedding_dim", "padding_idx")
        return {name: getattr(layer, name) for name in names}
    if hasattr(layer, "in_features"):
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        sizes = Geometry.of(layer).arguments()
    return sizes | {"bias": layer.bias is not None}


def dense_class(layer: Any) -> type[nn.Module]:
    """PyTorch's class of a layer's sizes: a convolution, ``nn.Linear`` or ``nn.Embedding``."""
    if hasattr(layer, "num_embeddings"):
        return nn.Embedding
    return nn.Linear if hasattr(layer, "in_features") else Geometry.of(layer).dense_class


def configuration(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration has of the arguments of this kind of layer."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in _without_defaults(kind, arguments).items()
    }


def check_names(kind: type, config: Mapping[str, Any]) -> None:
    """Raises unless all are names that a configuration of this kind of layer may have.

    Raises:
        TypeError: the bias is not a bool, which constructors do not check.
        ValueError: another name.
    """
    for name in config:
        if name not in _parameters(kind) or name in NO_PART:
            raise ValueError(f"{kind.__name__}: there is no {name!r} in a configuration")
    if not isinstance(bias := config.get("bias", True), bool):
        raise TypeError(f"{kind.__name__}: bias must be a bool (got bias={bias!r})")


def _takes_seed(kind: type) -> bool:
    return "seed" in _parameters(kind)


def _without_defaults(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: arguments[name]
        for name, default in _parameters(kind).items()
        if name in arguments and not _is_default(arguments[name], default)
    }


def _is_default(value: Any, default: Any) -> bool:
    """One number stands for those of all axes."""
    if isinstance(value, tuple) and isinstance(default, int):
        default = (default,) * len(value)
    return bool(value == default)


@functools.cache
def _parameters(kind: type) -> dict[str, Any]:
    """Names and defaults of a constructor's arguments; ``nn.Module`` for none."""
    signature = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {
        part.name: nn.Module if part.default is part.empty else part.default
        for part in signature
        if part.name != "self"
    }
