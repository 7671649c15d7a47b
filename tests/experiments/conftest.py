from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from image_data import DataSet, load


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and results do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> DataSet:
    """All of scikit-learn's digits."""
    return load("digits")


@pytest.fixture(scope="session")
def few_digits() -> DataSet:
    """Enough images for a few steps of training."""
    data = load("digits", subset=160, test_subset=80, size=8)
    return replace(data, augmentation=replace(data.augmentation, padding=1))
