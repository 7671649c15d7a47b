"""Files of every version of the format, written once and never again, stay readable."""

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


@pytest.mark.parametrize("version", [1, 2])
def test_every_kind_of_layer_computes_what_it_did_when_it_was_written(
    version: int, without_base: Path
) -> None:
    path = without_base if version == 1 else DATA / f"version_{version}.safetensors"
    network = sketchlayers.load(path, into=Network().eval())
    written = {kind for kind in kinds() if kind.endswith(("2d", "Linear")) and "Tran" not in kind}
    assert {type(module).__name__ for module in network.modules()} > written
    expected = load_file(DATA / f"outputs_{version}.safetensors")
    with torch.no_grad():
        outputs = network.outputs()
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        if version == 1 and name in WITH_BASE:
            continue
        tolerance = 1e-5 if value.dtype in (torch.float32, torch.float64) else 2e-2
        torch.testing.assert_close(value.float(), expected[name], rtol=tolerance, atol=tolerance)


def test_a_layer_with_a_random_base_is_refused_with_the_reason() -> None:
    message = r"'conv.framed'.* base='random' was removed, since a frame is more accurate"
    with pytest.raises(ValueError, match=message):
        sketchlayers.load(DATA / "version_1.safetensors", into=Network())


def test_a_seed_of_version_1_is_checked(without_base: Path) -> None:
    parts = Parts.of(without_base.read_bytes())
    begin, end = parts.header["conv.spatial.seed"]["data_offsets"]
    data = parts.data[:begin] + (-3).to_bytes(8, "little", signed=True) + parts.data[end:]
    without_base.write_bytes(Parts(parts.header, data).signed().whole())
    network = Network()
    with pytest.raises(ValueError, match=r"conv.spatial.seed_bits: .*got seed=-3"):
        sketchlayers.load(without_base, into=network)


def test_the_description_of_version_1(without_base: Path) -> None:
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
