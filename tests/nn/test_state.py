"""State dicts, the meta device, copies, types: the seed travels and the signs follow it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from sketchlayers import ops
from sketchlayers.nn import SKConv2d, SKLinear

CONV = {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "groups": 2, "rank": 2}
LINEAR = {"in_features": 20, "out_features": 30, "rank": 3}
SIGNS = ("u1", "u2", "frame_signs")


def signs(layer):
    return [getattr(layer, name) for name in SIGNS if getattr(layer, name) is not None]


def assert_same_layer(layer, other):
    assert layer.seed == other.seed
    assert all(map(torch.equal, signs(layer), signs(other)))
    assert torch.equal(layer.weight, other.weight)


def network(device=None, seed=None):
    def derived(offset):
        return None if seed is None else seed + offset

    return nn.Sequential(
        SKConv2d(4, 8, 3, rank=2, seed=derived(0), device=device),
        SKConv2d(8, 8, 3, rank=2, seed=derived(1), frame="signs", device=device),
        nn.Flatten(),
        SKLinear(8 * 4 * 4, 10, rank=3, seed=derived(2), device=device),
    )


def test_state_dict_has_the_seed_and_not_the_signs():
    layer = SKConv2d(**CONV, frame="signs", seed=2**62 + 1)
    state = layer.state_dict()
    assert list(state) == ["s1", "s2", "bias", "seed_bits"]
    assert state["seed_bits"].dtype == torch.float32
    bits = state["seed_bits"].tolist()
    assert set(bits) == {0, 1} and len(bits) == 96
    assert sum(int(bit) << place for place, bit in enumerate(bits[:64])) == layer.seed == 2**62 + 1
    assert [name for name, _ in layer.named_buffers()] == ["seed_bits"]
    assert [name for name, _ in layer.named_parameters()] == ["s1", "s2", "bias"]


def test_signs_are_the_formats():
    layer = SKConv2d(**CONV, frame="signs", seed=2018)
    for group in range(2):
        for name, matrix, rows, columns in [
            ("u1", 2 * group, 2, 6),
            ("u2", 2 * group + 1, 18, 36),
            ("frame_signs", 2**31 + 2**30 + group, 6, 36),
        ]:
            assert torch.equal(
                getattr(layer, name)[group], ops.sign_matrix(2018, matrix, rows, columns)
            )
    # Row 3 of matrix 1 of seed 2018, as the format's description gives it.
    u2 = SKLinear(24, 24, rank=4, seed=2018).sketch_matrices()[1]
    assert "".join("+" if x > 0 else "-" for x in u2[0, 3]) == "+++--+-+++++-++--+++-+-+"


@pytest.mark.parametrize("assign", [False, True])
def test_loading_brings_the_other_networks_seeds(assign):
    saved, loaded = network(), network()
    assert saved[0].seed != loaded[0].seed
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    result = loaded.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    for index in (0, 1, 3):
        assert_same_layer(saved[index], loaded[index])
    image = torch.randn(2, 4, 8, 8)
    assert torch.equal(saved(image), loaded(image))


def test_loading_without_a_seed_keeps_the_own_one():
    saved, loaded = SKLinear(**LINEAR), SKLinear(**LINEAR, seed=7)
    state = {name: value for name, value in saved.state_dict().items() if name != "seed_bits"}
    before = loaded.u1.clone()
    with pytest.raises(RuntimeError, match="seed_bits"):
        loaded.load_state_dict(state)
    assert loaded.load_state_dict(state, strict=False).missing_keys == ["seed_bits"]
    assert torch.equal(loaded.s1, saved.s1)
    assert loaded.seed == 7
    assert torch.equal(loaded.u1, before)


def test_a_state_dict_that_does_not_fit_leaves_the_seed():
    layer = SKLinear(**LINEAR, seed=7)
    before = [tensor.clone() for tensor in signs(layer)]
    with pytest.raises(RuntimeError, match="s1"):
        layer.load_state_dict(SKLinear(20, 30, rank=4, seed=8).state_dict())
    state = SKLinear(**LINEAR, seed=8).state_dict()
    del state["seed_bits"]
    with pytest.raises(RuntimeError, match=r"SKLinear: seed must be int64.*got dtype=.*float32"):
        layer.load_state_dict(state | {"seed": torch.tensor(8.0)})
    with pytest.raises(RuntimeError, match=r"SKLinear: seed must be in .*\(got seed=-8\)"):
        layer.load_state_dict(state | {"seed": torch.tensor(-8)})
    assert layer.seed == 7
    assert all(map(torch.equal, signs(layer), before))


@pytest.mark.parametrize("assign", [False, True])
def test_meta_then_memory_then_load_gives_the_same_network(assign):
    saved = network(seed=3)
    loaded = network(device="meta")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in loaded.buffers()} == {"meta"}
    if not assign:
        loaded.to_empty(device="cpu")
    loaded.load_state_dict(saved.state_dict(), assign=assign)
    for index in (0, 1, 3):
        assert_same_layer(saved[index], loaded[index])
    image = torch.randn(2, 4, 8, 8)
    assert torch.equal(saved(image), loaded(image))


def test_meta_layers_infer_shapes():
    with torch.device("meta"):
        model = network()
        assert model(torch.empty(2, 4, 8, 8)).shape == (2, 10)
        assert model[0].weight.shape == (8, 4, 3, 3)
        assert model[0].fold().weight.is_meta


def test_memory_without_a_load_has_the_constructors_signs():
    built = SKConv2d(**CONV, seed=11)
    for layer in (
        SKConv2d(**CONV, seed=11, device="meta").to_empty(device="cpu"),
        skip_init(SKConv2d, **CONV, seed=11),
    ):
        assert layer.seed == 11
        assert all(map(torch.equal, signs(layer), signs(built)))


def test_memory_of_the_same_device_keeps_seed_and_signs(monkeypatch):
    layer = SKConv2d(**CONV, seed=11)
    kept = [tensor.clone() for tensor in signs(layer)]
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: torch.full_like(x, 3))  # garbage
    layer.to_empty(device="cpu")
    monkeypatch.undo()
    assert torch.equal(layer.s1, torch.full_like(layer.s1, 3))
    assert layer.seed == 11
    assert all(map(torch.equal, signs(layer), kept))
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    assert torch.equal(layer.s1, SKConv2d(**CONV, seed=11).s1)


@pytest.mark.parametrize("kind", [SKConv2d, SKLinear])
def test_reset_signs_follows_a_write_into_the_seed(kind):
    arguments = (CONV if kind is SKConv2d else LINEAR) | {"frame": "signs"}
    layer, other = kind(**arguments, seed=7), kind(**arguments, seed=2**62 + 5)
    factors = layer.s1.clone(), layer.s2.clone()
    pointers = [tensor.data_ptr() for tensor in signs(layer)]
    layer.seed_bits.copy_(other.seed_bits)  # as a broadcast from another rank
    layer.reset_signs()
    assert layer.seed == 2**62 + 5
    assert all(map(torch.equal, signs(layer), signs(other)))
    assert [tensor.data_ptr() for tensor in signs(layer)] == pointers
    assert torch.equal(layer.s1, factors[0]) and torch.equal(layer.s2, factors[1])
    layer.reset_parameters()
    assert layer.seed == 2**62 + 5


@pytest.mark.parametrize(
    "then",
    [
        lambda layer: layer(torch.ones(8, 5, 5)),
        SKConv2d.dense_weight,
        SKConv2d.train,
        SKConv2d.eval,
        SKConv2d.double,
        SKConv2d.reset_parameters,
        lambda layer: layer.load_state_dict({"s1": layer.s1}, strict=False),
    ],
)
def test_a_write_into_the_seed_takes_effect(then):
    layer, other = SKConv2d(**CONV, seed=7), SKConv2d(**CONV, seed=8)
    layer.seed_bits.copy_(other.seed_bits)
    then(layer)
    assert layer.seed == 8
    assert all(map(torch.equal, signs(layer), signs(other)))


def test_reset_signs_without_a_seed_to_read():
    layer = SKConv2d(**CONV, seed=11)
    before = [tensor.clone() for tensor in signs(layer)]
    layer.seed_bits.fill_(-1)
    with pytest.raises(ValueError, match="SKConv2d: seed_bits must hold zeros and ones"):
        layer.reset_signs()
    assert all(map(torch.equal, signs(layer), before))
    meta = SKConv2d(**CONV, seed=11, device="meta")
    meta.reset_signs()
    assert all(map(torch.equal, signs(meta.to_empty(device="cpu")), before))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_are_the_same_and_independent(duplicate):
    layer = SKConv2d(**CONV, frame="signs")
    layer.path = "folded"
    layer.fit_error = 0.25
    other = duplicate(layer)
    assert_same_layer(layer, other)
    assert (other.path, other.fit_error, repr(other)) == ("folded", 0.25, repr(layer))
    with torch.no_grad():
        other.s1.zero_()
    other.load_state_dict(SKConv2d(**CONV, frame="signs").state_dict())
    assert layer.seed != other.seed
    assert not torch.equal(layer.weight, other.weight)


def test_a_whole_saved_layer_loads():
    file = io.BytesIO()
    layer = SKLinear(**LINEAR)
    torch.save(layer, file)
    file.seek(0)
    assert_same_layer(layer, torch.load(file, weights_only=False))


def test_types_change_the_factors_and_leave_seed_and_signs():
    layer = SKConv2d(**CONV, seed=2**60 + 1)
    before = [tensor.clone() for tensor in signs(layer)]
    for convert in (
        lambda: layer.half(),
        lambda: layer.to(torch.bfloat16),
        lambda: layer.double(),
        lambda: layer.type(torch.float32),
        lambda: layer.to("cpu", torch.float64, memory_format=torch.channels_last),
    ):
        convert()
        assert layer.seed == 2**60 + 1
        assert all(map(torch.equal, signs(layer), before))
        assert all(tensor.dtype == torch.int32 for tensor in signs(layer))
    assert layer.s1.dtype == torch.float64
    assert layer.s1.is_contiguous(memory_format=torch.channels_last)


def test_values_do_not_depend_on_the_memory_format():
    layer = SKConv2d(**CONV, seed=1)
    torch.manual_seed(0)
    layer.reset_parameters()
    expected = layer.weight
    layer.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.testing.assert_close(layer.weight, expected)
