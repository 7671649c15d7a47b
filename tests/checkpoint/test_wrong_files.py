"""Files that are damaged, hostile or of something else: one clear sentence, and nothing changes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import sketchlayers
from sketchlayers import DictionaryLinear, SKConv2d, SKLinear, methods
from sketchlayers.checkpoint import read_description
from sketchlayers.checkpoint._container import LARGEST_HEADER
from sketchlayers.nn._seeded import SeededModule

from .files import Parts
from .fuzz import fingerprint
from .networks import Tiny, compressed, tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sketchlayers.save(
        tiny(), tmp_path_factory.mktemp("good") / "it.safetensors"
    ).read_bytes()


def refused(path: Path, network: nn.Module | None, message: str) -> None:
    """``load`` says why, in one line, and the network is as it was."""
    before = None if network is None else fingerprint(network)
    with pytest.raises(ValueError) as caught:
        sketchlayers.load(path, into=network)
    text = str(caught.value)
    assert text.startswith(f"load: {path} cannot be loaded: ") and message in text
    assert "\n" not in text and len(text) < 700
    assert network is None or fingerprint(network) == before


def with_layer(parts: Parts, **changes: Any) -> bytes:
    """The first layer described in another way."""
    layers = parts.model()["layers"]
    layers["features"] |= changes
    return parts.with_model(layers=layers).whole()


def with_metadata(parts: Parts, key: str, value: str) -> bytes:
    parts.metadata[f"sketchlayers.{key}"] = value
    return parts.signed().whole()


def with_tensor(parts: Parts, name: str, **changes: Any) -> bytes:
    parts.header[name] |= changes
    return parts.signed().whole()


def with_nan(parts: Parts) -> bytes:
    begin, end = parts.header["norm.weight"]["data_offsets"]
    nan = b"\0\0\xc0\x7f" * ((end - begin) // 4)
    return Parts(parts.header, parts.data[:begin] + nan + parts.data[end:]).signed().whole()


def with_entry(parts: Parts, name: str, first: float) -> bytes:
    begin, _ = parts.header[name]["data_offsets"]
    data = parts.data[:begin] + struct.pack("<f", first) + parts.data[begin + 4 :]
    return Parts(parts.header, data).signed().whole()


Damage = Callable[[Parts], bytes]

DAMAGED: dict[str, tuple[Damage, str]] = {
    "empty": (lambda parts: b"", "cut off"),
    "text": (lambda parts: b"no tensors here" * 9, "no safetensors file"),
    "cut off in the header": (lambda parts: parts.whole()[:200], "cut off"),
    "cut off in the data": (lambda parts: parts.whole()[:-8], "no safetensors file, or damaged"),
    "longer": (lambda parts: parts.whole() + b"\0" * 8, "no safetensors file, or damaged"),
    "a header of 2^60 bytes": (
        lambda parts: (2**60).to_bytes(8, "little") + parts.whole()[8:],
        "a header of 1,152,921,504,606,846,976 bytes in a file of",
    ),
    "a large header": (
        lambda parts: (2 * LARGEST_HEADER).to_bytes(8, "little") + b" " * 2 * LARGEST_HEADER,
        "its header must have at most 16,777,216 bytes (got 33,554,432)",
    ),
    "a flipped bit of data": (
        lambda parts: parts.whole()[:-1] + bytes([parts.data[-1] ^ 1]),
        "its checksum is ",
    ),
    "another checksum": (
        lambda parts: Parts(
            parts.header | {"__metadata__": parts.metadata | {"sketchlayers.crc32": "0badc0de"}},
            parts.data,
        ).whole(),
        "and should be 0badc0de",
    ),
    "another rank, not signed": (
        lambda parts: parts.whole().replace(b'rank\\":1', b'rank\\":2'),
        "must have the network's shape",
    ),
    "NaN": (with_nan, "norm.weight holds NaN"),
    "no seed": (
        lambda parts: with_entry(parts, "features.seed_bits", -3),
        "features.seed_bits: SKConv2d: seed_bits must hold zeros and ones",
    ),
    "version 4": (
        lambda parts: with_metadata(parts, "version", "4"),
        "it is in version 4 of the format, written by sketchlayers ",
    ),
    "no version": (lambda parts: with_metadata(parts, "version", "one"), "version one of the"),
    "no JSON": (lambda parts: with_metadata(parts, "model", "{"), "model in its header is no JSON"),
    "deep JSON": (lambda parts: with_metadata(parts, "model", "[" * 10**5), "is no JSON"),
    "NaN in JSON": (lambda parts: with_metadata(parts, "model", '{"a":NaN}'), "NaN is no JSON"),
    "a list": (lambda parts: with_metadata(parts, "model", "[]"), "must be a JSON object with"),
    "layers in a list": (
        lambda parts: parts.with_model(layers=[1]).whole(),
        "must be a JSON object with layers",
    ),
    "an unknown kind": (
        lambda parts: with_layer(parts, kind="os.system"),
        "layer 'features' must be of a kind that is known (got 'os.system')",
    ),
    "a kind that is no name": (lambda parts: with_layer(parts, kind=[1]), "(got [1])"),
    "an unknown option": (lambda parts: with_layer(parts, device="cuda"), "no 'device' in a conf"),
    "a rate": (lambda parts: with_layer(parts, rate=0.5), "there is no 'rate' in a configuration"),
    "a huge rank": (lambda parts: with_layer(parts, rank=10**12), "num_sketches * rank must be at"),
    "a wrong type": (lambda parts: with_layer(parts, rank="two"), "rank must be an int"),
    "a wrong bias": (lambda parts: with_layer(parts, bias="yes"), "bias=yes"),
    "a wrong path": (lambda parts: with_layer(parts, path="/etc"), "path must be one of"),
    "other sizes": (
        lambda parts: with_layer(parts, stride=[2, 2]),
        "the network must have a layer 'features' with in_channels=2, out_channels=4, "
        "kernel_size=[3, 3], stride=[2, 2] (got Conv2d with ",
    ),
    "huge sizes": (lambda parts: with_layer(parts, in_channels=2**60), f"in_channels={2**60}"),
    "another family": (lambda parts: with_layer(parts, kind="SKLinear"), "there is no 'in_chann"),
    "a layer that is not there": (
        lambda parts: parts.with_model(layers={"body.0": {"kind": "Linear"}}).whole(),
        "a fully connected layer or a table 'body.0' (got nothing",
    ),
    "a layer in place of another module": (
        lambda parts: parts.with_model(layers={"norm": {"kind": "Linear"}}).whole(),
        "(got BatchNorm2d there)",
    ),
    "a layer that is to be shared": (
        lambda parts: parts.with_model(layers={"features": {"same_as": "classifier"}}).whole(),
        "the network must have the same layer at 'classifier' and at 'features'",
    ),
    "layers left out": (
        lambda parts: parts.with_model(layers={}).whole(),
        "the file lacks tensors of the network: classifier.weight, features.weight",
    ),
    "a tensor left out": (
        lambda parts: with_tensor(parts, "norm.bias", shape=[2, 2]),
        "norm.bias must have the network's shape (4,) (got (2, 2))",
    ),
    "another type": (
        lambda parts: with_tensor(parts, "norm.bias", dtype="I32"),
        "norm.bias must be of type torch.float32 (got torch.int32)",
    ),
    "a type of its own": (
        lambda parts: Parts(
            parts.header | {"norm.bias": parts.header["norm.bias"] | {"dtype": "U32"}}, parts.data
        ).whole(),
        "norm.bias must be of one of the types of the format (got U32)",
    ),
    "overlapping tensors": (
        lambda parts: Parts(
            parts.header | {"norm.bias": parts.header["norm.bias"] | parts.header["norm.weight"]},
            parts.data,
        ).whole(),
        "no safetensors file, or damaged",
    ),
    "an alias of nothing": (
        lambda parts: parts.with_model(aliases={"a": "b"}).whole(),
        "its aliases must name tensors of the file",
    ),
    "an alias besides": (
        lambda parts: parts.with_model(aliases={"a": "norm.bias"}).whole(),
        "the file has tensors that the network lacks: a",
    ),
    "a format for a vector": (
        lambda parts: parts.with_model(channels_last=["norm.bias"]).whole(),
        "its channels_last must be",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files(damage: str, good: bytes, tmp_path: Path) -> None:
    make, message = DAMAGED[damage]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(make(Parts.of(good)))
    refused(path, Tiny().eval(), message)


class NothingLarge(TorchDispatchMode):
    """No tensor with memory has more than a few numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                assert value.numel() <= 5_000, f"{func} made {tuple(value.shape)}"
        return result


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"kind": "DictionaryLinear", "rank": 1024, "num_columns": 1024},
            "its layers must need at most 68,157,440 bytes beside their tensors, 16 times the "
            "dense weights and 1,048,576 for each (got 4,294,967,296; ",
        ),
        ({"kind": "SKLinear", "rank": 1024, "blocks": 1024, "frame": "signs"}, "(got 268,566,528;"),
        ({"kind": "SKLinear", "rank": 1024, "blocks": 128}, "s1"),
        ({"kind": "HashedLinear", "buckets": 2**20}, "values"),
    ],
)
def test_a_few_bytes_do_not_make_large_tensors(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """What the file does not hold is not allocated for it."""
    layer = sketchlayers.SKLinear(1024, 1024, rank=1)
    path = sketchlayers.save(layer, tmp_path / "layer.safetensors")
    parts = Parts.of(path.read_bytes())
    sizes = {"in_features": 1024, "out_features": 1024}
    path.write_bytes(parts.with_model(layers={"": config | sizes}).whole())
    with torch.device("meta"):
        dense = nn.Linear(1024, 1024)
    with NothingLarge():
        refused(path, dense, message)


def test_layers_together_are_bounded(tmp_path: Path) -> None:
    """By 16 times their dense weights and a MiB each, which here is 64 for the sum of the ranks."""

    def layers(*ranks: int) -> nn.Module:
        return nn.Sequential(
            *(DictionaryLinear(128, 128, rank=rank, num_columns=128, seed=1) for rank in ranks)
        )

    path = sketchlayers.save(layers(48, 16), tmp_path / "layers.safetensors")
    with torch.device("meta"):
        dense = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    parts = Parts.of(path.read_bytes())
    described = parts.model()["layers"]
    described["1"]["rank"] = 17
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(parts.with_model(layers=described).whole())
    with NothingLarge():
        refused(bad, dense, "its layers must need at most 4,194,304 bytes")
    with pytest.raises(ValueError, match=r"save: its layers must need .*\(got 4,259,840; "):
        sketchlayers.save(layers(48, 17), bad)
    loaded = sketchlayers.load(path, into=dense, device="meta")
    assert [layer.rank for layer in loaded] == [48, 16]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("resnet18", "architecture must have the name"),
        ({"name": 3}, "architecture must have the name"),
        ({"name": "squid"}, "there is no classification network 'squid' in torchvision"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "there is no classification network"),
        ({"name": "alexnet", "num_classes": True}, "num_classes (an int above 0)"),
        ({"name": "alexnet", "num_classes": 2**40}, "num_classes (an int above 0)"),
        ({"name": "alexnet", "weights": "DEFAULT"}, "no more than name, num_classes"),
        ({"name": "alexnet", "transform_input": True}, "torchvision does not make alexnet with"),
        ({"name": "regnet_x_8gf", "num_classes": 2**31 - 1}, "the network must have a conv"),
    ],
)
def test_wrong_architectures(architecture: Any, message: str, good: bytes, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(Parts.of(good).with_model(architecture=architecture).whole())
    with NothingLarge():
        refused(path, None, message)


def test_files_of_others(good: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing\.safetensors"):
        sketchlayers.load(tmp_path / "missing.safetensors", into=Tiny())
    path = tmp_path / "other.safetensors"
    save_file(Tiny().state_dict(), path)
    refused(path, Tiny(), "it was not written by sketchlayers.save; for a file that holds tensors")
    save_file({"a": torch.ones(1)}, path, {"format": "sketchlayers.calibration"})
    refused(path, Tiny(), "(it is a file of sketchlayers.calibration)")
    torch.save(Tiny().state_dict(), path)
    refused(path, Tiny(), "it is no safetensors file but one of torch.save, for torch.load")
    path.write_bytes(good[:-9])
    refused(path, Tiny(), "it is no safetensors file, or ")
    path.write_bytes(good)
    refused(path, None, "it does not say how to make the network, so into= must be given")
    with pytest.raises(TypeError, match=r"load: into must be an nn\.Module \(got type\)"):
        sketchlayers.load(path, into=Tiny)  # type: ignore[arg-type]
    path.write_bytes(with_metadata(Parts.of(good), "reports", "[1]"))
    with pytest.raises(ValueError, match=r"read_description: .* a list of JSON objects"):
        read_description(path)


def test_other_networks(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)

    def without_bias() -> nn.Module:
        network = Tiny()
        network.classifier = nn.Linear(4, 4, bias=False)
        return network

    def one_more() -> nn.Module:
        network = Tiny()
        network.more = nn.Linear(2, 2)
        return network

    def tied() -> nn.Module:
        network = Tiny()
        network.norm.weight = network.norm.bias
        return network

    def shared() -> nn.Module:
        network = Tiny()
        network.again = network.features
        return network

    def on_meta_with_a_buffer() -> nn.Module:
        with torch.device("meta"):
            network = Tiny()
            network.register_buffer("scratch", torch.zeros(3), persistent=False)
        return network

    def lazy() -> nn.Module:
        network = Tiny()
        network.classifier = nn.LazyLinear(4)
        return network

    for make, message in (
        (without_bias, "the network must have a layer 'classifier' with in_features=4"),
        (one_more, "the file lacks tensors of the network: more.bias, more.weight"),
        (tied, "norm.weight and norm.bias must be one tensor, as in the network"),
        (shared, "the file must have a layer 'again', as the network does"),
        (lazy, "(got LazyLinear with in_features=0"),
        (
            nn.Identity,
            "the network must have a convolution, a fully connected layer or a table 'features'",
        ),
    ):
        network = make()
        if make is lazy:
            with pytest.raises(ValueError, match="LazyLinear"):
                sketchlayers.load(path, into=network)
        else:
            refused(path, network, message)
    with pytest.raises(ValueError, match="scratch, a buffer that no file holds, must have values"):
        sketchlayers.load(path, into=on_meta_with_a_buffer())


def test_no_seed_for_a_layer_that_stays(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(with_entry(Parts.of(good), "classifier.seed_bits", 0.5))
    refused(path, tiny(), "classifier.seed_bits: ")


def test_the_seed_of_a_layer_of_another_configuration(tmp_path: Path) -> None:
    """The shapes of all tensors are the same."""
    one, two = (SKLinear(16, 16, rank=4 // n, num_sketches=n, seed=1) for n in (1, 2))
    tensors = dict(two.state_dict())
    for name, tensor in one.state_dict().items():
        assert tensors[name].shape == tensor.shape
    tensors["seed_bits"] = one.seed_bits
    with pytest.raises(RuntimeError, match="must be the seed of a layer of this configuration"):
        two.load_state_dict(tensors)
    with torch.no_grad():
        two.seed_bits.copy_(one.seed_bits)
    path = sketchlayers.save(two, tmp_path / "bad.safetensors")
    refused(path, SKLinear(16, 16, rank=2, num_sketches=2), "must be the seed of a layer of this")


class Pair(nn.Module):
    """Two layers of the same sizes, or one that is at both places."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first if shared else nn.Linear(4, 4)


def test_a_file_does_not_make_two_layers_one(tmp_path: Path) -> None:
    shared = Pair(shared=True)
    shared.first = shared.second = SKLinear.from_linear(shared.first, rank=1, seed=1)
    path = sketchlayers.save(shared, tmp_path / "shared.safetensors")
    message = "the network must have the same layer at 'first' and at 'second'"
    refused(path, Pair(), message)
    # Nor do its aliases alone, in whichever order they come.
    model = Parts.of(path.read_bytes()).model()
    layers, aliases = model["layers"], model["aliases"]
    for order in (1, -1):
        turned = {name: aliases[name] for name in list(aliases)[::order]}
        path.write_bytes(
            Parts.of(path.read_bytes()).with_model(layers=layers, aliases=turned).whole()
        )
        refused(path, Pair(), message)
        network = sketchlayers.load(path, into=Pair(shared=True))
        assert isinstance(network.first, SKLinear) and network.first is network.second


def test_a_file_does_not_put_a_layer_in_place_of_one_of_another_kind(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.linear = nn.Linear(4, 4)

    saved = Mixed()
    saved.conv = SKConv2d.from_conv(saved.conv, rank=1, seed=1)
    saved.linear = saved.conv
    path = sketchlayers.save(saved, tmp_path / "mixed.safetensors")
    assert read_description(path).layers["linear"] == {"same_as": "conv"}
    refused(path, Mixed(), "the network must have the same layer at 'conv' and at 'linear'")


def refuse(module: nn.Module, incompatible: Any) -> None:
    raise RuntimeError("never")


def test_a_network_that_refuses_its_state_is_as_it_was(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    network = Tiny().eval()
    network.classifier.register_forward_hook(lambda *_: None)
    network.register_load_state_dict_post_hook(refuse)
    before, attributes = fingerprint(network), dict(vars(network.classifier))
    with pytest.raises(RuntimeError, match="never"):
        sketchlayers.load(path, into=network)
    assert fingerprint(network) == before
    assert vars(network.classifier) == attributes
    assert type(network.features) is nn.Conv2d


def test_a_sketched_network_that_refuses_its_state_has_its_own_signs(tmp_path: Path) -> None:
    """Every tensor made from a seed is that of the network's own again."""
    path = sketchlayers.save(compressed(), tmp_path / "all.safetensors")
    network = compressed(seed=1)
    for number, module in enumerate(network.modules()):
        if isinstance(module, SeededModule):
            module.seed = number
    network.eval()
    network.register_load_state_dict_post_hook(refuse)
    with torch.no_grad():
        before, outputs = fingerprint(network), network.outputs()
        with pytest.raises(RuntimeError, match="never"):
            sketchlayers.load(path, into=network)
        assert fingerprint(network) == before
        network.train().eval()  # kept weights are formed anew
        for name, value in network.outputs().items():
            assert torch.equal(value, outputs[name]), name


def test_a_recurrent_network_that_refuses_its_state_is_as_it_was(tmp_path: Path) -> None:
    """It has its weights in a list, too."""
    path = sketchlayers.save(nn.Sequential(nn.LSTM(3, 4)), tmp_path / "lstm.safetensors")
    network = nn.Sequential(nn.LSTM(3, 4))
    network.register_load_state_dict_post_hook(refuse)
    before, expected = fingerprint(network), network(torch.ones(2, 3))[0]
    with pytest.raises(RuntimeError, match="never"):
        sketchlayers.load(path, into=network)
    assert fingerprint(network) == before
    assert torch.equal(network(torch.ones(2, 3))[0], expected)


def test_a_device_that_is_not_there_changes_nothing(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    for network in (Tiny().eval(), tiny()):
        before = fingerprint(network)
        for device in (f"cuda:{torch.cuda.device_count()}", "nowhere"):
            message = rf"load: device must be one that PyTorch can use here \(got device='{device}"
            with pytest.raises(RuntimeError, match=message):
                sketchlayers.load(path, into=network, device=device)
        assert fingerprint(network) == before


def test_a_network_that_cannot_be_moved_is_as_it_was(good: bytes, tmp_path: Path) -> None:
    class Heavy(Tiny):
        """For which there is not enough memory on another device."""

        def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Heavy:
            super()._apply(fn, recurse)
            raise MemoryError("never")

    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    network = Heavy().eval()
    network.norm.register_buffer("scratch", torch.ones(2), persistent=False)
    before = fingerprint(network)
    with pytest.raises(MemoryError, match="never"):
        sketchlayers.load(path, into=network, device="cpu")
    assert fingerprint(network) == before


def test_a_layer_of_a_method_must_be_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(nn.Linear):
        pass

    monkeypatch.setattr(methods, "compressed_layers", lambda: (Own,))
    with pytest.raises(TypeError, match=r"got Own at '0'\); derive the class from .*Configured"):
        sketchlayers.save(nn.Sequential(Own(2, 2)), tmp_path / "it.safetensors")


def test_models_that_files_do_not_hold(tmp_path: Path) -> None:
    class Own(SKLinear):
        pass

    class WithExtraState(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"epoch": 3}

    def filled(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
        layer = nn.Linear(2, 2)
        nn.init.constant_(layer.bias, value)
        return layer.to(dtype)

    complex_buffer = nn.Module()
    complex_buffer.register_buffer("wave", torch.ones(2, dtype=torch.complex128))
    weight_normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    parametrised = nn.Sequential(SKLinear(4, 4, rank=1))
    parametrize.register_parametrization(parametrised[0], "s1", nn.Identity())
    for model, kind, message in (
        (nn.Linear, TypeError, "model must be an nn.Module"),
        (
            Own(4, 4, rank=1),
            TypeError,
            r"must be of one of the classes .*got Own at 'the top'\); put the class, under a name",
        ),
        (parametrised, TypeError, r"\(got ParametrizedSKLinear at '0'\); remove its parametr"),
        (WithExtraState(2, 2), TypeError, "plain tensors .*got dict for '_extra_state'"),
        (nn.Linear(2, 2, device="meta"), ValueError, "must have values .*got none for 'weight'"),
        (nn.LazyLinear(3), TypeError, "plain tensors"),
        (filled(torch.nan), ValueError, "must hold no NaN .*got some in 'bias'"),
        (filled(torch.nan, torch.float16), ValueError, "must hold no NaN"),
        (complex_buffer, ValueError, "hold no tensors of type torch.complex128"),
    ):
        with pytest.raises(kind, match=message):
            sketchlayers.save(model, tmp_path / "it.safetensors")  # type: ignore[arg-type]
    for name in ("it.pt", "it.pth", "it.bin", "it"):
        with pytest.raises(
            ValueError, match=r"must end in \.safetensors.*torch\.save\(model\.state"
        ):
            sketchlayers.save(nn.Linear(2, 2), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    for model in (filled(torch.inf), filled(-torch.inf, torch.float16), weight_normed):
        sketchlayers.save(model, tmp_path / "it.safetensors")
    layer = nn.Sequential(SKConv2d(2, 4, 3, rank=1))
    for architecture in ("alexnet", {"name": "squid"}, {"title": "alexnet"}):
        with pytest.raises(ValueError, match="save: architecture must be that of the model"):
            sketchlayers.save(layer, tmp_path / "wrong.safetensors", architecture=architecture)
    with pytest.raises(ValueError):  # Python's own: JSON has no NaN
        sketchlayers.save(layer, tmp_path / "wrong.safetensors", reports=[{"rate": torch.nan}])
    assert [path.name for path in tmp_path.iterdir()] == ["it.safetensors"]
    with pytest.raises(FileNotFoundError):
        sketchlayers.save(layer, tmp_path / "nowhere" / "it.safetensors")
    assert json.dumps(read_description(tmp_path / "it.safetensors").layers) == "{}"
