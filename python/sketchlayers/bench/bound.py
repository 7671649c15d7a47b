"""How fast a layer could be: its least operations and bytes against the machine's own peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sketchlayers._runtime.timing import Step, paired_times
from sketchlayers.nn import SKConv2d, SKLinear

from .cases import Case

Mode = Literal["forward", "training"]

_GEMM_SIZE = {"cpu": 1536, "cuda": 8192}
_CONVOLUTION_BATCH = {"cpu": 8, "cuda": 256}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches: operations and bytes a second (an FMA is two operations)."""

    flops: float
    bandwidth: float

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e9:,.0f} GFLOP/s in a large GEMM or convolution, "
            f"{self.bandwidth / 1e9:,.0f} GB/s in a large copy"
        )


@dataclass(frozen=True)
class Work:
    """Operations and bytes that a call cannot do without."""

    flops: float
    bytes: float

    def seconds(self, peaks: Peaks) -> float:
        """The bound: no call is faster, unless its data stay in caches between calls."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bandwidth)


def measure_peaks(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> Peaks:
    """The best of several large products and several large copies.

    The product is computed as a GEMM and as a convolution, since PyTorch gives the two to different
    libraries, of which one can be far from what the processor is able to do.

    Args:
        device: What is measured.
        dtype: Of the matrices.
        seconds: Time for each of the three.
    """
    count = _COPY_BYTES[device.type]
    source = torch.ones(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    gemm, convolution = _large_gemm(device, dtype), _large_convolution(device, dtype)
    amounts = [gemm[1], convolution[1], 2 * count]
    steps: list[Step] = [gemm[0], convolution[0], lambda: target.copy_(source)]
    times = paired_times(steps, 3 * seconds, device, least=3)
    products, convolutions, copies = (
        amount / min(taken) for amount, taken in zip(amounts, times, strict=True)
    )
    return Peaks(flops=max(products, convolutions), bandwidth=copies)


def _large_gemm(device: torch.device, dtype: torch.dtype) -> tuple[Step, int]:
    """A product of square matrices, and its operations."""
    size = _GEMM_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return (lambda: torch.mm(a, b, out=product)), 2 * size**3


def _large_convolution(device: torch.device, dtype: torch.dtype) -> tuple[Step, int]:
    """A 3x3 convolution of 256 channels in channels_last, and its operations."""
    batch, channels, side = _CONVOLUTION_BATCH[device.type], 256, 28
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer.to(memory_format=torch.channels_last)
    data = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    data = data.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def step() -> None:
        layer(data)

    return step, 2 * 9 * channels**2 * batch * side**2


def sketch_work(case: Case, batch: int, layer: SKConv2d | SKLinear, mode: Mode) -> Work:
    """The least work of the sketched layer, on the cheaper of its two paths.

    Operations: the planner's, where for inference the formed weight is free. Bytes: input, output,
    factors and signs once; for training also both gradients, the input and the factors once more,
    and the factors' gradients.

    Args:
        case: The layer's shape.
        batch: Images.
        layer: Of that shape.
        mode: ``"training"`` is forward and all gradients.
    """
    training = mode == "training"
    with torch.set_grad_enabled(training):
        plan = layer.plan(case.input_shape(batch))
    factors = layer.s1.numel() + layer.s2.numel()
    factored, folded = plan.factored_multiply_adds, plan.dense_multiply_adds
    if training:
        # The gradient of the input costs as much as the output, the factors' one product each.
        factored = 2 * factored + factors * batch * case.output_pixels
        folded += 2 * plan.folded_multiply_adds
    numbers = _bytes(case, batch, factors, mode, layer.s1.element_size())
    return Work(2 * min(factored, folded), numbers + layer.u1.nbytes + layer.u2.nbytes)


def dense_work(case: Case, batch: int, mode: Mode, element: int) -> Work:
    """The work of PyTorch's own layer, counted in the same way."""
    weight = case.weights
    products = 3 if mode == "training" else 1
    multiply_adds = products * weight * batch * case.output_pixels
    return Work(2 * multiply_adds, _bytes(case, batch, weight, mode, element))


def _bytes(case: Case, batch: int, parameters: int, mode: Mode, element: int) -> float:
    inputs = batch * case.input_pixels * case.in_channels
    outputs = batch * case.output_pixels * case.out_channels
    if mode == "forward":
        return element * (inputs + outputs + parameters)
    return element * (3 * inputs + 2 * outputs + 3 * parameters)
