"""HashedNets: weights shared by hash (Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, Self

import torch
from torch import Tensor, nn

from sketchlayers.nn._checks import refuse_other_layers
from sketchlayers.nn._geometry import Geometry, PaddingMode
from sketchlayers.nn.generated._hashing import HashedLayer
from sketchlayers.nn.generated._layer import FormedConv2d, FormedLinear, Init, number_or_rate


class HashedLinear(HashedLayer, FormedLinear):
    """Fully connected layer whose entries share a few values, in place of ``nn.Linear``.

    The weight is::

        W[i, j] = xi(i, j) values[h(i, j)]          (Chen et al., ICML 2015, equations 3 and 7)

    with a hash ``h`` into ``K`` buckets and random signs ``xi``, both functions of ``seed`` that
    are computed and never stored. It has ``K`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Every value appears ``d1 d2 / K`` times, and one step of gradient descent moves it by the sum
    over all of them: a safe learning rate is about ``rate`` times that of the dense layer.

    Args:
        in_features: ``d2``.
        out_features: ``d1``.
        bias: learn a bias.
        device: of the parameters; may be ``"meta"``.
        dtype: of the parameters.
        buckets: ``K``, at most ``d1 d2``. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole number of buckets is taken, and the attribute ``rate`` tells what it
            gives.
        seed: decides hashes and signs; ``None`` draws it from PyTorch's default generator.

    Raises:
        ImportError: the compiled extension is missing, or was built for another PyTorch.
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = HashedLinear(768, 768, rate=0.25)
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
        buckets: int | None = None,
        rate: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(in_features, out_features, seed, device)
        count = _buckets(type(self).__name__, self._weight_shape, bias, buckets, rate)
        self._build((count,), bias, device, dtype)

    def _shared(self, values: Tensor) -> Tensor:
        return self._hashed(values)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        buckets: int | None = None,
        rate: float | None = None,
        seed: int | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> Self:
        """A hashed layer in place of ``linear``, which is left as it is.

        Device, type, the bias, ``requires_grad`` and the training flag carry over. The attribute
        ``fit_error`` holds the relative error of the weight, which is near ``sqrt(1 - rate)``: a
        hashed layer has to be trained. On the meta device there are no values to fit, and the
        result is a meta layer.

        Args:
            linear: the layer; a subclass must compute its output as ``nn.Linear`` does.
            buckets: see the class.
            rate: see the class.
            seed: see the class.
            init: ``"fit"`` takes the nearest values
                (`sketchlayers.decompose.hashed_least_squares`), ``"random"`` those of a new layer.
            second_moment: ``E[x x^T]`` of the inputs, ``(d2, d2)``: the fit is in the norm of the
                output's change.
            sensitivity: weight of the output's errors, ``(d1,)`` or ``(d1, d1)``.

        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a fully connected layer of this kind.
            ValueError: NaN or infinite weights or moments, moments without a fit, or arguments that
                the class refuses.
        """
        refuse_other_layers(cls.__name__, linear, nn.Linear)
        arguments = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "buckets": buckets,
            "rate": rate,
            "seed": seed,
        }
        return cls._from_dense(linear, arguments, init, second_moment, sensitivity)


class HashedConv2d(HashedLayer, FormedConv2d):
    r"""Convolution whose entries share a few values, in place of ``nn.Conv2d``: see `HashedLinear`.

    The weight is hashed as the matrix ``(d1, d2 / groups * h * w)``. It has ``K`` parameters and
    the bias, instead of ``d1 d2 h w / groups``. Shapes are those of ``nn.Conv2d``: input
    ``(N, d2, H, W)`` or ``(d2, H, W)``.

    Args:
        in_channels: ``d2``.
        out_channels: ``d1``.
        kernel_size: ``(h, w)`` or one number for both.
        stride: as in ``nn.Conv2d``.
        padding: number, pair, ``"same"`` or ``"valid"``.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``; all groups share the values.
        bias: learn a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of the parameters; may be ``"meta"``.
        dtype: of the parameters.
        buckets: ``K``, at most the entries of the dense weight. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole number of buckets is taken, and the attribute ``rate`` tells what it
            gives.
        seed: decides hashes and signs; ``None`` draws it from PyTorch's default generator.

    Raises:
        ImportError: the compiled extension is missing, or was built for another PyTorch.
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = HashedConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        buckets: int | None = None,
        rate: float | None = None,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        geometry = Geometry.checked(
            owner,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
        )
        super().__init__(geometry, seed, device)
        count = _buckets(owner, self._weight_shape, bias, buckets, rate)
        self._build((count,), bias, device, dtype)

    def _shared(self, values: Tensor) -> Tensor:
        return self._hashed(values).view(self._weight_shape)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        buckets: int | None = None,
        rate: float | None = None,
        seed: int | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> Self:
        """A hashed layer in place of ``conv``, which is left as it is.

        Device, type, the bias, ``requires_grad`` and the training flag carry over. The attribute
        ``fit_error`` holds the relative error of the weight, which is near ``sqrt(1 - rate)``: a
        hashed layer has to be trained. On the meta device there are no values to fit, and the
        result is a meta layer.

        Args:
            conv: the layer; a subclass must compute its output as ``nn.Conv2d`` does.
            buckets: see the class.
            rate: see the class.
            seed: see the class.
            init: ``"fit"`` takes the nearest values
                (`sketchlayers.decompose.hashed_least_squares`), ``"random"`` those of a new layer.
            second_moment: ``E[x x^T]`` of the input patches in the order of ``F.unfold``,
                ``(n, n)`` or ``(groups, n, n)``: the fit is in the norm of the output's change.
            sensitivity: weight of the output's errors, ``(d1,)``, or a matrix for each group
                ``(groups, T, T)`` with ``T = d1 / groups``, ``(T, T)`` for one.

        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a convolution of this kind.
            ValueError: NaN or infinite weights or moments, moments without a fit, or arguments that
                the class refuses.
        """
        refuse_other_layers(cls.__name__, conv, nn.Conv2d)
        arguments = Geometry.of(conv).arguments() | {
            "buckets": buckets,
            "rate": rate,
            "seed": seed,
        }
        return cls._from_dense(conv, arguments, init, second_moment, sensitivity)


def _buckets(
    owner: str, shape: tuple[int, ...], bias: bool, buckets: int | None, rate: float | None
) -> int:
    entries, kept = prod(shape), shape[0] if bias else 0
    return number_or_rate(owner, "buckets", buckets, rate, (1, entries), 1, kept, entries + kept)
