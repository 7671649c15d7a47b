"""The command line: which commands there are, and how mistakes are told."""

from __future__ import annotations

import sys

import pytest

import sketchlayers
from sketchlayers.cli import doctor
from sketchlayers.cli import main as cli
from sketchlayers.cli.messages import WrongInput


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in ("doctor", "inspect", "compress", "bench"):
        assert name in printed
    about = printed.partition("\n\n")[2]
    assert about.startswith("Compress trained PyTorch networks")  # before the layers to train
    assert about.index("sketched layers") < about.index("positional arguments")


def groups_of(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The groups of a command's help in order, each with its options."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    groups: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            groups[line.removesuffix(":").partition(" (")[0]] = options = []
        elif line.startswith("  --"):
            options.append(line.split()[0].rstrip(","))
    return groups


def test_help_of_compress_begins_with_what_everybody_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    groups = groups_of("compress", capsys)
    assert list(groups)[:6] == [
        "positional arguments", "options", "budget", "images", "training and accuracy", "output"
    ]  # fmt: skip
    assert groups["options"] == []  # everything but --help has a group that says what it is about
    budgets = ["--rate", "--flops-rate", "--latency-rate", "--bytes-rate", "--rates", "--max-drop"]
    assert groups["budget"] == budgets
    assert "--calibration" in groups["images"] and "--finetune" in groups["training and accuracy"]
    assert {"--out", "--plot", "--html", "--force", "--json"} < set(groups["output"])
    assert list(groups)[-2:] == ["options of --method sketch", "examples"]
    sketch = ["--num-sketches", "--mixing", "--scale", "--blocks", "--signs", "--frame"]
    assert groups["options of --method sketch"] == sketch
    assert groups_of("inspect", capsys)["options of --method sketch"] == sketch


@pytest.mark.parametrize("command", ["doctor", "inspect", "compress", "bench"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: sketchlayers {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"sketchlayers {sketchlayers.__version__}"


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["shrink"])
    assert stop.value.code == 2
    assert "shrink" in capsys.readouterr().err


def test_doctor_imports_no_other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [
        name
        for name in sys.modules
        if name.startswith(("sketchlayers.compression", "sketchlayers.cli.compress"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    cli.build_parser("doctor")
    assert "sketchlayers.cli.compress" not in sys.modules


@pytest.mark.parametrize("error", [WrongInput("rate must be in (0, 1]"), FileNotFoundError("gone")])
def test_errors_are_told_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"sketchlayers doctor: {error}\n"


def test_what_is_not_the_users_error_shows_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise ValueError("not enough values to unpack (expected 2, got 1)")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(ValueError, match="not enough values"):
        cli.main(["doctor"])
    assert "please report it" in capsys.readouterr().err


def test_messages_of_the_package_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        return len(str(sketchlayers.SKLinear(4, 4, rank=5)))

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("sketchlayers doctor: SKLinear: num_sketches * rank")
