"""Layers some of whose tensors are a pure function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeGuard

import torch
from torch import Tensor
from torch._C import _functorch

from sketchlayers import _extension
from sketchlayers.nn import _seed_bits
from sketchlayers.nn._config import Configured, dense_arguments

_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "groups")


class SeededModule(Configured):
    """Keeps a seed, and tensors made from it that no checkpoint needs to hold.

    The seed is an ``int``, the property ``seed``. It travels with the state dict in the buffer
    ``seed_bits``, zeros and ones in floating point: an average, an interpolation or a cast of
    networks with equal seeds leaves it what it is, and what is no seed of this layer is refused
    when it is loaded or comes into use. A state dict of an earlier version, with the seed itself as
    an int64 ``seed``, is read, too.

    The tensors made from it are plain attributes, so that nothing that writes into buffers reaches
    them; a subclass makes them in `_make_seeded`, which runs in `reset_parameters`, whenever a
    state dict is loaded, and when a module changes its device or type. ``to_empty`` leaves the
    seed, and what follows from it, as they are.

    A write into the buffer in place, such as a broadcast from another rank, takes effect at the
    next call, ``train()`` or ``eval()``; in compiled or exported code at the latter two alone, and
    so do writes past the version counter of a tensor that is not on the CPU.
    """

    seed_bits: Tensor
    _seed: int

    # Names of the tensors that the weight is made from and that are not trained.
    _fixed: ClassVar[tuple[str, ...]]

    # The buffer and its state when ``_seed`` was what it held; also for unpickled modules.
    _followed: tuple[int, object] | None = None
    _written_for: str | None = None  # `_belongs_to` when the seed was written
    _made = 0  # how often what follows from the seed was made

    def __init__(self, seed: int | None, device: torch.device | str | int | None) -> None:
        if self._needs_extension:
            _extension.require(type(self).__name__)
        super().__init__()
        owner = type(self).__name__
        self._seed = _draw_seed() if seed is None else _seed_bits.checked_seed(owner, seed)
        empty = torch.empty(_seed_bits.LENGTH, dtype=torch.float32, device=device)
        self.register_buffer("seed_bits", empty)
        for name in self._fixed:
            self.__dict__.setdefault(name, None)

    @property
    def seed(self) -> int:
        """Decides what is random and fixed, in ``[0, 2**63)``; setting it makes that anew."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = _seed_bits.checked_seed(type(self).__name__, seed)
        self._restore_seeded()

    def _make_seeded(self) -> dict[str, Tensor]:
        """Tensors that follow from ``self._seed``, by attribute, on the layer's device."""
        return {}

    def _belongs_to(self) -> str:
        """What a seed of this layer belongs to, as text."""
        sizes = dense_arguments(self)
        weight = tuple(sizes[name] for name in _SIZES if name in sizes)
        return _seed_bits.described({"sizes": weight, **self._seeded_options()})

    def _seeded_options(self) -> dict[str, object]:
        """Options of the layer that a seed goes with."""
        return self.options()

    def reset_signs(self) -> None:
        """Make all that follows from the seed again from the buffer ``seed_bits``, nothing else.

        Waits for the device. On the meta device, where the buffer has no value, the seed stays.

        Raises:
            ValueError: the buffer holds no seed of this layer.
        """
        self._seed = self._read_seed()
        self._restore_seeded()

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; a seed that was written in place takes effect.

        Raises:
            ValueError: the buffer ``seed_bits`` holds no seed of this layer.
        """
        self._follow_buffer()
        return super().train(mode)

    def _follow_seed(self) -> None:
        """What was written into the buffer takes effect; cheap, since every call does it.

        Raises:
            ValueError: the buffer ``seed_bits`` holds no seed of this layer.
        """
        if not torch.compiler.is_compiling() and self._buffer_state() != self._followed:
            self._follow_buffer()

    def _follow_buffer(self) -> None:
        """What was written into the buffer takes effect, also past all version counters."""
        seed = self._read_seed()
        if seed != self._seed or not self._has_seeded():
            self._seed = seed
            # A copy's buffer is another one, and what it has of the seed may be the original's.
            own = self._followed is not None and self._followed[0] == id(self.seed_bits)
            self._restore_seeded(in_place=own)
        self._followed = self._buffer_state()

    def _buffer_state(self) -> tuple[int, object] | None:
        """Another one after a write into the buffer, as far as this can be told cheaply."""
        bits = self._buffers["seed_bits"]
        if not _has_values(bits):
            return None
        if _functorch.is_batchedtensor(bits):
            return id(bits), object()
        state = _extension.load().tensor_state(bits) if _extension.problem() is None else None
        return id(bits), bits.tolist() if state is None else state

    def _read_seed(self) -> int:
        """What the buffer holds; the number where it has no value, on meta and in a trace."""
        bits = self._buffers["seed_bits"]
        if self._written_for is None or not _has_values(bits):
            return self._seed
        return self._decoded(_of_one_seed(bits), self._written_for)

    def _decoded(self, bits: Tensor, belongs_to: str) -> int:
        """The seed of entries that are here.

        Raises:
            ValueError: they are those of no seed of this layer.
        """
        try:
            return _seed_bits.decode(bits.tolist(), belongs_to)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: seed_bits {error}") from None

    def _checked_bits(self, loaded: Tensor) -> Tensor:
        """The entries of ``seed_bits`` that a state dict or a file has, or has as a number.

        Raises:
            TypeError: a number of another type, which has lost bits.
            ValueError: no seed of this layer, or of another shape.
        """
        owner = type(self).__name__
        if loaded.dim() == 0:  # of an earlier version
            if loaded.dtype != torch.int64:
                raise TypeError(
                    f"{owner}: seed must be int64, or its bits are lost (got dtype={loaded.dtype})"
                )
            bits = torch.empty(_seed_bits.LENGTH, dtype=torch.float32, device=loaded.device)
            if not loaded.is_meta:
                seed = _seed_bits.checked_seed(owner, int(loaded))
                bits.copy_(torch.tensor(_seed_bits.encode(seed, self._belongs_to())))
            return bits
        if loaded.shape != self.seed_bits.shape:
            raise ValueError(
                f"{owner}: seed_bits must have shape {tuple(self.seed_bits.shape)} "
                f"(got {tuple(loaded.shape)})"
            )
        if _has_values(loaded):
            self._decoded(loaded, self._belongs_to())
        return loaded

    def _has_seeded(self) -> bool:
        """Whether all that follows from the seed is on the layer's device."""
        made = (getattr(self, name) for name in self._fixed)
        return all(tensor is None or tensor.device == self.seed_bits.device for tensor in made)

    @torch.no_grad()
    def _restore_seeded(self, *, in_place: bool = True) -> None:
        """Make the seed's buffer and all that follows from it again, from the seed."""
        self._made += 1
        for name, value in self._make_seeded().items():
            old = getattr(self, name)
            # Writing in place keeps captured CUDA graphs and shared memory true.
            if in_place and old is not None and _alike(old, value):
                old.copy_(value)
            else:
                setattr(self, name, value)
        self._write_seed()

    @torch.no_grad()
    def _write_seed(self) -> None:
        """Write the seed into its buffer."""
        bits, self._written_for = self._buffers["seed_bits"], self._belongs_to()
        if _has_values(bits):
            entries = _seed_bits.encode(self._seed, self._written_for)
            with torch.inference_mode(bits.is_inference()):
                bits.copy_(torch.tensor(entries, dtype=bits.dtype))
        self._followed = self._buffer_state()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._follow_buffer()
        before = _kinds(self)
        super()._apply(fn, recurse)
        if _kinds(self) != before:
            self._restore_seeded(in_place=False)
        else:
            self._write_seed()  # `to_empty` leaves garbage behind
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._written_for != self._belongs_to():  # an attribute was set meanwhile
            self._write_seed()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key, earlier = prefix + "seed_bits", prefix + "seed"
        if key not in state_dict and earlier in state_dict:
            state_dict[key] = state_dict.pop(earlier)
        seed = self._read_seed()
        if isinstance(loaded := state_dict.get(key), Tensor):
            try:
                bits = self._checked_bits(loaded)
                seed = self._decoded(bits, self._belongs_to()) if _has_values(bits) else seed
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{key}: {error}")
                bits = self.seed_bits.detach().clone()
            state_dict[key] = bits
        errors = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) == errors:
            self._seed = seed
        # With ``assign=True`` tensors are replaced, and the old ones keep their values.
        assign = local_metadata.get("assign_to_params_buffers", False)
        if assign:
            self.seed_bits = self.seed_bits.clone()
        self._restore_seeded(in_place=not assign)


def _has_values(bits: object) -> TypeGuard[Tensor]:
    # A subclass, such as a fake or a distributed tensor, has none that are here.
    return type(bits) is Tensor and not bits.is_meta


def _of_one_seed(bits: Tensor) -> Tensor:
    """The entries of all members of an ensemble under ``vmap``, which must have one seed."""
    while _functorch.is_batchedtensor(bits):
        stacked = _functorch.get_unwrapped(bits).movedim(_functorch.maybe_get_bdim(bits), 0)
        bits = (stacked.amin(0) + stacked.amax(0)) / 2  # entries that differ become none
    return bits


def _alike(first: Tensor, second: Tensor) -> bool:
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


def _kinds(module: SeededModule) -> list[tuple[torch.device, torch.dtype]]:
    """What decides where and in which types tensors are made."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [(tensor.device, tensor.dtype) for tensor in tensors if tensor is not None]


def _draw_seed() -> int:
    """A seed from PyTorch's default generator, so that ``torch.manual_seed`` decides it."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())
