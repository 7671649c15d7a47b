"""The README's Python examples run as they stand, and its picture of the layout is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][:30])
def test_example_runs(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


def test_there_is_an_example_of_each_kind_of_user() -> None:
    assert len(EXAMPLES) == 2
    assert "experiments/train.py" in README
    assert "@@" not in README


def test_layout_names_what_is_there() -> None:
    layout = README.split("## Layout")[1].split("## ")[0]
    lines = [line for line in layout.splitlines() if line.startswith("    ")]
    folder = ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        names = re.match(r"\s*((?:[\w./]+ )+)", line + " ")
        assert names, line
        for name in names.group(1).split():
            if not re.fullmatch(r"[\w.]*[/.][\w./]*|Makefile", name):
                break  # the words of the description
            if indent == 4:
                folder = name if name.endswith("/") else ""
            path = ROOT / (name if indent == 4 else folder + name)
            assert path.exists(), f"README names {path.relative_to(ROOT)}, which is not there"
