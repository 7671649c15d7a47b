"""Hashed, frequency-hashed and predicted weights, and vertical-horizontal filters: as layers."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.autograd import gradcheck
from torch.export import Dim, export
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sketchlayers import ops
from sketchlayers.nn import (
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    HashedLinear,
    LowRankConv2d,
)
from sketchlayers.nn.generated._philox import random_words
from sketchlayers.nn.generated.fresh import cosines, frequency_buckets

CONVS = [HashedConv2d, FreshConv2d, DictionaryConv2d, LowRankConv2d]
LINEARS = [HashedLinear, DictionaryLinear]
FORMED = [*CONVS[:3], *LINEARS]
GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 3},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect", "bias": False},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "groups": 6, "padding": 1},
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(kind: type, **arguments: Any) -> Any:
    """A layer from 12 to 18 channels."""
    if kind in CONVS:
        arguments = {"kernel_size": 3, "padding": 1} | arguments
    return kind(12, 18, **{"rate": 0.4} | arguments)


def dense(kind: type, **arguments: Any) -> Any:
    if kind in LINEARS:
        return nn.Linear(12, 18, **arguments)
    return nn.Conv2d(12, 18, **{"kernel_size": 3, "padding": 1} | arguments)


def image(layer: nn.Module, batch: int = 2, **options: Any) -> Tensor:
    return torch.randn(batch, 12, *([7, 8] if isinstance(layer, tuple(CONVS)) else []), **options)


def convert(kind: type, layer: nn.Module, **arguments: Any) -> Any:
    name = "from_linear" if kind in LINEARS else "from_conv"
    return getattr(kind, name)(layer, **{"rate": 0.5} | arguments)


def count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


# ------------------------------------------------------------------------------------- definitions


def test_a_hashed_weight_is_that_of_the_paper() -> None:
    layer = HashedLinear(7, 9, buckets=20, seed=5, dtype=torch.float64)
    entries = ops.hash_entries(torch.tensor(5), 9, 7, 20)
    for i in range(9):
        for j in range(7):
            entry = int(entries[i, j])
            value = -layer.values[~entry] if entry < 0 else layer.values[entry]
            assert layer.weight[i, j] == value


def test_fresh_filters_are_those_of_the_paper() -> None:
    """Definition by loops: cosine coefficients from the table of their frequency."""
    layer = FreshConv2d(4, 5, (3, 2), buckets=40, seed=5, dtype=torch.float64)
    starts = [sum(layer.frequency_buckets[:j]) for j in range(4)]
    entries = ops.hash_entries(
        torch.tensor(5), 5, 24, 40,
        first=[starts[i + j] for i in range(3) for j in range(2)],
        buckets=[layer.frequency_buckets[i + j] for i in range(3) for j in range(2)],
    )  # fmt: skip
    places = torch.where(entries < 0, ~entries, entries)
    frequencies = layer.values[places] * torch.where(entries < 0, -1.0, 1.0)
    tall, wide = cosines(3), cosines(2)
    for o in range(5):
        for c in range(4):
            filtered = frequencies[o].reshape(4, 3, 2)[c]
            torch.testing.assert_close(layer.weight[o, c], tall.T @ filtered @ wide)


def test_cosines_are_orthonormal_and_ordered_by_frequency() -> None:
    for length in (1, 2, 5, 11):
        matrix = cosines(length)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(length, dtype=torch.float64))
        changes = [(row[1:] * row[:-1] < 0).sum() for row in matrix]
        assert changes == sorted(changes) and (matrix[0] > 0).all()


@pytest.mark.parametrize(
    ("size", "rate", "expected"),
    [
        (5, 0.1, [0.489, 0.248, 0.154, 0.101, 0.068, 0.045, 0.029, 0.017, 0.008]),
        (3, 0.1, [0.307, 0.139, 0.073, 0.038, 0.018]),
        (3, 0.25, [0.768, 0.348, 0.183, 0.096, 0.044]),
        (5, 0.25, [1, 0.648, 0.401, 0.264, 0.177, 0.118, 0.075, 0.044, 0.022]),
    ],
)
def test_buckets_of_frequencies(size: int, rate: float, expected: list[float]) -> None:
    filters = 192 * 96
    total = round(rate * filters * size**2)
    buckets = frequency_buckets((size, size), filters, total)
    sizes = [filters * min(j + 1, 2 * size - 1 - j) for j in range(2 * size - 1)]
    assert sum(buckets) == total
    assert [b / n for b, n in zip(buckets, sizes, strict=True)] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (1, 7), (4, 4)])
@pytest.mark.parametrize("filters", [1, 6])
def test_every_number_of_buckets_is_possible(kernel: tuple[int, int], filters: int) -> None:
    height, width = kernel
    least, most = height + width - 1, filters * height * width
    sizes = [filters * sum(0 <= j - i < width for i in range(height)) for j in range(least)]
    for total in range(least, most + 1):
        buckets = frequency_buckets(kernel, filters, total)
        assert sum(buckets) == total
        assert all(1 <= b <= n for b, n in zip(buckets, sizes, strict=True))


def test_on_1x1_kernels_fresh_is_hashed() -> None:
    fresh = FreshConv2d(12, 18, 1, rate=0.3, seed=2)
    hashed = HashedConv2d(12, 18, 1, rate=0.3, seed=2)
    with pytest.raises(RuntimeError, match="must be the seed of a layer of this configuration"):
        hashed.load_state_dict(fresh.state_dict())
    hashed.load_state_dict(dict(fresh.named_parameters()), strict=False)
    torch.testing.assert_close(fresh.weight, hashed.weight)


def test_a_dictionary_is_kernel_ridge_regression() -> None:
    layer = DictionaryConv2d(3, 8, (3, 2), rank=5, num_columns=2, seed=1, dtype=torch.float64)
    place = [(c, i, j) for c in range(3) for i in range(3) for j in range(2)]

    def kernel(p: tuple, q: tuple) -> float:
        square = (p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2
        return math.exp(-square / (2 * 3.0**2)) if p[0] == q[0] else 0.0

    whole = torch.tensor([[kernel(p, q) for q in place] for p in place], dtype=torch.float64)
    for column in range(2):
        chosen = layer._chosen()[column]
        assert len(set(chosen.tolist())) == 5
        square = whole[chosen][:, chosen] + 0.1 * torch.eye(5, dtype=torch.float64)
        expected = whole[:, chosen] @ torch.linalg.inv(square)
        torch.testing.assert_close(layer.dictionary[0, column], expected.T)
        rows = slice(4 * column, 4 * column + 4)
        weight = layer.coefficients[rows] @ expected.T
        torch.testing.assert_close(layer.weight[rows].flatten(1), weight)
    assert not torch.equal(*layer._chosen())


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**63 - 1])
def test_inputs_are_chosen_by_the_words_of_sign_matrices(seed: int) -> None:
    first, rows, count = 2**32 - 3, 3, 70
    words = random_words(seed, first, rows, count)
    for row in range(rows):
        expected = ops.sign_matrix(seed, first + row, 1, 32 * count, device="cpu")
        assert torch.equal(words[row], expected[0, :count])


def test_a_dictionary_of_a_covariance() -> None:
    """What the chosen inputs say about the others; stored with the parameters."""
    root = torch.randn(3, 12, dtype=torch.float64)
    covariance = root.T @ root + 1e-4 * torch.eye(12, dtype=torch.float64)
    covariance *= 7 / covariance.diagonal().mean()
    layer = DictionaryLinear(12, 18, rank=6, kernel="covariance", covariance=covariance, ridge=1e-6)
    inputs = torch.randn(50, 3) @ root.float()
    predicted = layer.dictionary[0, 0] @ inputs.T  # the chosen inputs and what goes with them
    assert torch.linalg.matrix_rank(predicted, rtol=1e-3) == 3
    assert "dictionary" in layer.state_dict()
    again = DictionaryLinear(12, 18, rank=6, kernel="covariance")
    torch.testing.assert_close(again.dictionary.sum(-1), torch.full((1, 1, 6), 1 / 1.1))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight, layer.weight)
    assert "dictionary" not in DictionaryLinear(12, 18, rank=6).state_dict()
    scaled = DictionaryLinear(
        12, 18, rank=6, kernel="covariance", covariance=covariance * 100, ridge=1e-6,
        seed=layer.seed,
    )  # fmt: skip
    torch.testing.assert_close(scaled.dictionary, layer.dictionary)
    converted = DictionaryLinear.from_linear(
        nn.Linear(12, 18), rank=6, kernel="covariance", second_moment=covariance, ridge=1e-6,
        seed=layer.seed,
    )  # fmt: skip
    torch.testing.assert_close(converted.dictionary, layer.dictionary)


def test_low_rank_filters_are_those_of_the_paper() -> None:
    layer = LowRankConv2d(6, 10, (3, 2), groups=2, rank=4, dtype=torch.float64)
    vertical = layer.vertical.weight.reshape(2, 4, 3, 3)
    horizontal = layer.horizontal.weight.reshape(2, 5, 4, 2)
    weight = torch.einsum("grsi,gtrj->gtsij", vertical, horizontal).reshape(10, 3, 3, 2)
    torch.testing.assert_close(layer.weight, weight)
    assert count(layer) == 2 * 4 * (3 * 3 + 5 * 2) + 10


# ----------------------------------------------------------------------------------- all layers


@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolutions_are_dense_ones_with_their_weight(kind: type, geometry: dict) -> None:
    layer = make(kind, **{"padding": 0, "dtype": torch.float64} | geometry)
    plain = dense(kind, **{"padding": 0, "dtype": torch.float64} | geometry)
    assert layer.weight.shape == plain.weight.shape
    assert layer.rate == count(layer) / count(plain)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    for value in (image(layer, dtype=torch.float64), image(layer, dtype=torch.float64)[0]):
        torch.testing.assert_close(layer(value), plain(value))
        torch.testing.assert_close(layer.fold()(value), plain(value))
    shape = (2, 12, 7, 8)
    cost = layer.multiply_adds(shape)
    assert cost > 0
    with pytest.raises(RuntimeError, match="input_shape must be"):
        layer.multiply_adds((2, 11, 7, 8))


@pytest.mark.parametrize("kind", LINEARS)
def test_linear_layers_are_dense_ones_with_their_weight(kind: type) -> None:
    layer = make(kind)
    assert layer.rate == count(layer) / count(dense(kind))
    for shape in ((12,), (3, 12), (2, 3, 12), (0, 12)):
        value = torch.randn(shape)
        expected = functional.linear(value, layer.weight, layer.bias)
        torch.testing.assert_close(layer(value), expected)
        torch.testing.assert_close(layer.fold()(value), expected)
    with pytest.raises(RuntimeError, match="input_shape must be"):
        layer.multiply_adds((2, 11))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_dictionary_is_made_in_its_own_memory(dtype: torch.dtype) -> None:
    """It may be several dense weights, and there is never a larger tensor beside it."""
    layer = DictionaryConv2d(8, 12, 3, rank=20, num_columns=6, seed=1, dtype=dtype)
    before, most = layer.dictionary.clone(), 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal most
            result = func(*args, **(kwargs or {}))
            sizes = [x.nbytes for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
            most = max(most, *sizes, 0)
            return result

    with Largest():
        layer.reset_signs()
    assert most <= before.nbytes
    assert torch.equal(layer.dictionary, before)


@pytest.mark.parametrize("num_columns", [1, 3, 6])
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_both_ways_through_a_dictionary(num_columns: int, rate: float) -> None:
    layer = make(DictionaryLinear, num_columns=num_columns, rate=rate, dtype=torch.float64)
    value = image(layer, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(value), functional.linear(value, layer.weight, layer.bias))
    per_row = layer.rank * (num_columns * 12 + 18)
    forming = layer.rank * 12 * 18
    expected = 5 * per_row if per_row <= 2 * 12 * 18 else 5 * 12 * 18 + forming
    assert layer.multiply_adds((5, 12)) == expected


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_gradients(kind: type) -> None:
    layer = make(kind, dtype=torch.float64, rate=0.2)
    value = image(layer, 1, dtype=torch.float64)[..., :3].requires_grad_()
    if kind in LINEARS:
        value = image(layer, 1, dtype=torch.float64).requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(value: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(parameters, given, strict=True))
        return torch.func.functional_call(layer, named, value)

    assert gradcheck(run, (value, *parameters.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (value, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
@pytest.mark.parametrize("dtype", DTYPES)
def test_precision(kind: type, dtype: torch.dtype) -> None:
    """At most twice the error of PyTorch's own layer with the exact weight rounded once."""
    exact = make(kind, dtype=torch.float64, rate=0.3)
    layer = copy.deepcopy(exact).to(dtype)
    for own, rounded in zip(exact.parameters(), layer.parameters(), strict=True):
        own.data.copy_(rounded)
    own, rounded = (dict(one.named_buffers()) for one in (exact, layer))
    if "dictionary" in own:
        own["dictionary"].copy_(rounded["dictionary"])
    plain = exact.fold().to(dtype)
    value = image(layer, 4, dtype=dtype)
    expected = exact(value.double())
    ours, theirs = ((one(value) - expected).norm() / expected.norm() for one in (layer, plain))
    # A chain rounds between its parts too.
    allowed = 2 * theirs + 4 * torch.finfo(dtype).eps
    assert ours <= allowed


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_initial_variance_is_that_of_kaiming(kind: type) -> None:
    size = {"in_features": 96, "out_features": 128}
    if kind in CONVS:
        size = {"in_channels": 32, "out_channels": 128, "kernel_size": 3}
    variances = []
    for _ in range(20):
        layer = kind(**size, rate=0.3)
        variances.append(float(layer.weight.detach().var() * layer._patch))
    assert sum(variances) / len(variances) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("kind", FORMED)
def test_the_seed_decides_and_travels(kind: type) -> None:
    torch.manual_seed(7)
    first = make(kind)
    torch.manual_seed(7)
    assert torch.equal(make(kind).weight, first.weight)
    other = make(kind)
    assert other.seed != first.seed
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.weight, first.weight)
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).weight, first.weight)
    assert torch.equal(copy.deepcopy(first).weight, first.weight)


@pytest.mark.parametrize("kind", FORMED)
def test_from_the_meta_device(kind: type) -> None:
    layer = make(kind, seed=3)
    empty = make(kind, seed=4, device="meta")
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert empty(image(layer).to("meta")).shape == layer(image(layer)).shape
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty.weight, layer.weight)


@pytest.mark.parametrize("kind", FORMED)
def test_inference_keeps_the_weight(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(kind).eval()
    value = image(layer)
    formed = []
    form = type(layer).dense_weight
    monkeypatch.setattr(type(layer), "dense_weight", lambda self: formed.append(1) or form(self))
    with torch.no_grad():
        outputs = [layer(value) for _ in range(3)]
        assert len(formed) == 1
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        next(layer.parameters()).mul_(2)
        assert not torch.equal(layer(value), outputs[0]) and len(formed) == 2
    layer.train()
    layer(value)
    layer(value)
    assert len(formed) == (2 if kind is DictionaryLinear else 4)  # which does without


@pytest.mark.parametrize("kind", FORMED)
def test_a_seed_written_in_place(kind: type) -> None:
    layer, other = make(kind, seed=1), make(kind, seed=2)
    with torch.no_grad():
        for own, given in zip(layer.parameters(), other.parameters(), strict=True):
            own.copy_(given)
    layer.seed = 2
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_conversion(kind: type) -> None:
    plain = dense(kind).eval()
    plain.bias.requires_grad_(False)
    layer = convert(kind, plain)
    assert not layer.training and not layer.bias.requires_grad
    assert torch.equal(layer.bias, plain.bias)
    assert abs(layer.rate - 0.5) < 0.04
    error = (layer.weight - plain.weight).norm() / plain.weight.norm()
    assert layer.fit_error == pytest.approx(float(error), rel=1e-4)
    random = convert(kind, plain, init="random")
    assert random.fit_error is None
    meta = convert(kind, copy.deepcopy(plain).to("meta"))
    assert meta.weight.is_meta and meta.fit_error is None
    frozen = dense(kind).requires_grad_(False)
    assert not any(p.requires_grad for p in convert(kind, frozen).parameters())


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_conversion_in_the_norm_of_the_outputs(kind: type) -> None:
    plain = dense(kind)
    patch, outputs = plain.weight[0].numel(), len(plain.weight)
    samples = torch.randn(4 * patch, patch, dtype=torch.float64) @ torch.randn(
        patch, patch, dtype=torch.float64
    )
    moment = samples.T @ samples / len(samples)
    blind = convert(kind, plain, **({} if kind is LowRankConv2d else {"seed": 3}))
    norm = {"second_moment": moment, "sensitivity": torch.rand(outputs) + 0.5}
    layer = convert(kind, plain, **norm, **({} if kind is LowRankConv2d else {"seed": 3}))

    def change(layer: Any) -> float:
        difference = (layer.weight - plain.weight).detach().double().flatten(1)
        own = plain.weight.detach().double().flatten(1)
        return float((difference @ samples.T).norm() / (own @ samples.T).norm())

    assert layer.fit_error == pytest.approx(change(layer), rel=1e-4)
    assert layer.fit_error < 0.95 * change(blind)


@pytest.mark.parametrize("kind", FORMED)
def test_compiles_into_one_graph_for_all_seeds(kind: type) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    run = torch.compile(lambda layer, value: layer(value), fullgraph=True, backend=counter)
    for seed in (1, 2, 3):
        layer = make(kind, seed=seed)
        value = image(layer)
        torch.testing.assert_close(run(layer, value), layer(value))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_compiled_training(kind: type) -> None:
    torch._dynamo.reset()
    layer = make(kind).double()  # the same sums may be rounded in another order
    value = image(layer).double().requires_grad_()
    learned = [value, *layer.parameters()]
    expected = torch.autograd.grad(layer(value).square().sum(), learned)
    output = torch.compile(layer, fullgraph=True, backend="aot_eager")(value)
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), learned), expected)


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_exports_with_any_batch(kind: type) -> None:
    layer = make(kind).eval()
    dynamic = ({0: Dim("batch", min=1, max=1024)},)
    program = export(layer, (image(layer, 3),), dynamic_shapes=dynamic, strict=False)
    for batch in (1, 5):
        value = image(layer, batch)
        torch.testing.assert_close(program.module()(value), layer(value))


@pytest.mark.parametrize("kind", FORMED)
def test_autocast_rounds_the_weight_once(kind: type) -> None:
    layer = make(kind)
    value = image(layer)
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.dense_weight()
        output = layer(value)
    assert weight.dtype == torch.float32 and torch.equal(weight, layer.dense_weight())
    assert output.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer.fold()(value)
    if kind is DictionaryLinear:  # two products
        torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", [*FORMED, LowRankConv2d])
def test_descriptions(kind: type) -> None:
    text = repr(make(kind)).splitlines()
    assert "rate=0.4" in "".join(text[:2]) or "rate=0.3" in "".join(text[:2])
    assert "12" in "".join(text[:2]) and "18" in "".join(text[:2])


def test_numbers_that_do_not_fit() -> None:
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: HashedLinear(6, 8), ValueError, "exactly one of buckets and rate"),
        (lambda: HashedLinear(6, 8, buckets=2, rate=0.5), ValueError, "exactly one of"),
        (lambda: HashedLinear(6, 8, buckets=49), ValueError, "buckets must be at most 48"),
        (lambda: HashedLinear(6, 8, buckets=0), ValueError, "buckets must be at least 1"),
        (lambda: HashedLinear(6, 8, rate=1.2), ValueError, r"rate must be in \(0, 1\]"),
        (lambda: HashedLinear(6.5, 8, rate=0.2), TypeError, "in_features must be an int"),
        (lambda: HashedLinear(6, 8, rate=0.2, seed=-1), ValueError, "seed must be in"),
        (lambda: HashedConv2d(6, 8, 3, rate=0.2, groups=4), ValueError, "divisible by groups"),
        (lambda: FreshConv2d(6, 8, 3, buckets=4), ValueError, "buckets must be at least 5"),
        (lambda: FreshConv2d(6, 8, 17, rate=0.1), ValueError, "at most 256 positions"),
        (lambda: FreshConv2d(6, 8, 3, rate=0.1, alpha=0), ValueError, "alpha must be finite"),
        (lambda: DictionaryLinear(6, 8, rank=7), ValueError, "rank must be at most 6"),
        (lambda: DictionaryLinear(6, 8, rank=2, num_columns=3), ValueError, "num_columns must"),
        (lambda: DictionaryLinear(6, 8, rank=2, kernel="x"), ValueError, "kernel must be one of"),
        (lambda: DictionaryLinear(6, 8, rank=2, ridge=0), ValueError, "ridge must be finite"),
        (lambda: DictionaryLinear(6, 8, rank=2, covariance=torch.eye(6)), ValueError,
         "covariance must be None"),
        (lambda: DictionaryLinear(6, 8, rank=2, kernel="covariance", covariance=torch.eye(5)),
         RuntimeError, "covariance must have shape"),
        (lambda: DictionaryLinear(6, 8, rank=2).set_covariance(torch.eye(6)), RuntimeError,
         "needs a layer with kernel='covariance'"),
        (lambda: LowRankConv2d(6, 8, 3, rank=19), ValueError, "rank must be at most 18"),
        (lambda: LowRankConv2d(6, 8, 3), ValueError, "exactly one of rank and rate"),
        (lambda: HashedLinear.from_linear(nn.Conv2d(6, 8, 1), rate=0.5), TypeError, "nn.Linear"),
        (lambda: FreshConv2d.from_conv(nn.Linear(6, 8), rate=0.5), TypeError, "nn.Conv2d"),
        (lambda: HashedLinear.from_linear(nn.Linear(6, 8), rate=0.5, init="x"), ValueError,
         "init must be one of"),
        (lambda: HashedLinear.from_linear(nn.Linear(6, 8), rate=0.5, init="random",
                                          second_moment=torch.eye(6)), ValueError,
         "second_moment must be None"),
    ]  # fmt: skip
    for attempt, error, message in wrong:
        with pytest.raises(error, match=message):
            attempt()
