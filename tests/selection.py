"""Which cases of a test are run every time, and which in `make test-all` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``, all marked slow but the quick ones.

    Raises:
        ValueError: A quick case is not among the cases.
    """
    cases = list(cases)
    unknown = [case for case in quick if case not in cases]
    if unknown:
        raise ValueError(f"quick cases must be among the cases (got {unknown} of {cases})")
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if case in quick else pytest.mark.slow
        marked.append(pytest.param(*values, marks=marks))
    return marked
