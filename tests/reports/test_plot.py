"""Reports as pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from compression.networks import Small, images, random_init
from torch import nn

import sketchlayers
from sketchlayers.compression import Report

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    return sketchlayers.compress(
        Small().eval(), "tucker2", rate=0.7, calibration=[images(16)], seed=1
    ).report


def test_every_layer_and_method_is_in_the_picture(report: Report, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        report.plot(tmp_path / "report.svg")
    drawn = (tmp_path / "report.svg").read_text()
    for row in report.layers:
        assert f">{row.name}<" in drawn
        assert row.becomes is None or f">{row.becomes}<" in drawn
    assert "relative error of the layer's output" in drawn.replace("&#x27;", "'")
    assert "the network's outputs change by" in drawn.replace("&#x27;", "'")


def test_without_errors_there_are_only_parameters(tmp_path: Path) -> None:
    import matplotlib

    report = random_init(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), 0.6).report
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        report.plot(tmp_path / "report.svg")
    drawn = (tmp_path / "report.svg").read_text()
    assert ">parameters<" in drawn and "error" not in drawn


def test_pictures_that_cannot_be_drawn(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.plot(str(tmp_path / "report.PNG"))
    assert (tmp_path / "report.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"must end in one of .*\.png.* \(got .*report\.doc\)"):
        report.plot(tmp_path / "report.doc")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*: pip install .sketchlayers\[plot\]"):
        report.plot(tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["report.PNG"]
