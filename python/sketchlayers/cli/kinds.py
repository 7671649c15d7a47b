"""Kinds of arguments, from the text on the command line; wrong ones raise ``ArgumentTypeError``."""

from __future__ import annotations

import argparse


def rate(text: str) -> float | tuple[str, float]:
    """A rate of the whole model, or PATTERN=NUMBER."""
    pattern, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number or PATTERN=NUMBER (got {text!r})"
        ) from None
    return (pattern, value) if equals else value


def input_size(text: str) -> tuple[int, ...]:
    """Sizes such as 3x224x224."""
    try:
        size = tuple(int(part) for part in text.split("x"))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes such as 3x224x224 (got {text!r})")
    return size


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1 (got {text!r})")
    return int(text)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1] (got {text!r})")
    return value


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")
    return value


def gibibytes(text: str) -> int:
    """Bytes, of a number of GiB."""
    return max(1, int(positive_number(text) * 2**30))
