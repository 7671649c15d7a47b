"""What the README, the site's pages and the docstrings show runs, and what they say is there is."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.methods import _method

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
    if EXAMPLES.search(page.read_text())
    and page.name != "distributed.md"  # runs in two processes: `tests/processes`
]
PUBLIC = ("sketchlayers", "sketchlayers.methods", "sketchlayers.decompose", "sketchlayers.ops")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def methods_stay_as_they_are() -> Iterator[None]:
    """A page may register a method of its own."""
    before = dict(_method._methods)
    yield
    _method._methods.clear()
    _method._methods.update(before)


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
        )


@pytest.fixture
def my_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What readers bring: a module with their network and images, and a file of weights."""
    project: Any = ModuleType("my_project")
    project.Network = Network
    project.loader = [(torch.randn(32, 3, 8, 8), torch.randint(10, (32,))) for _ in range(4)]
    monkeypatch.setitem(sys.modules, "my_project", project)
    torch.save(Network().state_dict(), tmp_path / "weights.pt")


def run_sessions(text: str, names: dict[str, Any], name: str, line: int = 0) -> None:
    """Runs what a person types at ``>>>`` and compares what comes out; new names are added."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, line)
    test.globs = names
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)


@pytest.mark.usefixtures("my_project")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the top to the bottom, each with the names of those before it."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict[str, Any] = {"__name__": "__main__"}
    for example in EXAMPLES.finditer(text):
        line = text.count("\n", 0, example.start(1))
        if example[1].startswith(">>>"):
            run_sessions(example[1], names, page.name, line)
        else:
            source = "\n" * line + example[1]  # so that a traceback has the page's line
            exec(compile(source, str(page), "exec", dont_inherit=True), names)


def documented() -> list[tuple[str, object]]:
    """Public names whose docstrings have examples, and what they stand for."""
    found: dict[int, tuple[str, object]] = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in getattr(module, "__all__", [x for x in vars(module) if not x.startswith("_")]):
            value = getattr(module, name)
            if ">>>" in (getattr(value, "__doc__", None) or ""):
                found[id(value)] = name, value
    return list(found.values())


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in documented()])
def test_examples_of_a_docstring_run(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "nn": nn, "sketchlayers": sketchlayers, value.__name__: value}
    run_sessions(value.__doc__, names, value.__name__)


@pytest.mark.slow  # trains; the site runs it, too
def test_example_with_plots_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer images and a stage of the network less; the site runs it whole."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(pyplot, "show", lambda: None)
    source = (DOCS / "examples" / "plot_compress_torchvision.py").read_text()
    for long, short in {
        "EPOCHS = 4": "EPOCHS = 1",
        "CALIBRATION_IMAGES = 512": "CALIBRATION_IMAGES = 64",
        "RATES = (0.7, 0.5, 0.3, 0.15)": "RATES = (0.5,)",
        "model.layer3 = ": "model.layer2 = model.layer3 = ",
        "torch.nn.Linear(128, 10)": "torch.nn.Linear(64, 10)",
    }.items():
        assert source.count(long) == 1
        source = source.replace(long, short)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "plot_compress_torchvision.py", "exec", dont_inherit=True), names)
    report = names["report"]
    assert 0.25 < report.rate <= 0.3
    assert len(pyplot.get_fignums()) == 2
    assert len(names["left"].patches) == 2 * len(names["rows"])
    pyplot.close("all")


def measured() -> ModuleType:
    """The script that writes the pages' tables."""
    spec = importlib.util.spec_from_file_location("measured", DOCS / "measured.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results() -> None:
    script = measured()
    found = set()
    for page in script.PAGES:
        text = page.read_text()
        assert script.rewritten(text) == text, f"run python docs/measured.py: {page.name}"
        found |= {name for _, name, _ in script.BLOCK.findall(text)}
    assert found == set(script.TABLES)


COMMAND = re.compile(
    r"^ *(?:(?:python|torchrun .*?) experiments/(\w+)\.py|sketchlayers (\w+)) (.*)$", re.MULTILINE
)
PAGES = (
    *sorted(DOCS.glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_have_these_options(page: Path) -> None:
    """Every option of a command on a page is one that the program's sources declare."""
    text = page.read_text().replace("\\\n", " ")
    package = "".join(path.read_text() for path in (ROOT / "python").rglob("*.py"))
    experiments = "".join(path.read_text() for path in (ROOT / "experiments").rglob("*.py"))
    for script, command, arguments in COMMAND.findall(text):
        assert not script or (ROOT / "experiments" / f"{script}.py").exists(), script
        assert not command or command in ("doctor", "inspect", "calibrate", "compress", "bench")
        for option in re.findall(r"--[\w-]+", arguments.partition("#")[0]):
            assert f'"{option}"' in (experiments if script else package), (page.name, option)


def test_every_page_is_in_the_contents() -> None:
    contents = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", contents, re.M), page.name


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for module in ("sketchlayers", "sketchlayers.methods", "sketchlayers.decompose"):
        for name in importlib.import_module(module).__all__:
            known = re.search(rf"^(   |.. py:type:: ){name}$", reference, re.M)
            assert known or name in ("__version__", "scale_argument"), f"{module}.{name}"


def test_there_is_an_example_of_each_kind_of_user() -> None:
    assert len(EXAMPLES.findall(README)) >= 2
    assert "experiments/figure2.py" in README


LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Of pages that are not part of the site, whose own links Sphinx checks."""
    for target in LINK.findall((ROOT / page).read_text()):
        assert (ROOT / target).exists(), f"{page} links {target}, which is not there"


def test_layout_names_what_is_there() -> None:
    layout = CONTRIBUTING.split("## Layout")[1].split("## ")[0]
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
            assert path.exists(), (
                f"CONTRIBUTING.md names {path.relative_to(ROOT)}, which is not there"
            )
