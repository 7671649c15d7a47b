"""Parameters of few bits come back bit for bit, with what is noted of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sketchlayers
from sketchlayers.checkpoint import read_description
from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.nn._rounding import roundings, stored_bytes

from .files import Parts
from .networks import Tiny, compressed, tiny
from .rounded import BITS, Several, assert_noted, several, tiny_rounded
from .test_round_trip import assert_same


def no_floats(path: Path) -> set[str]:
    """Names of the tensors that are bytes."""
    return {name for name, x in load_file(path).items() if x.dtype == torch.uint8}


def test_a_rounded_network_comes_back(tmp_path: Path) -> None:
    saved = several()
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    description = read_description(path)
    assert description.version == 3
    assert BITS.items() <= description.bits.items()
    assert description.bits.keys() == no_floats(path) == dict(roundings(saved)).keys()
    shapes = {name: tuple(x.shape) for name, x in saved.state_dict().items()}
    assert description.shapes == shapes
    loaded = sketchlayers.load(path, into=Several().eval())
    assert_same(loaded, saved)
    assert_noted(loaded, saved)
    again = sketchlayers.save(loaded, tmp_path / "again.safetensors")
    assert Parts.of(again.read_bytes()) == Parts.of(path.read_bytes())
    # The same into a network that has been rounded otherwise, and loaded already.
    for other in (several(seed=1), loaded):
        assert_noted(sketchlayers.load(path, into=other), saved)
        assert_same(other, saved)


def test_a_file_has_so_many_bits(tmp_path: Path) -> None:
    layer = nn.Linear(64, 32).eval()
    for bits in range(2, 17):
        torch.nn.init.normal_(layer.weight)
        round_layer(layer, bits)
        path = sketchlayers.save(layer, tmp_path / "it.safetensors")
        stored = load_file(path)["weight"]
        assert len(stored) == stored_bytes(64 * 32, 32, bits) == 64 * 32 * bits // 8 + 2 * 32
        loaded = sketchlayers.load(path, into=nn.Linear(64, 32))
        assert torch.equal(loaded.weight, layer.weight) and read_description(path).bits == {
            "weight": bits
        }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("before", [False, True])
def test_other_types(dtype: torch.dtype, before: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layer = nn.Conv2d(4, 6, 3)
    layer = layer.to(dtype) if before else layer
    round_layer(layer, 6)
    layer = layer.to(dtype)
    path = sketchlayers.save(layer, tmp_path / "it.safetensors")
    assert read_description(path).bits == {"weight": 6}
    loaded = sketchlayers.load(path, into=nn.Conv2d(4, 6, 3).to(dtype))
    assert loaded.weight.dtype == dtype
    assert_same(loaded, layer)
    assert_noted(loaded, layer)


def test_channels_last(tmp_path: Path) -> None:
    saved = several().to(memory_format=torch.channels_last)
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    assert read_description(path).version == 3
    loaded = sketchlayers.load(path, into=Several().eval())
    assert loaded.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(loaded, saved)
    assert_noted(loaded, saved)
    contents = load_file(path)
    plain = load_file(sketchlayers.save(several(), tmp_path / "plain.safetensors"))
    assert all(torch.equal(contents[name], plain[name]) for name in plain)


def test_networks_without_rounding_have_files_of_version_2(tmp_path: Path) -> None:
    for number, network in enumerate((tiny(), compressed(), Tiny(), Several())):
        path = sketchlayers.save(network, tmp_path / f"{number}.safetensors")
        description = read_description(path)
        assert description.version == 2 and description.bits == {}
        assert "rounded" not in Parts.of(path.read_bytes()).model()


def test_training_ends_the_rounding(tmp_path: Path) -> None:
    network = several()
    with torch.no_grad():
        network.linear.weight[1, 2] += 1e-3
        network.table.weight.mul_(2)
    path = sketchlayers.save(network, tmp_path / "it.safetensors")
    assert "linear.weight" not in read_description(path).bits
    assert "table.weight" not in read_description(path).bits
    assert "conv.weight" in read_description(path).bits
    loaded = sketchlayers.load(path, into=Several().eval())
    assert_same(loaded, network)
    assert "linear.weight" not in dict(roundings(loaded))


def test_floats_over_a_rounded_network(tmp_path: Path) -> None:
    """What was noted of it does not hold any more, and no harm is done."""
    floats = several(seed=4)
    for parameter in floats.parameters():
        nn.init.normal_(parameter)
    path = sketchlayers.save(floats, tmp_path / "floats.safetensors")
    assert read_description(path).version == 2
    network = sketchlayers.load(path, into=several())
    assert_same(network, floats)
    again = sketchlayers.save(network, tmp_path / "again.safetensors")
    assert Parts.of(again.read_bytes()) == Parts.of(path.read_bytes())


def test_on_the_meta_device(tmp_path: Path) -> None:
    saved = several()
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    with torch.device("meta"):
        network = Several().eval()
    empty = sketchlayers.load(path, into=network, device="meta")
    assert all(x.is_meta for x in empty.state_dict().values())
    shapes = {name: x.shape for name, x in empty.state_dict().items()}
    assert shapes == {name: x.shape for name, x in saved.state_dict().items()}
    with torch.device("meta"):
        network = Several().eval()
    loaded = sketchlayers.load(path, into=network)
    assert_same(loaded, saved)
    assert_noted(loaded, saved)
    again = sketchlayers.load(path, into=empty.to_empty(device="cpu"))
    assert_same(again, saved)
    assert_noted(again, saved)


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = self.first

    saved = Shared()
    round_layer(saved.first, 4)
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    assert read_description(path).bits == {"first.weight": 4}
    loaded = sketchlayers.load(path, into=Shared())
    assert_same(loaded, saved)
    assert loaded.first is loaded.second
    assert_noted(loaded, saved)


def test_loaded_layers_compute_and_train(tmp_path: Path) -> None:
    saved = several()
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    loaded = sketchlayers.load(path, into=Several().eval())
    image = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        assert torch.equal(loaded.conv(image), saved.conv(image))
    loaded.conv(image).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    after = sketchlayers.save(loaded, tmp_path / "after.safetensors")
    assert read_description(after).bits.keys() == read_description(path).bits.keys() - {
        "conv.weight"
    }


def test_a_tiny_network(tmp_path: Path) -> None:
    saved = tiny_rounded()
    path = sketchlayers.save(saved, tmp_path / "it.safetensors")
    assert {3, 8} == set(read_description(path).bits.values())
    loaded = sketchlayers.load(path, into=Tiny().eval())
    assert_same(loaded, saved)
    assert_noted(loaded, saved)
