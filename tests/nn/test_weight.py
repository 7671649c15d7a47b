"""The weight that a compressed layer shows: it reads as a tensor, and writes into it raise."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

import sketchlayers
from sketchlayers.nn import (
    CPConv2d,
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    HashedLinear,
    LowRankConv2d,
    LowRankLinear,
    SKConv2d,
    SKLinear,
    TuckerConv2d,
)

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "SKConv2d": lambda **options: SKConv2d(16, 16, 3, rate=0.5, padding=1, groups=2, **options),
    "SKLinear": lambda **options: SKLinear(32, 32, rate=0.5, **options),
    "TuckerConv2d": lambda **options: TuckerConv2d(16, 16, 3, ranks=(4, 8), **options),
    "TuckerConv2d, one side": lambda **options: TuckerConv2d(16, 16, 3, ranks=(4, None), **options),
    "TuckerConv2d, groups": lambda **options: TuckerConv2d(
        16, 16, 3, ranks=(4, 4), groups=2, **options
    ),
    "CPConv2d": lambda **options: CPConv2d(16, 16, 3, rank=12, **options),
    "LowRankConv2d": lambda **options: LowRankConv2d(16, 16, 3, rank=12, **options),
    "LowRankLinear": lambda **options: LowRankLinear(32, 32, rank=8, **options),
    "HashedConv2d": lambda **options: HashedConv2d(16, 16, 3, rate=0.5, **options),
    "HashedLinear": lambda **options: HashedLinear(32, 32, rate=0.5, **options),
    "FreshConv2d": lambda **options: FreshConv2d(16, 16, 3, rate=0.5, **options),
    "DictionaryConv2d": lambda **options: DictionaryConv2d(
        16, 16, 3, rate=0.5, num_columns=2, **options
    ),
    "DictionaryLinear": lambda **options: DictionaryLinear(32, 32, rate=0.5, **options),
}


def example(layer: nn.Module) -> Tensor:
    dtype = next(layer.parameters()).dtype
    shape = (2, 16, 8, 8) if hasattr(layer, "kernel_size") else (2, 32)
    return torch.randn(shape, dtype=dtype)


def iadd(layer):
    layer.weight.data += 1


def iadd_itself(layer):
    with torch.no_grad():
        layer.weight += 1


def low_rank_update(layer):  # as a LoRA adapter is merged
    delta = torch.zeros_like(layer.weight)
    layer.weight.data = layer.weight.data + delta


def write_a_row(layer):
    layer.weight.data[0] = 0


def write_a_view(layer):
    layer.weight.detach().flatten(1).T[0].mul_(2)


def write_a_part(layer):
    first, *_ = layer.weight.detach().unbind(0)
    first.zero_()


def write_by_out(layer):
    with torch.no_grad():
        torch.mul(layer.weight, 2, out=layer.weight)


def write_by_foreach(layer):
    torch._foreach_mul_([layer.weight.detach()], 2)


def write_by_mask(layer):
    weight = layer.weight.detach()
    weight[weight.abs() < 0.1] = 0


def freeze(layer):
    layer.weight.requires_grad_(False)


WRITES = [
    iadd,
    iadd_itself,
    low_rank_update,
    write_a_row,
    write_a_view,
    write_a_part,
    write_by_out,
    write_by_foreach,
    write_by_mask,
    freeze,
    lambda layer: nn.init.zeros_(layer.weight),
    lambda layer: nn.init.kaiming_normal_(layer.weight),
    lambda layer: nn.init.orthogonal_(layer.weight),
    lambda layer: layer.weight.data.copy_(torch.ones(())),
    lambda layer: layer.weight.detach().clamp_(-1, 1),
    lambda layer: layer.weight.detach().index_fill_(0, torch.tensor([0]), 1.0),
]
SETS = [
    lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(3))),
    lambda layer: setattr(layer, "weight", torch.ones(3)),
    lambda layer: setattr(layer, "weight", None),
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_write_into_the_weight_raises(kind: str, write: Callable[[nn.Module], object]) -> None:
    layer = LAYERS[kind]()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"{type(layer).__name__}: weight is computed from"):
        write(layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("write", SETS)
@pytest.mark.parametrize("kind", LAYERS)
def test_setting_the_weight_raises(kind: str, write: Callable[[nn.Module], object]) -> None:
    layer = LAYERS[kind]()
    names = list(layer.state_dict())
    with pytest.raises(AttributeError, match=r"weight is computed .* and cannot be set"):
        write(layer)
    assert list(layer.state_dict()) == names
    for normed in (parametrizations.weight_norm, parametrizations.spectral_norm):
        with pytest.raises((ValueError, KeyError), match="weight"):
            normed(layer)
    with pytest.raises(ValueError, match="weight"):
        register_parametrization(layer, "weight", nn.Identity())


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_reads_as_a_tensor(kind: str) -> None:
    layer = LAYERS[kind]()
    weight, plain = layer.weight, layer.dense_weight()
    assert isinstance(weight, Tensor) and weight.shape == plain.shape
    assert (weight.dtype, weight.device, weight.dim()) == (plain.dtype, plain.device, plain.dim())
    assert type(weight * 2) is type(weight + plain) is type(plain @ weight.mT) is Tensor
    assert torch.equal(weight, plain) and float(weight.norm()) == float(plain.norm())
    weight.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer._weight_parameters()]
    layer.zero_grad()
    layer.dense_weight().square().sum().backward()
    for own, gradient in zip(layer._weight_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, own.grad)
    mine = weight.detach().clone()
    assert type(mine) is Tensor
    mine += 1  # a copy is a user's own
    target = torch.zeros_like(plain)
    target.copy_(weight)
    target.add_(weight)
    torch.testing.assert_close(target, 2 * plain)
    assert type(copy.deepcopy(weight.detach())) is Tensor
    assert repr(weight).startswith("ComputedWeight(")
    file = io.BytesIO()
    torch.save(weight.detach(), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), plain)
    assert weight.numpy(force=True).shape == tuple(plain.shape)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: layer.weight * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), plain * 2)


# --------------------------------------------------------------------------------- batch norm


def trained_norm(layer: nn.Module, **options: bool) -> nn.Module:
    features = getattr(layer, "out_channels", None) or layer.out_features
    kind = nn.BatchNorm2d if hasattr(layer, "kernel_size") else nn.BatchNorm1d
    norm = kind(features, dtype=next(layer.parameters()).dtype, **options)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:
                tensor.uniform_(0.5, 2)
    return norm.eval()


@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=["affine", "plain norm"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_fused_batch_norm_computes_the_same(kind, dtype, bias, options) -> None:
    layer = LAYERS[kind](bias=bias).to(dtype).eval()
    norm, value = trained_norm(layer, **options), example(layer)
    fused = sketchlayers.fuse_batch_norm(layer, norm)
    with torch.no_grad():
        expected, actual = norm(layer(value)).double(), fused(value).double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert (actual - expected).norm() < tolerance * expected.norm()
    assert fused.weight.dtype == dtype and fused.bias.requires_grad
    shares = isinstance(layer, SKConv2d | SKLinear | HashedConv2d | HashedLinear | FreshConv2d)
    plain = nn.Conv2d if hasattr(layer, "kernel_size") else nn.Linear
    assert type(fused) is (plain if shares else type(layer))


@pytest.mark.parametrize("plain", [nn.Conv2d(4, 8, 3), nn.Linear(4, 8)])
def test_plain_layers_are_fused_too(plain: nn.Module) -> None:
    plain.eval()
    norm = trained_norm(plain)
    value = torch.randn(2, 4, 5, 5) if isinstance(plain, nn.Conv2d) else torch.randn(2, 4)
    torch.testing.assert_close(
        sketchlayers.fuse_batch_norm(plain, norm)(value), norm(plain(value)), rtol=1e-4, atol=1e-5
    )


def test_a_fused_network_keeps_tied_and_original_layers() -> None:
    layer = TuckerConv2d(16, 16, 3, ranks=(4, 8)).eval()
    norm = trained_norm(layer)
    before = copy.deepcopy(layer.state_dict()), copy.deepcopy(norm.state_dict())
    sketchlayers.fuse_batch_norm(layer, norm)
    for module, state in zip((layer, norm), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", LAYERS)
def test_other_ways_to_fuse_work_or_raise(kind: str) -> None:
    """By PyTorch, which sets the weight, and as YOLO does, which makes a plain layer of it."""
    layer = LAYERS[kind]().eval()
    norm, value = trained_norm(layer), example(layer)
    fuse = fusion.fuse_conv_bn_eval if hasattr(layer, "kernel_size") else fusion.fuse_linear_bn_eval
    with pytest.raises(AttributeError, match="fuse_batch_norm"):
        fuse(layer, norm)
    if not hasattr(layer, "kernel_size"):
        return
    with torch.no_grad():
        expected = norm(layer(value))
        plain = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            groups=layer.groups,
        ).requires_grad_(False)  # fmt: skip
        scale = torch.diag(norm.weight.div(torch.sqrt(norm.eps + norm.running_var)))
        weight = layer.weight.clone().view(layer.out_channels, -1)
        plain.weight.copy_(torch.mm(scale, weight).view(plain.weight.shape))
        shift = norm.bias - norm.weight.mul(norm.running_mean).div(
            torch.sqrt(norm.running_var + norm.eps)
        )
        plain.bias.copy_(torch.mm(scale, layer.bias.reshape(-1, 1)).reshape(-1) + shift)
        torch.testing.assert_close(plain(value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "norm", "error", "message"),
    [
        (nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), TypeError, r"batch norm \(got GroupNorm\)"),
        (nn.Conv2d(4, 8, 3), nn.BatchNorm2d(4), ValueError, r"8 \(got 4\)"),
        (
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8, track_running_stats=False),
            ValueError,
            "running statistics",
        ),
    ],
)
def test_what_cannot_be_fused(layer, norm, error, message) -> None:
    with pytest.raises(error, match=message):
        sketchlayers.fuse_batch_norm(layer.eval(), norm.eval())
    with pytest.raises(TypeError, match=r"layer must be .* \(got ReLU\)"):
        sketchlayers.fuse_batch_norm(nn.ReLU(), nn.BatchNorm2d(8))
    if isinstance(norm, nn.BatchNorm2d):
        with pytest.raises(ValueError, match="must be in eval mode"):
            sketchlayers.fuse_batch_norm(layer.train(), norm)
