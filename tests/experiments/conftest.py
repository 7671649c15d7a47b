from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from image_data import DataSet, load
from networks import CifarResNet
from trained import pretrained
from trained.pretrained import Definition


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


@pytest.fixture
def resnet8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest network of the family, to be had by its name."""
    definition = Definition(partial(CifarResNet, 8), "linear", 32)
    monkeypatch.setitem(pretrained._DEFINITIONS, "resnet8", definition)
