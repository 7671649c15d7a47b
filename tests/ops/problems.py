"""Layers to compute: their operands, the operator's answer and the reference's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sketchlayers import ops

from . import reference
from .reference import Array, Geometry, Signs, Sketch, Words

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRADIENTS = ("input", "s1", "s2", "bias")


@dataclass
class Operands:
    """What a layer is trained on and trains; gradients come in the same order."""

    input: Tensor
    s1: Tensor
    s2: Tensor
    bias: Tensor | None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.input, self.s1, self.s2, self.bias))

    def named(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        pairs = zip(GRADIENTS, self, strict=True)
        return {name: tensor for name, tensor in pairs if tensor is not None}

    def requiring(self, *names: str) -> Operands:
        """The same values as new leaves, of which the named ones require gradients."""
        leaves = {
            name: tensor.detach().requires_grad_(name in names)
            for name, tensor in self.named().items()
        }
        return Operands(**{"bias": None, **leaves})

    def to(self, *args: object, **kwargs: object) -> Operands:
        """Every tensor through ``Tensor.to``."""
        moved = {name: tensor.to(*args, **kwargs) for name, tensor in self.named().items()}  # type: ignore[call-overload]
        return Operands(**{"bias": None, **moved})


@dataclass(frozen=True)
class Layer:
    """What convolutions and fully connected layers have in common."""

    rank: int = 2
    num_sketches: int = 1
    scale: float | None = None
    blocks: int = 1
    frame: bool = False
    bias: bool = True
    seed: int = 5

    # The shape of the weight, which a subclass tells.
    in_channels: int = 6
    out_channels: int = 8
    batch: int | None = 3

    @property
    def stacked(self) -> int:
        return self.rank * self.num_sketches

    @property
    def needs_folded(self) -> bool:
        return self.frame

    def replace(self, **changes: object) -> Layer:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    # What differs between the layers.

    @property
    def sketch(self) -> Sketch:
        raise NotImplementedError

    @property
    def geometry(self) -> Geometry:
        raise NotImplementedError

    @property
    def kernel_size(self) -> tuple[int, int]:
        raise NotImplementedError

    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    def forward(self, operands: Operands, path: str, signs: dict[str, Tensor | None]) -> Tensor:
        raise NotImplementedError

    def dense(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's own layer with the given weight (d1, d2/g, h, w)."""
        raise NotImplementedError

    # Signs, from the reference's generator alone.

    def _words(self) -> dict[str, Words | None]:
        groups = self.geometry.groups
        outputs, channels = self.out_channels // groups, self.in_channels // groups
        taps = self.kernel_size[0] * self.kernel_size[1]
        spatial = self.sketch.mixing == "spatial"

        def stack(matrix: int, step: int, rows: int, columns: int) -> Words:
            return np.stack(
                [
                    reference.sign_words(self.seed, matrix + step * g, rows, columns)
                    for g in range(groups)
                ]
            )

        n = channels * taps
        return {
            "u1": stack(0, 2, self.blocks * self.stacked, outputs),
            "u2": stack(1, 2, self.blocks * self.stacked * taps, n)
            if spatial
            else stack(1, 2, self.blocks * self.stacked, channels),
            "frame": stack(reference.FRAME_MATRIX, 1, outputs, n) if self.frame else None,
        }

    def packed_signs(self, device: torch.device | str = "cpu") -> dict[str, Tensor | None]:
        """u1, u2 and frame as the operators take them."""
        return {
            name: None if words is None else torch.from_numpy(words).to(device)
            for name, words in self._words().items()
        }

    def signs(self) -> Signs:
        """u1, u2 and frame as the reference takes them."""
        groups = self.geometry.groups
        channels = self.in_channels // groups
        n = channels * self.kernel_size[0] * self.kernel_size[1]
        columns = {
            "u1": self.out_channels // groups,
            "u2": n if self.sketch.mixing == "spatial" else channels,
            "frame": n,
        }
        unpacked = {
            name: None if words is None else reference.unpack(words, columns[name])
            for name, words in self._words().items()
        }
        return Signs(**unpacked)  # type: ignore[arg-type]

    # Operands and answers.

    def operands(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", seed: int = 0
    ) -> Operands:
        """Normal random numbers, exact in ``dtype``."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for name, shape in self.operand_shapes().items()
        }
        return Operands(**{"bias": None, **tensors})

    def __call__(self, operands: Operands, path: str = "auto") -> Tensor:
        """The operator's output."""
        return self.forward(operands, path, self.packed_signs(operands.s1.device))

    def weight(self, operands: Operands) -> Tensor:
        """The operator's W_hat."""
        return ops.sk_weight(
            operands.s1,
            operands.s2,
            **self.packed_signs(operands.s1.device),
            mixing=self.sketch.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
        )

    def gradients(self, operands: Operands, grad: Tensor, path: str = "auto") -> dict[str, Tensor]:
        """The operator's gradients of every operand for dLoss/dOutput = ``grad``."""
        leaves = operands.requiring(*GRADIENTS)
        output = self(leaves, path)
        named = leaves.named()
        return dict(
            zip(named, torch.autograd.grad(output, list(named.values()), grad), strict=True)
        )

    def reference_weight(self, operands: Operands, signs: Signs | None = None) -> Array:
        """W_hat (d1, d2/g, h, w) by the reference; with other signs than the layer's if given."""
        return reference.weight(
            _four_axes(operands.s1), _four_axes(operands.s2), signs or self.signs(), self.sketch
        )

    def reference_output(self, operands: Operands, signs: Signs | None = None) -> Array:
        """The output by the reference, in the output's own shape."""
        bias = None if operands.bias is None else as_array(operands.bias)
        output = reference.convolve(
            self.as_batch(as_array(operands.input)),
            self.reference_weight(operands, signs),
            bias,
            self.geometry,
        )
        return output.reshape(self.output_shape())

    def reference_gradients(
        self, operands: Operands, grad: Tensor, signs: Signs | None = None
    ) -> dict[str, Array]:
        """The gradients by the reference, each in its operand's shape."""
        s1, s2 = _four_axes(operands.s1), _four_axes(operands.s2)
        x = self.as_batch(as_array(operands.input))
        grad_input, grad_weight, grad_bias = reference.convolve_adjoint(
            self.as_batch(as_array(grad)), x, self.reference_weight(operands, signs), self.geometry
        )
        grad_s1, grad_s2 = reference.weight_adjoint(
            grad_weight, s1.shape, s2.shape, signs or self.signs(), self.sketch
        )
        computed = {"input": grad_input, "s1": grad_s1, "s2": grad_s2, "bias": grad_bias}
        return {
            name: computed[name].reshape(tensor.shape) for name, tensor in operands.named().items()
        }

    def reference_magnitudes(self, operands: Operands, grad: Tensor) -> dict[str, Array]:
        """Output and gradients had nothing cancelled: sums of absolute values."""
        tensors = {name: tensor.detach().abs() for name, tensor in operands.named().items()}
        positive = Operands(**{"bias": None, **tensors})
        signs = self.signs()
        ones = Signs(
            np.abs(signs.u1),
            np.abs(signs.u2),
            None if signs.frame is None else np.abs(signs.frame),
        )
        return {
            "output": self.reference_output(positive, ones),
            **self.reference_gradients(positive, grad.abs(), ones),
        }

    def output_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def as_batch(self, x: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Layer):
    """A sketched convolution and the size of what goes in."""

    mixing: str = "spatial"
    kernel: tuple[int, int] = (3, 2)
    size: tuple[int, int] = (5, 6)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def sketch(self) -> Sketch:
        return Sketch(self.mixing, self.num_sketches, self.scale, self.blocks)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.kernel

    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        batch = () if self.batch is None else (self.batch,)
        shapes: dict[str, tuple[int, ...]] = {
            "input": (*batch, self.in_channels, *self.size),
            "s1": (self.groups * self.stacked, self.in_channels // self.groups, *self.kernel),
            "s2": (self.out_channels, self.stacked, *self.kernel),
        }
        return {**shapes, "bias": (self.out_channels,)} if self.bias else shapes

    def output_shape(self) -> tuple[int, ...]:
        batch = () if self.batch is None else (self.batch,)
        return (*batch, self.out_channels, *self.geometry.output_size(self.size, self.kernel))

    def as_batch(self, x: Array) -> Array:
        return x[None] if self.batch is None else x

    def forward(self, operands: Operands, path: str, signs: dict[str, Tensor | None]) -> Tensor:
        return ops.sk_conv2d(
            operands.input,
            operands.s1,
            operands.s2,
            signs["u1"],
            signs["u2"],
            operands.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            mixing=self.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=signs["frame"],
            path=path,
        )

    def dense(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


@dataclass(frozen=True)
class Linear(Layer):
    """A sketched fully connected layer; ``lead`` are the input's axes before the features."""

    lead: tuple[int, ...] = (3,)

    @property
    def sketch(self) -> Sketch:
        return Sketch("spatial", self.num_sketches, self.scale, self.blocks)

    @property
    def geometry(self) -> Geometry:
        return Geometry()

    @property
    def kernel_size(self) -> tuple[int, int]:
        return (1, 1)

    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "input": (*self.lead, self.in_channels),
            "s1": (self.stacked, self.in_channels),
            "s2": (self.out_channels, self.stacked),
        }
        return {**shapes, "bias": (self.out_channels,)} if self.bias else shapes

    def output_shape(self) -> tuple[int, ...]:
        return (*self.lead, self.out_channels)

    def as_batch(self, x: Array) -> Array:
        return x.reshape(int(np.prod(self.lead)), x.shape[-1], 1, 1)

    def forward(self, operands: Operands, path: str, signs: dict[str, Tensor | None]) -> Tensor:
        return ops.sk_linear(
            operands.input,
            operands.s1,
            operands.s2,
            signs["u1"],
            signs["u2"],
            operands.bias,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=signs["frame"],
            path=path,
        )

    def dense(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(input, weight.flatten(1), bias)


def paths(layer: Layer) -> list[str]:
    """The computation paths that can compute this layer."""
    return ["folded", "auto"] if layer.needs_folded else ["factored", "folded", "auto"]


def relative_error(actual: Tensor, expected: Array | Tensor) -> float:
    """|actual - expected| / |expected| in the Frobenius norm; 0 where both are empty or zero."""
    target = expected if isinstance(expected, np.ndarray) else as_array(expected)
    assert actual.shape == target.shape
    difference = float(np.linalg.norm(as_array(actual) - target))
    return difference / float(np.linalg.norm(target)) if difference else 0.0


def strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides, those of axes of one element included; all 0 for a tensor of no elements."""
    return tensor.stride() if tensor.numel() else (0,) * tensor.dim()


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides: contiguous, channels_last, transposed or sliced."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    return tensor.contiguous()


LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced"]


def sizes(low: int, high: int) -> st.SearchStrategy[int]:
    """Whole numbers, both ends included."""
    return st.integers(low, high)


@st.composite
def pointwise_layers(draw: st.DrawFn) -> Conv:
    """1x1 convolutions without padding or groups, which have code of their own."""
    common = draw(_common())
    blocks = common["blocks"]
    return Conv(
        batch=draw(st.sampled_from([None, 0, 1, 3])),
        in_channels=blocks * draw(sizes(1, 40 // blocks)),
        out_channels=blocks * draw(sizes(1, 40 // blocks)),
        kernel=(1, 1),
        size=draw(st.tuples(sizes(1, 6), sizes(1, 6))),
        stride=draw(st.sampled_from([(1, 1), (1, 1), (1, 2)])),
        mixing=draw(st.sampled_from(["spatial", "channel"])),
        **common,
    )


@st.composite
def conv_layers(draw: st.DrawFn) -> Conv:
    """Convolutions of every kind, small enough for the reference's loops."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(sizes(1, 4), sizes(1, 3)))
    dilation = draw(st.tuples(sizes(1, 3), sizes(1, 3)))
    padding = draw(st.tuples(sizes(0, 3), sizes(0, 3)))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(sizes(0, 4))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    common = draw(_common())
    blocks = common["blocks"]
    return Conv(
        batch=draw(st.sampled_from([None, 0, 1, 3])),
        in_channels=groups * blocks * draw(sizes(1, 5)),
        out_channels=groups * blocks * draw(sizes(1, 5)),
        groups=groups,
        kernel=kernel,
        size=(size[0], size[1]),
        stride=draw(st.tuples(sizes(1, 3), sizes(1, 3))),
        padding=padding,
        dilation=dilation,
        mixing=draw(st.sampled_from(["spatial", "channel"])),
        **common,
    )


@st.composite
def linear_layers(draw: st.DrawFn) -> Linear:
    """Fully connected layers with no, one or more leading axes."""
    common = draw(_common())
    blocks = common["blocks"]
    return Linear(
        lead=draw(st.sampled_from([(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (2, 1, 2)])),
        in_channels=blocks * draw(sizes(1, 140 // blocks)),
        out_channels=blocks * draw(sizes(1, 140 // blocks)),
        **common,
    )


def _common() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "rank": sizes(1, 3),
            "num_sketches": sizes(1, 3),
            "scale": st.sampled_from([None, None, 0.3]),
            "blocks": st.sampled_from([1, 1, 2, 3]),
            "frame": st.sampled_from([False, False, True]),
            "bias": st.booleans(),
            "seed": st.integers(0, 2**63 - 1),
        }
    )


def as_array(tensor: Tensor) -> Array:
    """The values in float64."""
    return tensor.detach().double().cpu().numpy()


def _four_axes(tensor: Tensor) -> Array:
    array = as_array(tensor)
    return array if array.ndim == 4 else array[:, :, None, None]
