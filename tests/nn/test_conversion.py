"""From dense layers and back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sketchlayers.nn import SKConv2d, SKLinear


def relative_error(layer, dense):
    return ((layer.weight - dense.weight).norm() / dense.weight.norm()).item()


CONVOLUTIONS = [
    nn.Conv2d(12, 16, 3, padding=1),
    nn.Conv2d(12, 16, (3, 1), stride=2, padding=(1, 0), bias=False, padding_mode="reflect"),
    nn.Conv2d(12, 16, (2, 3), padding="same", dilation=2, groups=2, padding_mode="circular"),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS)
@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_geometry_carries_over_and_back(conv, mixing):
    layer = SKConv2d.from_conv(conv, rank=2, mixing=mixing)
    image = torch.randn(2, 12, 9, 8)
    assert layer(image).shape == conv(image).shape
    folded = layer.fold()
    assert type(folded) is nn.Conv2d
    assert repr(folded) == repr(conv)
    torch.testing.assert_close(folded(image), layer(image))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize(
    "extension",
    [{}, {"frame": "signs"}, {"blocks": 2}, {"blocks": 2, "signs": "hadamard"}],
)
def test_the_told_error_is_the_error(groups, mixing, extension):
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3, groups=groups)
    arguments = {"rank": 2, "num_sketches": 2, "mixing": mixing, "scale": 0.3, **extension}
    errors = {}
    for init in ("fit", "unbiased"):
        layer = SKConv2d.from_conv(conv, **arguments, init=init)
        assert layer.fit_error == pytest.approx(relative_error(layer, conv), rel=1e-4, abs=1e-6)
        errors[init] = layer.fit_error
    assert errors["fit"] < errors["unbiased"]


def test_full_rank_reproduces_the_layer():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(24, 16, 3), nn.Linear(24, 16)
    layer = SKConv2d.from_conv(conv, rank=8, num_sketches=2, seed=1)
    assert layer.fit_error < 1e-12
    image = torch.randn(2, 24, 6, 6)
    torch.testing.assert_close(layer(image), conv(image), rtol=1e-4, atol=1e-4)
    layer = SKLinear.from_linear(linear, rank=16, scale="normalized", seed=1)
    assert layer.fit_error < 1e-12
    batch = torch.randn(3, 24)
    torch.testing.assert_close(layer(batch), linear(batch), rtol=1e-4, atol=1e-4)


def test_the_second_moments_fit_has_the_smaller_output_error():
    torch.manual_seed(0)
    linear = nn.Linear(40, 30)
    inputs = torch.randn(500, 40) * torch.logspace(0.5, -1.5, 40) @ torch.randn(40, 40)
    sigma = inputs.T @ inputs / len(inputs)
    errors = []
    for second_moment in (None, sigma):
        layer = SKLinear.from_linear(linear, rank=5, seed=1, second_moment=second_moment)
        errors.append(((layer(inputs) - linear(inputs)).norm() / inputs.norm()).item())
    assert errors[1] < 0.8 * errors[0]
    told = SKLinear.from_linear(linear, rank=5, seed=1, second_moment=sigma).fit_error
    change = linear(inputs) - linear.bias
    assert told == pytest.approx(errors[1] * (inputs.norm() / change.norm()).item(), rel=1e-3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_device_type_format_flags_and_bias_carry_over(memory_format, kernel):
    conv = nn.Conv2d(8, 12, kernel, dtype=torch.bfloat16).to(memory_format=memory_format).eval()
    conv.weight.requires_grad_(False)
    layer = SKConv2d.from_conv(conv, rank=2)
    image = torch.randn(2, 8, 5, 5, dtype=torch.bfloat16)
    for module in (layer, layer.fold()):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert [p.requires_grad for name, p in module.named_parameters() if name != "bias"] == (
            [False] * (sum(1 for _ in module.parameters()) - 1)
        )
        assert module.bias.requires_grad
        assert torch.equal(module.bias, conv.bias)
        assert module(image).stride() == conv(image).stride()
    assert layer.fold().weight.stride() == conv.weight.stride()
    conv.requires_grad_(True).bias.requires_grad_(False)
    layer = SKConv2d.from_conv(conv, rank=2)
    assert layer.s1.requires_grad
    assert layer.s2.requires_grad
    assert not layer.bias.requires_grad


def test_the_layer_given_is_left_as_it_is():
    conv = nn.Conv2d(8, 12, 3)
    before = copy.deepcopy(conv.state_dict())
    layer = SKConv2d.from_conv(conv, rank=2)
    with torch.no_grad():
        layer.bias.zero_()
        layer.fold().weight.zero_()
    assert all(torch.equal(conv.state_dict()[name], value) for name, value in before.items())


def test_random_takes_nothing_but_the_bias():
    torch.manual_seed(0)
    linear = nn.Linear(60, 40)
    layer = SKLinear.from_linear(linear, rank=6, init="random")
    assert layer.fit_error is None
    assert torch.equal(layer.bias, linear.bias)
    weights = torch.stack([layer.weight.flatten(), linear.weight.flatten()])
    assert abs(torch.corrcoef(weights)[0, 1]) < 0.15
    with torch.no_grad():
        linear.weight.fill_(torch.nan)
    assert SKLinear.from_linear(linear, rank=6, init="random").weight.isfinite().all()


def test_the_seed_decides_the_fit():
    conv = nn.Conv2d(8, 12, 3)
    first, second = (SKConv2d.from_conv(conv, rate=0.3, seed=5) for _ in range(2))
    assert torch.equal(first.s1, second.s1)
    assert torch.equal(first.weight, second.weight)
    torch.manual_seed(1)
    drawn = SKConv2d.from_conv(conv, rate=0.3)
    torch.manual_seed(1)
    assert drawn._seed == SKConv2d.from_conv(conv, rate=0.3)._seed != 5


def test_parametrised_and_meta_layers():
    normed = parametrizations.weight_norm(nn.Conv2d(8, 12, 3))
    layer = SKConv2d.from_conv(normed, rank=2)
    assert layer.fit_error == pytest.approx(relative_error(layer, normed), rel=1e-4)
    meta = SKConv2d.from_conv(nn.Conv2d(8, 12, 3, device="meta"), rank=2)
    assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}
    assert meta.fit_error is None
    assert SKLinear.from_linear(nn.Linear(8, 12, device="meta"), rank=2)(
        torch.empty(3, 8, device="meta")
    ).shape == (3, 12)


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


class OwnConstructor(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3)


def test_only_layers_that_compute_what_the_sketch_computes():
    assert SKConv2d.from_conv(OwnConstructor(8), rank=2).kernel_size == (3, 3)
    for dense, message in [
        (
            nn.ConvTranspose2d(8, 8, 3),
            r"SKConv2d: layer must be an nn.Conv2d \(got ConvTranspose2d",
        ),
        (nn.Conv1d(8, 8, 3), r"must be an nn.Conv2d \(got Conv1d"),
        (nn.Linear(8, 8), r"must be an nn.Conv2d \(got Linear"),
        (OwnForward(8, 8, 3), r"as nn.Conv2d does \(got OwnForward, which has its own forward"),
        (nn.LazyConv2d(8, 3), r"layer must have its sizes \(got LazyConv2d"),
    ]:
        with pytest.raises(TypeError, match=message):
            SKConv2d.from_conv(dense, rank=2)
    with pytest.raises(TypeError, match=r"SKLinear: layer must be an nn.Linear \(got Conv2d"):
        SKLinear.from_linear(nn.Conv2d(8, 8, 3), rank=2)


def test_bad_values():
    conv = nn.Conv2d(8, 12, 3)
    sigma = torch.eye(72)
    for arguments, error, message in [
        ({"rank": 9}, ValueError, r"SKConv2d: num_sketches \* rank must be at most"),
        ({}, ValueError, r"SKConv2d: exactly one of rank and rate"),
        (
            {"rank": 2, "init": "svd"},
            ValueError,
            r"init must be one of 'fit', 'unbiased', 'random'",
        ),
        (
            {"rank": 2, "init": "random", "second_moment": sigma},
            ValueError,
            r"SKConv2d: second_moment must be None unless init is 'fit' \(got init='random'",
        ),
        (
            {"rank": 2, "frame": "signs", "second_moment": sigma},
            ValueError,
            r"second_moment must be None with a frame",
        ),
        ({"rank": 2, "second_moment": sigma[:3]}, RuntimeError, r"must have shape \(72, 72\) or"),
        ({"rank": 2, "second_moment": -sigma}, ValueError, r"must be positive semidefinite"),
        ({"rank": 2, "second_moment": sigma * torch.nan}, ValueError, r"second_moment must be fin"),
    ]:
        with pytest.raises(error, match=message):
            SKConv2d.from_conv(conv, **arguments)
    with torch.no_grad():
        conv.weight[0, 0, 0] = torch.tensor([torch.nan, torch.inf, torch.nan])
    for init in ("fit", "unbiased"):
        with pytest.raises(
            ValueError,
            match=r"SKConv2d: weight of Conv2d must be finite \(got 2 NaN and 1 infinite entries "
            r"among 864\)",
        ):
            SKConv2d.from_conv(conv, rank=2, init=init)
