"""Other packages beside this one, on a small network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import peers
from networks import CifarResNet, count_parameters
from trained.peers import PEERS, at_share

from .trained_networks import on_digits, read

pytestmark = pytest.mark.usefixtures("resnet8")


def test_a_row_for_each_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("tensorly", "torchao"):
        pytest.importorskip(package)
    names = [
        "ours, auto",
        "ours, auto, 8 bits",
        "tensorly, CP",
        "tensorly, Tucker",
        "torchao, int8",
    ]
    command = on_digits(tmp_path, "--rates", "0.6", "0.5", "--seconds=0.01")
    plot = tmp_path / "plot.png"
    assert peers.main([*command, f"--png={plot}", "--peers", *names]) == 0
    rows = read(tmp_path / "results.csv")
    sizes = [(row["peer"], row["rate"]) for row in rows]
    assert len(sizes) == len(set(sizes)) == 1 + 4 * 2 + 1
    for row in rows:
        assert not row["note"], row
        assert float(row["milliseconds"]) > 0
        if row["peer"] not in ("dense", "torchao, int8"):
            whole = count_parameters(CifarResNet(8))
            assert 0.4 * whole < int(row["parameters"]) < 1.02 * float(row["rate"]) * whole
    by_name = {row["peer"]: row for row in rows if row["rate"] == "0.5"}
    eight = int(by_name["ours, auto, 8 bits"]["bytes"])
    assert eight < 0.5 * int(by_name["ours, auto"]["bytes"])
    assert int(by_name["ours, auto"]["lines"]) < int(by_name["tensorly, CP"]["lines"])
    assert plot.stat().st_size > 0
    assert peers.main([*command, "--peers", *names]) == 0
    assert read(tmp_path / "results.csv") == rows  # nothing is made again
    capsys.readouterr()
    assert peers.main([f"--csv={tmp_path / 'results.csv'}", "--show", "--markdown"]) == 0
    assert "| tensorly, CP |" in capsys.readouterr().out


def test_packages_that_are_missing_or_fail_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> nn.Module:
        raise RuntimeError("no such layer")

    first, *_ = PEERS
    others = (
        replace(first, name="missing", package="no_such_package"),
        replace(first, name="failing", compress=fails),
    )
    monkeypatch.setattr(peers, "PEERS", others)
    assert peers.main(on_digits(tmp_path, "--rates=0.5", "--seconds=0.01")) == 0
    assert "left out: missing needs the package no_such_package" in capsys.readouterr().out
    dense, failing = read(tmp_path / "results.csv")
    assert dense["peer"] == "dense"
    assert (failing["peer"], failing["note"]) == ("failing", "RuntimeError: no such layer")
    assert failing["accuracy"] == ""


def test_the_option_that_gives_a_share_is_found() -> None:
    def make(removed: float) -> nn.Module:
        if removed < 0.1:
            raise RuntimeError("too little")
        return nn.Linear(100, round(100 * (1 - removed)), bias=False)

    assert 7700 <= count_parameters(at_share(make, 7750)) <= 7750
    with pytest.raises(ValueError, match="no option gives so few"):
        at_share(make, -1)


def test_lines_are_those_of_the_statements() -> None:
    lines = {peer.name: peer.lines for peer in PEERS}
    assert lines["ours, auto"] == 2
    assert all(2 <= count < 40 for count in lines.values())
