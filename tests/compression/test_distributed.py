"""Several processes, each with a part of the images, compress as one with all of them does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from . import gloo_compress_worker as worker


@pytest.fixture
def written(two_processes: Path) -> Path:
    """The folder with what each process got."""
    return two_processes / "gloo_compress_worker"


def results(folder: Path, variant: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{variant}-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("variant", worker.VARIANTS)
def test_all_processes_get_the_same_network(written: Path, variant: str) -> None:
    first, second = results(written, variant)
    assert first["change"] == second["change"]
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


def test_failures_are_errors_in_all_processes(written: Path) -> None:
    first, second = (
        (written / f"failures-{rank}.txt").read_text().splitlines() for rank in range(2)
    )
    assert "reading the images must succeed in all processes" in first[0]
    assert second[0].startswith("ValueError: compress: the calibration loader must yield batches")
    assert first[1] == second[1]
    assert first[1].endswith("all processes must be called with the same arguments")


def test_it_is_the_network_of_one_process_with_all_images(written: Path) -> None:
    first, _ = results(written, "closed form")
    whole = [*worker.batches(0), *worker.batches(1)]
    model, change = worker.compressed(whole, "closed form")
    assert first["change"] == pytest.approx(change, rel=1e-4)
    x = torch.cat(whole)
    expected = model.eval()(x)
    model.load_state_dict(first["state"])  # of the same ranks
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-3, atol=1e-4)
    part, _ = worker.compressed(worker.batches(0), "closed form")
    assert not torch.allclose(part.eval()(x), expected, rtol=1e-2, atol=1e-2)
