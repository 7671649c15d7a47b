"""Factors of a tensor sketch for a given weight (Kasiviswanathan, Narodytska, Jin, IJCAI 2018).

A group of a sketched layer computes, with ``l`` sketches of rank ``k`` (equation 1 of the paper),

    W_hat = c * frame o sum_i ( U1_i^T S1_i + S2_i U2_i ),     c = 1 / (2 l) in the paper.

``U1`` and ``U2`` are given (random signs with their ``1/sqrt`` factors), the functions here find
``S1`` and ``S2``. The sign frame is absent in the paper's layer, which has one block:
with more each block of the inputs has its own ``U1``, and each block of the outputs its own ``U2``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_dimensions, check_finite, check_shape
from ._norm import (
    as_moment,
    relative,
    restore_outputs,
    ridged_cholesky,
    sensitivity_root,
    weigh_outputs,
)
from ._solve import conjugate_gradients

_WELL_CONDITIONED = 1e8
_CG_TOLERANCE = 1e-10
_CG_STEPS = 500
# A direction with a smaller conditional second moment, relative to the mean one, is fitted in the
# weight's own norm.
_SMALLEST_RIDGE = 1e-6


class SketchFactors(NamedTuple):
    """Factors in the shapes that the layers hold, float64.

    Attributes:
        s1: ``(groups * l * k, d2 / groups, h, w)``, or ``(l * k, d2)`` for a matrix.
        s2: ``(d1, l * k, h, w)``, or ``(d1, l * k)`` for a matrix.
        relative_error: ``|W - W_hat| / |W|`` in the norm of the second moment: the relative change
            of the layer's output on the calibration data.
        errors: one entry, the relative error in the norm that was minimised (ridge and
            sensitivity in it).
    """

    s1: Tensor
    s2: Tensor
    relative_error: float
    errors: tuple[float, ...]


def sketch_least_squares(
    weight: Tensor,
    u1: Tensor,
    u2: Tensor,
    *,
    scale: float | None = None,
    frame: Tensor | None = None,
    blocks: int = 1,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> SketchFactors:
    """Factors of the sketch nearest to ``weight``, with one block in closed form.

    With ``A = [U1_1^T ... U1_l^T]``, ``B = [U2_1; ...; U2_l]``, ``P = A A^+`` the projection on the
    range of ``A`` and ``G = Sigma B^T (B Sigma B^T)^-1``, the minimum of
    ``|(W - A X - Y B) Sigma^(1/2)|_F`` is reached by::

        X = A^+ W (I - G B / 2),    Y = (I - P / 2) W G,    S1 = X / c,    S2 = Y / c.

    Of all the minimisers this is the balanced one: what both terms could represent, ``P W G B``,
    is shared equally. For an isotropic weight and ``Sigma = I`` the squared relative error is
    ``(1 - l k / d1) (1 - l k / d2)`` on average. ``G`` comes from a QR decomposition of
    ``L^T B^T``, ``Sigma = L L^T``; where that is singular the singular values below rounding are
    left out, so dependent signs do no harm. With a sensitivity ``F = K K^T``, ``K^T W`` is
    approximated by ``K^T A X + (K^T Y) B`` in the same way. With more blocks than one the two terms
    no longer commute, and conjugate gradients find the minimum.

    Args:
        weight: ``(d1, d2 / groups, h, w)`` or ``(d1, d2)``.
        u1: ``(l, k, d1)``; with groups ``(groups, l, k, d1 / groups)``; with blocks an axis for
            them before ``l``.
        u2: ``(l, k * h * w, n)`` for spatial mixing (Definition 3), ``(l, k, d2)`` for channel
            mixing (Definition 2), ``n = d2 / groups * h * w``; with groups a leading group axis,
            with blocks one before ``l``.
        scale: ``c``; ``None`` is the paper's ``1 / (2 l)``.
        frame: signs that the sum is multiplied by, of the shape of ``weight``.
        blocks: number of blocks, which divides the inputs and the outputs of a group.
        second_moment: ``Sigma = E[x x^T]`` of the input patches, ``(n, n)`` or ``(groups, n, n)``;
            ``None`` is the identity. Where a direction has a conditional second moment below 1e-6
            of the mean one, a ridge of 1e-6 of the mean is added to the diagonal.
        sensitivity: ``F``, weight of output errors, ``(T, T)`` or its diagonal ``(T,)`` for
            ``T = d1``; with groups ``(groups, T, T)`` or ``(groups, T)`` for ``T = d1 / groups``;
            ``None`` is the identity.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point.
        ValueError: NaN or infinite entries, a second moment or sensitivity that is none, or one
            together with a frame or several blocks, for which no closed form is known.
    """
    owner = "sketch_least_squares"
    for name, tensor in (("second_moment", second_moment), ("sensitivity", sensitivity)):
        if frame is not None and tensor is not None:
            raise ValueError(
                f"{owner}: {name} must be None with a frame: the elementwise signs do not "
                "commute with the norm, so there is no closed form (got both)"
            )
        if blocks > 1 and tensor is not None:
            raise ValueError(
                f"{owner}: {name} must be None with more than one block: the norm mixes what the "
                f"blocks keep apart, so there is no closed form (got blocks={blocks})"
            )
    problem = _Problem(owner, weight, u1, u2, scale, frame, blocks)
    if blocks > 1:
        return problem.factors(*_blocked_least_squares(problem))
    factor = root = None
    if second_moment is not None:
        second_moment = problem.grouped_moment(second_moment)
        factor = _ridged_factors(owner, second_moment)
    if sensitivity is not None:
        root = problem.grouped_root(sensitivity)
    a, target, dense = problem.a, problem.target, problem.dense
    if root is not None:
        a, target, dense = (weigh_outputs(root, matrix) for matrix in (a, target, dense))
    b = problem.b
    weighted_target = target if factor is None else target @ factor
    weighted_b = b if factor is None else b @ factor

    a_basis, a_inverse = _basis_and_pseudo_inverse(a)
    b_basis, b_inverse = _basis_and_pseudo_inverse(weighted_b.mT)
    x = a_inverse @ target
    y = weighted_target @ b_inverse.mT
    shared = a_inverse @ y
    x -= shared @ b / 2
    y -= a @ shared / 2

    residual = weighted_target - a_basis @ (a_basis.mT @ weighted_target)
    residual -= (residual @ b_basis) @ b_basis.mT
    dense = dense if factor is None else dense @ factor
    error = relative(float(residual.square().sum()), float(dense.square().sum()))
    if root is not None:
        y = restore_outputs(root, y)
    return problem.factors(x, y, second_moment, error)


def unbiased_sketch(
    weight: Tensor,
    u1: Tensor,
    u2: Tensor,
    *,
    scale: float | None = None,
    frame: Tensor | None = None,
    blocks: int = 1,
) -> SketchFactors:
    """The paper's sketch of a weight: ``S1_i = U1_i W``, ``S2_i = W U2_i^T``.

    Over random signs its expectation is ``weight`` (for another scale ``c`` than the paper's, both
    factors are divided by ``2 l c``), but one draw is far from it: for d1 = d2 = 192 and rank 10
    the relative error is about 3. It serves theory, and a layer that is trained afterwards.

    Arguments, shapes and errors are those of `sketch_least_squares`.
    """
    problem = _Problem("unbiased_sketch", weight, u1, u2, scale, frame, blocks)
    normaliser = 2 * problem.num_sketches
    x = problem.a.mT @ problem.columns_by_block(problem.target) / normaliser
    y = problem.rows_by_block(problem.target) @ problem.b.mT / normaliser
    return problem.factors(x, y)


class _Problem:
    """``target ~ A X + Y B`` with a leading group axis, in float64.

    Signs and factors have the blocks of all groups as their leading axis: ``X`` those of the
    inputs, ``(groups * blocks, l * k, n / blocks)``, ``Y`` those of the outputs.

    Attributes:
        a: ``(groups * blocks, d1 / groups, l * k)``.
        b: ``(groups * blocks, l * k * h * w, n)``; channel mixing has its signs at every kernel
            position.
        dense: the weight, ``(groups, d1 / groups, n)``.
        target: the part of it that the sketch stands for, ``frame o weight``.
    """

    def __init__(
        self,
        owner: str,
        weight: Tensor,
        u1: Tensor,
        u2: Tensor,
        scale: float | None,
        frame: Tensor | None,
        blocks: int,
    ) -> None:
        check_dimensions(owner, weight, (2, 3, 4, 5))
        axes = 3 if blocks == 1 else 4
        if u1.dim() not in (axes, axes + 1) or u2.dim() != u1.dim():
            raise RuntimeError(
                f"{owner}: u1 and u2 must both have {axes} dimensions, or {axes + 1} with a group "
                f"axis (got u1.shape={tuple(u1.shape)}, u2.shape={tuple(u2.shape)}, "
                f"blocks={blocks})"
            )
        self.owner = owner
        self.shape = weight.shape
        self.kernel = tuple(weight.shape[2:])
        self.blocks = blocks
        self.has_group_axis = u1.dim() > axes
        self.groups = u1.shape[0] if self.has_group_axis else 1
        self.num_sketches, rank = u1.shape[-3:-1]
        self.rank = self.num_sketches * rank
        self.scale = 1 / (2 * self.num_sketches) if scale is None else scale
        outputs, channels = weight.shape[0], weight.shape[1]
        taps, patch = math.prod(self.kernel), weight[0].numel()
        spatial = (*u1.shape[:-2], rank * taps, patch)
        channel = (*u1.shape[:-2], rank, channels)
        divides = outputs // self.groups % blocks == 0 and channels % blocks == 0
        given = blocks == 1 or u1.shape[-4] == blocks
        fits = u1.shape[-1] * self.groups == outputs and u2.shape in (spatial, channel)
        if not (divides and given and fits):
            raise RuntimeError(
                f"{owner}: u1 and u2 must fit the weight (got weight.shape={tuple(weight.shape)}, "
                f"u1.shape={tuple(u1.shape)}, u2.shape={tuple(u2.shape)}, blocks={blocks})"
            )
        for name, tensor in (("weight", weight), ("frame", frame)):
            if tensor is None:
                continue
            if tensor.shape != weight.shape:
                raise RuntimeError(
                    f"{owner}: {name} must have the shape of weight, {tuple(weight.shape)} "
                    f"(got {name}.shape={tuple(tensor.shape)})"
                )
            check_finite(owner, name, tensor)

        grouped = (self.groups, outputs // self.groups, patch)
        self.a = u1.detach().double().reshape(self.groups * blocks, self.rank, -1).mT
        self.b = u2.detach().double().reshape(self.groups * blocks, -1, u2.shape[-1])
        if u2.shape != spatial:
            self.b = torch.kron(self.b, torch.eye(taps, dtype=self.b.dtype, device=self.b.device))
        self.dense = weight.detach().double().reshape(grouped)
        self.target = self.dense
        if frame is not None:
            self.target = self.target * frame.detach().double().reshape(grouped)

    def columns_by_block(self, matrix: Tensor) -> Tensor:
        """``(groups, rows, columns)`` to ``(groups * blocks, rows, columns / blocks)``."""
        return matrix.unflatten(2, (self.blocks, -1)).transpose(1, 2).flatten(0, 1)

    def rows_by_block(self, matrix: Tensor) -> Tensor:
        """``(groups, rows, columns)`` to ``(groups * blocks, rows / blocks, columns)``."""
        return matrix.reshape(self.groups * self.blocks, -1, matrix.shape[2])

    def joined_columns(self, blocks: Tensor) -> Tensor:
        """The way back from `columns_by_block`."""
        return blocks.unflatten(0, (self.groups, self.blocks)).transpose(1, 2).flatten(2, 3)

    def joined_rows(self, blocks: Tensor) -> Tensor:
        """The way back from `rows_by_block`."""
        return blocks.reshape(self.groups, -1, blocks.shape[2])

    def grouped_moment(self, second_moment: Tensor) -> Tensor:
        """The second moment of each group, checked, ``(groups, n, n)``."""
        size = self.target.shape[-1]
        check_shape(
            self.owner, "second_moment", second_moment, [(size, size), (self.groups, size, size)]
        )
        moment = as_moment(self.owner, "second_moment", second_moment)
        return moment.expand(self.groups, size, size)

    def grouped_root(self, sensitivity: Tensor) -> Tensor:
        """Root of the sensitivity of each group, ``(groups, T, T)`` or ``(groups, T)``."""
        size = self.target.shape[-2]
        axis = (self.groups,) if self.has_group_axis else ()
        check_shape(self.owner, "sensitivity", sensitivity, [(*axis, size, size), (*axis, size)])
        is_diagonal = sensitivity.dim() == len(axis) + 1
        moment = as_moment(self.owner, "sensitivity", sensitivity, is_diagonal=is_diagonal)
        groups = moment if self.has_group_axis else moment[None]
        return torch.stack([sensitivity_root(self.owner, group) for group in groups])

    def factors(
        self,
        x: Tensor,
        y: Tensor,
        second_moment: Tensor | None = None,
        error: float | None = None,
    ) -> SketchFactors:
        """What the layers hold; ``error`` is None where nothing was minimised."""
        difference = self.target - self.joined_columns(self.a @ x) - self.joined_rows(y @ self.b)
        squares = [
            float(((matrix if second_moment is None else matrix @ second_moment) * matrix).sum())
            for matrix in (difference, self.dense)
        ]
        relative_error = relative(max(0.0, squares[0]), squares[1])
        s1 = self.joined_columns(x / self.scale).reshape(self.groups * self.rank, *self.shape[1:])
        s2 = (y / self.scale).reshape(self.shape[0], self.rank, *self.kernel)
        errors = (relative_error if error is None else error,)
        return SketchFactors(s1, s2, relative_error, errors)


def _blocked_least_squares(problem: _Problem) -> tuple[Tensor, Tensor]:
    """``X`` and ``Y`` by conjugate gradients on their coordinates in orthonormal bases.

    In these the normal equations are ``[[I, C], [C^T, I]]``, well conditioned where the two terms
    have little in common, as at the rates at which one compresses.
    """
    a_basis, a_inverse = _basis_and_pseudo_inverse(problem.a)
    b_basis, b_inverse = _basis_and_pseudo_inverse(problem.b.mT)

    def coordinates(matrix: Tensor) -> Tensor:
        first = a_basis.mT @ problem.columns_by_block(matrix)
        return torch.cat([first.flatten(), (problem.rows_by_block(matrix) @ b_basis).flatten()])

    def terms(vector: Tensor) -> tuple[Tensor, Tensor]:
        """``A X`` and ``Y B`` by block."""
        inputs, outputs = problem.b.shape[2], problem.a.shape[1]
        count = len(problem.a)
        first_size = count * a_basis.shape[2] * (inputs // problem.blocks)
        first = vector[:first_size].view(count, a_basis.shape[2], -1)
        second = vector[first_size:].view(count, outputs // problem.blocks, -1)
        return a_basis @ first, second @ b_basis.mT

    def weight(vector: Tensor) -> Tensor:
        first, second = terms(vector)
        return problem.joined_columns(first) + problem.joined_rows(second)

    solution = conjugate_gradients(
        lambda vector: coordinates(weight(vector)),
        coordinates(problem.target),
        _CG_STEPS,
        _CG_TOLERANCE,
    )
    first, second = terms(solution)
    return a_inverse @ first, second @ b_inverse.mT


def _ridged_factors(owner: str, second_moment: Tensor) -> Tensor:
    """Cholesky factor of the second moment of each group, ``(groups, n, n)``."""
    factors = [
        ridged_cholesky(owner, "second_moment", group, _SMALLEST_RIDGE)[0]
        for group in second_moment
    ]
    return torch.stack(factors)


def _basis_and_pseudo_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal basis of the range of a matrix, and its pseudo-inverse (both batched).

    Columns of the basis beyond the numerical rank are zero.
    """
    q, r = torch.linalg.qr(matrix)
    if r.shape[-2] == r.shape[-1]:
        identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device).expand_as(r)
        inverse = torch.linalg.solve_triangular(r, identity, upper=True)
        condition = torch.linalg.matrix_norm(r, 1) * torch.linalg.matrix_norm(inverse, 1)
        if (condition < _WELL_CONDITIONED).all():  # the rule for random signs, and much cheaper
            return q, inverse @ q.mT
    u, s, vh = torch.linalg.svd(r, full_matrices=False)
    threshold = s[..., :1] * max(matrix.shape[-2:]) * torch.finfo(s.dtype).eps
    kept = s > threshold
    basis = (q @ u) * kept[..., None, :]
    inverse_s = torch.where(kept, s, torch.inf).reciprocal()
    return basis, (vh.mT * inverse_s[..., None, :]) @ basis.mT
