"""The paper's guarantees by Monte Carlo over seeds, each with the exact value that it bounds.

The bounds are loose by about 4, so a wrong scale would pass them. The exact second moments follow
from that of ``N = U^T U - I``, whose entries off the diagonal are uncorrelated with mean 0 and
variance 1/r for r rows (N_ij = N_ji) and whose diagonal is 0: for any C,

    E <N, C>^2 = 1/r sum_{i != j} (C_ij^2 + C_ij C_ji).
"""

import math

import pytest
import torch

from sketchlayers import ops
from sketchlayers.decompose import unbiased_sketch
from sketchlayers.nn import SKConv2d, SKLinear

SEEDS = 2000
FLOAT = {"dtype": torch.float64}


def assert_mean(samples, expected, relative=None):
    """The mean over seeds is the expected one within 5 standard errors, and these are small."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 5 * error).all()
    if relative is not None:  # else a wrong scale could pass
        assert error * 5 < relative * expected


def second_moment_of_product(matrix, rows):
    """``E <U^T U - I, C>^2`` for ``U`` with ``rows`` rows; C in the last two axes."""
    off = matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    return (off.square() + off * off.mT).sum((-2, -1)) / rows


class Draws:
    """The paper's sketch of one weight for many seeds, and its output for one input.

    The seeds are the groups of one convolution, so every operator runs once.
    """

    def __init__(self, weight, image, sketches, rank, mixing="spatial", blocks=1, **geometry):
        outputs, channels = weight.shape[:2]
        taps, columns = weight[0, 0].numel(), weight[0].numel()
        if mixing == "channel":
            taps, columns = 1, channels
        rows = blocks * sketches * rank
        sizes = [(rows, outputs), (rows * taps, columns)]
        packed = [
            torch.stack([ops.sign_matrix(seed, matrix, *size) for seed in range(SEEDS)])
            for matrix, size in enumerate(sizes)
        ]
        u1 = ops.unpack_signs(packed[0], outputs, **FLOAT) / math.sqrt(rank)
        u2 = ops.unpack_signs(packed[1], columns, **FLOAT) / math.sqrt(rank * taps)
        stack = (sketches, -1) if blocks == 1 else (blocks, sketches, -1)
        self.u1, self.u2 = (u.unflatten(1, stack) for u in (u1, u2))
        repeated = weight.repeat(SEEDS, 1, 1, 1)
        s1, s2, *_ = unbiased_sketch(repeated, self.u1, self.u2, blocks=blocks)
        sketch = {"mixing": mixing, "num_sketches": sketches}
        self.weights = ops.sk_weight(s1, s2, *packed, **sketch).unflatten(0, (SEEDS, outputs))
        images = image.repeat(1, SEEDS, 1, 1)
        result = ops.sk_conv2d(images, s1, s2, *packed, **sketch, groups=SEEDS, **geometry)
        self.outputs = result.unflatten(1, (SEEDS, outputs)).transpose(0, 1)
        self.expected = torch.nn.functional.conv2d(image, weight, **geometry)

    def output_errors(self):
        return (self.outputs - self.expected).square().flatten(1).sum(1)


GEOMETRY = {"stride": (2, 2), "padding": (1, 1)}


def convolution(mixing, sketches, rank):
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 2, **FLOAT)
    image = torch.randn(1, 5, 6, 7, **FLOAT)
    draws = Draws(weight, image, sketches, rank, mixing, **GEOMETRY)
    unfolded = torch.nn.functional.unfold(image, (3, 2), **GEOMETRY)[0]
    return draws, weight, unfolded


CASES = [("spatial", 1, 4), ("spatial", 3, 1), ("channel", 1, 4), ("channel", 2, 2)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def sketched_convolution(request):
    return *request.param, *convolution(*request.param)


def second_term(mixing, rank, weight, unfolded):
    """``E |W (U2^T U2 - I) M|^2`` for one sketch."""
    taps = weight[0, 0].numel()
    channels = weight.shape[1]
    if mixing == "spatial":
        outer = torch.einsum("on,mp->opnm", weight.flatten(1), unfolded)
        return second_moment_of_product(outer, rank * taps).sum()
    # One U2 serves all kernel positions, so these add up before the square is taken.
    outer = torch.einsum("oct,dtp->opcd", weight.flatten(2), unfolded.reshape(channels, taps, -1))
    return second_moment_of_product(outer, rank).sum()


def test_unbiased(sketched_convolution):
    """``E[W_hat x] = W x`` when ``S1_i = U1_i W`` and ``S2_i = W U2_i^T``."""
    *_, draws, weight, _ = sketched_convolution
    assert_mean(draws.weights, weight)
    assert_mean(draws.outputs, draws.expected)


def test_theorem_3_1(sketched_convolution):
    """``E|Y_hat - Y|^2 <= d1 |Y|^2/(l k) + |I|^2 |K|^2/(l k h w)``, I the im2col matrix.

    Exactly, 1/(4 l) of ``(d1 - 1)/k |Y|^2`` and the second term's value for one sketch: the
    sketches and their halves are independent.
    """
    mixing, sketches, rank, draws, weight, unfolded = sketched_convolution
    outputs, taps = weight.shape[0], weight[0, 0].numel()
    size = draws.expected.square().sum()
    torch.testing.assert_close(weight.flatten(1) @ unfolded, draws.expected[0].flatten(1))
    exact = (outputs - 1) / rank * size + second_term(mixing, rank, weight, unfolded)
    exact = exact / (4 * sketches)
    rows = sketches * rank * (taps if mixing == "spatial" else 1)
    bound = outputs * size / (sketches * rank) + (
        unfolded.square().sum() * weight.square().sum() / rows
    )
    errors = draws.output_errors()
    assert_mean(errors, exact, relative=0.25)
    assert errors.mean() < bound
    assert exact < bound


@pytest.mark.parametrize(("mixing", "sketches", "rank"), [("spatial", 1, 2), ("channel", 2, 1)])
def test_blocks_are_unbiased_with_the_variances_of_their_parts(mixing, sketches, rank):
    """Errors of blocks are independent: those of the inputs' add up to ``(d1 - 1)/k sum |Y_i|^2``.

    ``Y_i`` is what block i of the inputs gives; Theorem 3.1 holds with the sum of their squares in
    place of ``|Y|^2``. For the weight itself nothing changes.
    """
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 2, **FLOAT)
    image = torch.randn(1, 4, 6, 7, **FLOAT)
    draws = Draws(weight, image, sketches, rank, mixing, blocks=2, **GEOMETRY)
    assert_mean(draws.weights, weight)
    assert_mean(draws.outputs, draws.expected)
    unfolded = torch.nn.functional.unfold(image, (3, 2), **GEOMETRY)[0]
    parts = [
        w.flatten(1) @ x for w, x in zip(weight.chunk(2, 1), unfolded.chunk(2, 0), strict=True)
    ]
    torch.testing.assert_close(sum(parts), draws.expected[0].flatten(1))
    first = sum(5 / rank * part.square().sum() for part in parts)
    second = sum(second_term(mixing, rank, rows, unfolded) for rows in weight.chunk(2, 0))
    assert_mean(draws.output_errors(), (first + second) / (4 * sketches), relative=0.25)
    plain = Draws(weight, image, sketches, rank, mixing, **GEOMETRY)
    errors = [(one.weights - weight).square().flatten(1).sum(1) for one in (plain, draws)]
    spread = math.hypot(*(one.std() for one in errors)) / math.sqrt(SEEDS)
    assert abs(errors[0].mean() - errors[1].mean()) < 5 * spread


@pytest.mark.parametrize(("sketches", "rank"), [(1, 5), (3, 1)])
def test_theorem_3_2(sketches, rank):
    """The same for SK-FC: Theorem 3.1 with ``h w = 1``."""
    torch.manual_seed(0)
    weight, value = torch.randn(7, 9, **FLOAT), torch.randn(4, 9, **FLOAT)
    draws = Draws(weight[..., None, None], value[..., None, None], sketches, rank)
    assert_mean(draws.outputs, draws.expected)
    size = (value @ weight.T).square().sum()
    outer = torch.einsum("on,pm->opnm", weight, value)
    exact = 6 / rank * size + second_moment_of_product(outer, rank).sum()
    exact = exact / (4 * sketches)
    bound = (7 * size + value.square().sum() * weight.square().sum()) / (sketches * rank)
    errors = draws.output_errors()
    assert_mean(errors, exact, relative=0.25)
    assert errors.mean() < bound
    assert exact < bound


def test_proposition_2_1(sketched_convolution):
    """``E|U1^T S1 M - W M|^2 <= 2 d1 |W M|^2/k`` and ``E|S2 U2 M - W M|^2 <= 2 |W|^2 |M|^2/r``.

    For one sketch with ``S1 = U1 W`` and ``S2 = W U2^T``; r is the number of rows of ``U2``. The
    first is exactly ``(d1 - 1)/k |W M|^2``.
    """
    mixing, _, rank, draws, weight, unfolded = sketched_convolution
    product = weight.flatten(1) @ unfolded
    size = product.square().sum()
    u1 = draws.u1[:, 0]
    first = (u1.mT @ (u1 @ product) - product).square().sum((1, 2))
    exact = (weight.shape[0] - 1) / rank * size
    assert_mean(first, exact, relative=0.25)
    assert first.mean() < 2 * weight.shape[0] * size / rank

    u2, taps = draws.u2[:, 0], weight[0, 0].numel()
    if mixing == "channel":
        u2 = torch.einsum("skc,tu->sktcu", u2, torch.eye(taps, **FLOAT)).flatten(3).flatten(1, 2)
    second = (weight.flatten(1) @ (u2.mT @ (u2 @ unfolded)) - product).square().sum((1, 2))
    exact = second_term(mixing, rank, weight, unfolded)
    assert_mean(second, exact, relative=0.25)
    rows = rank * (taps if mixing == "spatial" else 1)
    assert second.mean() < 2 * weight.square().sum() * unfolded.square().sum() / rows


def test_scalar_product(sketched_convolution):
    """``E[(a^T (U^T U - I) b)^2] = (|a|^2 |b|^2 + (a.b)^2 - 2 sum a_j^2 b_j^2) / r``."""
    *_, draws, _, _ = sketched_convolution
    u2 = draws.u2[:, -1]
    rows, columns = u2.shape[1:]
    a, b = torch.randn(2, columns, **FLOAT)
    samples = ((u2 @ a) * (u2 @ b)).sum(1) - a @ b
    exact = a @ a * (b @ b) + (a @ b) ** 2 - 2 * (a.square() @ b.square())
    assert_mean(samples.square(), exact / rows, relative=0.4)
    torch.testing.assert_close(second_moment_of_product(torch.outer(a, b), rows), exact / rows)


def test_layers_take_the_same_draws(sketched_convolution):
    """What is shown above for the operators holds for the layers, seed by seed."""
    mixing, sketches, rank, draws, weight, _ = sketched_convolution
    conv = torch.nn.Conv2d(5, 6, (3, 2), bias=False, **GEOMETRY, **FLOAT)
    linear = torch.nn.Linear(30, 6, bias=False, **FLOAT)
    conv.weight.data, linear.weight.data = weight, weight.flatten(1)
    arguments = {"rank": rank, "num_sketches": sketches, "init": "unbiased"}
    for seed in (0, 1, SEEDS - 1):
        layer = SKConv2d.from_conv(conv, **arguments, mixing=mixing, seed=seed)
        torch.testing.assert_close(layer.weight, draws.weights[seed])
    flat = Draws(weight.reshape(6, 30, 1, 1), torch.zeros(1, 30, 1, 1, **FLOAT), sketches, rank)
    layer = SKLinear.from_linear(linear, **arguments, seed=1)
    torch.testing.assert_close(layer.weight, flat.weights[1, ..., 0, 0])


def test_other_layers_are_unbiased_too():
    """Another scale divides the factors by ``2 l c``; a frame is taken into account."""
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(4, 6, 2, groups=2, **FLOAT)
    arguments = {
        "rank": 1, "num_sketches": 2, "scale": "normalized", "frame": "signs",
    }  # fmt: skip
    with torch.no_grad():
        weights = torch.stack([
            SKConv2d.from_conv(dense, **arguments, init="unbiased", seed=seed).weight
            for seed in range(300)
        ])  # fmt: skip
    assert_mean(weights, dense.weight.detach())


def test_error_falls_as_the_number_of_sketches():
    """The variance of ``l`` sketches of rank ``k`` is that of one, over ``l``."""
    torch.manual_seed(0)
    weight, value = torch.randn(12, 12, 1, 1, **FLOAT), torch.randn(3, 12, 1, 1, **FLOAT)
    one, four = (Draws(weight, value, count, rank=2).output_errors() for count in (1, 4))
    error = math.hypot(one.std() / 4, four.std()) / math.sqrt(SEEDS)
    assert abs(one.mean() / 4 - four.mean()) < 5 * error
