"""Options from a file, and how much a command says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sketchlayers.cli.main import main

from .command_line import assert_refused


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pickled model of three layers in ``whole.pt``."""
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), "whole.pt")
    return tmp_path


TOML = """
model = "whole.pt"
trust-pickle = true
init = "random"
method = "svd"
keep_first = false
exclude = ["1"]
json = true
out = "small.pt"

[rate]
"0" = 0.5
"2" = 0.8
"""


def test_files_of_every_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tomllib

    Path("options.toml").write_text(TOML)
    Path("options.json").write_text(json.dumps(tomllib.loads(TOML)))
    reports = []
    for name in ("options.toml", "options.json"):
        assert main(["compress", "--config", name, "--force"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["rate_asked"] == {"0": 0.5, "2": 0.8}
    assert [row["method"] for row in reports[0]["layers"]] == ["svd", None, "svd"]
    assert reports[0]["layers"] == reports[1]["layers"]
    yaml = pytest.importorskip("yaml")
    Path("options.yaml").write_text(yaml.safe_dump(tomllib.loads(TOML)))
    assert main(["compress", "--config=options.yaml", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == reports[0]["layers"]


def test_the_command_line_goes_before_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("options.toml").write_text(TOML)
    torch.save(nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), "other.pt")
    arguments = ["compress", "other.pt", "--config", "options.toml", "--exclude", "2"]
    arguments += ["--flops-rate", "0.9", "--input-size", "16", "--out", "it.pt", "--keep-first"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"] == "flops_rate"  # and not rates of layers too
    reasons = {row["name"]: row["reason"] for row in report["layers"]}
    assert reasons["2"] == "excluded (exclude=)" and reasons["1"] is None
    assert reasons["0"].startswith("the first layer is kept") and Path("it.pt").is_file()


def test_wrong_files(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, contents, message in [
        ("a.toml", "rat = 0.5", "options of the command as keys (got 'rat'; close ones: "),
        ("a.toml", "rate = [", "cannot read a.toml"),
        ("a.json", "[1]", "must have options and values (got list)"),
        ("a.json", '{"rate": [[1]]}', "--rate in a.json must be a number, a text or a list"),
        ("a.ini", "", "--config must be a file in one of .toml, .json, .yaml, .yml"),
        ("a.toml", "help = true", "(got 'help'"),
    ]:
        Path(name).write_text(contents)
        assert_refused(folder, capsys, ["compress", "whole.pt", "--config", name], message)
    missing = ["compress", "whole.pt", "--config", "missing.toml"]
    assert_refused(folder, capsys, missing, "no such file: missing.toml")
    Path("a.yaml").write_text("rate: 0.5")
    monkeypatch.setitem(sys.modules, "yaml", None)
    message = "(without it: a .toml or .json file) needs PyYAML, which is not installed"
    assert_refused(folder, capsys, ["compress", "--config", "a.yaml"], message)


def test_quiet_and_verbose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", "whole.pt", "--trust-pickle", "--init", "random", "--method", "svd"]
    arguments += ["--rate", "0.9", "--out", "small.pt", "--force"]
    assert main([*arguments, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "whole model" in out and err == ""
    assert main([*arguments, "-v"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("sketchlayers ") and torch.__version__ in err and "written: " in err
    wrong = ["compress", "missing.pt", *arguments[2:]]
    assert main([*wrong, "-q"]) == 2
    assert "(got 'missing.pt'" in capsys.readouterr().err
    assert main([*wrong, "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "-q", "-v"])
