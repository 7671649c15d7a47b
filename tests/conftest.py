"""What all tests share: the GPU marker, seeds, threads and the settings of hypothesis."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# What somebody has tuned on this machine must not decide what tests see.
os.environ["SKETCHLAYERS_CACHE"] = ""
# A CUDA kernel that is wrong must fail a test and not be replaced.
os.environ.setdefault("SKETCHLAYERS_CUDA_KERNELS", "on")


# The same examples in every run, so that a change is to blame for a failure and not chance.
settings.register_profile(
    "fixed",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Others in every run: pytest --hypothesis-profile random, which prints how to repeat a failure.
settings.register_profile(
    "random", settings.get_profile("fixed"), derandomize=False, print_blob=True
)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Leaves the cores to the workers when tests run in parallel."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _planner_estimates() -> Iterator[None]:
    """What a test has timed does not choose the paths of the next one."""
    yield
    if "sketchlayers.planning" in sys.modules:
        sys.modules["sketchlayers.planning"].benchmark(False)
        sys.modules["sketchlayers._extension"].load().forget_times()
