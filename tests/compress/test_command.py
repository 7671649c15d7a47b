"""``sketchlayers inspect`` and ``sketchlayers compress``, called as the shell calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.cli import main
from sketchlayers.compress import open_compressed
from sketchlayers.compress._files import FORMAT

from .command_line import assert_refused, files, without

models = pytest.importorskip("torchvision.models")

NAME = "squeezenet1_1"
SMALL = ["--num-classes", "10"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compress(*arguments: str) -> int:
    return main(["compress", NAME, *SMALL, "--init", "random", "--rate", "0.5", *arguments])


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", NAME, "--input-size", "3x64x64"]) == 0
    out, err = capsys.readouterr()
    with torch.device("meta"):
        model = models.get_model(NAME, weights=None)
    expected = sketchlayers.inspect(model, torch.zeros(1, 3, 64, 64, device="meta"))
    assert out == f"{expected}\n" and err == ""
    assert main(["inspect", NAME, "--json", "--mixing", "channel", "--num-sketches", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == expected.parameters


def test_inspect_a_model_that_needs_values_to_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "regnet_x_400mf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 5_495_976


def test_compress_writes_a_file_that_loads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = models.get_model(NAME, weights=None, num_classes=10).eval()
    torch.save({"state_dict": source.state_dict()}, "weights.pt")
    arguments = ["compress", NAME, *SMALL, "--weights", "weights.pt", "--rate", "0.5"]
    arguments += ["--out", "small.pt", "--seed", "7", "--input-size", "3x64x64"]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    with pytest.warns(UserWarning, match="needs training"):
        expected, report = sketchlayers.compress(
            source, rate=0.5, seed=7, example_inputs=torch.zeros(1, 3, 64, 64)
        )
    printed, same = json.loads(out), report.to_dict()
    assert printed["seconds"].keys() == same["seconds"].keys()
    assert without(printed, "seconds") == without(same, "seconds")
    assert err.splitlines()[0].startswith("written: small.pt (")
    opening = err.splitlines()[1].removeprefix("open it in Python: ")
    assert err.splitlines()[2].startswith("warning: compress: ") and "needs training" in err
    contents = torch.load("small.pt", weights_only=True)
    assert contents["report"] == printed
    assert contents["architecture"] == {"name": NAME, "num_classes": 10}
    loaded = contents["state_dict"]
    assert loaded.keys() == expected.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.state_dict().items())
    assert sorted(files(folder)) == ["small.pt", "weights.pt"]
    assert os.stat("small.pt").st_mode == os.stat("weights.pt").st_mode

    # The file can be given in place of a model.
    assert main(["inspect", "small.pt"]) == 0
    assert "already compressed (SKConv2d)" in capsys.readouterr().out
    opened: dict[str, Any] = {}
    exec(opening, opened)  # the printed line is all that a reader needs
    assert not opened["model"].training
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(opened["model"](x), expected.eval()(x))


def test_a_compressed_file_can_be_compressed_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = ["--init", "random", "--json"]
    first = ["compress", NAME, *SMALL, "--rate", "features.12.*=0.2", "--num-sketches", "2"]
    assert main([*first, *tail, "--out", "once.pt"]) == 0
    again = ["compress", "once.pt", "--rate", "classifier.1=0.5"]
    assert main([*again, *tail, "--out", "twice.pt"]) == 0
    model = open_compressed("twice.pt")
    assert model.features[12].squeeze.num_sketches == 2
    assert model.classifier[1].num_sketches == 1
    state = torch.load("twice.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for name, value in open_compressed("once.pt").features.state_dict().items():
        assert torch.equal(state[f"features.{name}"], value)


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
def test_files_hold_every_kind_of_rank(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress("--method", method, "--out", "small.pt", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    contents = torch.load("small.pt", weights_only=True)
    assert contents["report"] == printed and printed["method"] == method
    ranks = [row["rank"] for row in printed["layers"] if row["method"]]
    assert all(isinstance(rank, list if method == "tucker2" else int) for rank in ranks)
    model = open_compressed("small.pt")
    assert sum(p.numel() for p in model.parameters()) == printed["parameters_after"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, contents["state_dict"][name])
    assert main(["inspect", "small.pt", "--method", method]) == 0
    assert "already compressed" in capsys.readouterr().out


def test_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--out", "small.pt") == 0
    capsys.readouterr()
    good = torch.load("small.pt", weights_only=True)
    report = good["report"]
    rows = report["layers"]
    at = next(i for i, row in enumerate(rows) if row["method"])

    def with_row(**changes: Any) -> dict[str, Any]:
        return {"report": report | {"layers": [*rows[:at], rows[at] | changes]}}

    cases = [
        (without(good, "architecture"), "'architecture' is missing"),
        (without(good, "state_dict"), "'state_dict' is missing"),
        (without(good, "report"), "'report' is missing"),
        (good | {"report": without(report, "layers")}, "'layers' is missing"),
        (good | {"architecture": {"name": NAME}}, "'num_classes' is missing"),
        (good | {"architecture": None}, "architecture must be a dict (got NoneType)"),
        (good | {"architecture": {"name": "squid", "num_classes": 10}}, "squid"),
        (good | {"architecture": {"name": NAME, "num_classes": 7}}, "size mismatch"),
        (good | {"report": 3}, "report must be a dict (got int)"),
        (good | {"earlier": 3}, "earlier must be a list (got int)"),
        (good | {"report": report | {"method": "sketsch"}}, "method must be one of"),
        (good | {"report": report | {"options": {"mixing": "time"}}}, "mixing must be one of"),
        (good | with_row(name="features.99"), "99"),
        (good | with_row(name="features.1"), "got ReLU"),
        (good | with_row(rank=10**6), "rank"),
        (good | {"state_dict": {}}, "Missing key"),
        (good | {"state_dict": [1]}, "state_dict must be a dict (got list)"),
    ]
    for contents, message in cases:
        torch.save(contents, "bad.pt")
        with pytest.raises(ValueError, match=r"^bad\.pt is damaged: .") as caught:
            open_compressed("bad.pt")
        assert message in str(caught.value)
        assert_refused(folder, capsys, ["inspect", "bad.pt"], "bad.pt is damaged: ")
    again = ["compress", "bad.pt", "--rate", "0.9", "--out", "new.pt"]
    assert_refused(folder, capsys, again, "bad.pt is damaged: ")


def test_open_compressed_refuses_other_files(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: missing\.pt"):
        open_compressed("missing.pt")
    torch.save([1, 2], "list.pt")
    with pytest.raises(ValueError, match=r"open_compressed: list\.pt must be .*got list"):
        open_compressed("list.pt")
    torch.save(nn.Linear(2, 2), "whole.pt")
    with pytest.raises(ValueError, match=r"if you trust it, use torch\.load\("):
        open_compressed(folder / "whole.pt")


def test_compress_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--out", "small.pt", "--no-keep-first", "--layers", "features.*") == 0
    out = capsys.readouterr().out
    assert "whole model" in out and "(asked: 0.5)" in out
    method = {words[0]: words[1] for line in out.splitlines() if len(words := line.split()) > 6}
    assert method["features.0"] == method["features.3.squeeze"] == "sketch"
    assert method["classifier.1"] == "-"


def test_rates_of_patterns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", NAME, *SMALL, "--init", "random", "--out", "small.pt", "--json"]
    assert main([*arguments, "--rate", "features.12.*=0.2", "--rate", "classifier.1=0.5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rate_asked"] == {"features.12.*": 0.2, "classifier.1": 0.5}
    replaced = {row["name"] for row in report["layers"] if row["method"]}
    assert replaced == {
        "features.12.squeeze",
        "features.12.expand1x1",
        "features.12.expand3x3",
        "classifier.1",
    }


def test_existing_files_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.pt").write_bytes(b"precious")
    arguments = ["compress", NAME, "--rate", "0.5", "--out", "small.pt"]
    assert_refused(folder, capsys, arguments, "small.pt exists; --force overwrites it")
    assert compress("--out", "small.pt", "--force") == 0
    assert torch.load("small.pt", weights_only=True)["format"] == FORMAT


def test_a_failed_write_leaves_the_old_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.pt").write_bytes(b"precious")

    def broken_save(contents: Any, file: Any) -> None:
        file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken_save)
    assert compress("--out", "small.pt", "--force") == 2
    assert "no space left" in capsys.readouterr().err
    assert files(folder) == {"small.pt": b"precious"}


class Pickled(nn.Sequential):
    """A whole model of a user's own."""


def test_pickled_models_need_trust(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Pickled(nn.Linear(32, 32), nn.Linear(32, 32)), "whole.pt")
    out = ["--rate", "0.8", "--out", "small.pt"]
    assert_refused(folder, capsys, ["compress", "whole.pt", *out], "say --trust-pickle")
    trusted = ["whole.pt", "--trust-pickle", "--input-size", "32"]
    assert main(["inspect", *trusted]) == 0
    assert "1.02 k" in capsys.readouterr().out  # multiply-adds of 32 x 32
    assert main(["compress", *trusted, *out, "--init", "random"]) == 0
    written, opening = capsys.readouterr().err.splitlines()[:2]
    assert written.startswith("written: small.pt (") and written.endswith("say --trust-pickle")

    # The file holds the whole model, and asks for the same trust as the one that it came from.
    assert_refused(folder, capsys, ["inspect", "small.pt"], "say --trust-pickle")
    assert main(["inspect", "small.pt", "--trust-pickle"]) == 0
    assert "already compressed (SKLinear)" in capsys.readouterr().out
    opened: dict[str, Any] = {"torch": torch}
    exec(opening.removeprefix("open it in Python: "), opened)
    assert isinstance(opened["model"], Pickled)
    assert opened["model"](torch.ones(3, 32)).shape == (3, 32)


def test_wrong_models_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = models.get_model(NAME, weights=None, num_classes=10).state_dict()
    torch.save(state, "weights.pt")
    whole = Path("weights.pt").read_bytes()
    Path("truncated.pt").write_bytes(whole[: len(whole) // 2])
    Path("garbage.pt").write_bytes(b"no tensors here" * 100)
    Path("empty.pt").write_bytes(b"")
    torch.save([1, 2], "list.pt")
    torch.save({name: tensor[:1] for name, tensor in state.items()}, "other.pt")
    cases = [
        (["squeezenet"], "close names: squeezenet1_1, squeezenet1_0"),
        (["missing.pt"], "(got 'missing.pt'"),
        (["weights.pt"], "holds weights and no model: give the model's name and --weights"),
        (["list.pt"], "must hold a model (got list)"),
        (["truncated.pt"], "cannot read truncated.pt"),
        (["garbage.pt", "--trust-pickle"], "cannot read garbage.pt"),
        (["garbage.pt"], "cannot read garbage.pt"),
        (["list.pt", "--num-classes", "3"], "--num-classes goes with a torchvision name"),
        ([NAME, "--weights", "missing.pt"], "no such file: missing.pt"),
        ([NAME, "--weights", "truncated.pt"], "cannot read truncated.pt"),
        ([NAME, "--weights", "empty.pt"], "cannot read empty.pt"),
        ([NAME, "--weights", "list.pt"], "must hold a state dict (got list)"),
        ([NAME, "--weights", "weights.pt"], "does not fit the model: "),
        ([NAME, *SMALL, "--weights", "other.pt"], "does not fit the model: "),
        ([NAME, "--input-size", "3x2x2"], "must run on example_inputs"),
        ([NAME, "--method", "sketsch"], "method must be one of"),
    ]
    for arguments, message in cases:
        assert_refused(folder, capsys, ["inspect", *arguments], message)
        tail = ["--rate", "0.5", "--out", "small.pt", "--init", "random"]
        assert_refused(folder, capsys, ["compress", *arguments, *tail], message)


def test_wrong_requests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["compress", NAME, *SMALL, "--init", "random", "--out", "small.pt", "--rate"]
    for arguments, message in [
        ([*base, "0.001"], "rate must be at least 0.0"),
        ([*base, "7"], "rate must be in (0, 1]"),
        ([*base, "0.5", "--rate", "0.6"], "--rate must be one number, or only pairs"),
        ([*base, "0.5", "--rate", "classifier.1=0.6"], "--rate must be one number, or only pairs"),
        ([*base, "0.5", "--layers", "classifer.*"], "a pattern must match a layer"),
        ([*base[:-3], "--out", "nowhere/small.pt", "--rate", "0.5"], "in a folder that exists"),
        ([*base[:-3], "--out", ".", "--rate", "0.5"], "--out must be a file"),
    ]:
        assert_refused(folder, capsys, arguments, message)


@pytest.mark.parametrize(
    "wrong", [["--rate", "half"], ["--input-size", "3x0x4"], ["--scale", "big"], ["--init", "x"]]
)
def test_arguments_that_do_not_parse(
    wrong: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compress", NAME, "--rate", "0.5", "--out", "small.pt", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err and files(folder) == {}
