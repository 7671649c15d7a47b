"""Every cell of the table in ``docs/robustness.md``: it passes, or is the error that is stated."""

from __future__ import annotations

import pytest
import torch

from .afterwards import DTYPES, IMAGES, METHODS, OPERATIONS, PAGE, Case, page, refusal_of

RARE = (torch.float64, torch.float16)
CASES = [Case(method, dtype, images) for method in METHODS for dtype in DTYPES for images in IMAGES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if case.dtype in RARE else [])
        for case in CASES
        if case.exists
    ],
    ids=lambda case: f"{case.method}-{str(case.dtype)[6:]}-{'' if case.images else 'no '}images",
)
def test_cell(case: Case, operation: str) -> None:
    torch.manual_seed(1)
    refusal = refusal_of(operation, case)
    if refusal is None:
        OPERATIONS[operation](case)
        return
    with pytest.raises(Exception, match=refusal.error):
        OPERATIONS[operation](case)


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "type python -m tests.robustness.afterwards"
