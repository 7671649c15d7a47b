"""Sizes, attributes, arguments and their errors."""

import inspect
import math
import re

import pytest
import torch
from torch import nn

from sketchlayers import ops
from sketchlayers.nn import (
    CPConv2d,
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    LowRankConv2d,
    SKConv2d,
    SKLinear,
    TuckerConv2d,
)
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.sketch._sizes import fitting_blocks, max_rank, weights_per_rank


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_shapes_are_those_of_stacked_convolution_weights():
    layer = SKConv2d(12, 18, (3, 5), groups=3, rank=2, num_sketches=2)
    assert layer.s1.shape == (3 * 4, 4, 3, 5)
    assert layer.s2.shape == (18, 4, 3, 5)
    assert layer.bias.shape == (18,)
    u1, u2 = layer.sketch_matrices()
    assert u1.shape == (3, 2, 2, 6)
    assert u2.shape == (3, 2, 2 * 15, 4 * 15)
    channel = SKConv2d(12, 18, (3, 5), rank=2, num_sketches=2, mixing="channel")
    u1, u2 = channel.sketch_matrices()
    assert u1.shape == (2, 2, 18)
    assert u2.shape == (2, 2, 12)


def test_blocks_have_sketch_matrices_of_their_own():
    layer = SKConv2d(12, 18, (3, 5), groups=3, rank=1, num_sketches=2, blocks=2)
    assert layer.s1.shape == SKConv2d(12, 18, (3, 5), groups=3, rank=1, num_sketches=2).s1.shape
    assert layer.rate == SKConv2d(12, 18, (3, 5), groups=3, rank=1, num_sketches=2).rate
    u1, u2 = layer.sketch_matrices()
    assert u1.shape == (3, 2, 2, 1, 6)
    assert u2.shape == (3, 2, 2, 15, 4 * 15)
    assert SKLinear(8, 6, rank=1, blocks=2).sketch_matrices()[0].shape == (2, 1, 1, 6)
    plain = SKConv2d(12, 18, 3, rank=4, seed=3)
    assert torch.equal(SKConv2d(12, 18, 3, rank=4, seed=3, blocks=2).u1[:, :4], plain.u1)


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize("signs", ["rademacher", "hadamard"])
def test_blocks_raise_the_rank_of_the_weight(mixing, signs):
    torch.manual_seed(0)
    ranks = [
        torch.linalg.matrix_rank(
            SKConv2d(
                32, 32, 1, rank=2, mixing=mixing, blocks=blocks, signs=signs, dtype=torch.float64
            ).weight.flatten(1)
        ).item()
        for blocks in (1, 4, 8)
    ]
    assert ranks == [4, 16, 32]


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_sketch_matrices_are_signs_over_the_square_root_of_their_rows(mixing):
    u1, u2 = SKConv2d(12, 18, 3, rank=5, num_sketches=2, mixing=mixing).sketch_matrices()
    for u in (u1, u2):
        assert u.abs().sub(1 / math.sqrt(u.shape[-2])).abs().max() < 1e-6
        assert 0 < u.gt(0).float().mean() < 1
    assert SKLinear(4, 6, rank=2).sketch_matrices(dtype=torch.float64)[0].dtype == torch.float64


def test_linear_sizes():
    layer = SKLinear(12, 18, rank=2, num_sketches=3)
    assert layer.s1.shape == (6, 12)
    assert layer.s2.shape == (18, 6)
    u1, u2 = layer.sketch_matrices()
    assert u1.shape == (3, 2, 18)
    assert u2.shape == (3, 2, 12)


@pytest.mark.parametrize(
    ("layer", "dense"),
    [
        (SKConv2d(12, 18, (3, 5), groups=3, rank=2), nn.Conv2d(12, 18, (3, 5), groups=3)),
        (SKConv2d(8, 6, 3, bias=False, rank=2), nn.Conv2d(8, 6, 3, bias=False)),
        (SKLinear(30, 20, rank=3, num_sketches=2), nn.Linear(30, 20)),
    ],
)
def test_rate_counts_all_parameters_biases_included(layer, dense):
    assert layer.rate == count(layer) / count(dense)
    assert layer.weight.shape == dense.weight.shape


def test_size_helpers_agree_with_the_layers():
    layer = SKConv2d(12, 18, (3, 5), groups=3, rank=2, num_sketches=2)
    geometry = Geometry.of(layer)
    assert 2 * weights_per_rank(geometry, 2) + 18 == count(layer)
    assert geometry.weights + 18 == count(nn.Conv2d(12, 18, (3, 5), groups=3))
    assert max_rank(geometry, 2) == 2
    assert max_rank(Geometry(12, 24, groups=12), 1) == 1
    assert max_rank(Geometry(2, 2), 3) == 0
    assert [fitting_blocks(12, 18, blocks=blocks) for blocks in (1, 4, 5, 6)] == [1, 3, 3, 6]


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_rate_takes_the_nearest_rank(rate, bias):
    layer = SKConv2d(40, 60, 3, groups=2, num_sketches=2, bias=bias, rate=rate)
    rates = [
        SKConv2d(40, 60, 3, groups=2, num_sketches=2, bias=bias, rank=k, device="meta").rate
        for k in range(1, max_rank(Geometry.of(layer), 2) + 1)
    ]
    assert abs(layer.rate - rate) == min(abs(other - rate) for other in rates)


def test_rate_is_the_papers_for_whole_ranks():
    # Rate l k (d1 + d2) / (d1 d2): a factor 10 for 192 -> 192 needs l k = 9.6.
    assert SKConv2d(192, 192, 3, bias=False, rate=0.1, device="meta").rank == 10
    assert SKConv2d(192, 192, 3, bias=False, rank=10).rate == 10 * 384 / 192**2


def test_attributes_are_those_of_the_dense_layers():
    arguments = {
        "kernel_size": (3, 1),
        "stride": (2, 1),
        "padding": (1, 0),
        "dilation": (1, 2),
        "groups": 2,
        "padding_mode": "circular",
    }
    dense, layer = nn.Conv2d(8, 6, **arguments), SKConv2d(8, 6, **arguments, rank=1)
    # Counters of operations and exporters read all of them.
    for name in [*nn.Conv2d.__constants__, "transposed"]:
        assert getattr(layer, name) == getattr(dense, name)
    positional = SKConv2d(8, 6, 3, 2, 1, 1, 2, False, "reflect", "cpu", torch.float64, rank=1)
    assert positional.groups == 2
    assert positional.bias is None
    assert positional.padding_mode == "reflect"
    assert positional.s1.dtype == torch.float64
    linear = SKLinear(8, 6, False, "cpu", torch.float64, rank=1)
    assert (linear.in_features, linear.out_features, linear.bias) == (8, 6, None)


def test_scale_is_a_number():
    assert SKLinear(8, 8, rank=1, num_sketches=4).scale == 1 / 8
    assert SKLinear(8, 8, rank=1, num_sketches=4, scale="normalized").scale == 1 / math.sqrt(8)
    assert SKLinear(8, 8, rank=1, scale=3).scale == 3.0


def test_weight_is_differentiable():
    layer = SKConv2d(4, 6, 3, rank=2)
    layer.weight.square().sum().backward()
    assert layer.s1.grad.norm() > 0
    assert layer.s2.grad.norm() > 0


def test_repr():
    assert repr(SKConv2d(96, 192, 5, padding=2, rank=6)) == (
        "SKConv2d(96, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), rank=6, rate=0.0941)"
    )
    layer = SKConv2d(
        8, 12, (3, 1), 2, "valid", 3, 2, False, "reflect",
        rank=1, num_sketches=2, mixing="channel", scale=0.5, frame="signs",
    )  # fmt: skip
    assert repr(layer) == (
        "SKConv2d(8, 12, kernel_size=(3, 1), stride=(2, 2), padding=valid, dilation=(3, 3), "
        "groups=2, bias=False, padding_mode=reflect, rank=1, num_sketches=2, mixing=channel, "
        "scale=0.5, frame=signs, rate=0.833)"
    )
    assert repr(SKLinear(768, 10, bias=False, rank=2)) == (
        "SKLinear(in_features=768, out_features=10, bias=False, rank=2, rate=0.203)"
    )
    assert repr(SKConv2d(64, 64, 1, rank=2, blocks=4, signs="hadamard")) == (
        "SKConv2d(64, 64, kernel_size=(1, 1), stride=(1, 1), rank=2, blocks=4, signs=hadamard, "
        "rate=0.0769)"
    )


def test_path_can_be_frozen():
    layer = SKConv2d(8, 8, 3, rank=2)
    assert layer.path == "auto"
    image = torch.randn(2, 8, 6, 6)
    outputs = []
    for path in ("factored", "folded"):
        layer.path = path
        plan = layer.plan(image.shape)
        assert plan.path == path
        assert plan.multiply_adds == getattr(plan, f"{path}_multiply_adds")
        outputs.append(layer(image))
    torch.testing.assert_close(*outputs)
    with pytest.raises(ValueError, match=r"SKConv2d: path must be one of 'auto'.*path='fast'"):
        layer.path = "fast"
    with pytest.raises(ValueError, match=r"path must be 'auto' or 'folded' with a frame"):
        SKConv2d(8, 8, 3, rank=2, frame="signs").path = "factored"


def test_plan_counts_the_dense_layers_multiply_adds():
    layer = SKConv2d(8, 12, 3, stride=2, padding=1, dilation=2, groups=2, rank=1)
    output = layer(torch.randn(5, 8, 17, 20))
    plan = layer.plan((5, 8, 17, 20))
    assert plan.dense_multiply_adds == output.numel() * 4 * 9
    assert plan.reason
    fewest = min(plan.factored_multiply_adds, plan.folded_multiply_adds)
    assert layer.multiply_adds((5, 8, 17, 20)) == fewest
    assert layer.plan((8, 17, 20)).dense_multiply_adds == plan.dense_multiply_adds / 5
    with torch.no_grad():
        inference = layer.plan((5, 8, 17, 20))
    assert inference.reason != plan.reason  # the estimate is of another time
    assert layer.requires_grad_(False).plan((5, 8, 17, 20)) == inference
    same = SKConv2d(8, 12, (4, 3), padding="same", rank=1)
    assert same.plan((1, 8, 9, 7)).dense_multiply_adds == 12 * 9 * 7 * 8 * 12
    linear = SKLinear(8, 12, rank=1)
    assert linear.plan((3, 4, 8)).dense_multiply_adds == 12 * 8 * 12
    linear.path = "factored"  # whatever the planner would take for sizes as small as these
    assert linear.multiply_adds((3, 4, 8)) < 12 * 8 * 12
    for shape in [(5, 9, 17, 20), (17, 20), (5, 8, 2, 20)]:
        with pytest.raises(RuntimeError, match=r"SKConv2d: input_shape must be \(N, 8, H, W\)"):
            layer.plan(shape)
    with pytest.raises(RuntimeError, match=r"SKLinear: input_shape must be \(\*, 8\)"):
        linear.plan((8, 9))


@pytest.mark.parametrize("columns", [1, 5, 16, 48, 200])
def test_hadamard_signs(columns):
    """Rows of one transform are orthogonal over all its columns; entries are as often + as -."""
    size = 1 << (columns - 1).bit_length()
    whole = ops.unpack_signs(ops.hadamard_signs(3, 1, size, size), size)
    assert torch.equal(whole @ whole.T, size * torch.eye(size))
    packed = ops.hadamard_signs(3, 1, size + 3, columns)
    assert packed.shape == (size + 3, 4 * math.ceil(columns / 128))
    assert packed.dtype == torch.int32
    assert torch.equal(packed, ops.hadamard_signs(3, 1, size + 3, columns))
    assert torch.equal(packed[:2], ops.hadamard_signs(3, 1, 2, columns))
    signs = ops.unpack_signs(packed, columns)
    assert signs[:size].unique(dim=0).shape[0] == size or columns < size
    assert ops.hadamard_signs(3, 1, 4, columns, device="meta").shape == packed[:4].shape


def test_hadamard_signs_have_the_moments_of_a_sketch():
    """Over seeds E[U^T U] = I, which is all that the unbiased sketch needs."""
    signs = torch.stack(
        [ops.unpack_signs(ops.hadamard_signs(seed, 0, 4, 24), 24) for seed in range(2000)]
    )
    products = torch.einsum("sri,srj->sij", signs, signs) / 4
    assert (products.mean(0) - torch.eye(24)).abs().max() < 5 * 0.5 / math.sqrt(2000)
    assert signs.mean((0, 1)).abs().max() < 5 / math.sqrt(8000)


def conv(**arguments):
    return SKConv2d(**({"in_channels": 8, "out_channels": 12, "kernel_size": 3} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, r"SKConv2d: rank must be at least 1 \(got rank=0\)"),
        ({"rank": 9}, ValueError, r"num_sketches \* rank must be at most .* 8 \(got .*rank=9"),
        ({"rank": 3, "num_sketches": 3}, ValueError, r"at most .* 8 \(got num_sketches=3, rank=3"),
        ({"rank": 3, "groups": 4}, ValueError, r"/ groups = 2 \(got num_sketches=1, rank=3"),
        ({"rate": 0.5, "num_sketches": 9}, ValueError, r"got num_sketches=9, rank=1"),
        ({"rank": 1, "num_sketches": 0}, ValueError, r"num_sketches must be at least 1"),
        ({}, ValueError, r"exactly one of rank and rate must be given \(got rank=None, rate=None"),
        ({"rank": 2, "rate": 0.1}, ValueError, r"exactly one of rank and rate .*rank=2, rate=0.1"),
        ({"rate": 0.0}, ValueError, r"rate must be in \(0, 1\] \(got rate=0.0\)"),
        ({"rate": 1.5}, ValueError, r"rate must be in \(0, 1\] \(got rate=1.5\)"),
        ({"rate": 50}, ValueError, r"is kept; for 50 % give rate=0\.5"),
        ({"rate": math.nan}, ValueError, r"rate must be in \(0, 1\] \(got rate=nan\)"),
        ({"rate": "0.1"}, TypeError, r"rate must be a number \(got rate='0.1'\)"),
        ({"rank": 1.5}, TypeError, r"rank must be an int \(got rank=1.5\)"),
        ({"rank": True}, TypeError, r"rank must be an int \(got rank=True\)"),
        ({"rank": 1, "num_sketches": 2.0}, TypeError, r"num_sketches must be an int"),
        ({"rank": 1, "in_channels": 0}, ValueError, r"in_channels must be at least 1"),
        ({"rank": 1, "out_channels": 4.0}, TypeError, r"out_channels must be an int"),
        ({"rank": 1, "groups": 3}, ValueError, r"in_channels must be divisible by groups .*=3"),
        ({"rank": 1, "groups": 8}, ValueError, r"out_channels must be divisible by groups .*=8"),
        ({"rank": 1, "groups": 0}, ValueError, r"groups must be at least 1"),
        ({"rank": 1, "kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be an int or two"),
        ({"rank": 1, "kernel_size": 0}, ValueError, r"kernel_size must be at least 1"),
        ({"rank": 1, "stride": 0.5}, TypeError, r"stride must be an int"),
        ({"rank": 1, "padding": -1}, ValueError, r"padding must be at least 0"),
        ({"rank": 1, "stride": 2**15 + 1}, ValueError, r"stride must be at most 32768 \(got"),
        ({"rank": 1, "padding": (1, 2**33 + 1)}, ValueError, r"padding must be at most 32768"),
        ({"rank": 1, "dilation": 2**31}, ValueError, r"dilation must be at most 32768"),
        (
            {"rank": 1, "padding": "same", "dilation": 2**15, "kernel_size": 4},
            ValueError,
            r"padding='same' of a side must be at most 32768 \(got .*=49152\)",
        ),
        ({"rank": 1, "in_channels": 2**31}, ValueError, r"in_channels must be at most 2147483647"),
        ({"rank": 1, "kernel_size": 2**31}, ValueError, r"kernel_size must be at most 214748364"),
        ({"rank": 1, "padding": "full"}, ValueError, r"padding must be one of 'same', 'valid'"),
        ({"rank": 1, "padding": "same", "stride": 2}, ValueError, r"stride must be 1 with padding"),
        ({"rank": 1, "padding_mode": "edge"}, ValueError, r"padding_mode must be one of 'zeros'"),
        ({"rank": 1, "mixing": "both"}, ValueError, r"mixing must be one of 'spatial', 'channel'"),
        ({"rank": 1, "blocks": 0}, ValueError, r"blocks must be at least 1 \(got blocks=0\)"),
        ({"rank": 1, "blocks": 2.0}, TypeError, r"blocks must be an int"),
        ({"rank": 1, "blocks": 3}, ValueError, r"blocks must divide the inputs and .*got blocks=3"),
        ({"rank": 1, "signs": "gauss"}, ValueError, r"signs must be one of 'rademacher', 'hadama"),
        ({"rank": 1, "frame": "random"}, ValueError, r"frame must be one of None, 'signs' \(got"),
        ({"rank": 1, "scale": "unit"}, ValueError, r"scale must be one of 'paper', 'normalized'"),
        ({"rank": 1, "scale": 0.0}, ValueError, r"scale must be finite and above 0 \(got scale=0"),
        ({"rank": 1, "scale": math.inf}, ValueError, r"scale must be finite and above 0"),
        ({"rank": 1, "scale": None}, TypeError, r"scale must be 'paper', 'normalized' or a number"),
        ({"rank": 1, "seed": -1}, ValueError, r"seed must be in \[0, 2\*\*63\) \(got seed=-1\)"),
        ({"rank": 1, "seed": 2**63}, ValueError, r"seed must be in \[0, 2\*\*63\)"),
        ({"rank": 1, "seed": 0.5}, TypeError, r"seed must be an int or None \(got float\)"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        conv(**arguments)


def test_errors_name_the_linear_layer():
    with pytest.raises(ValueError, match=r"SKLinear: rank must be at least 1 \(got rank=0\)"):
        SKLinear(4, 4, rank=0)
    with pytest.raises(ValueError, match=r"SKLinear: num_sketches \* rank must be at most"):
        SKLinear(4, 8, rank=5)
    with pytest.raises(TypeError, match=r"SKLinear: in_features must be an int"):
        SKLinear("4", 8, rank=5)


OTHER_CONVOLUTIONS = {
    HashedConv2d: {"rate": 0.5},
    FreshConv2d: {"rate": 0.5},
    DictionaryConv2d: {"rate": 0.5},
    TuckerConv2d: {"ranks": (2, 2)},
    CPConv2d: {"rank": 2},
    LowRankConv2d: {"rank": 2},
}


@pytest.mark.parametrize("kind", OTHER_CONVOLUTIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_every_convolution_refuses_steps_that_pytorch_cannot_take(kind, name):
    sizes = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, **OTHER_CONVOLUTIONS[kind]}
    assert 2**15 in getattr(kind(**sizes, **{name: 2**15}), name)
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: {name} must be at most 32768 \(got"):
        kind(**sizes, **{name: (1, 2**33 + 1)})


@pytest.mark.parametrize("kind", [SKConv2d, TuckerConv2d, FreshConv2d, SKLinear, DictionaryLinear])
def test_the_dense_layers_arguments_come_first_and_its_own_are_told(kind):
    dense = nn.Linear if issubclass(kind, SKLinear | DictionaryLinear) else nn.Conv2d
    told, expected = inspect.signature(kind).parameters, inspect.signature(dense).parameters
    assert list(told)[: len(expected)] == list(expected)
    for name, parameter in expected.items():
        assert (told[name].default, told[name].kind) == (parameter.default, parameter.kind)
    own = list(told)[len(expected) :]
    assert own and all(told[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)
    convert = kind.from_conv if dense is nn.Conv2d else kind.from_linear
    for name in own:
        assert name in inspect.signature(convert).parameters
    for documented in (kind, convert):
        for name in inspect.signature(documented).parameters:
            assert re.search(rf"\n +([\w, ]+, )?{name}(, [\w, ]+)?: ", documented.__doc__), name
    with pytest.raises(TypeError, match=rf"{kind.__name__}: .*'colour'"):
        kind(8, 8, 1, colour=1)


def test_a_class_derived_from_a_layer_has_its_own_signature():
    class Wide(SKLinear):
        def __init__(self, features):
            super().__init__(features, 2 * features, rank=1)

    assert list(inspect.signature(Wide).parameters) == ["features"]
    assert Wide(4)(torch.randn(2, 4)).shape == (2, 8)
