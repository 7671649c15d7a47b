"""The closed form against a numerical optimum, and its known values."""

import math

import pytest
import torch

from sketchlayers import ops
from sketchlayers.decompose import sketch_least_squares, unbiased_sketch

# (outputs, channels of a group, kernel, groups, l, k)
SIZES = [
    (6, 7, (2, 2), 1, 1, 2),
    (6, 5, (1, 3), 1, 2, 1),
    (8, 4, (2, 1), 2, 2, 1),
    (7, 6, (), 1, 1, 3),
]
MIXINGS = ["spatial", "channel"]
FLOAT = {"dtype": torch.float64}


class Problem:
    """A weight and the signs of a sketch, with the operator as the map from factors to weights."""

    def __init__(
        self, outputs, channels, kernel, groups, sketches, rank, mixing, scale=None, blocks=1
    ):
        self.patch = channels * math.prod(kernel)
        self.weight = torch.randn(outputs, channels, *kernel, **FLOAT)
        self.groups, self.stacked = groups, sketches * rank
        self.shapes = (
            (groups * self.stacked, channels, *kernel),
            (outputs, self.stacked, *kernel),
        )
        taps, columns = (math.prod(kernel), self.patch) if mixing == "spatial" else (1, channels)
        rows = self.stacked * taps
        self.packed = [
            torch.stack([ops.sign_matrix(5, 2 * g + i, *size) for g in range(groups)])
            for i, size in enumerate(
                [(blocks * self.stacked, outputs // groups), (blocks * rows, columns)]
            )
        ]
        self.arguments = {"mixing": mixing, "num_sketches": sketches, "scale": scale}
        self.scale = scale
        u1 = ops.unpack_signs(self.packed[0], outputs // groups, **FLOAT) / math.sqrt(rank)
        u2 = ops.unpack_signs(self.packed[1], columns, **FLOAT) / math.sqrt(rank * taps)
        stack = (sketches, -1) if blocks == 1 else (blocks, sketches, -1)
        self.u = [u.unflatten(1, stack) for u in (u1, u2)]
        if groups == 1:
            self.u = [u[0] for u in self.u]

    def sketched(self, s1, s2):
        return ops.sk_weight(s1, s2, *self.packed, **self.arguments)

    def design(self):
        """``vec(W_hat) = design @ vec(s1, s2)``, column by column through the operator."""
        sizes = [math.prod(shape) for shape in self.shapes]
        columns = []
        for unit in torch.eye(sum(sizes), **FLOAT):
            factors = [
                part.reshape(shape)
                for part, shape in zip(unit.split(sizes), self.shapes, strict=True)
            ]
            columns.append(self.sketched(*factors).flatten())
        return torch.stack(columns, 1)

    def weighted(self, tensor, second_moment):
        """Rows of every group times a square root of its second moment, flattened."""
        values, vectors = torch.linalg.eigh(second_moment)
        root = vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT
        grouped = tensor.reshape(self.groups, -1, self.patch, *tensor.shape[self.weight.dim() :])
        return torch.einsum("gon...,gnm->gom...", grouped, root).flatten(0, 2)

    def optimum(self, second_moment=None):
        """Smallest weighted error and its weight, by a general least-squares solver."""
        if second_moment is None:
            second_moment = torch.eye(self.patch, **FLOAT)
        second_moment = second_moment.expand(self.groups, self.patch, self.patch)
        design = self.design()
        left = self.weighted(design.reshape(*self.weight.shape, -1), second_moment)
        right = self.weighted(self.weight, second_moment)
        solution = torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution[:, 0]
        error = torch.linalg.vector_norm(left @ solution - right)
        return error.item(), (design @ solution).reshape(self.weight.shape)

    def error(self, factors, second_moment=None):
        if second_moment is None:
            second_moment = torch.eye(self.patch, **FLOAT)
        second_moment = second_moment.expand(self.groups, self.patch, self.patch)
        difference = self.sketched(factors.s1, factors.s2) - self.weight
        return torch.linalg.vector_norm(self.weighted(difference, second_moment)).item()

    def norm(self, second_moment):
        second_moment = second_moment.expand(self.groups, self.patch, self.patch)
        return torch.linalg.vector_norm(self.weighted(self.weight, second_moment)).item()


def moment(problem, samples, groups=None):
    shape = (samples, problem.patch) if groups is None else (groups, samples, problem.patch)
    patches = torch.randn(shape, **FLOAT) * torch.linspace(0.2, 2, problem.patch, **FLOAT)
    return patches.mT @ patches / samples


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scale", [None, 0.37])
def test_the_closed_form_is_the_numerical_optimum(size, mixing, scale):
    torch.manual_seed(0)
    problem = Problem(*size, mixing, scale)
    factors = sketch_least_squares(problem.weight, *problem.u, scale=scale)
    assert (factors.s1.shape, factors.s2.shape) == problem.shapes
    expected, weight = problem.optimum()
    assert problem.error(factors) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(problem.sketched(factors.s1, factors.s2), weight)
    assert factors.relative_error == pytest.approx(expected / problem.weight.norm().item())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("own", [False, True])
def test_the_second_moments_closed_form_is_the_numerical_optimum(size, mixing, own):
    """With one second moment for all groups, and with one for each."""
    torch.manual_seed(0)
    problem = Problem(*size, mixing)
    sigma = moment(problem, 3 * problem.patch, groups=problem.groups if own else None)
    factors = sketch_least_squares(problem.weight, *problem.u, second_moment=sigma)
    expected, weight = problem.optimum(sigma)
    assert problem.error(factors, sigma) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(problem.sketched(factors.s1, factors.s2), weight)
    assert factors.relative_error == pytest.approx(expected / problem.norm(sigma))
    assert expected < problem.error(sketch_least_squares(problem.weight, *problem.u), sigma)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_the_sensitivitys_closed_form_is_the_numerical_optimum(size, mixing, diagonal):
    """Rows of a weight times a root of the sensitivity are a weight of another problem."""
    torch.manual_seed(0)
    problem = Problem(*size, mixing)
    sigma = moment(problem, 3 * problem.patch)
    outputs = problem.weight.shape[0] // problem.groups
    root = torch.randn(problem.groups, outputs, outputs, **FLOAT)
    if diagonal:
        root = torch.diag_embed(root.diagonal(dim1=1, dim2=2))
    sensitivity = root @ root.mT
    given = sensitivity.diagonal(dim1=1, dim2=2) if diagonal else sensitivity
    factors = sketch_least_squares(
        problem.weight,
        *problem.u,
        second_moment=sigma,
        sensitivity=given if problem.groups > 1 else given[0],
    )

    plain = problem.weighted

    def weighted(tensor, second_moment):
        rows = plain(tensor, second_moment).unflatten(0, (problem.groups, outputs, -1))
        return torch.einsum("gts,gtn...->gsn...", root, rows).flatten(0, 2)

    problem.weighted = weighted
    expected, weight = problem.optimum(sigma)
    assert problem.error(factors, sigma) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(problem.sketched(factors.s1, factors.s2), weight)
    assert factors.errors[0] == pytest.approx(expected / problem.norm(sigma))
    problem.weighted = plain
    assert factors.relative_error == pytest.approx(
        problem.error(factors, sigma) / problem.norm(sigma)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_singular_second_moment(size, mixing):
    """A ridge of 1e-6 of the mean diagonal costs no more than it weighs at the optimum."""
    torch.manual_seed(0)
    problem = Problem(*size, mixing)
    sigma = moment(problem, max(1, problem.patch // 3))
    sigma[0], sigma[:, 0] = 0, 0  # a dead input
    factors = sketch_least_squares(problem.weight, *problem.u, second_moment=sigma)
    expected, weight = problem.optimum(sigma)
    ridge = 1e-6 * sigma.trace() / problem.patch
    allowed = expected**2 + ridge * (weight - problem.weight).norm() ** 2
    assert problem.error(factors, sigma) ** 2 <= allowed * (1 + 1e-9)
    assert factors.s1.abs().max() < 1e3
    assert factors.s2.abs().max() < 1e3


@pytest.mark.parametrize("mixing", MIXINGS)
def test_directions_that_the_data_nearly_lack(mixing):
    """They take the weight's own norm, at 1e-6 of the mean diagonal."""
    torch.manual_seed(0)
    problem = Problem(8, 8, (1, 2), 1, 1, 3, mixing)
    sigma = torch.diag(torch.tensor([1.0, 0.5] * 4 + [1e-9, 1e-13] * 4, **FLOAT))
    factors = sketch_least_squares(problem.weight, *problem.u, second_moment=sigma)
    ridge = 1e-6 * sigma.trace() / problem.patch * torch.eye(problem.patch, **FLOAT)
    expected, weight = problem.optimum(sigma + ridge)
    torch.testing.assert_close(problem.sketched(factors.s1, factors.s2), weight)
    assert factors.errors[0] == pytest.approx(expected / problem.norm(sigma + ridge))
    assert factors.relative_error == pytest.approx(
        problem.error(factors, sigma) / problem.norm(sigma)
    )


def test_a_layer_without_input_is_fitted_as_without_second_moment():
    problem = Problem(*SIZES[0], "spatial")
    zero = torch.zeros(problem.patch, problem.patch)
    expected = sketch_least_squares(problem.weight, *problem.u)
    factors = sketch_least_squares(problem.weight, *problem.u, second_moment=zero)
    torch.testing.assert_close(factors[:2], expected[:2])
    assert factors.relative_error == 0


@pytest.mark.parametrize("mixing", MIXINGS)
def test_dependent_signs_do_no_harm(mixing):
    torch.manual_seed(0)
    problem = Problem(6, 6, (2, 2), 1, 1, 3, mixing)
    for packed, u in zip(problem.packed, problem.u, strict=True):
        packed[:, 1], u[:, 1] = packed[:, 0], u[:, 0]
    factors = sketch_least_squares(problem.weight, *problem.u)
    expected, _ = problem.optimum()
    assert problem.error(factors) == pytest.approx(expected, rel=1e-9)
    assert factors.relative_error == pytest.approx(expected / problem.weight.norm().item())


def test_balanced_gauge():
    """Both terms give the part that they share, ``P W G B``, in equal halves."""
    torch.manual_seed(0)
    problem = Problem(6, 7, (), 1, 1, 3, "spatial")
    s1, s2, *_ = sketch_least_squares(problem.weight, *problem.u)
    a, b = problem.u[0][0].T, problem.u[1][0]
    p, q = a @ torch.linalg.pinv(a), torch.linalg.pinv(b) @ b
    shared = p @ problem.weight @ q / 2
    torch.testing.assert_close(p @ (a @ s1 / 2) @ q, shared)
    torch.testing.assert_close(p @ (s2 @ b / 2) @ q, shared)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_isotropic_error(mixing):
    """The mean squared relative error is (1 - lk/d1) (1 - lk/d2), within 5 standard errors."""
    torch.manual_seed(0)
    outputs, channels, kernel, rank = 20, 16, (2, 2), 4
    squares = []
    for _ in range(60):
        problem = Problem(outputs, channels, kernel, 1, 1, rank, mixing)
        error = problem.error(sketch_least_squares(problem.weight, *problem.u))
        squares.append(error**2 / problem.weight.numel())
    squares = torch.tensor(squares)
    standard_error = squares.std() / math.sqrt(len(squares))
    expected = (1 - rank / outputs) * (1 - rank / channels)
    assert abs(squares.mean() - expected) < 5 * standard_error
    assert standard_error < 0.01


def test_full_rank_reproduces_the_weight():
    torch.manual_seed(0)
    problem = Problem(8, 12, (3, 3), 1, 2, 4, "spatial")
    a = problem.u[0].flatten(0, 1)
    assert torch.linalg.matrix_rank(a) == 8
    factors = sketch_least_squares(problem.weight, *problem.u)
    assert factors.relative_error < 1e-13
    torch.testing.assert_close(problem.sketched(factors.s1, factors.s2), problem.weight)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("function", [sketch_least_squares, unbiased_sketch])
def test_a_frame_is_accounted_for(mixing, function):
    torch.manual_seed(0)
    problem = Problem(*SIZES[0], mixing)
    frame = torch.randn_like(problem.weight).sign()
    s1, s2, error, _ = function(problem.weight, *problem.u, frame=frame)
    residual = frame * problem.sketched(s1, s2) - problem.weight
    assert error == pytest.approx((residual.norm() / problem.weight.norm()).item())
    if function is sketch_least_squares:
        problem.weight = frame * problem.weight
        assert residual.norm().item() == pytest.approx(problem.optimum()[0])


@pytest.mark.parametrize("mixing", MIXINGS)
def test_unbiased_sketch_is_equation_1(mixing):
    torch.manual_seed(0)
    problem = Problem(6, 5, (1, 3), 1, 2, 2, mixing)
    for scale, factor in ((None, 1.0), (0.05, 0.25 / 0.05)):
        s1, s2, error, _ = unbiased_sketch(problem.weight, *problem.u, scale=scale)
        u1, u2 = (u.flatten(0, 1) for u in problem.u)
        torch.testing.assert_close(s1.flatten(1), factor * u1 @ problem.weight.flatten(1))
        if mixing == "spatial":
            second = problem.weight.flatten(1) @ u2.T
        else:
            second = torch.einsum("ochw,kc->okhw", problem.weight, u2).flatten(1)
        torch.testing.assert_close(s2.flatten(1), factor * second)
        problem.arguments["scale"] = scale
        difference = problem.sketched(s1, s2) - problem.weight
        assert error == pytest.approx((difference.norm() / problem.weight.norm()).item())


@pytest.mark.parametrize(
    "size", [(6, 4, (2, 2), 1, 1, 2), (8, 4, (2, 1), 2, 2, 1), (4, 6, (), 1, 1, 2)]
)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_blocks_are_fitted_to_the_numerical_optimum(size, mixing):
    torch.manual_seed(0)
    problem = Problem(*size, mixing, 0.37, blocks=2)
    factors = sketch_least_squares(problem.weight, *problem.u, scale=0.37, blocks=2)
    assert (factors.s1.shape, factors.s2.shape) == problem.shapes
    norm = problem.weight.norm().item()
    expected, weight = problem.optimum()
    assert problem.error(factors) == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(problem.sketched(*factors[:2]), weight, rtol=1e-6, atol=1e-6)
    assert factors.relative_error == pytest.approx(expected / norm, rel=1e-6)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_the_unbiased_sketch_of_blocks_is_that_of_each(mixing):
    """Its first term sketches blocks of inputs, its second blocks of outputs."""
    torch.manual_seed(0)
    problem = Problem(6, 4, (1, 3), 1, 1, 2, mixing, blocks=2)
    s1, s2, error, _ = unbiased_sketch(problem.weight, *problem.u, blocks=2)
    u1, u2 = problem.u
    for block, (seen, made) in enumerate([(slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6))]):
        part = problem.weight[:, seen].flatten(1)
        torch.testing.assert_close(s1[:, seen].flatten(1), u1[block, 0] @ part)
        rows = problem.weight[made]
        if mixing == "spatial":
            second = rows.flatten(1) @ u2[block, 0].T
        else:
            second = torch.einsum("ochw,kc->okhw", rows, u2[block, 0]).flatten(1)
        torch.testing.assert_close(s2[made].flatten(1), second)
    difference = problem.sketched(s1, s2) - problem.weight
    assert error == pytest.approx((difference.norm() / problem.weight.norm()).item())


@pytest.mark.parametrize("name", ["second_moment", "sensitivity"])
def test_blocks_have_no_closed_form_in_another_norm(name):
    problem = Problem(4, 6, (), 1, 1, 2, "spatial", blocks=2)
    with pytest.raises(ValueError, match=f"{name} must be None with more than one block.*blocks=2"):
        sketch_least_squares(problem.weight, *problem.u, blocks=2, **{name: torch.eye(6)})


def test_zero_and_low_precision_weights():
    problem = Problem(*SIZES[0], "spatial")
    s1, s2, error, _ = sketch_least_squares(torch.zeros(6, 7, 2, 2), *problem.u)
    assert s1.count_nonzero() == s2.count_nonzero() == 0
    assert error == 0
    half = problem.weight.bfloat16()
    torch.testing.assert_close(
        sketch_least_squares(half, *problem.u), sketch_least_squares(half.double(), *problem.u)
    )


def arguments(**changes):
    problem = Problem(*SIZES[0], "spatial")
    return {"weight": problem.weight, "u1": problem.u[0], "u2": problem.u[1], **changes}


def filled(shape, value):
    tensor = torch.eye(*shape, **FLOAT) if len(shape) == 2 else torch.ones(shape, **FLOAT)
    tensor.view(-1)[1:3] = value
    return tensor


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"weight": filled((6, 7, 2, 2), math.nan)},
            ValueError,
            r"weight must be finite \(got 2 N",
        ),
        (
            {"frame": filled((6, 7, 2, 2), math.inf)},
            ValueError,
            r"frame must be finite .* 2 infinite",
        ),
        (
            {"weight": torch.ones(6, 7, 2, 2).int()},
            TypeError,
            r"weight must be real floating point",
        ),
        ({"weight": torch.ones(6)}, RuntimeError, r"weight must have 2 or 3 or 4 or 5 dimensions"),
        ({"weight": torch.ones(6, 8, 2, 2)}, RuntimeError, r"u1 and u2 must fit the weight"),
        ({"weight": torch.ones(5, 7, 2, 2)}, RuntimeError, r"u1 and u2 must fit the weight"),
        ({"u1": torch.ones(1, 3, 6)}, RuntimeError, r"u1 and u2 must fit the weight"),
        ({"u1": torch.ones(2, 6)}, RuntimeError, r"u1 and u2 must both have 3 dimensions, or 4"),
        ({"frame": torch.ones(6, 7)}, RuntimeError, r"frame must have the shape of weight"),
        ({"second_moment": torch.eye(27)}, RuntimeError, r"must have shape \(28, 28\) or \(1, 28"),
        (
            {"second_moment": filled((28, 28), math.nan)},
            ValueError,
            r"second_moment must be finite",
        ),
        ({"second_moment": filled((28, 28), 3.0)}, ValueError, r"second_moment must be symmetric"),
        (
            {"second_moment": torch.diag(torch.tensor([-1.0] + [1.0] * 27))},
            ValueError,
            r"must be positive semidefinite \(got -1 on the diagonal",
        ),
        (
            {"second_moment": 2 * torch.ones(28, 28) - torch.eye(28)},
            ValueError,
            r"must be positive semidefinite \(got a matrix that is not even after",
        ),
        (
            {"sensitivity": torch.ones(7)},
            RuntimeError,
            r"sensitivity must have shape \(6, 6\) or \(6,\)",
        ),
        ({"sensitivity": -torch.ones(6)}, ValueError, r"sensitivity must be positive semidef"),
        (
            {"sensitivity": torch.eye(6), "frame": torch.ones(6, 7, 2, 2)},
            ValueError,
            r"sensitivity must be None with a frame: .*no closed form",
        ),
        (
            {"second_moment": torch.eye(28), "frame": torch.ones(6, 7, 2, 2)},
            ValueError,
            r"second_moment must be None with a frame: .*no closed form",
        ),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=rf"sketch_least_squares: .*{message}"):
        sketch_least_squares(**arguments(**changes))
