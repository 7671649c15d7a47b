"""Factors in place of the convolutions of one and three axes, and of transposed ones."""

from __future__ import annotations

from typing import ClassVar

from sketchlayers.nn._layer import (
    Conv1dLayer,
    Conv3dLayer,
    ConvTranspose1dLayer,
    ConvTranspose2dLayer,
    ConvTranspose3dLayer,
    stands_for_dense,
)
from sketchlayers.nn.factored.cp import CPConv, CPConv2d, CPConvTranspose
from sketchlayers.nn.factored.tucker import TuckerConv, TuckerConv2d, TuckerConvTranspose


@stands_for_dense
class TuckerConv1d(Conv1dLayer, TuckerConv):
    r"""Tucker-2 decomposition of a convolution, in place of ``nn.Conv1d``.

    It is as `TuckerConv2d`: ``input`` and ``output`` are convolutions of one position, and ``core``
    is an ordinary one of w positions, with the stride, padding and the dilation. It has ``S RS + w
    RS RT + T RT`` parameters and the bias. Input ``(N, in, L)`` or ``(in, L)``.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of the uniform family.

    Example:
        >>> layer = TuckerConv1d(96, 64, 3, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(2, 96, 64)).shape
        torch.Size([2, 64, 64])
    """


@stands_for_dense
class TuckerConv3d(Conv3dLayer, TuckerConv):
    r"""Tucker-2 decomposition of a convolution, in place of ``nn.Conv3d``.

    It is as `TuckerConv2d`: ``input`` and ``output`` are convolutions of one position, and ``core``
    is an ordinary one of d x h x w positions, with the stride, padding and the dilation. It has ``S
    RS + d h w RS RT + T RT`` parameters and the bias. Input ``(N, in, D, H, W)`` or ``(in, D, H,
    W)``.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of the uniform family.

    Example:
        >>> layer = TuckerConv3d(96, 64, 3, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(2, 96, 4, 8, 8)).shape
        torch.Size([2, 64, 4, 8, 8])
    """


@stands_for_dense
class TuckerConvTranspose1d(ConvTranspose1dLayer, TuckerConvTranspose):
    r"""Tucker-2 decomposition of a transposed convolution, in place of ``nn.ConvTranspose1d``.

    It is as `TuckerConv2d`: ``input`` and ``output`` are convolutions of one position, and ``core``
    is a transposed one of w positions, with the stride, the padding, the output padding and the
    dilation. It has ``S RS + w RS RT + T RT`` parameters and the bias. Input ``(N, in, L)`` or
    ``(in, L)``.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of the uniform family.

    Example:
        >>> layer = TuckerConvTranspose1d(96, 64, 4, stride=2, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(2, 96, 64)).shape
        torch.Size([2, 64, 128])
    """


@stands_for_dense
class TuckerConvTranspose2d(ConvTranspose2dLayer, TuckerConvTranspose):
    r"""Tucker-2 decomposition of a transposed convolution, in place of ``nn.ConvTranspose2d``.

    It is as `TuckerConv2d`: ``input`` and ``output`` are convolutions of one position, and ``core``
    is a transposed one of h x w positions, with the stride, the padding, the output padding and the
    dilation. It has ``S RS + h w RS RT + T RT`` parameters and the bias. Input ``(N, in, H, W)`` or
    ``(in, H, W)``.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of the uniform family.

    Example:
        >>> layer = TuckerConvTranspose2d(96, 64, 4, stride=2, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(2, 96, 8, 8)).shape
        torch.Size([2, 64, 16, 16])
    """


@stands_for_dense
class TuckerConvTranspose3d(ConvTranspose3dLayer, TuckerConvTranspose):
    r"""Tucker-2 decomposition of a transposed convolution, in place of ``nn.ConvTranspose3d``.

    It is as `TuckerConv2d`: ``input`` and ``output`` are convolutions of one position, and ``core``
    is a transposed one of d x h x w positions, with the stride, the padding, the output padding and
    the dilation. It has ``S RS + d h w RS RT + T RT`` parameters and the bias. Input ``(N, in, D,
    H, W)`` or ``(in, D, H, W)``.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of the uniform family.

    Example:
        >>> layer = TuckerConvTranspose3d(96, 64, 4, stride=2, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(2, 96, 4, 8, 8)).shape
        torch.Size([2, 64, 8, 16, 16])
    """


@stands_for_dense
class CPConv1d(Conv1dLayer, CPConv):
    r"""CP decomposition of a convolution, in place of ``nn.Conv1d``.

    It is as `CPConv2d`: ``input``, depthwise convolutions along each axis of the kernel
    (``columns``), and ``output``. It has ``R (S + T + w)`` parameters and the bias. Input ``(N, in,
    L)`` or ``(in, L)``.

    Args:
        rank: ``R``, at most ``w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConv1d(96, 64, 3, padding=1, rank=60)
        >>> layer(torch.randn(2, 96, 64)).shape
        torch.Size([2, 64, 64])
    """

    planes = rows = None
    __constants__: ClassVar[list[str]] = ["planes", "rows"]


@stands_for_dense
class CPConv3d(Conv3dLayer, CPConv):
    r"""CP decomposition of a convolution, in place of ``nn.Conv3d``.

    It is as `CPConv2d`: ``input``, depthwise convolutions along each axis of the kernel
    (``planes``, ``rows`` and ``columns``), and ``output``. It has ``R (S + T + d + h + w)``
    parameters and the bias. Input ``(N, in, D, H, W)`` or ``(in, D, H, W)``.

    Args:
        rank: ``R``, at most ``d h w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConv3d(96, 64, 3, padding=1, rank=60)
        >>> layer(torch.randn(2, 96, 4, 8, 8)).shape
        torch.Size([2, 64, 4, 8, 8])
    """


@stands_for_dense
class CPConvTranspose1d(ConvTranspose1dLayer, CPConvTranspose):
    r"""CP decomposition of a transposed convolution, in place of ``nn.ConvTranspose1d``.

    It is as `CPConv2d`: ``input``, depthwise transposed convolutions along each axis of the kernel
    (``columns``), and ``output``. It has ``R (S + T + w)`` parameters and the bias. Input ``(N, in,
    L)`` or ``(in, L)``.

    Args:
        rank: ``R``, at most ``w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConvTranspose1d(96, 64, 4, stride=2, padding=1, rank=60)
        >>> layer(torch.randn(2, 96, 64)).shape
        torch.Size([2, 64, 128])
    """

    planes = rows = None
    __constants__: ClassVar[list[str]] = ["planes", "rows"]


@stands_for_dense
class CPConvTranspose2d(ConvTranspose2dLayer, CPConvTranspose):
    r"""CP decomposition of a transposed convolution, in place of ``nn.ConvTranspose2d``.

    It is as `CPConv2d`: ``input``, depthwise transposed convolutions along each axis of the kernel
    (``rows`` and ``columns``), and ``output``. It has ``R (S + T + h + w)`` parameters and the
    bias. Input ``(N, in, H, W)`` or ``(in, H, W)``.

    Args:
        rank: ``R``, at most ``h w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConvTranspose2d(96, 64, 4, stride=2, padding=1, rank=60)
        >>> layer(torch.randn(2, 96, 8, 8)).shape
        torch.Size([2, 64, 16, 16])
    """

    planes = None
    __constants__: ClassVar[list[str]] = ["planes"]


@stands_for_dense
class CPConvTranspose3d(ConvTranspose3dLayer, CPConvTranspose):
    r"""CP decomposition of a transposed convolution, in place of ``nn.ConvTranspose3d``.

    It is as `CPConv2d`: ``input``, depthwise transposed convolutions along each axis of the kernel
    (``planes``, ``rows`` and ``columns``), and ``output``. It has ``R (S + T + d + h + w)``
    parameters and the bias. Input ``(N, in, D, H, W)`` or ``(in, D, H, W)``.

    Args:
        rank: ``R``, at most ``d h w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConvTranspose3d(96, 64, 4, stride=2, padding=1, rank=60)
        >>> layer(torch.randn(2, 96, 4, 8, 8)).shape
        torch.Size([2, 64, 8, 16, 16])
    """


TUCKER_LAYERS = (
    TuckerConv1d,
    TuckerConv2d,
    TuckerConv3d,
    TuckerConvTranspose1d,
    TuckerConvTranspose2d,
    TuckerConvTranspose3d,
)
CP_LAYERS = (
    CPConv1d,
    CPConv2d,
    CPConv3d,
    CPConvTranspose1d,
    CPConvTranspose2d,
    CPConvTranspose3d,
)
