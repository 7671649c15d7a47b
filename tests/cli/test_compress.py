"""``sketchlayers inspect`` and ``sketchlayers compress``, called as the shell calls them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sketchlayers
from sketchlayers.checkpoint import _container, read_description
from sketchlayers.cli.main import main

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
    assert "method auto can replace 25 of 26 layers" in out
    sketch = ["--method", "sketch", "--mixing", "channel", "--num-sketches", "2"]
    assert main(["inspect", NAME, "--json", "--no-keep-first", *sketch]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["method"] == "sketch" and printed["parameters"] == expected.parameters
    assert sum(layer["reason"] is None for layer in printed["layers"]) == 26


def test_inspect_a_model_that_needs_values_to_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--input-size", "3x64x64"]  # runs batch norms, which have buffers
    assert main(["inspect", "regnet_x_400mf", "--json", *sizes]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 5_495_976


def test_compress_writes_a_file_that_loads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = models.get_model(NAME, weights=None, num_classes=10).eval()
    torch.save({"state_dict": source.state_dict()}, "weights.pt")
    arguments = ["compress", NAME, *SMALL, "--weights", "weights.pt", "--rate", "0.5"]
    arguments += [
        "--method",
        "sketch",
        "--out",
        "small.safetensors",
        "--seed",
        "7",
        "--input-size",
        "3x64x64",
    ]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    with pytest.warns(UserWarning, match="needs training"):
        expected, report = sketchlayers.compress(
            source, rate=0.5, seed=7, example_inputs=torch.zeros(1, 3, 64, 64)
        )
    printed, same = json.loads(out), report.to_dict()
    assert printed["seconds"].keys() == same["seconds"].keys()
    assert without(printed, "seconds", "latencies") == without(same, "seconds", "latencies")
    assert err.splitlines()[0].startswith("written: small.safetensors (")
    opening = err.splitlines()[1].removeprefix("open it in Python: ")
    assert err.splitlines()[2].startswith("warning: compress: ") and "needs training" in err
    description = read_description("small.safetensors")
    assert description.reports == (printed,)
    assert description.architecture == {"name": NAME, "num_classes": 10}
    loaded = load_file("small.safetensors")
    assert loaded.keys() == expected.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in expected.state_dict().items())
    assert sorted(files(folder)) == ["small.safetensors", "weights.pt"]
    assert os.stat("small.safetensors").st_mode == os.stat("weights.pt").st_mode

    # The file can be given in place of a model.
    assert main(["inspect", "small.safetensors"]) == 0
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
    assert main([*first, *tail, "--out", "once.safetensors"]) == 0
    again = ["compress", "once.safetensors", "--rate", "classifier.1=0.5"]
    assert main([*again, *tail, "--out", "twice.safetensors"]) == 0
    model = sketchlayers.load("twice.safetensors")
    assert model.features[12].squeeze.num_sketches == 2
    assert model.classifier[1].num_sketches == 1
    state = load_file("twice.safetensors")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    rates = [report["rate_asked"] for report in read_description("twice.safetensors").reports]
    assert rates == [{"features.12.*": 0.2}, {"classifier.1": 0.5}]
    for name, value in sketchlayers.load("once.safetensors").features.state_dict().items():
        assert torch.equal(state[f"features.{name}"], value)


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
def test_files_hold_every_kind_of_rank(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress("--method", method, "--out", "small.safetensors", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert read_description("small.safetensors").reports == (printed,)
    assert printed["method"] == method
    ranks = [row["rank"] for row in printed["layers"] if row["method"]]
    assert all(isinstance(rank, list if method == "tucker2" else int) for rank in ranks)
    model = sketchlayers.load("small.safetensors")
    assert sum(p.numel() for p in model.parameters()) == printed["parameters_after"]
    stored = load_file("small.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert main(["inspect", "small.safetensors", "--method", method]) == 0
    assert "already compressed" in capsys.readouterr().out


def test_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--out", "small.safetensors") == 0
    capsys.readouterr()
    good = Path("small.safetensors").read_bytes()
    for bad, message in (
        (good[:-1] + bytes([good[-1] ^ 1]), "its checksum is "),
        (good.replace(b"squeezenet1_1", b"squeezenet1_0"), "the network must have a layer"),
        (good[: len(good) // 2], "cannot read bad.safetensors: damaged ("),
    ):
        Path("bad.safetensors").write_bytes(bad)
        assert_refused(folder, capsys, ["inspect", "bad.safetensors"], message)
        again = ["compress", "bad.safetensors", "--rate", "0.9", "--method", "svd"]
        again += ["--out", "new.safetensors"]
        assert_refused(folder, capsys, again, message)
    sketchlayers.save(nn.Linear(4, 4), "own.safetensors")
    assert_refused(folder, capsys, ["inspect", "own.safetensors"], "does not say how to make the")


def test_compress_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--out", "small.safetensors", "--no-keep-first", "--layers", "features.*") == 0
    out = capsys.readouterr().out
    assert "whole model" in out and " asked: 0.5\n" in out
    method = {words[0]: words[1] for line in out.splitlines() if len(words := line.split()) > 5}
    assert method["features.0"] == method["features.3.squeeze"] == "sketch"
    assert method["classifier.1"] == "-"


def test_rates_of_patterns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compress",
        NAME,
        *SMALL,
        "--init",
        "random",
        "--out",
        "small.safetensors",
        "--json",
    ]
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
    Path("small.safetensors").write_bytes(b"precious")
    arguments = [
        "compress",
        NAME,
        "--init",
        "random",
        "--rate",
        "0.5",
        "--out",
        "small.safetensors",
    ]
    assert_refused(folder, capsys, arguments, "small.safetensors exists; --force overwrites it")
    assert compress("--out", "small.safetensors", "--force") == 0
    assert read_description("small.safetensors").version == 2


def test_a_failed_write_leaves_the_old_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.safetensors").write_bytes(b"precious")

    def broken_save(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(_container, "save_file", broken_save)
    assert compress("--out", "small.safetensors", "--force") == 2
    assert "no space left" in capsys.readouterr().err
    assert files(folder) == {"small.safetensors": b"precious"}


class Pickled(nn.Sequential):
    """A whole model of a user's own."""


def test_pickled_models_need_trust(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Pickled(nn.Linear(32, 32), nn.Linear(32, 32)), "whole.pt")
    out = ["--method", "sketch", "--rate", "0.8", "--out", "small.pt"]
    assert_refused(folder, capsys, ["compress", "whole.pt", *out], "say --trust-pickle")
    other = ["compress", "whole.pt", "--trust-pickle", *out[:-1], "it.safetensors"]
    assert_refused(folder, capsys, other, "--out of a pickled MODEL must not be a .safetensors")
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
        (["list.pt", "--num-classes", "3"], "--num-classes goes with the name of a model"),
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
        tail = ["--rate", "0.5", "--out", "small.safetensors", "--init", "random"]
        assert_refused(folder, capsys, ["compress", *arguments, *tail], message)


def test_wrong_requests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["compress", NAME, *SMALL, "--init", "random", "--out", "small.safetensors", "--rate"]
    for arguments, message in [
        ([*base, "0.001"], "rate must be at least 0.0"),
        (
            [*base, "50"],
            "(got rate=50): it is the fraction of the parameters that is kept; for 50 %",
        ),
        ([*base[:-1], "--flops-rate", "50", "--input-size", "3x64x64"], "give flops_rate=0.5"),
        ([*base[:-1], "--latency-rate", "50", "--input-size", "3x64x64"], "give latency_rate=0.5"),
        ([*base, "features.12.*=50"], "rate for 'features.12.*' must be in (0, 1] (got rate=50)"),
        ([*base, "0.5", "--layers", "features.12"], "'features.12.*' matches the layers inside"),
        (
            [*base, "0.5", "--method", "auto", "--frame", "signs"],
            "--frame must go with --method sk",
        ),
        ([*base, "0.5", "--rate", "0.6"], "--rate must be one number, or only pairs"),
        ([*base, "0.5", "--rate", "classifier.1=0.6"], "--rate must be one number, or only pairs"),
        ([*base, "0.5", "--layers", "classifer.*"], "a pattern must match a layer"),
        (
            [*base[:-3], "--out", "nowhere/small.safetensors", "--rate", "0.5"],
            "in a folder that exists",
        ),
        ([*base[:-3], "--out", ".", "--rate", "0.5"], "--out must be a file"),
        ([*base[:-3], "--out", "it.pt", "--rate", "0.5"], "--out must be a .safetensors file"),
    ]:
        assert_refused(folder, capsys, arguments, message)


def test_without_images_the_user_must_choose(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sketch that is fitted to the weights, which is the default, leaves a network at chance."""
    arguments = ["compress", NAME, *SMALL, "--rate", "0.5", "--out", "small.safetensors"]
    for more in ([], ["--init", "fit"], ["--finetune", "1", "--train", "photos"]):
        assert_refused(folder, capsys, [*arguments, *more], "a trained network needs images")
    assert main([*arguments, "--method", "svd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "svd"
    assert main([*arguments, "--init", "random", "--json", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "sketch"


def test_the_seed_is_0_unless_it_is_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first.safetensors", "second.safetensors"):
        assert compress("--out", name, "--json") == 0
        assert json.loads(capsys.readouterr().out)["seed"] == 0
    first, second = load_file("first.safetensors"), load_file("second.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_names_of_networks_need_torchvision(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = (
        f"a network of the name {NAME} needs torchvision, which is not installed: "
        'pip install "sketchlayers[cli]"'
    )
    assert_refused(folder, capsys, ["inspect", NAME], message)
    assert_refused(folder, capsys, ["inspect", "missing.pt"], "or a file (got 'missing.pt')")
    torch.save(nn.Sequential(nn.Linear(32, 32)), "whole.pt")
    assert main(["inspect", "whole.pt", "--trust-pickle"]) == 0  # a file does without it


@pytest.mark.parametrize(
    "wrong", [["--rate", "half"], ["--input-size", "3x0x4"], ["--scale", "big"], ["--init", "x"]]
)
def test_arguments_that_do_not_parse(
    wrong: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compress", NAME, "--rate", "0.5", "--out", "small.safetensors", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err and files(folder) == {}
