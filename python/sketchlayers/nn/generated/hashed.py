"""HashedNets: weights shared by hash (Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015)."""

from __future__ import annotations

from sketchlayers.nn._layer import Conv2dLayer, LinearLayer, stands_for_dense
from sketchlayers.nn.generated._hashing import HashedLayer


@stands_for_dense
class HashedLinear(LinearLayer, HashedLayer):
    """Fully connected layer whose entries share a few values, in place of ``nn.Linear``.

    The weight is::

        W[i, j] = xi(i, j) values[h(i, j)]          (Chen et al., ICML 2015, equations 3 and 7)

    with a hash ``h`` into ``K`` buckets and random signs ``xi``, both functions of ``seed`` that
    are computed and never stored. It has ``K`` parameters and the bias, instead of ``d1 d2``. Input
    ``(*, d2)``, output ``(*, d1)``.

    Every value appears ``d1 d2 / K`` times, and one step of gradient descent moves it by the sum
    over all of them: a safe learning rate is about ``rate`` times that of the dense layer.

    Args:
        buckets: ``K``, at most ``d1 d2``.

    Example:
        >>> layer = HashedLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """


@stands_for_dense
class HashedConv2d(Conv2dLayer, HashedLayer):
    r"""Convolution whose entries share a few values, in place of ``nn.Conv2d``: see `HashedLinear`.

    The weight is hashed as the matrix ``(d1, d2 / groups * h * w)``. It has ``K`` parameters and
    the bias, instead of ``d1 d2 h w / groups``; all groups share the values. Shapes are those of
    ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``.

    Args:
        buckets: ``K``, at most the entries of the dense weight.

    Example:
        >>> layer = HashedConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """
