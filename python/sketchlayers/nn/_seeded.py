"""Layers some of whose tensors are a pure function of a seed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from sketchlayers import _extension
from sketchlayers.nn._config import Configured

_SEED_LIMIT = 2**63


class SeededModule(Configured):
    """Keeps a seed, and tensors made from it that no checkpoint needs to hold.

    The seed is a persistent 0-dimensional int64 buffer, so it travels with the state dict. The
    tensors made from it are non-persistent buffers; a subclass makes them in `_make_seeded`, which
    runs in `reset_parameters`, whenever a state dict is loaded, and when a module built on the meta
    device gets its memory. ``to_empty`` leaves the seed, and what follows from it, as they are.

    The buffer is mirrored as a Python int, which a module on the meta device has alone, and which
    is there where a trace has no values. A write into the buffer in place, such as a broadcast from
    another rank or ``layer.seed.fill_(5)``, takes effect at the next ``train()``, ``eval()`` or
    `reset_parameters`, or at once by `reset_signs`.
    """

    seed: Tensor
    _seed: int

    def __init__(self, seed: int | None, device: torch.device | str | int | None) -> None:
        if self._needs_extension:
            _extension.require(type(self).__name__)
        super().__init__()
        self._seed = _draw_seed() if seed is None else _checked_seed(type(self).__name__, seed)
        self.register_buffer("seed", torch.tensor(self._seed, dtype=torch.int64, device=device))

    def _make_seeded(self) -> dict[str, Tensor]:
        """Tensors that follow from ``self._seed``, by buffer name, on the device of ``seed``."""
        return {}

    def reset_signs(self) -> None:
        """Make all that follows from the seed again from the buffer ``seed``, and nothing else.

        Waits for the device. On the meta device, where the buffer has no value, the seed stays.

        Raises:
            ValueError: the buffer holds a negative number.
        """
        self._seed = self._read_seed()
        self._restore_seeded()

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; a seed that was written in place takes effect.

        Raises:
            ValueError: the buffer ``seed`` holds a negative number.
        """
        self._follow_seed()
        return super().train(mode)

    def _follow_seed(self) -> None:
        """What was written into the buffer in place takes effect."""
        if self._read_seed() != self._seed:
            self.reset_signs()

    def _read_seed(self) -> int:
        """What the buffer holds; the mirror where it has no value, on meta and in a trace."""
        if type(self.seed) is not Tensor or self.seed.is_meta:
            return self._seed
        return _checked_seed(type(self).__name__, int(self.seed))

    @torch.no_grad()
    def _restore_seeded(self, *, in_place: bool = True) -> None:
        """Make the seed's buffer and all that follows from it again, from the mirrored seed."""
        seeded = self._make_seeded()
        for name, value in seeded.items():
            old = self._buffers[name]
            # Writing in place keeps captured CUDA graphs and shared memory true.
            if in_place and old is not None and _alike(old, value):
                old.copy_(value)
            else:
                setattr(self, name, value)
        self.seed = torch.tensor(self._seed, dtype=torch.int64, device=self.seed.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        names = ["seed", *self._non_persistent_buffers_set]
        self._follow_seed()
        before = {name: self._buffers[name] for name in names}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None or new is old or new.is_meta:
                continue
            if old.is_meta or old.dtype != new.dtype:  # `type(dtype)` converts integers too
                self._restore_seeded()
                break
            new.copy_(old)  # `to_empty` leaves garbage behind
        return self

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
        errors = len(error_msgs)
        self._seed = self._read_seed()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        loaded = state_dict.get(prefix + "seed")
        if isinstance(loaded, Tensor) and not loaded.is_meta and len(error_msgs) == errors:
            owner, name = type(self).__name__, f"{prefix}seed"
            if loaded.dtype != torch.int64:
                error_msgs.append(
                    f"{owner}: {name} must be int64, or its bits are lost "
                    f"(got dtype={loaded.dtype})"
                )
            elif int(loaded) < 0:
                error_msgs.append(f"{owner}: {name} must be in [0, 2**63) (got {int(loaded)})")
            else:
                self._seed = int(loaded)
        # With ``assign=True`` tensors are replaced, and the old ones keep their values.
        self._restore_seeded(in_place=not local_metadata.get("assign_to_params_buffers", False))


def _alike(first: Tensor, second: Tensor) -> bool:
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


def _draw_seed() -> int:
    """A seed from PyTorch's default generator, so that ``torch.manual_seed`` decides it."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def _checked_seed(owner: str, seed: int) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"{owner}: seed must be an int or None (got {type(seed).__name__})"
        ) from None
    if not 0 <= value < _SEED_LIMIT:
        raise ValueError(f"{owner}: seed must be in [0, 2**63) (got seed={value})")
    return value
