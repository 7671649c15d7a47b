"""Files of compressed models in both formats, and weights as others write them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sketchlayers import methods
from sketchlayers.compress import open_compressed
from sketchlayers.compress._files import FORMAT, is_safetensors, read, write
from sketchlayers.compress._open import WrongInput, open_model
from sketchlayers.compress._swap import replace_layers

models = pytest.importorskip("torchvision.models")

NAME = "squeezenet1_1"
RANKS = {
    "features.3.squeeze": ("svd", 5),
    "features.6.squeeze": ("tucker2", (None, 4)),
    "features.6.expand3x3": ("tucker2", (8, 16)),
    "features.7.expand3x3": ("cp", 12),
    "features.9.expand3x3": ("tucker2", (8, None)),
    "features.12.expand3x3": ("sketch", 2),
}


@pytest.fixture(scope="module")
def contents() -> dict[str, Any]:
    """Of a model in which layers have methods of their own."""
    torch.manual_seed(0)
    model = models.get_model(NAME, weights=None, num_classes=4).eval()
    replacements = {
        model.get_submodule(name): methods.get(method).build(
            model.get_submodule(name), rank, init="random", seed=7
        )
        for name, (method, rank) in RANKS.items()
    }
    replace_layers(model, replacements, inplace=True)
    rows = [{"name": name, "method": m, "rank": rank} for name, (m, rank) in RANKS.items()]
    rows.append({"name": "features.0", "method": None, "rank": None})
    options = {"candidates": ["tucker2", "svd", "cp", "sketch"]}
    return {
        "format": FORMAT,
        "architecture": {"name": NAME, "num_classes": 4},
        "state_dict": model.state_dict(),
        "report": {"method": "auto", "options": options, "layers": rows},
        "earlier": [],
    }


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".SafeTensors"])
def test_methods_and_ranks_of_every_layer_come_back(
    ending: str, contents: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"small{ending}"
    assert write(path, contents) == path.stat().st_size
    assert is_safetensors(path) == (ending != ".pt")
    model = open_compressed(path)
    state = contents["state_dict"]
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype
    assert model.features[9].expand3x3.ranks == (8, None)
    assert type(model.features[7].expand3x3).__name__ == "CPConv2d"
    assert not model.training


def test_safetensors_hold_tensors_and_json(contents: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    shared = contents["state_dict"] | {"again": contents["state_dict"]["features.0.weight"]}
    write(path, contents | {"state_dict": shared})  # memory that several tensors share is no matter
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == shared.keys()
    assert json.loads(metadata["report"])["layers"][1]["rank"] == [None, 4]
    assert json.loads(metadata["architecture"]) == contents["architecture"]
    with pytest.raises(ValueError, match="safetensors cannot hold a whole model"):
        write(tmp_path / "whole.safetensors", nn.Linear(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


def test_damaged_safetensors(contents: dict[str, Any], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    write(good, contents)
    whole = good.read_bytes()
    for damaged in (whole[:-100], whole[:2000] + b"\0" * 50 + whole[2050:]):
        bad.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read .*bad\.safetensors: damaged \("):
            open_compressed(bad)
    bad.write_bytes(whole[:100])  # less than the header
    with pytest.raises(ValueError, match=r"cannot read .*bad\.safetensors"):
        open_compressed(bad)
    parts = {"format": FORMAT, "architecture": json.dumps(contents["architecture"])}
    save_file(contents["state_dict"], bad, parts | {"report": "{", "earlier": "[]"})
    with pytest.raises(ValueError, match=r"cannot read .*bad\.safetensors: damaged \("):
        open_compressed(bad)
    save_file(contents["state_dict"], bad, parts)
    with pytest.raises(ValueError, match=r"bad\.safetensors is damaged: 'report' is missing"):
        open_compressed(bad)
    save_file({"x": torch.ones(2)}, bad)
    with pytest.raises(ValueError, match=r"open_compressed: .* must be a file that"):
        open_compressed(bad)


def test_weights_of_others(contents: dict[str, Any], tmp_path: Path) -> None:
    source = models.get_model(NAME, weights=None, num_classes=4)
    state = source.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "parallel.pt")
    for name in ("weights.safetensors", "parallel.pt"):
        loaded = open_model(NAME, tmp_path / name, 4, trust=False)
        assert loaded.trained and loaded.name == NAME
        for key, value in loaded.model.state_dict().items():
            assert torch.equal(value, state[key])
    write(tmp_path / "small.pt", contents)
    with pytest.raises(WrongInput, match=r"small\.pt holds a compressed model: give it as MODEL"):
        open_model(NAME, tmp_path / "small.pt", 4, trust=False)
    assert read(tmp_path / "weights.safetensors").keys() == state.keys()


def test_old_names_of_densenets(tmp_path: Path) -> None:
    model = models.get_model("densenet121", weights=None, num_classes=2)
    state = model.state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".conv1.", ".conv.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv2.", ".conv.2."): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    loaded = open_model("densenet121", tmp_path / "old.pth", 2, trust=False).model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_published_weights_of_googlenet_want_their_inputs_transformed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = models.googlenet(weights=None, init_weights=False).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    loaded = open_model("googlenet", tmp_path / "weights.pth", None, trust=False)
    assert loaded.model.transform_input and loaded.architecture is not None
    contents = {
        "format": FORMAT,
        "architecture": loaded.architecture,
        "state_dict": loaded.model.state_dict(),
        "report": {"method": "svd", "options": {}, "layers": []},
    }
    write(tmp_path / "small.pt", contents)
    assert open_compressed(tmp_path / "small.pt").transform_input
    assert not open_model("googlenet", None, None, trust=False).model.transform_input
