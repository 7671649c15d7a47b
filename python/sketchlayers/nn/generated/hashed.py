"""HashedNets: weights shared by hash (Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015)."""

from __future__ import annotations

from typing import Self, Unpack

from torch import Tensor, nn

from sketchlayers.nn._layer import stands_for_dense
from sketchlayers.nn.generated._hashing import HashedLayer, HashOptions
from sketchlayers.nn.generated._layer import FormedConv2d, FormedLinear, Init


@stands_for_dense
class HashedLinear(FormedLinear, HashedLayer):
    """Fully connected layer whose entries share a few values, in place of ``nn.Linear``.

    The weight is::

        W[i, j] = xi(i, j) values[h(i, j)]          (Chen et al., ICML 2015, equations 3 and 7)

    with a hash ``h`` into ``K`` buckets and random signs ``xi``, both functions of ``seed`` that
    are computed and never stored. It has ``K`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Every value appears ``d1 d2 / K`` times, and one step of gradient descent moves it by the sum
    over all of them: a safe learning rate is about ``rate`` times that of the dense layer.

    Args:
        buckets: ``K``, at most ``d1 d2``. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole number of buckets is taken, and the attribute ``rate`` tells what it
            gives.
        seed: decides hashes and signs; ``None`` draws it from PyTorch's default generator.

    Example:
        >>> layer = HashedLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Unpack[HashOptions],
    ) -> Self:
        """A hashed layer in place of ``linear``, which is left as it is.

        The weight's error is near ``sqrt(1 - rate)``: a hashed layer has to be trained.

        Args:
            init: ``"fit"`` takes the nearest values
                (`sketchlayers.decompose.hashed_least_squares`), ``"random"`` those of a new layer.
        """
        return cls._from_dense(linear, options, init, second_moment, sensitivity)


@stands_for_dense
class HashedConv2d(FormedConv2d, HashedLayer):
    r"""Convolution whose entries share a few values, in place of ``nn.Conv2d``: see `HashedLinear`.

    The weight is hashed as the matrix ``(d1, d2 / groups * h * w)``. It has ``K`` parameters and
    the bias, instead of ``d1 d2 h w / groups``; all groups share the values. Shapes are those of
    ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``.

    Args:
        buckets: ``K``, at most the entries of the dense weight. Give this or ``rate``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole number of buckets is taken, and the attribute ``rate`` tells what it
            gives.
        seed: decides hashes and signs; ``None`` draws it from PyTorch's default generator.

    Example:
        >>> layer = HashedConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Unpack[HashOptions],
    ) -> Self:
        """A hashed layer in place of ``conv``, which is left as it is.

        The weight's error is near ``sqrt(1 - rate)``: a hashed layer has to be trained.

        Args:
            init: ``"fit"`` takes the nearest values
                (`sketchlayers.decompose.hashed_least_squares`), ``"random"`` those of a new layer.
        """
        return cls._from_dense(conv, options, init, second_moment, sensitivity)
