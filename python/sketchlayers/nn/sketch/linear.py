"""SK-FC: a fully connected layer whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn._checks import refuse_other_layers, whole_number
from sketchlayers.nn._export import exporting
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import Frame, Init, Plan, Scale, Signs, SketchLayer


class SKLinear(SketchLayer):
    """Sketched fully connected layer, in place of ``nn.Linear``.

    The weight is::

        W_hat = 1/(2l) * sum_{i=1..l} ( U1_i^T S1_i + S2_i U2_i )          (equation 1)

    with trained ``S1_i (k, d2)`` and ``S2_i (d1, k)`` and random signs ``U1_i (k, d1)`` and
    ``U2_i (k, d2)`` that follow from ``seed`` and are never trained or saved. It has
    ``l k (d1 + d2)`` parameters and the bias, instead of ``d1 d2``. Input ``(*, d2)``, output
    ``(*, d1)``.

    Args:
        in_features: ``d2``.
        out_features: ``d1``.
        bias: learn a bias.
        device: of parameters and signs; may be ``"meta"``.
        dtype: of the parameters.
        rank: ``k``, with ``1 <= l k <= min(d1, d2)``. Give this or ``rate``.
        num_sketches: ``l``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.
        scale: the factor of the sum: ``"paper"`` is ``1/(2l)``; ``"normalized"`` is ``1/sqrt(2l)``,
            for which a step of SGD moves ``W_hat`` as far as it moves a dense weight; or a number.
        blocks: equal parts of the inputs and of the outputs of each group that have signs of their
            own: ``U1_i`` for each block of the inputs, ``U2_i`` for each block of the outputs. It
            has the same parameters and the same variance, but the rank of ``W_hat`` may be
            ``blocks`` times ``2 l k``, and it trains much better, for ``blocks`` times the
            operations with signs. 1 is the paper's layer.
        signs: ``"rademacher"``, independent random signs, or ``"hadamard"``, rows of a randomised
            Hadamard transform, which are orthogonal (named in the paper as a possible gain).
        frame: ``"signs"`` multiplies the sum by fixed random signs, made from the seed.
        seed: decides all signs; ``None`` draws it from PyTorch's default generator.

    Raises:
        ImportError: the compiled extension is missing, or was built for another PyTorch.
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = SKLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        num_sketches: int = 1,
        rate: float | None = None,
        scale: Scale = "paper",
        blocks: int = 1,
        signs: Signs = "rademacher",
        frame: Frame = None,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        in_features = whole_number(owner, "in_features", in_features)
        out_features = whole_number(owner, "out_features", out_features)
        super().__init__(
            in_features,
            out_features,
            (),
            1,
            bias,
            rank=rank,
            num_sketches=num_sketches,
            rate=rate,
            mixing="spatial",  # both mixings are the same without kernel positions
            scale=scale,
            blocks=blocks,
            signs=signs,
            frame=frame,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        weight = self._kept_weight(input)
        if weight is None and exporting():
            if self._exports_factors():
                return _onnx.linear(self._traced(), input, self.bias)
            weight = self.dense_weight()
        if weight is not None:
            return F.linear(input, weight, self.bias)
        return ops.sk_linear(
            input,
            self.s1,
            self.s2,
            self.u1,
            self.u2,
            self.bias,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
            path=self.path,
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        num_sketches: int = 1,
        rate: float | None = None,
        scale: Scale = "paper",
        blocks: int = 1,
        signs: Signs = "rademacher",
        frame: Frame = None,
        seed: int | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> Self:
        """A sketched layer in place of ``linear``, which is left as it is.

        Device, type, the bias, ``requires_grad`` and the training flag carry over. The attribute
        ``fit_error`` holds the relative error of the weight. On the meta device there are no values
        to fit, and the result is a meta layer.

        Args:
            linear: the layer; a subclass must compute its output as ``nn.Linear`` does.
            rank: see the class.
            num_sketches: see the class.
            rate: see the class.
            scale: see the class.
            blocks: see the class.
            signs: see the class.
            frame: see the class.
            seed: see the class.
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
            second_moment: ``E[x x^T]`` of the inputs, ``(d2, d2)``: the fit is in the norm of the
                output's change.
            sensitivity: weight of the output's errors, ``(d1,)`` or ``(d1, d1)``.

        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a fully connected layer of this kind.
            ValueError: NaN or infinite weights or moments, moments together with a frame, several
                blocks or without a fit, or arguments that the class refuses.
        """
        refuse_other_layers(cls.__name__, linear, nn.Linear)
        arguments = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "rank": rank,
            "num_sketches": num_sketches,
            "rate": rate,
            "scale": scale,
            "blocks": blocks,
            "signs": signs,
            "frame": frame,
            "seed": seed,
        }
        return cls._from_dense(linear, arguments, init, second_moment, sensitivity)

    def fold(self) -> nn.Linear:
        """The plain layer with this layer's weight, of the same device and type."""
        arguments = {"in_features": self.in_features, "out_features": self.out_features}
        return self._fold_into(nn.Linear, arguments)

    def plan(self, input_shape: Sequence[int], *, channels_last: bool = False) -> Plan:
        """Which path would run for an input ``(*, d2)``, and why.

        Args:
            input_shape: of the input.
            channels_last: makes no difference here.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return self._plan(input_shape, channels_last=False)

    def _sizes(self, input_shape: Sequence[int]) -> tuple[int, int, int]:
        if len(input_shape) < 1 or input_shape[-1] != self.in_features:
            raise RuntimeError(
                f"{type(self).__name__}: input_shape must be (*, {self.in_features}) "
                f"(got input_shape={tuple(input_shape)})"
            )
        return math.prod(input_shape[:-1]), 1, 1

    def extra_repr(self) -> str:
        """Arguments of the constructor, and the rate."""
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        return ", ".join([*parts, *self._options_repr(), f"rate={self.rate:.3g}"])
