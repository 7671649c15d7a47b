"""No network, no pickle, nothing evaluated; few dependencies, with lower bounds."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import sketchlayers

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(Path(sketchlayers.__file__).parent.rglob("*.py"))

# What runs what it reads, by the names under which it can be had.
EXECUTES = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("load_url", "load_state_dict_from_url", "download_url_to_file"),
    *("urllib", "http", "requests", "httpx", "socket", "ftplib", "huggingface_hub"),
}
# Reads pickles unless told otherwise.
UNPICKLES = {"torch.load", "np.load", "numpy.load"}


def names(tree: ast.AST) -> list[tuple[int, str]]:
    """Modules that are imported, and bare functions that are called or handed on, with lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, part) for one in node.names for part in one.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(one.name for one in node.names)]
            found += [(node.lineno, part) for part in parts]
        elif isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and node.attr.startswith(("load_", "download_")):
            found.append((node.lineno, node.attr))
    return found


def test_there_are_sources() -> None:
    assert len(SOURCES) > 60
    assert "eval" in {name for _, name in names(ast.parse("x = map(eval, y)"))}
    assert "socket" in {name for _, name in names(ast.parse("from socket import socket"))}


def test_nothing_executes_what_it_reads() -> None:
    found = {
        (path.name, name)
        for path in SOURCES
        for _, name in names(ast.parse(path.read_text()))
        if name in EXECUTES
    }
    # The command line reads pickles of a user who says that they are trusted; this is their error.
    assert found == {("models.py", "pickle")}


def test_pickles_are_read_only_when_trusted() -> None:
    calls = {
        ast.unparse(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNPICKLES
    }
    assert calls == {"torch.load(path, map_location='cpu', weights_only=not trust)"}


def test_no_network() -> None:
    """Imports, compresses, saves, loads, folds and exports where no socket can be made."""
    program = """
        import socket, sys, tempfile
        from pathlib import Path

        def refuse(event, args):
            if event.startswith(("socket.", "urllib.", "http.", "ftplib.")):
                raise AssertionError(f"{event} {args}")

        sys.addaudithook(refuse)
        try:
            socket.socket()
        except AssertionError:
            pass
        else:
            raise SystemExit("the hook does not work")

        import torch
        from torch import nn
        import sketchlayers

        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        batches = [torch.randn(4, 3, 8, 8)]
        small, report = sketchlayers.compress(model, rate=0.5, calibration=batches)
        with tempfile.TemporaryDirectory() as folder:
            path = sketchlayers.save(small, Path(folder, "small.safetensors"), reports=report)
            again = sketchlayers.load(path, into=model)
        assert torch.equal(again(batches[0]), small(batches[0]))
        sketchlayers.fold(again)
        sketchlayers.inspect(model)
        print("done")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert found.returncode == 0 and found.stdout == "done\n", found.stderr


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [Requirement(text) for text in project["tool"]["sketchlayers"]["dependencies"]]
    assert {requirement.name for requirement in needed} == {"safetensors"}  # besides PyTorch
    extras = project["project"]["optional-dependencies"].values()
    for requirement in (*needed, *(Requirement(text) for extra in extras for text in extra)):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators & {">=", "=="}, f"{requirement} has no lower bound"
