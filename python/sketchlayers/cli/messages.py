"""What commands say beside their results: to the standard error, in one line each."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator


class WrongInput(ValueError):
    """Something that the user gave is wrong; the message is one line."""


def is_told(error: Exception) -> bool:
    """Whether the error says by itself what is wrong with what the user gave, or with the machine.

    Messages of the package begin with the function that was called, or with the option.
    """
    if isinstance(error, ImportError | OSError | MemoryError | WrongInput):
        return True
    owner, separator, _ = str(error).partition(": ")
    if owner.startswith("--"):
        return True
    return bool(separator) and _is_public(owner.partition(".")[0])


def _is_public(name: str) -> bool:
    import sketchlayers
    from sketchlayers import compression, nn

    return any(name in module.__all__ for module in (sketchlayers, nn, compression))


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Sets whether `tell` says nothing."""
    global _quiet
    _quiet = quiet


def tell(line: str) -> None:
    """Says what goes on, unless the user wants to hear of errors and warnings alone."""
    if not _quiet:
        warn(line)


def warn(line: str) -> None:
    """Says what is wrong, or may be."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_at_the_end() -> Iterator[None]:
    """Tells the package's warnings when the body has come to its end, each of them once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    messages = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    for message in dict.fromkeys(messages):
        warn(f"warning: {message}")
