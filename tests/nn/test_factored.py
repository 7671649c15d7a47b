"""Layers that are chains of plain ones: what holds for all of them."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sketchlayers
from sketchlayers.nn import CPConv2d, LowRankLinear, TuckerConv2d

GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2), "bias": False},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1, "dilation": (2, 1)},
    "same": {"kernel_size": (2, 4), "padding": "same", "dilation": 2, "groups": 2},
    "reflect": {"kernel_size": (4, 3), "padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    "replicate": {"kernel_size": 3, "padding": "same", "padding_mode": "replicate"},
    "circular": {"kernel_size": (3, 2), "padding": "same", "padding_mode": "circular", "groups": 3},
    "pixels": {"kernel_size": 1, "stride": 2, "padding": 1},
    "row": {"kernel_size": (1, 4), "stride": (2, 1), "padding": (1, 2)},
    "column": {"kernel_size": (3, 1), "padding": "same", "padding_mode": "circular"},
}
KINDS: dict[str, Callable[..., nn.Module]] = {
    "both": lambda **of: TuckerConv2d(12, 18, **of, ranks=(3, 5)),
    "input": lambda **of: TuckerConv2d(12, 18, **of, ranks=(3, None)),
    "output": lambda **of: TuckerConv2d(12, 18, **of, ranks=(None, 5)),
    "cp": lambda **of: CPConv2d(12, 18, **of, rank=7),
}
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "tucker": lambda **of: TuckerConv2d(12, 18, 3, padding=1, groups=2, ranks=(3, 5), **of),
    "low rank": lambda **of: TuckerConv2d(12, 18, 3, stride=2, ranks=(None, 4), **of),
    "cp": lambda **of: CPConv2d(12, 18, 3, padding=1, rank=5, **of),
    "linear": lambda **of: LowRankLinear(12, 18, rank=4, **of),
}
FITS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "tucker": (
        lambda conv, **of: TuckerConv2d.from_conv(conv, (3, 5), **of),
        lambda **of: nn.Conv2d(12, 18, 3, **of),
    ),
    "low rank": (
        lambda conv, **of: TuckerConv2d.from_conv(conv, (None, 4), **of),
        lambda **of: nn.Conv2d(12, 18, (3, 1), padding="same", groups=2, **of),
    ),
    "pixels": (
        lambda conv, **of: CPConv2d.from_conv(conv, 4, **of),
        lambda **of: nn.Conv2d(12, 18, 1, stride=2, **of),
    ),
    "cp": (
        lambda conv, **of: CPConv2d.from_conv(conv, 6, max_sweeps=40, **of),
        lambda **of: nn.Conv2d(12, 18, (3, 2), groups=2, **of),
    ),
    "linear": (
        lambda linear, **of: LowRankLinear.from_linear(linear, 4, **of),
        lambda **of: nn.Linear(12, 18, **of),
    ),
}


def example(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    if isinstance(layer, nn.Linear | LowRankLinear):
        return torch.randn(5, 12, dtype=dtype)
    return torch.randn(2, 12, 9, 8, dtype=dtype)


def dense_twin(layer: nn.Module, input: Tensor) -> Tensor:
    """What the plain layer with this layer's weight and bias computes."""
    if isinstance(layer, LowRankLinear):
        return F.linear(input, layer.weight, layer.bias)
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        padding_mode=layer.padding_mode,
    )
    return conv._conv_forward(input, layer.weight, layer.bias)


# ------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_computes_the_convolution_with_its_weight(kind: str, geometry: str) -> None:
    layer = KINDS[kind](**GEOMETRIES[geometry], dtype=torch.float64)
    image = torch.randn(2, 12, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(image), dense_twin(layer, image), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(image[0]), layer(image)[0], rtol=1e-10, atol=1e-12)
    folded = layer.fold()
    assert repr(folded) == repr(nn.Conv2d(12, 18, **GEOMETRIES[geometry]))
    assert torch.equal(folded.weight, layer.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_has_the_attributes_of_the_convolution(kind: str, geometry: str) -> None:
    layer = KINDS[kind](**GEOMETRIES[geometry])
    conv = nn.Conv2d(12, 18, **GEOMETRIES[geometry])
    names = [
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode", "transposed", "output_padding",
    ]  # fmt: skip
    for name in names:
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.weight.shape == conv.weight.shape
    assert (layer.bias is None) == (conv.bias is None)
    own, dense = (sum(p.numel() for p in module.parameters()) for module in (layer, conv))
    assert layer.rate == own / dense
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = conv.weight
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", ["strided", "grouped", "pixels", "row"])
def test_multiply_adds_are_those_of_the_run(kind: str, geometry: str) -> None:
    layer = KINDS[kind](**GEOMETRIES[geometry])
    image = torch.randn(2, 12, 9, 8)
    with FlopCounterMode(display=False) as counter:
        layer(image)
    assert 2 * layer.multiply_adds(image.shape) == counter.get_total_flops()
    assert 2 * layer.multiply_adds(image[0].shape) == layer.multiply_adds(image.shape)
    with pytest.raises(RuntimeError, match=r"input_shape must be \(N, 12, H, W\)"):
        layer.multiply_adds((2, 11, 9, 8))


def test_weights_of_unequal_padding_shift_nothing() -> None:
    """An even kernel with "same" pads one more behind; a single pixel shows where it lands."""
    image = torch.zeros(1, 12, 7, 7, dtype=torch.float64)
    image[0, :, 3, 3] = 1
    for kind in KINDS.values():
        layer = kind(kernel_size=(2, 4), padding="same", bias=False, dtype=torch.float64)
        weight = layer.weight.sum(1)
        output = layer(image)[0]
        torch.testing.assert_close(output[:, 2:4, 1:5].flip(1, 2), weight.roll((0, 0), (1, 2)))


# ---------------------------------------------------------------------------------- random weights


@pytest.mark.parametrize(
    "build",
    [
        lambda: TuckerConv2d(8, 12, (3, 2), groups=2, ranks=(3, 5), dtype=torch.float64),
        lambda: TuckerConv2d(6, 10, 3, ranks=(2, None), dtype=torch.float64),
        lambda: TuckerConv2d(6, 10, 3, ranks=(None, 3), dtype=torch.float64),
        lambda: CPConv2d(8, 12, (3, 2), groups=2, rank=9, dtype=torch.float64),
        lambda: CPConv2d(6, 10, (1, 3), rank=4, dtype=torch.float64),
        lambda: LowRankLinear(20, 30, rank=6, dtype=torch.float64),
    ],
)
def test_random_weights_have_kaimings_variance(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = build()
    weights = []
    for _ in range(400):
        layer.reset_parameters()
        weights.append(layer.weight.detach())
    squares = torch.stack(weights).square().flatten(1).mean(1)
    expected = 2 / weights[0][0].numel()
    error = squares.std() / len(squares) ** 0.5
    assert error < 0.05 * expected
    assert abs(squares.mean() - expected) < 4 * error
    bound = (expected / 2) ** 0.5
    assert 0.5 * bound < layer.bias.abs().max() <= bound
    # Signals keep their size inside of the chain.
    sizes = [part.weight[0].numel() * part.weight.square().mean() for part in layer.parts()]
    assert all(0.2 < size < 4 for size in sizes)


@pytest.mark.parametrize("kind", FITS)
def test_random_takes_nothing_but_the_bias(kind: str) -> None:
    convert, build = FITS[kind]
    dense = build()
    torch.manual_seed(3)
    first = convert(dense, init="random", seed=5)
    state = torch.random.get_rng_state()
    again = convert(dense, init="random", seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fit_error is None
    assert torch.equal(first.bias, dense.bias)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, convert(dense, init="random", seed=6).weight)
    assert not torch.equal(
        convert(dense, init="random").weight, convert(dense, init="random").weight
    )
    channels_last = convert(dense.to(memory_format=torch.channels_last), init="random", seed=5)
    for part, other in zip(first.parts(), channels_last.parts(), strict=True):
        assert torch.equal(part.weight, other.weight)


# ------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_device_type_format_flags_and_bias_carry_over(
    kind: str, memory_format: torch.memory_format
) -> None:
    convert, build = FITS[kind]
    dense = build(dtype=torch.bfloat16).to(memory_format=memory_format).eval()
    dense.weight.requires_grad_(False)
    layer = convert(dense)
    image = example(dense, torch.bfloat16)
    for module in (layer, layer.fold()):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        assert len(trained) == 1 and trained[0].endswith("bias")
        assert torch.equal(module.bias, dense.bias)
        assert module(image).stride() == dense(image).stride()
    assert layer.fold().weight.stride() == dense.weight.stride()
    dense.requires_grad_(True).bias.requires_grad_(False)
    layer = convert(dense.train())
    assert layer.training and not layer.bias.requires_grad
    assert all(part.weight.requires_grad for part in layer.parts())
    assert convert(build(bias=False)).bias is None


@pytest.mark.parametrize("kind", FITS)
def test_fits_in_the_norm_of_the_outputs_change(kind: str) -> None:
    torch.manual_seed(0)
    convert, build = FITS[kind]
    dense = build(dtype=torch.float64, bias=False)
    inputs, second_moment = patches(dense)
    errors = {}
    for name, moment in (("plain", None), ("weighted", second_moment)):
        layer = convert(dense, second_moment=moment)
        errors[name] = (layer(inputs) - dense(inputs)).norm() / dense(inputs).norm()
    assert layer.fit_error == pytest.approx(errors["weighted"].item(), rel=1e-6)
    assert errors["weighted"] < 0.98 * errors["plain"]
    plain = convert(dense)
    told = (plain.weight - dense.weight).norm() / dense.weight.norm()
    assert plain.fit_error == pytest.approx(told.item(), rel=1e-6)


@pytest.mark.parametrize("kind", FITS)
def test_sensitive_outputs_are_fitted_better(kind: str) -> None:
    torch.manual_seed(0)
    convert, build = FITS[kind]
    dense = build(dtype=torch.float64, bias=False)
    groups = getattr(dense, "groups", 1)
    sensitivity = torch.ones(groups, 18 // groups, dtype=torch.float64)
    sensitivity[:, :4] = 100

    def error(of: nn.Module) -> float:
        change = (of.weight - dense.weight).detach().unflatten(0, (groups, -1))
        return float(change[:, :4].norm())

    weighted = convert(dense, sensitivity=sensitivity.flatten())
    assert error(weighted) < 0.9 * error(convert(dense))
    full = convert(dense, sensitivity=torch.stack([row.diag() for row in sensitivity]))
    torch.testing.assert_close(full.weight, weighted.weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="sensitivity must have shape"):
        convert(dense, sensitivity=torch.ones(17))


def patches(dense: nn.Module) -> tuple[Tensor, Tensor]:
    """Inputs with very different channels, and the second moments of their patches."""
    scale = torch.logspace(0, -2, 12, dtype=torch.float64)
    if isinstance(dense, nn.Linear):
        inputs = torch.randn(400, 12, dtype=torch.float64) * scale
        return inputs, inputs.T @ inputs / len(inputs)
    inputs = torch.randn(8, 12, 9, 8, dtype=torch.float64) * scale[:, None, None]
    identity = torch.eye(dense.weight[0].numel() * dense.groups, dtype=torch.float64)
    # The layer itself, with filters that pick one entry each, lists its patches.
    per_group = dense.weight[0].numel()
    picking = nn.Conv2d(
        12, len(identity), dense.kernel_size, dense.stride, dense.padding, groups=dense.groups,
        bias=False, dtype=torch.float64,
    )  # fmt: skip
    eye = torch.eye(per_group, dtype=torch.float64).reshape(per_group, *dense.weight.shape[1:])
    picking.weight.data.copy_(eye.repeat(dense.groups, 1, 1, 1))
    columns = picking(inputs).movedim(1, 0).reshape(dense.groups, per_group, -1).detach()
    return inputs, columns @ columns.mT / columns.shape[-1]


@pytest.mark.parametrize("kind", FITS)
def test_the_layer_given_is_left_as_it_is(kind: str) -> None:
    convert, build = FITS[kind]
    dense = build()
    before = copy.deepcopy(dense.state_dict())
    layer = convert(dense)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *layer.fold().parameters()):
            parameter.zero_()
    assert all(torch.equal(dense.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", FITS)
def test_on_the_meta_device_there_is_nothing_to_fit(kind: str) -> None:
    convert, build = FITS[kind]
    for init in ("fit", "random"):
        layer = convert(build(device="meta"), init=init, seed=1)
        assert layer.fit_error is None
        assert all(parameter.is_meta for parameter in layer.parameters())
        assert layer.fold().weight.is_meta


@pytest.mark.parametrize("kind", FITS)
def test_refusals_of_conversion(kind: str) -> None:
    convert, build = FITS[kind]
    dense = build()
    with pytest.raises(ValueError, match="init must be one of 'fit', 'random'"):
        convert(dense, init="unbiased")
    for name in ("second_moment", "sensitivity"):
        with pytest.raises(ValueError, match=f"{name} must be None unless init is 'fit'"):
            convert(dense, init="random", **{name: torch.eye(3)})
    with pytest.raises(RuntimeError, match="second_moment must have shape"):
        convert(dense, second_moment=torch.eye(5))
    with pytest.raises(TypeError, match="layer must be an nn"):
        convert(nn.Conv1d(12, 18, 3))
    with torch.no_grad():
        dense.weight[2, 1] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        convert(dense)


# ---------------------------------------------------------------------------------- export, states


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("kind", LAYERS)
def test_exports(kind: str) -> None:
    layer = LAYERS[kind]().eval()
    x = example(layer)
    expected = layer(x)
    exported = torch.export.export(layer, (x,)).module()
    targets = {str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes}
    assert not any("sketchlayers" in target for target in targets)
    ways = {
        "export": exported,
        "script": torch.jit.script(layer),
        "trace": torch.jit.trace(layer, x),
        "fx": torch.fx.symbolic_trace(layer),
        "compile": torch.compile(layer, backend="aot_eager", fullgraph=True),
    }
    for way, module in ways.items():
        torch.testing.assert_close(module(x), expected, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("kind", LAYERS)
def test_state_dict_copies_and_pickles(kind: str) -> None:
    layer = LAYERS[kind]()
    x = example(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = LAYERS[kind]()
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    copies = [other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for module in copies:
        assert torch.equal(module(x), layer(x))
        assert repr(module) == repr(layer)
    built = LAYERS[kind](device="meta").to_empty(device="cpu")
    built.load_state_dict(layer.state_dict())
    assert torch.equal(built(x), layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_through_the_weight(kind: str) -> None:
    layer = LAYERS[kind](dtype=torch.float64)
    x = example(layer, torch.float64).requires_grad_()
    inputs = [x, *layer.parameters()]
    output = layer(x)
    seed = torch.randn_like(output)
    own = torch.autograd.grad(output, inputs, seed)
    through_weight = torch.autograd.grad(dense_twin(layer, x), inputs, seed)
    for gradient, other in zip(own, through_weight, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


def test_need_nothing_of_the_compiled_extension() -> None:
    """It is loaded by sketched layers and by `sketchlayers.ops`, which registers the operators."""
    code = (
        "import sys, torch; from sketchlayers import TuckerConv2d, CPConv2d, LowRankLinear\n"
        "conv = torch.nn.Conv2d(6, 8, 3)\n"
        "TuckerConv2d.from_conv(conv, (None, 2)).fold(); CPConv2d(6, 8, 3, rank=2)\n"
        "LowRankLinear(6, 8, rank=2)\n"
        "print('sketchlayers.ops' in sys.modules, 'sketchlayers._C' in sys.modules)\n"
        "import sketchlayers.ops; print(hasattr(torch.ops.sketchlayers, 'sk_conv2d'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


class Adapted(nn.Module):
    """As adapters wrap a layer: it has the layer's weight and computes with more than that."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.more = base, nn.Conv2d(4, 4, 3)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.more(x)


def test_a_wrapped_part_has_no_weight() -> None:
    layer = TuckerConv2d(8, 8, 3, ranks=(4, 4))
    layer.core = Adapted(layer.core)
    for read in (lambda: layer.weight, layer.dense_weight, layer.fold):
        with pytest.raises(RuntimeError, match=r"parts must be plain layers.*Adapted\); .*merge"):
            read()
    layer.core = nn.Conv2d(4, 4, 3, bias=False)  # merged
    assert layer.fold().weight.shape == (8, 8, 3, 3)


def test_the_bias_can_be_set() -> None:
    layer, value = TuckerConv2d(8, 8, 3, ranks=(4, 4)), torch.randn(2, 8, 6, 6)
    before = layer(value) - layer.bias[:, None, None]
    layer.bias = nn.Parameter(torch.ones(8))
    torch.testing.assert_close(layer(value), before + 1)
    assert "output.bias" in layer.state_dict() and "bias" not in layer.state_dict()
    layer.bias = None
    torch.testing.assert_close(layer(value), before)
    assert layer.fold().bias is None


def test_weights_that_torchao_has_quantised_can_be_folded() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(LowRankLinear(64, 32, rank=16)).eval()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    value = torch.randn(4, 64)
    torch.testing.assert_close(sketchlayers.fold(model)(value), model(value), rtol=1e-3, atol=1e-3)
