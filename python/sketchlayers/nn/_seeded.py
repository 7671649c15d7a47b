"""Layers some of whose tensors are a pure function of a seed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from ._config import Configured

_SEED_LIMIT = 2**63


class SeededModule(Configured):
    """Keeps a seed, and tensors made from it that no checkpoint needs to hold.

    The seed is a persistent 0-dimensional int64 buffer, so it travels with the state dict. It is
    mirrored as a Python int, because reading the buffer would wait for the device. The tensors made
    from it are non-persistent buffers; a subclass makes them in `_make_seeded`, which runs in
    `reset_parameters`, whenever a state dict is loaded, and when a module built on the meta device
    gets its memory.

    A write into the buffer ``seed`` in place, such as ``layer.seed.fill_(5)`` or a broadcast from a
    rank with another seed, goes past the mirror, and nothing tells it from the garbage that
    ``to_empty`` leaves. So call `reset_signs` after it, on every rank: until then the signs are as
    they were, and `reset_parameters` would write the old seed back. ``load_state_dict`` needs no
    such call.
    """

    seed: Tensor
    _seed: int

    def __init__(self, seed: int | None, device: torch.device | str | int | None) -> None:
        super().__init__()
        self._seed = _draw_seed() if seed is None else _checked_seed(type(self).__name__, seed)
        self.register_buffer("seed", torch.tensor(self._seed, dtype=torch.int64, device=device))

    def _make_seeded(self) -> dict[str, Tensor]:
        """Tensors that follow from ``self._seed``, by buffer name, on the device of ``seed``."""
        return {}

    def reset_signs(self) -> None:
        """Make all that follows from the seed anew from the buffer ``seed``, and nothing else.

        Needed after the buffer was written in place. Waits for the device. On the meta device,
        where the buffer has no value, the seed stays.

        Raises:
            ValueError: the buffer holds a negative number.
        """
        if not self.seed.is_meta:
            self._seed = _checked_seed(type(self).__name__, int(self.seed))
        self._restore_seeded()

    @torch.no_grad()
    def _restore_seeded(self) -> None:
        """Make the seed's buffer and all that follows from it anew, from the mirrored seed."""
        seeded = self._make_seeded()
        for name, value in seeded.items():
            old = self._buffers[name]
            # Writing in place keeps captured CUDA graphs and shared memory true.
            if old is not None and _alike(old, value):
                old.copy_(value)
            else:
                setattr(self, name, value)
        self.seed = torch.tensor(self._seed, dtype=torch.int64, device=self.seed.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to_empty` leaves garbage behind, and `type(dtype)` converts integers too.
        names = ["seed", *self._non_persistent_buffers_set]
        before = {name: self._buffers[name] for name in names}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            if (old.is_meta and not new.is_meta) or old.dtype != new.dtype:
                self._restore_seeded()
                break
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
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        loaded = state_dict.get(prefix + "seed")
        if isinstance(loaded, Tensor) and not loaded.is_meta and len(error_msgs) == errors:
            if loaded.dtype == torch.int64:
                self._seed = int(loaded)
            else:
                error_msgs.append(
                    f"{type(self).__name__}: {prefix}seed must be int64, or its bits are lost "
                    f"(got dtype={loaded.dtype})"
                )
        self._restore_seeded()


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
