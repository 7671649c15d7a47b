"""Beside state dicts, distributed checkpoints, and folders of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, load_model, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import sketchlayers

from .networks import Network, Tiny, compressed, tiny
from .test_round_trip import assert_same


def test_the_file_as_a_state_dict(tmp_path: Path) -> None:
    saved = compressed()
    path = sketchlayers.save(saved, tmp_path / "all.safetensors")
    loaded = compressed(seed=1)
    missing, unexpected = loaded.load_state_dict(load_file(path), strict=False)
    assert not unexpected and {name.partition(".")[0] for name in missing} == {"again", "tied_too"}
    assert_same(loaded, saved)
    loaded = compressed(seed=1)
    assert load_model(loaded, path) == (set(), [])  # knows which tensors are one
    assert_same(loaded, saved)


def test_state_dicts_of_torch_save(tmp_path: Path) -> None:
    saved = sketchlayers.load(
        sketchlayers.save(compressed(), tmp_path / "all.safetensors"), into=Network()
    )
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    loaded = compressed(seed=1)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(loaded, saved)


def test_distributed_checkpoints(tmp_path: Path) -> None:
    saved = sketchlayers.load(
        sketchlayers.save(compressed(), tmp_path / "all.safetensors"), into=Network()
    )
    dcp.save(get_model_state_dict(saved), checkpoint_id=tmp_path / "dcp", no_dist=True)
    loaded = compressed(seed=1)
    state = get_model_state_dict(loaded)
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_model_state_dict(loaded, state)
    assert_same(loaded, saved)


def test_the_layout_of_the_hub(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Hosted(nn.Module, hub.PyTorchModelHubMixin):  # type: ignore[misc,name-defined]
        """As the documentation of the format tells to write it."""

        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.features = nn.Conv2d(2, width, 3)
            self.norm = nn.BatchNorm2d(width)
            self.classifier = nn.Linear(width, width)

        def _save_pretrained(self, save_directory: Path) -> None:
            sketchlayers.save(self, save_directory)

        @classmethod
        def _load_as_safetensor(
            cls, model: nn.Module, model_file: str, map_location: str, strict: bool
        ) -> nn.Module:
            return sketchlayers.load(model_file, into=model).to(map_location)

    with torch.random.fork_rng():
        small, _ = sketchlayers.compress(
            Hosted(width=8), rate={"features": 0.4, "classifier": 0.6}, init="random"
        )
    small.eval().save_pretrained(tmp_path / "small", config={"width": 8})
    assert json.loads((tmp_path / "small" / "config.json").read_text())["width"] == 8
    loaded = Hosted.from_pretrained(tmp_path / "small", local_files_only=True)
    assert_same(loaded, small)

    # By hand: a class of the Hub's own making, with the network as its class makes it.
    config: dict[str, Any] = json.loads((tmp_path / "small" / "config.json").read_text())
    assert_same(sketchlayers.load(tmp_path / "small", into=Hosted(**config)), small)

    # The Hub's own readers take the tensors.
    other, _ = sketchlayers.compress(
        Hosted(width=8), rate={"features": 0.4, "classifier": 0.6}, init="random"
    )
    hub.load_torch_model(other, tmp_path / "small", strict=True)
    assert_same(other, small)


def test_a_folder(tmp_path: Path) -> None:
    path = sketchlayers.save(tiny(), tmp_path)
    assert path == tmp_path / "model.safetensors"
    assert_same(sketchlayers.load(tmp_path, into=Tiny()), tiny())
    save_model(Tiny(), str(path))
    with pytest.raises(ValueError, match=r"was not written by sketchlayers\.save"):
        sketchlayers.load(tmp_path, into=Tiny())
