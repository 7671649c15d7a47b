"""A file of version 1, written once and never again, stays readable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sketchlayers
from sketchlayers.checkpoint import read_description
from sketchlayers.checkpoint._layers import describe, kinds

from .files import Parts
from .networks import Network

DATA = Path(__file__).with_name("data")
WITH_BASE = ("conv.framed", "linear.blocks")  # what the file's writer added to these was removed


@pytest.fixture
def without_base(tmp_path: Path) -> Path:
    """The file, with the layers that have ``base="random"`` described as if they had none."""
    parts = Parts.of((DATA / "version_1.safetensors").read_bytes())
    layers = parts.model()["layers"]
    for name in WITH_BASE:
        assert layers[name].pop("base") == "random"
    path = tmp_path / "version_1.safetensors"
    path.write_bytes(parts.with_model(layers=layers).whole())
    return path


def test_every_kind_of_layer_computes_what_it_did_when_it_was_written(without_base: Path) -> None:
    network = sketchlayers.load(without_base, into=Network().eval())
    assert {type(module).__name__ for module in network.modules()} > kinds().keys()
    expected = load_file(DATA / "outputs_1.safetensors")
    with torch.no_grad():
        outputs = network.outputs()
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        if name in WITH_BASE:
            continue
        tolerance = 1e-5 if value.dtype in (torch.float32, torch.float64) else 2e-2
        torch.testing.assert_close(value.float(), expected[name], rtol=tolerance, atol=tolerance)


def test_a_layer_with_a_random_base_is_refused_with_the_reason() -> None:
    message = r"'conv.framed'.* base='random' was removed, since a frame is more accurate"
    with pytest.raises(ValueError, match=message):
        sketchlayers.load(DATA / "version_1.safetensors", into=Network())


def test_its_description(without_base: Path) -> None:
    description = read_description(without_base)
    assert description.version == 1 and description.architecture is None
    assert description.reports == ({"method": "by hand", "layers": []},)
    network = sketchlayers.load(without_base, into=Network())
    assert description.layers == describe(network)
    assert description.layers["conv.blocks"] == {
        "kind": "SKConv2d",
        "in_channels": 8,
        "out_channels": 12,
        "kernel_size": [3, 3],
        "padding": "same",
        "padding_mode": "circular",
        "rank": 1,
        "blocks": 4,
        "signs": "hadamard",
    }
    assert description.layers["again.0"] == {"same_as": "shared"}
    assert description.shapes["tied.weight"] == (10, 10)
