"""Settings of PyTorch that are one for all threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class SharedSetting:
    """While any thread is in it, a setting has another value.

    The first to enter sets it and the last to leave puts it back, whatever their order: each
    undoing its own would leave that of another.
    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """Takes what changes the setting for its body."""
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._changed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                changed = self._change()
                changed.__enter__()
                self._changed = changed
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                changed, self._changed = self._changed, contextlib.nullcontext()
                changed.__exit__(None, None, None)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    backends = (
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


full_float32 = SharedSetting(_full_float32)
"""Products of float32 are computed in float32, those of convolutions too."""
