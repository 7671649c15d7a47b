"""Reports as HTML: one file with everything in it."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from compression.networks import Small, images, random_init
from torch import nn

import sketchlayers
from sketchlayers.compression import Report

_EMPTY = ("meta", "link", "br", "img", "line", "rect")


class Page(HTMLParser):
    """The text of a page and of its tables; fails where an element is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    return sketchlayers.compress(
        Small().eval(), "tucker2", rate=0.7, calibration=[images(16)], seed=1
    ).report


def page_of(report: Report, folder: Path) -> tuple[Page, str]:
    path = folder / "report.html"
    report.to_html(str(path))
    assert [one.name for one in folder.iterdir()] == ["report.html"]
    source = path.read_text(encoding="utf-8")
    return Page(source), source


def test_everything_is_in_the_page(report: Report, tmp_path: Path) -> None:
    report = dataclasses.replace(report, accuracy={"original": 0.916}, accuracy_images=100)
    page, source = page_of(report, tmp_path)
    rows = {row[0]: row for row in page.rows if row}
    for layer in report.layers:
        row = rows[layer.name]
        assert row[3] == (layer.becomes or "-")
        assert f"{layer.parameters_before:,}" in row and f"{layer.parameters_after:,}" in row
    for one in report.kept:
        assert rows[one.reason][-1] == f"{100 * one.share:.1f} %"
    shares = [one.share for one in report.kept]
    assert shares == sorted(shares, reverse=True)
    assert f"{report.parameters_before:,} → {report.parameters_after:,}" in page.text
    assert "milliseconds, 16 images" in page.text and "91.6 %" in page.text
    for note in report.notes:
        assert note in page.text
    if report.advice:
        assert page.text.count(report.advice) == 1
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [one["aria-label"] for one in drawn] == [
        "parameters of every layer, before and after",
        "relative error of every layer's output",
    ]
    assert "prefers-color-scheme: dark" in source


def test_the_page_needs_no_other_file(report: Report, tmp_path: Path) -> None:
    page, source = page_of(report, tmp_path)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href)=|url\(|@import", source)
    assert "default-src 'none'" in source


def test_names_are_escaped(tmp_path: Path) -> None:
    bad = '<script>alert("1")</script>&'
    model = nn.Sequential()
    model.add_module(bad, nn.Linear(64, 64))
    model.add_module("other", nn.Linear(64, 64))
    report = random_init(model, {"*": 0.5}).report
    report = dataclasses.replace(report, notes=(bad,), method=bad, accuracy={bad: 0.5})
    page, source = page_of(report, tmp_path)
    assert "<script" not in source
    assert page.text.count(bad) >= 3 and bad in {row[0] for row in page.rows if row}


def test_reports_without_data_or_with_numbers_that_are_not_finite(
    report: Report, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Embedding(3, 64), nn.Linear(64, 64))
    page, _ = page_of(random_init(model, {"1": 0.5}).report, tmp_path)
    assert "embedding" in page.text.lower()
    row = dataclasses.replace(report.layers[1], relative_error=math.inf)
    odd = dataclasses.replace(report, layers=(row,), output_change=math.nan, seconds={})
    assert "nan %" in page_of(odd, tmp_path)[0].text


def test_a_file_that_cannot_be_written_leaves_nothing(report: Report, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        report.to_html(tmp_path / "folder")
    with pytest.raises(OSError):
        report.to_html(tmp_path / "missing" / "report.html")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
