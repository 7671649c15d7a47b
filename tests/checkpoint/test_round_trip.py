"""What is saved comes back: every kind of layer, whole networks, into networks and from nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import sketchlayers
from sketchlayers import SKConv2d, SKLinear, methods
from sketchlayers.checkpoint import read_description
from sketchlayers.checkpoint._container import DTYPES
from sketchlayers.checkpoint._layers import describe
from sketchlayers.nn._seeded import SeededModule

from .files import Parts
from .networks import Network, Tiny, compressed, tiny

SLACK = 64 * 2**10


def assert_same(loaded: nn.Module, saved: nn.Module) -> None:
    """The same state, bit for bit, the same layers, and the same signs."""
    state, expected = loaded.state_dict(), saved.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name
        assert state[name].stride() == value.stride(), name
    assert describe(loaded) == describe(saved)
    for name, module in saved.named_modules():
        if isinstance(module, SeededModule):
            other = loaded.get_submodule(name)
            assert other._seed == module._seed
            for key, buffer in module.named_buffers(recurse=False):
                assert torch.equal(buffer, other.get_buffer(key)), f"{name}.{key}"


def assert_sizes(path: Path, model: nn.Module) -> None:
    stored = sketchlayers.inspect(model).bytes
    assert stored <= path.stat().st_size <= 1.02 * stored + SLACK


@pytest.mark.parametrize("on_meta", [False, True])
def test_every_kind_of_layer(on_meta: bool, tmp_path: Path) -> None:
    saved = compressed()
    path = sketchlayers.save(saved, tmp_path / "all.safetensors")
    assert path == tmp_path / "all.safetensors" and len(list(tmp_path.iterdir())) == 1
    with torch.device("meta" if on_meta else "cpu"):
        network = Network()
    network.norm.weight.requires_grad_(False)
    network.conv["spatial"].bias.requires_grad_(False)
    network.conv["tucker"].weight.requires_grad_(False)
    network.conv["hashed"].eval()
    handle = network.conv["cp"].register_forward_hook(lambda *_: None)
    numbers = torch.get_rng_state()
    if on_meta:
        network.to_empty(device="meta")
    assert sketchlayers.load(path, into=network) is network
    assert torch.equal(torch.get_rng_state(), numbers)
    assert_same(network, saved)
    assert_sizes(path, saved)
    assert network.shared is network.again[0] is network.again[2]
    assert network.tied.weight is network.tied_too.weight
    assert network.conv["spatial"].path == "factored"
    # What belongs to the network that the file is loaded into stays as it is there.
    assert network.training and network.conv["cp"].training and not network.conv["hashed"].training
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    factors = {f"conv.tucker.{part}.weight" for part in ("input", "core", "output")}
    assert frozen == {"norm.weight", "conv.spatial.bias"} | factors
    assert len(network.conv["cp"]._forward_hooks) == 1
    handle.remove()
    assert not network.conv["cp"]._forward_hooks
    with torch.no_grad():
        outputs, expected = network.eval().outputs(), saved.outputs()
    for name, value in expected.items():
        assert torch.equal(outputs[name], value), name
    # A network that is compressed already takes a file as well, and its own file again.
    again = sketchlayers.load(path, into=compressed(seed=1))
    assert_same(again, saved)
    sketchlayers.save(again, tmp_path / "again.safetensors")
    contents = [file.read_bytes() for file in (path, tmp_path / "again.safetensors")]
    assert Parts.of(contents[0]) == Parts.of(contents[1])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_of_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.register_buffer("values", values)
            self.register_buffer("none", values[:0])

    values = torch.tensor([[0, 1, 1], [0, 1, 0]]).to(dtype)
    path = sketchlayers.save(Holder(values), tmp_path / "it.safetensors")
    loaded = sketchlayers.load(path, into=Holder(torch.zeros(2, 3).to(dtype)))
    assert loaded.values.dtype == loaded.none.dtype == dtype
    assert torch.equal(loaded.values.view(torch.uint8), values.view(torch.uint8))
    assert read_description(path).shapes == {"values": (2, 3), "none": (0, 3)}


def test_loaded_layers_train(tmp_path: Path) -> None:
    path = sketchlayers.save(tiny(), tmp_path / "tiny.safetensors")
    network = sketchlayers.load(path, into=Tiny())
    optimizer = torch.optim.SGD(sketchlayers.param_groups(network, lr=0.1))
    image = torch.randn(3, 2, 3, 3)
    before = network.classifier(network.norm(network.features(image)).flatten(1)).square().sum()
    before.backward()
    optimizer.step()
    assert network.classifier(network.norm(network.features(image)).flatten(1)).square().sum() < (
        before
    )


def test_a_layer_alone(tmp_path: Path) -> None:
    saved = SKConv2d(4, 6, 3, rank=2, groups=2, seed=9)
    path = sketchlayers.save(saved, tmp_path / "layer.safetensors")
    dense = nn.Conv2d(4, 6, 3, groups=2).eval()
    weight = dense.weight.clone()
    layer = sketchlayers.load(path, into=dense)
    assert isinstance(layer, SKConv2d) and not layer.training
    assert_same(layer, saved)
    assert torch.equal(dense.weight, weight)


def test_plain_networks(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = Tiny()
    path = sketchlayers.save(saved, tmp_path / "dense.safetensors")
    assert_same(sketchlayers.load(path, into=Tiny()), saved)
    # Into a network of sketched layers: the file says that they are plain ones.
    assert_same(sketchlayers.load(path, into=tiny()), saved)


def test_folded_and_optimized_networks(tmp_path: Path) -> None:
    class Sketched(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(SKConv2d(8, 8, 3, rank=1), nn.Flatten(), SKLinear(32, 6, rank=2))

    image = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    saved = Sketched().to(memory_format=torch.channels_last).eval()
    fast = sketchlayers.optimize_for_inference(saved, image, seconds=0.01, allow_dense=False).model
    for network in (sketchlayers.fold(saved), fast):
        path = sketchlayers.save(network, tmp_path / "fast.safetensors")
        loaded = sketchlayers.load(path, into=Sketched().eval())
        assert_same(loaded, network)
        assert loaded[0].weight.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(loaded(image), network(image))


def test_kept_weights_are_not_stored(tmp_path: Path) -> None:
    layer = SKLinear(64, 64, rank=1).eval()
    layer.path = "folded"
    with torch.no_grad():
        layer(torch.randn(2, 64))
    assert layer._kept is not None
    path = sketchlayers.save(layer, tmp_path / "layer.safetensors")
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["bias", "s1", "s2", "seed_bits"]


def test_refined_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip

    images = [torch.randn(16, 3, 8, 8)]
    small, report = sketchlayers.compress(
        network(), "tucker2", rate=0.6, calibration=images, refine=True, progress=False
    )
    path = sketchlayers.save(small, tmp_path / "refined.safetensors", reports=report)
    loaded = sketchlayers.load(path, into=network())
    assert_same(loaded, small)
    with torch.no_grad():
        assert torch.equal(loaded(images[0]), small(images[0]))
    assert read_description(path).reports == (json.loads(report.to_json()),)


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "auto"])
def test_torchvision_networks_from_nothing(method: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    dense = models.squeezenet1_1(num_classes=10)
    architecture = {"name": "squeezenet1_1", "num_classes": 10}
    half = {"rate": 0.5, "init": "random"}
    small, report = sketchlayers.compress(dense, method, **half)
    if method == "svd":
        small = small.bfloat16()
    path = sketchlayers.save(
        small, tmp_path / "small.safetensors", architecture=architecture, reports=report
    )
    assert_sizes(path, small)
    if method != "svd":
        assert path.stat().st_size <= 1.02 * report.bytes_after + SLACK
    numbers = torch.get_rng_state()
    loaded = sketchlayers.load(tmp_path / "small.safetensors")
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())
    assert_same(loaded, small)
    assert read_description(path).architecture == architecture


@pytest.mark.parametrize(
    ("name", "options"),
    [("googlenet", {"transform_input": True}), ("regnet_y_400mf", {}), ("swin_t", {})],
)
def test_torchvision_networks_that_are_hard_to_make(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    from sketchlayers.checkpoint.architecture import build_torchvision

    model = build_torchvision(name, 4, **options)
    path = sketchlayers.save(
        model, tmp_path / "it.safetensors", architecture={"name": name, "num_classes": 4, **options}
    )
    loaded = sketchlayers.load(path)
    assert_same(loaded, model)
    assert repr(loaded) == repr(model)
    assert getattr(loaded, "transform_input", False) == options.get("transform_input", False)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled inside": lambda network: nn.DataParallel(torch.compile(network)),
    "compiled outside": lambda network: torch.compile(nn.DataParallel(network)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_networks(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    saved = tiny()
    path = sketchlayers.save(wrap(saved), tmp_path / "tiny.safetensors")
    assert_same(sketchlayers.load(path, into=Tiny()), saved)
    network = Tiny()
    with pytest.raises(TypeError, match=r"load: into must be the network itself \(got \w+ around"):
        sketchlayers.load(path, into=wrap(network))
    assert type(network.features) is nn.Conv2d


def test_nothing_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import pickle

    path = sketchlayers.save(compressed(), tmp_path / "all.safetensors")
    network = Network()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("code is read from a file")

    sketchlayers.load(path, into=network)  # what is imported on first use may compile code
    for module, name in (
        (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"),
        (builtins, "eval"), (builtins, "exec"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, forbidden)
    sketchlayers.load(path, into=network)


def test_tensors_are_the_files_own(tmp_path: Path) -> None:
    """They neither change with the file nor keep it open."""
    path = sketchlayers.save(tiny(), tmp_path / "tiny.safetensors")
    network = sketchlayers.load(path, into=Tiny())
    before = [tensor.clone() for tensor in network.state_dict().values()]
    path.write_bytes(b"\xff" * path.stat().st_size)
    tensors: list[Tensor] = list(network.state_dict().values())
    assert all(map(torch.equal, tensors, before))
    pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert len(pointers) == len(tensors)
