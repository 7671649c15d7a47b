"""Models and weights as the command line opens them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sketchlayers
from sketchlayers.cli.messages import WrongInput
from sketchlayers.cli.models import open_model, read

models = pytest.importorskip("torchvision.models")

NAME = "squeezenet1_1"


def test_weights_of_others(tmp_path: Path) -> None:
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
    assert read(tmp_path / "weights.safetensors", trust=False).keys() == state.keys()
    bare = sketchlayers.save(source, tmp_path / "bare.safetensors")  # it does not say of what
    again = open_model(NAME, bare, 4, trust=False).model
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    architecture = {"name": NAME, "num_classes": 4}
    path = sketchlayers.save(source, tmp_path / "model.safetensors", architecture=architecture)
    with pytest.raises(WrongInput, match=r"holds a model of its own: give it as MODEL"):
        open_model(NAME, path, 4, trust=False)


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
    assert loaded.model.transform_input
    path = sketchlayers.save(
        loaded.model, tmp_path / "it.safetensors", architecture=loaded.architecture
    )
    again = open_model(str(path), None, None, trust=False)
    assert again.model.transform_input and again.architecture == {
        "name": "googlenet",
        "transform_input": True,
    }
    assert not open_model("googlenet", None, None, trust=False).model.transform_input
