"""Layers whose own forward pads, or whose weight lies otherwise, and those that are registered."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.nn.plain import PlainForm

from .checks import assert_same, check_model


class CornerConv2d(nn.Conv2d):
    """Pads below and on the right."""

    def forward(self, input):
        return super().forward(F.pad(input, (0, 1, 0, 2)))


class Doubled(CornerConv2d):
    """Has a forward of its own, so that it is of another kind."""

    def forward(self, input):
        return 2 * super().forward(input)


class Transposed(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2's."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(
            *x.shape[:-1], self.outputs
        )


class Network(nn.Module):
    def __init__(self, conv, linear):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = conv
        self.linear = linear
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.stem(x))))
        return self.head(F.relu(self.linear(x.mean((2, 3)))))


def register_own():
    sketchlayers.register_layer(CornerConv2d, before=lambda layer, x: F.pad(x, (0, 1, 0, 2)))
    sketchlayers.register_layer(
        f"{__name__}.Transposed",
        dense=lambda layer: _linear(layer),
        restore=_transpose_back,
    )


def _linear(layer):
    linear = nn.Linear(*layer.weight.shape, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().T, layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear


def _transpose_back(layer, plain):
    layer.weight = nn.Parameter(plain.weight.detach().T.contiguous(), plain.weight.requires_grad)
    layer.bias = plain.bias


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    registry = sys.modules["sketchlayers.nn.plain.registry"]
    monkeypatch.setattr(registry, "_forms", dict(registry._forms))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(CornerConv2d(8, 16, 3, stride=2), Transposed(16, 24)).eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return [torch.randn(16, 3, 10, 11) for _ in range(3)]


@pytest.mark.parametrize("method", ["svd", "tucker2", "sketch"])
def test_own_kinds_are_taken(network, images, method, tmp_path):
    register_own()
    taken = ("conv.conv", "linear.linear")
    small = check_model(network, images, taken, method=method, tmp_path=tmp_path)
    assert isinstance(small.conv, PlainForm)
    assert isinstance(small.conv.conv, methods.compressed_layers())


def test_auto_takes_own_kinds(network, images):
    register_own()
    _, report = sketchlayers.compress(
        network, "auto", candidates=("svd", "tucker2"), rate=0.5, calibration=images
    )
    assert {row.name for row in report.layers if row.method} >= {"conv.conv", "linear.linear"}
    assert report.output_change < 0.5


def test_an_unknown_kind_stays_and_its_reason_says_what_to_do(network, images):
    small, report = sketchlayers.compress(network, "svd", rate={"head": 0.5}, calibration=images)
    assert type(small.conv) is CornerConv2d
    (row,) = [row for row in report.layers if row.name == "conv"]
    assert "register_layer" in row.reason
    assert row.parameters_before == sum(p.numel() for p in network.conv.parameters())


def test_a_subclass_with_another_forward_is_not_taken(network, images):
    register_own()
    network.conv = Doubled(8, 16, 3, stride=2).eval()
    _, report = sketchlayers.compress(network, "svd", rate={"head": 0.5}, calibration=images)
    assert "conv" in {row.name for row in report.layers if row.reason}


def test_in_place_the_model_itself_has_the_smaller_layers(network, images):
    register_own()
    expected, _ = sketchlayers.compress(network, "svd", rate=0.5, calibration=images)
    small, _ = sketchlayers.compress(network, "svd", rate=0.5, calibration=images, inplace=True)
    assert small is network
    assert_same(network(images[0]), expected(images[0]))
    assert sketchlayers.fold(network, inplace=True) is network
    assert type(network.conv) is CornerConv2d
    assert_same(network(images[0]), expected(images[0]))


def test_layers_that_stay_are_of_their_own_kind(network, images):
    register_own()
    small, _ = sketchlayers.compress(
        network, "svd", rate={"linear.linear": 0.4}, calibration=images
    )
    assert type(small.conv) is CornerConv2d
    assert isinstance(small.linear, PlainForm)
    conv = network.conv
    sketchlayers.compress(
        network, "svd", rate={"linear.linear": 0.4}, calibration=images, inplace=True
    )
    assert network.conv is conv


def test_a_failure_leaves_the_model_as_it_was(network, images):
    register_own()
    modules = dict(network.named_modules())
    for inplace in (False, True):
        with pytest.raises(ValueError, match="batch 2"):
            sketchlayers.compress(
                network, "svd", rate=0.5, calibration=[images[0], images[0][:, :2]], inplace=inplace
            )
        assert dict(network.named_modules()) == modules


def test_hooks_of_the_layer_run(network, images):
    register_own()
    seen = []
    network.conv.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1:]))
    small, _ = sketchlayers.compress(network, "svd", rate=0.5, calibration=images)
    del seen[:]
    small(images[0])
    assert seen == [torch.Size([8, 8, 9])]  # before the padding
    sketchlayers.fold(small)(images[0])
    assert len(seen) == 2


def test_inspect_and_calibrate_list_the_parts(network, images):
    register_own()
    rows = {row.name: row for row in sketchlayers.inspect(network, images[0], method="svd").layers}
    assert rows["conv.conv"].reason is None
    assert rows["linear.linear"].shape == (24, 16)
    calibration = sketchlayers.calibrate(network, images)
    assert set(calibration) == {"stem", "conv.conv", "linear.linear", "head"}
    small, _ = sketchlayers.compress(network, "svd", rate=0.5, calibration=calibration)
    assert isinstance(small.conv, PlainForm)
    padded = F.pad(F.relu(network.stem(torch.cat(images))), (0, 1, 0, 2))
    patches = F.unfold(padded, 3, stride=2).transpose(1, 2).flatten(0, 1).double()
    expected = patches.T @ patches / len(patches)
    torch.testing.assert_close(
        calibration["conv.conv"].second_moment[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(network, images, dtype):
    register_own()
    network.to(dtype)
    small, _ = sketchlayers.compress(
        network, "svd", rate=0.5, calibration=[x.to(dtype) for x in images]
    )
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert sketchlayers.fold(small).linear.weight.dtype == dtype


def test_a_shared_layer_and_a_tied_one_stay(network, images):
    register_own()
    network.again = network.linear
    network.tied = CornerConv2d(8, 16, 3)
    network.tied.weight = network.conv.weight
    _, report = sketchlayers.compress(network, "svd", rate={"head": 0.5}, calibration=images)
    reasons = {row.name: row.reason for row in report.layers}
    assert "shared" in reasons["linear.linear"]
    assert "tied" in reasons["conv"] and "tied" in reasons["tied"]


def test_a_layer_alone(images):
    register_own()
    torch.manual_seed(0)
    layer = CornerConv2d(3, 16, 3).eval()
    small, _ = sketchlayers.compress(layer, "svd", rate=0.7, calibration=images, keep_first=False)
    assert isinstance(small, PlainForm)
    folded = sketchlayers.fold(small)
    assert type(folded) is CornerConv2d
    assert_same(folded(images[0]), small(images[0]))
    with pytest.raises(ValueError, match="inplace must be False"):
        sketchlayers.compress(layer, "svd", rate=0.7, calibration=images, inplace=True)


def test_a_file_needs_the_same_registrations(network, images, tmp_path):
    register_own()
    small, _ = sketchlayers.compress(network, "svd", rate=0.5, calibration=images)
    path = sketchlayers.save(small, tmp_path / "small.safetensors")
    sys.modules["sketchlayers.nn.plain.registry"]._forms.clear()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="register_layer"):
        sketchlayers.load(path, into=network)
    assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())


class CausalConv1d(nn.Conv1d):
    """Pads in front only, as WaveNet's."""

    def forward(self, input):
        return super().forward(F.pad(input, (4, 0)))


def test_a_convolution_of_one_axis(tmp_path):
    sketchlayers.register_layer(CausalConv1d, before=lambda layer, x: F.pad(x, (4, 0)))
    torch.manual_seed(0)
    model = nn.Sequential(CausalConv1d(8, 16, 3, dilation=2), nn.ReLU(), nn.Conv1d(16, 8, 1)).eval()
    sounds = [torch.randn(8, 8, 20) for _ in range(3)]
    check_model(model, sounds, ("0.conv", "2"), tmp_path=tmp_path)


def test_compressing_again(network, images):
    register_own()
    options = {"calibration": images, "keep_first": False}
    small, _ = sketchlayers.compress(network, "svd", rate={"*": 0.8}, **options)
    kinds = [type(module) for module in network.modules()]
    for original in (None, network):
        again, report = sketchlayers.compress(
            small, "svd", rate={"*": 0.5}, original=original, **options
        )
        assert {row.name for row in report.layers if row.method} >= {"conv.conv", "linear.linear"}
        assert sum(p.numel() for p in again.parameters()) == report.parameters_after
        assert [type(module) for module in network.modules()] == kinds
        folded = sketchlayers.fold(again)
        assert [type(module) for module in folded.modules()] == kinds
        assert_same(folded(images[0]), again(images[0]), rtol=1e-3, atol=1e-4)


def test_wrong_registrations():
    with pytest.raises(TypeError, match="kind must be"):
        sketchlayers.register_layer(3)
    with pytest.raises(TypeError, match="alone"):
        sketchlayers.register_layer(CornerConv2d, PlainForm, before=lambda layer, x: x)


def test_the_static_padding_of_efficientnet_lite(tmp_path):
    utils = pytest.importorskip("efficientnet_lite_pytorch.utils")
    torch.manual_seed(0)
    conv = utils.Conv2dStaticSamePadding(3, 16, 3, stride=2, image_size=9, bias=False)
    dynamic = utils.Conv2dDynamicSamePadding(16, 24, 5, stride=2)
    model = nn.Sequential(conv, nn.ReLU(), dynamic).eval()
    images = [torch.randn(8, 3, 9, 9) for _ in range(3)]
    check_model(model, images, ("0.conv", "2.conv"), tmp_path=tmp_path)


def test_the_same_padding_of_timm(tmp_path):
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(
        layers.Conv2dSame(3, 16, 3, stride=2), nn.ReLU(), layers.Conv2dSame(16, 24, 5, dilation=2)
    ).eval()
    images = [torch.randn(8, 3, 13, 12) for _ in range(3)]
    check_model(model, images, ("0.conv", "2.conv"), tmp_path=tmp_path)


def test_the_transposed_linear_layers_of_gpt2(tmp_path):
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(utils.Conv1D(32, 16), nn.GELU(), utils.Conv1D(16, 32)).eval()
    rows = [torch.randn(8, 5, 16) for _ in range(5)]
    model[0].weight.requires_grad_(False)
    small, _ = sketchlayers.compress(model, "svd", rate={"*": 0.5}, calibration=rows)
    trained = {name: p.requires_grad for name, p in small.named_parameters()}
    assert trained["2.linear.first.weight"] and trained["2.linear.second.weight"]
    assert not sketchlayers.fold(small)[0].weight.requires_grad
    model[0].weight.requires_grad_()
    for method in ("svd", "sketch"):
        check_model(model, rows, ("0.linear", "2.linear"), method=method, tmp_path=tmp_path)
