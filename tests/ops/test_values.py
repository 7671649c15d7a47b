"""Outputs and gradients of every operator against the reference, in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sketchlayers import ops

from .problems import (
    GRADIENTS,
    LAYOUTS,
    Conv,
    Layer,
    Linear,
    Operands,
    conv_layers,
    lay_out,
    linear_layers,
    paths,
    pointwise_layers,
    relative_error,
)
from .reference import weight_adjoint

TOLERANCE = 1e-12


def budget(examples: int) -> settings:
    """The same examples on every run."""
    return settings(
        deadline=None,
        derandomize=True,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
    )


layouts = st.fixed_dictionaries({name: st.sampled_from(LAYOUTS) for name in GRADIENTS})


def laid_out(operands: Operands, layout: dict[str, str]) -> Operands:
    """The operands with the given strides."""
    tensors = {name: lay_out(tensor, layout[name]) for name, tensor in operands.named().items()}
    return Operands(**{"bias": None, **tensors})


def output_gradient(shape: tuple[int, ...], layout: str) -> torch.Tensor:
    """Normal random numbers; ``expanded`` repeats one slice without copying it, as sums do."""
    axis = -1 if len(shape) > 2 else 0
    sizes = list(shape)
    if layout == "expanded" and shape[axis] and len(shape) > 1:
        sizes[axis] = 1
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(sizes, dtype=torch.float64, generator=generator)
    return grad.expand(shape) if layout == "expanded" else lay_out(grad, layout)


def check_against_reference(layer: Layer, operands: Operands, grad_layout: str) -> None:
    expected = layer.reference_output(operands)
    grad = output_gradient(expected.shape, grad_layout)
    expected_gradients = layer.reference_gradients(operands, grad)
    for path in paths(layer):
        assert relative_error(layer(operands, path), expected) < TOLERANCE, path
        gradients = layer.gradients(operands, grad, path)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            error = relative_error(gradient, expected_gradients[name])
            assert error < TOLERANCE, f"{path}: {name} by {error}"


grad_layouts = st.sampled_from([*LAYOUTS, "expanded"])


@budget(80)
@given(layer=conv_layers(), layout=layouts, grad_layout=grad_layouts)
def test_conv2d(layer: Conv, layout: dict[str, str], grad_layout: str):
    check_against_reference(layer, laid_out(layer.operands(), layout), grad_layout)


@budget(40)
@given(layer=pointwise_layers(), layout=layouts, grad_layout=grad_layouts)
def test_pointwise_conv2d(layer: Conv, layout: dict[str, str], grad_layout: str):
    check_against_reference(layer, laid_out(layer.operands(), layout), grad_layout)


@budget(40)
@given(layer=linear_layers(), layout=layouts, grad_layout=grad_layouts)
def test_linear(layer: Linear, layout: dict[str, str], grad_layout: str):
    check_against_reference(layer, laid_out(layer.operands(), layout), grad_layout)


@budget(40)
@given(layer=st.one_of(conv_layers(), pointwise_layers(), linear_layers()), layout=layouts)
def test_weight(layer: Layer, layout: dict[str, str]):
    operands = laid_out(layer.operands(), layout).requiring("s1", "s2")
    weight = layer.weight(operands)
    expected = layer.reference_weight(operands).reshape(weight.shape)
    assert weight.shape == (layer.out_channels, *operands.s1.shape[1:])
    assert relative_error(weight, expected) < TOLERANCE
    grad = torch.randn(weight.shape, dtype=torch.float64)
    actual = torch.autograd.grad(weight, [operands.s1, operands.s2], lay_out(grad, layout["s1"]))
    grad_array = grad.numpy().reshape(layer.reference_weight(operands).shape)
    shapes = [(*t.shape, 1, 1)[:4] for t in (operands.s1, operands.s2)]
    wanted = weight_adjoint(grad_array, *shapes, layer.signs(), layer.sketch)
    for gradient, target in zip(actual, wanted, strict=True):
        assert relative_error(gradient, target.reshape(gradient.shape)) < TOLERANCE


# Sizes like those of real layers: where kernels block, vectorise and split among threads.
LARGE = [
    Conv(batch=2, in_channels=67, out_channels=130, kernel=(3, 3), size=(7, 9), padding=(1, 1),
         rank=5),
    Conv(batch=2, in_channels=66, out_channels=132, kernel=(5, 5), size=(9, 8), padding=(2, 2),
         rank=3, num_sketches=2, mixing="channel", groups=2, stride=(2, 1)),
    Conv(batch=9, in_channels=129, out_channels=65, kernel=(1, 1), size=(6, 7), rank=20,
         num_sketches=3),
    Conv(batch=1, in_channels=33, out_channels=47, kernel=(3, 5), size=(40, 9), dilation=(17, 2),
         padding=(17, 3), rank=4, mixing="channel"),
    Conv(batch=2, in_channels=65, out_channels=35, kernel=(3, 3), size=(6, 6), rank=7, frame=True),
    Linear(lead=(33,), in_channels=515, out_channels=259, rank=37, num_sketches=2),
    Linear(lead=(1,), in_channels=1030, out_channels=1029, rank=100),
]  # fmt: skip


# Weights with many signs: more than the kernels unpack at a time.
TILED = [
    Linear(lead=(3,), in_channels=3001, out_channels=130, rank=100, frame=True),
    Conv(batch=1, in_channels=230, out_channels=47, kernel=(3, 3), size=(4, 4), rank=22,
         num_sketches=2),
    Conv(batch=1, in_channels=460, out_channels=22, kernel=(3, 3), size=(4, 4), rank=22,
         num_sketches=2, groups=2, frame=True),
    Conv(batch=1, in_channels=160, out_channels=201, kernel=(5, 5), size=(5, 5), rank=3,
         mixing="channel"),
    Conv(batch=1, in_channels=320, out_channels=202, kernel=(5, 5), size=(5, 5), rank=3,
         mixing="channel", groups=2, frame=True),
]  # fmt: skip


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("layer", LARGE + TILED, ids=lambda layer: f"{layer.in_channels}")
def test_sizes_of_real_layers(layer: Layer):
    check_against_reference(layer, layer.operands(), "contiguous")


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_integers_stand_for_pairs(path, mixing):
    pairs = {"stride": (2, 2), "padding": (1, 1), "dilation": (2, 2)}
    layer = Conv(mixing=mixing, kernel=(3, 3), size=(9, 9), **pairs)
    operands, signs = layer.operands(), layer.packed_signs()
    output = ops.sk_conv2d(
        *(operands.input, operands.s1, operands.s2, signs["u1"], signs["u2"], operands.bias),
        stride=2,
        padding=1,
        dilation=2,
        mixing=mixing,
        path=path,
    )
    assert torch.equal(output, layer(operands, path))


@pytest.mark.parametrize("layer", [Conv(), Conv(mixing="channel"), Linear()], ids=str)
def test_defaults_are_those_of_the_paper(layer: Layer):
    """Only the tensors given: stride 1, no padding, spatial mixing, one sketch, scale 1/2."""
    layer = layer.replace(bias=False)
    operands, signs = layer.operands(), layer.packed_signs()
    arguments = (operands.input, operands.s1, operands.s2, signs["u1"], signs["u2"])
    if isinstance(layer, Linear):
        output = ops.sk_linear(*arguments)
    elif layer.mixing == "channel":
        output = ops.sk_conv2d(*arguments, mixing="channel")
    else:
        output = ops.sk_conv2d(*arguments)
    assert relative_error(output, layer.reference_output(operands)) < TOLERANCE


@pytest.mark.parametrize("layer", [Conv(), Conv(mixing="channel"), Linear()], ids=str)
@pytest.mark.parametrize("path", ["factored", "folded"])
def test_stacked_sketches_equal_the_sum_of_separate_ones(layer: Layer, path):
    """Equation (1): l sketches in one call are the mean of l calls with one sketch each."""
    layer = layer.replace(rank=2, num_sketches=3, bias=False)
    operands, signs = layer.operands(), layer.packed_signs()
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    mixed = 2 * taps if layer.sketch.mixing == "spatial" else 2
    total = torch.zeros(layer.output_shape(), dtype=torch.float64)
    for i in range(3):
        part = Operands(
            operands.input,
            operands.s1[2 * i : 2 * i + 2],
            operands.s2[:, 2 * i : 2 * i + 2],
            None,
        )
        part_signs = {
            "u1": signs["u1"][:, 2 * i : 2 * i + 2],
            "u2": signs["u2"][:, mixed * i : mixed * (i + 1)],
            "frame": None,
        }
        one = layer.replace(num_sketches=1)
        total += one.forward(part, path, part_signs) / 3
    assert relative_error(layer(operands, path), total) < TOLERANCE


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize(
    "layer",
    [
        Conv(groups=2, frame=True),
        Conv(groups=2, num_sketches=2),
        Conv(groups=2, mixing="channel"),
        Linear(in_channels=37, out_channels=41),
    ],
    ids=str,
)
def test_padding_bits_are_ignored(layer: Layer, path):
    if path == "factored":
        layer = layer.replace(frame=False)
    operands, signs = layer.operands(), layer.packed_signs()
    groups = layer.geometry.groups
    channels = layer.in_channels // groups
    n = channels * layer.kernel_size[0] * layer.kernel_size[1]
    columns = {
        "u1": layer.out_channels // groups,
        "u2": n if layer.sketch.mixing == "spatial" else channels,
        "frame": n,
    }
    corrupted = {
        name: None if packed is None else flip_padding(packed, columns[name])
        for name, packed in signs.items()
    }
    assert torch.equal(
        layer.forward(operands, path, signs), layer.forward(operands, path, corrupted)
    )
    grads = []
    for given_signs in (signs, corrupted):
        leaves = operands.requiring(*GRADIENTS)
        layer.forward(leaves, path, given_signs).square().sum().backward()
        grads.append([tensor.grad for tensor in leaves])
    for before, after in zip(*grads, strict=True):
        assert torch.equal(before, after)


def flip_padding(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The same signs with every bit behind the last column inverted."""
    positions = torch.arange(32 * packed.shape[-1]).view(-1, 32)
    mask = ((positions >= columns).long() << torch.arange(32)).sum(-1)
    mask = torch.where(mask >= 2**31, mask - 2**32, mask).int()
    assert bool(mask.any()), "no padding to corrupt"
    return packed ^ mask


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("layer", [Conv(), Conv(mixing="channel", groups=2), Linear()], ids=str)
def test_signs_of_any_strides(layer: Layer, path):
    operands, signs = layer.operands(), layer.packed_signs()
    strided = {
        name: None if packed is None else lay_out(packed.transpose(0, 1), "sliced").transpose(0, 1)
        for name, packed in signs.items()
    }
    assert torch.equal(layer.forward(operands, path, signs), layer.forward(operands, path, strided))


@pytest.mark.parametrize("threads", [3], indirect=True)
@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        Conv(batch=4, in_channels=32, out_channels=48, size=(12, 12), rank=4),
        Conv(batch=4, in_channels=32, out_channels=48, size=(12, 12), rank=4, mixing="channel"),
        Linear(lead=(64,), in_channels=300, out_channels=200, rank=9),
    ],
    ids=str,
)
def test_the_same_step_gives_the_same_bits(layer: Layer, path, dtype):
    operands = layer.operands(dtype)
    grad = torch.randn(layer.output_shape()).to(dtype)
    first, second = (
        [layer(operands, path), *layer.gradients(operands, grad, path).values()] for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_the_input_is_left_as_it_was():
    for layer in (Conv(), Conv(mixing="channel"), Linear()):
        operands = layer.operands()
        before = [tensor.clone() for tensor in operands.named().values()]
        for path in paths(layer):
            layer(operands, path)
            layer.gradients(operands, torch.ones(layer.output_shape(), dtype=torch.float64), path)
        for tensor, copy in zip(operands.named().values(), before, strict=True):
            assert torch.equal(tensor, copy)
