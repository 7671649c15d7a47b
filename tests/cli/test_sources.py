"""Models of timm, of transformers and of a user's own functions, by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sketchlayers
from sketchlayers.cli.main import main
from sketchlayers.cli.messages import WrongInput
from sketchlayers.cli.models import open_model

from .command_line import assert_refused
from .photos import write_photos

MODULE = """
from torch import nn

class Holder:
    @staticmethod
    def make(num_classes=3):
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, num_classes))

def broken():
    raise KeyError("no weights here")

number = lambda: 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    Path("own_networks.py").write_text(MODULE)
    return tmp_path


@pytest.mark.filterwarnings("ignore:compress")
def test_a_function_of_the_users_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "own_networks:Holder.make"
    loaded = open_model(name, None, 5, trust=False)
    assert loaded.model[2].out_features == 5 and not loaded.model.training
    torch.save(loaded.model.state_dict(), "weights.pt")

    arguments = ["compress", name, "--num-classes", "5", "--weights", "weights.pt"]
    arguments += ["--method", "svd", "--rate", "0.85", "--out", "small.safetensors"]
    assert main([*arguments, "--input-size", "16"]) == 0
    err = capsys.readouterr().err
    opening = next(line for line in err.splitlines() if line.startswith("open it in Python: "))
    opened: dict[str, Any] = {}
    exec(opening.removeprefix("open it in Python: "), opened)
    expected, _ = sketchlayers.compress(loaded.model, "svd", rate=0.85)
    x = torch.randn(4, 16)
    torch.testing.assert_close(opened["model"](x), expected(x))

    # What was compressed is given as weights, and knows its history.
    again = ["compress", name, "--num-classes", "5", "--weights", "small.safetensors", "--json"]
    again += ["--method", "svd", "--rate", "0.99", "--no-keep-first", "--out", "twice.safetensors"]
    assert main(again) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in report["layers"]}
    assert rows["2"]["kind"] == "Linear" and rows["2"]["method"] == "svd"
    assert any("folded" in note for note in report["notes"])


def test_functions_that_make_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in [
        ("no_such_module:make", "cannot import no_such_module"),
        ("own_networks:make", "MODEL own_networks:make: "),
        ("own_networks:broken", "the call failed with KeyError: 'no weights here'"),
        ("own_networks:number", "must return an nn.Module (got int)"),
        ("hf/nowhere", "config.json" if "transformers" in sys.modules else ""),
        ("nothing", "timm/NAME, hf/FOLDER, package.module:factory or a file (got 'nothing'"),
    ]:
        assert_refused(folder, capsys, ["inspect", name], message)


@pytest.mark.parametrize(("name", "package"), [("timm/resnet18", "timm"), ("hf/x", "transformers")])
def test_packages_that_are_missing(
    name: str,
    package: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{name} needs {package}, which is not installed: pip install {package}"
    assert_refused(folder, capsys, ["inspect", name], message)


def test_networks_of_timm(folder: Path) -> None:
    timm = pytest.importorskip("timm")
    loaded = open_model("timm/resnet10t", None, 3, trust=False)
    assert not loaded.trained and loaded.model.num_classes == 3
    expected = timm.create_model("resnet10t", num_classes=3)
    assert loaded.model.state_dict().keys() == expected.state_dict().keys()
    said = expected.pretrained_cfg
    prepared = loaded.preparation(None)
    assert prepared.size == tuple(said["input_size"]) and prepared.mean == tuple(said["mean"])
    assert loaded.preparation((3, 32, 32)).size == (3, 32, 32)
    with pytest.raises(WrongInput, match=r"must name a model of timm .*close names: .*resnet10t"):
        open_model("timm/resnet10", None, None, trust=False)


def test_folders_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained("vit")
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3]}
    processor |= {"image_std": [0.4, 0.5, 0.6], "resample": 3}
    Path("vit/preprocessor_config.json").write_text(json.dumps(processor))
    loaded = open_model("hf/vit", None, None, trust=False)
    assert loaded.trained and type(loaded.model) is type(model)
    prepared = loaded.preparation(None)
    assert prepared.size == (3, 32, 32) and prepared.std == (0.4, 0.5, 0.6)
    assert prepared.interpolation.value == "bicubic"

    write_photos(Path("photos"), ["a", "b", "c"], 2)
    arguments = ["compress", "hf/vit", "--method", "svd", "--rate", "0.8", "--calibration"]
    arguments += ["photos", "--val", "photos", "--out", "small.safetensors"]
    assert main(arguments) == 0
    err = capsys.readouterr().err
    opened: dict[str, Any] = {}
    opening = next(line for line in err.splitlines() if line.startswith("open it in Python: "))
    exec(opening.removeprefix("open it in Python: "), opened)
    count = sum(parameter.numel() for parameter in opened["model"].parameters())
    assert count <= 0.81 * sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(WrongInput, match="does not go with hf/FOLDER"):
        open_model("hf/vit", None, 4, trust=False)
    Path("vit/config.json").write_text("{}")
    with pytest.raises(WrongInput, match="transformers cannot open vit: "):
        open_model("hf/vit", None, None, trust=False)
