"""What a compression method is, and the table of all of them."""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from sketchlayers import _extension
from sketchlayers.methods._curve import interpolated, spread, squared_error
from sketchlayers.methods._rank import Candidate, Rank
from sketchlayers.methods._work import Work
from sketchlayers.nn._config import needs_extension
from sketchlayers.nn._geometry import Geometry, ordinary_weight

Init = Literal["fit", "random"]
_LARGEST_MOMENT = 10_000  # inputs of the largest layers that have a second moment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base class of all methods; the fields of a subclass are the method's options.

    A method sizes its replacement by a rank: one whole number, or a tuple of several. Of all ranks,
    `ranks` lists a family that grows evenly.
    """

    name: ClassVar[str]
    """What ``compress(model, method=name)`` calls it; set by `register`."""
    layers: ClassVar[tuple[type[nn.Module], ...]]
    """The classes of the replacements. Each has ``weight`` and ``bias``, those of the plain layer
    that computes the same; ``fold()``, that layer; ``multiply_adds(input_shape)`` of one call; and
    ``fit_error``, the relative error of the weight in the norm of the fit, None without one."""

    @abstractmethod
    def refusal(self, layer: nn.Module) -> str | None:
        """Says in a few words why the method cannot take this layer; None if it can."""

    @abstractmethod
    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """Lists the uniform family: from the smallest rank to the largest that shrinks it.

        Their parameters increase and are all below the layer's own; empty if it would grow at any
        rank.
        """

    @abstractmethod
    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """Counts the parameters of the replacement, bias included."""

    @abstractmethod
    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """Counts the multiply-adds of a call without gradients, in the layer's mode."""

    @abstractmethod
    def build(
        self,
        layer: nn.Module,
        rank: Rank,
        *,
        init: Init,
        seed: int,
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        start: nn.Module | None = None,
    ) -> nn.Module:
        """Builds the replacement, with the layer's device, dtype, memory format and mode.

        Args:
            layer: the layer to replace; it is not changed.
            rank: size of the replacement.
            init: "fit" approximates the layer's weight, "random" starts training from scratch.
            seed: what the replacement's fixed random numbers are made from, at most 63 bits.
            second_moment: ``E[x x^T]`` of the layer's input patches, (n, n) with
                ``n = in_channels / groups * h * w``, or (groups, n, n), in whose norm to fit; None
                for the identity.
            sensitivity: symmetric positive semidefinite weight of the output's errors,
                (T, T) or its diagonal (T,) with ``T = out_channels / groups``, with a leading axis
                for the groups if there are several; None for the identity.
            start: a replacement of this rank that was fitted to a similar weight, in a similar
                norm, from which the fit goes on; only given if `iterates` says so.
        """

    def iterates(self, layer: nn.Module) -> bool:
        """Tells whether a fit takes many steps, so that `build` can go on from another one."""
        return False

    def curve(
        self,
        layer: nn.Module,
        *,
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> list[Candidate]:
        """Lists what the layer could become, with the errors, by increasing parameters.

        All candidates that matter for choosing ranks, not only the uniform family; those that have
        both more parameters and more error than another may be missing. The errors are estimates,
        cheap beside `build` of every rank. Unless a method knows better, replacements of a few
        ranks of the uniform family are built, and the others are interpolated.

        Args:
            layer: the layer to replace; it is not changed.
            second_moment: as for `build`.
            sensitivity: as for `build`.
        """
        norm: dict[str, Any] = {"second_moment": second_moment, "sensitivity": sensitivity}
        errors = {}
        for rank in spread(self.ranks(layer)):
            built = self.build(layer, rank, init="fit", seed=0, **norm)
            weight = ordinary_weight(built.fold())  # type: ignore[operator]
            errors[rank] = squared_error(layer, weight, norm)
        return interpolated(self.ranks(layer), partial(self.parameters, layer), errors)

    def fit_work(self, layer: nn.Module) -> Work:
        """What a fit computes, about, of the layer at half its size."""
        sizes = Geometry.of(layer)
        inputs, outputs = sizes.patch, sizes.group_outputs
        moment = inputs**2 if inputs <= _LARGEST_MOMENT else 0
        matrix = 10 * min(inputs, outputs) * inputs
        return Work(sizes.groups * 2 * outputs * (moment + matrix), 50 * sizes.groups)

    def curve_work(self, layer: nn.Module) -> Work:
        """What `curve` computes, about."""
        return self.fit_work(layer)

    def members(self, layer: nn.Module) -> tuple[Method, ...]:
        """Lists the methods to choose from: this one, unless it stands for several."""
        return (self,)

    def require_extension(self) -> None:
        """Check, before any work, that the replacements have the operators that they compute with.

        Raises:
            ImportError: they need the compiled extension of this package, which cannot be used.
        """
        if any(needs_extension(layer) for layer in self.layers):
            _extension.require(f"compress: method {self.name!r}")

    def options(self) -> dict[str, Any]:
        """Returns the options by name, as given."""
        return dataclasses.asdict(self)


_methods: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Makes a method known to `get` and ``compress`` by ``name``; a class decorator."""

    def add(method: M) -> M:
        if name in _methods:
            raise ValueError(f"methods.register: the name must be new (got {name!r} again)")
        method.name = name
        _methods[name] = method
        return method

    return add


def names() -> list[str]:
    """Returns the names of all methods, sorted."""
    return sorted(_methods)


def kind_of(method: str | Method | type[Method]) -> type[Method]:
    """Finds the class of a method.

    Args:
        method: a name, a config object, or the class itself.

    Raises:
        TypeError: ``method`` is nothing of this kind.
        ValueError: no method has this name.
    """
    if isinstance(method, str):
        if method not in _methods:
            close = difflib.get_close_matches(method, names(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"compress: method must be one of {', '.join(map(repr, names()))} "
                f"(got {method!r}){hint}"
            )
        return _methods[method]
    if isinstance(method, Method):
        return type(method)
    if isinstance(method, type) and issubclass(method, Method):
        return method
    number = isinstance(method, int | float) and not isinstance(method, bool)
    hint = f"; a rate is given as rate={method!r}" if number else ""
    raise TypeError(
        "compress: method must be a name or a config object such as methods.Sketch() "
        f"(got {type(method).__name__}{hint})"
    )


def get(method: str | Method, **options: Any) -> Method:
    """Returns the method of this name with these options, or a config with these options changed.

    Raises:
        TypeError: ``method`` is neither a name nor a config, or has no such option.
        ValueError: no method has this name, or an option's value is wrong.
    """
    kind = kind_of(method)
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise TypeError(
                f"compress: method {kind.name!r} has no option {option!r} "
                f"({hint}its options: {', '.join(known) or 'none'})"
            )
    return dataclasses.replace(method, **options) if isinstance(method, Method) else kind(**options)


def compressed_layers() -> tuple[type[nn.Module], ...]:
    """Returns the classes of all methods' replacements."""
    return tuple(dict.fromkeys(layer for method in _methods.values() for layer in method.layers))
