"""Sums of patches and of their products, against patches unfolded in float64."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sketchlayers._runtime.threads import in_parallel
from sketchlayers.compression.calibration import patches, products
from sketchlayers.compression.calibration.moments import (
    LayerMoments,
    MomentSums,
    NonFiniteError,
)
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.calibration.products import PatchProducts, Products, ShiftProducts

CPU = torch.device("cpu")

CONVOLUTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "plain": ((8, 4, 3), {}),
    "padded": ((8, 4, 3), {"padding": 1}),
    "padded unevenly": ((8, 4, (3, 5)), {"padding": (2, 1)}),
    "padded by more than the kernel": ((8, 4, 2), {"padding": 3}),
    "same, even kernel": ((8, 4, (4, 3)), {"padding": "same", "dilation": (1, 2)}),
    "valid": ((8, 4, 3), {"padding": "valid"}),
    "strided": ((8, 4, 3), {"stride": (2, 3), "padding": 1}),
    "dilated": ((8, 4, 3), {"dilation": (2, 1), "padding": 2}),
    "strided and dilated": ((8, 4, 3), {"stride": 2, "dilation": 2, "padding": 2}),
    "grouped": ((8, 4, 3), {"groups": 4, "padding": 1}),
    "reflected": ((8, 4, 3), {"padding": 1, "padding_mode": "reflect"}),
    "circular, dilated": ((8, 4, 3), {"padding": 2, "dilation": 2, "padding_mode": "circular"}),
    "replicated, strided": ((8, 4, 3), {"padding": 2, "stride": 2, "padding_mode": "replicate"}),
    "one pixel": ((8, 4, 1), {"stride": 2}),
    "one row": ((8, 4, (1, 3)), {"padding": (0, 1)}),
    "few channels": ((3, 4, 3), {"padding": 1}),
}


def convolution(name: str) -> nn.Conv2d:
    arguments, options = CONVOLUTIONS[name]
    return nn.Conv2d(*arguments, **options)


def unfolded(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """All patches in float64, (groups, inputs, positions)."""
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs.double(), padding, mode=mode)
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)


def reference(layer: nn.Conv2d, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    x = torch.cat([unfolded(layer, batch) for batch in batches], dim=2)
    return x @ x.mT / x.shape[2], x.mean(2), x.shape[2]


def moments_of(layer: nn.Module, batches: Iterable[Tensor]) -> LayerMoments:
    sums = MomentSums(PatchGeometry.of(layer))
    for batch in batches:
        sums.add(batch)
    moments = sums.take()
    assert moments is not None
    return moments


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.dtype == expected.dtype == torch.float64 and got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=["64", "32"]
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_convolutions(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = convolution(name)
    # Several batches, maps of several sizes: one hardly larger than the kernel, one of another
    # memory format.
    batches = [
        torch.randn(3, layer.in_channels, 9, 8, dtype=dtype) + 0.3,
        torch.randn(2, layer.in_channels, 5, 6, dtype=dtype),
        torch.randn(4, layer.in_channels, 9, 8, dtype=dtype).to(memory_format=torch.channels_last),
    ]
    moments = moments_of(layer, batches)
    second_moment, mean, count = reference(layer, batches)
    assert moments.count == count == sum(layer.to(dtype)(x)[:, 0].numel() for x in batches)
    assert_near(moments.second_moment, second_moment, tolerance)
    assert_near(moments.mean, mean, tolerance)
    assert torch.equal(moments.second_moment, moments.second_moment.mT)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_shifts_and_patches_give_the_same(
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """On maps of any size, however many of its taps a pixel misses."""
    layer = nn.Conv2d(2, 1, kernel, padding=padding, dilation=dilation)
    geometry = PatchGeometry.of(layer)
    assume(geometry.output_size(*size) != (0, 0))
    maps = torch.randn(2, 2, *size, dtype=torch.float64)
    x = unfolded(layer, maps)
    both: list[Products] = [PatchProducts(geometry, CPU), ShiftProducts(geometry, CPU)]
    for way in both:
        way.add(maps)
        torch.testing.assert_close(way.take(), x @ x.mT)


def test_parts_of_bounded_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 8, 7, 6, dtype=torch.float64)
    layers = [convolution("padded"), convolution("strided"), convolution("grouped")]
    whole = [moments_of(layer, [x]) for layer in layers]
    for module in (patches, products):
        monkeypatch.setattr(module, "PART_BYTES", 12_000)
        monkeypatch.setattr(module, "PART_POSITIONS", 7)
    monkeypatch.setattr(products, "_PRODUCT_BYTES", 1000)
    for layer, expected in zip(layers, whole, strict=True):
        geometry = PatchGeometry.of(layer)
        parts = list(geometry.patches(x))
        assert len(parts) > 5 and max(part.shape[2] for part in parts) <= 7
        got = moments_of(layer, [x])
        assert_near(got.second_moment, expected.second_moment, 1e-14)
        assert_near(got.mean, expected.mean, 1e-14)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 5, 6), (2, 3, 5, 6)])
def test_moments_of_linear_layers(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    moments = moments_of(nn.Linear(6, 4), [inputs, inputs[..., :].mul(2)])
    rows = torch.cat([inputs.reshape(-1, 6), 2 * inputs.reshape(-1, 6)]).double()
    assert moments.count == len(rows)
    assert_near(moments.second_moment, (rows.T @ rows / len(rows))[None], 1e-6)
    assert_near(moments.mean, rows.mean(0)[None], 1e-6)


def test_image_without_batch_dimension_and_empty_batch() -> None:
    layer = convolution("padded")
    image = torch.randn(8, 6, 5)
    moments = moments_of(layer, [torch.empty(0, 8, 6, 5), image])
    assert moments.count == 30
    assert_near(moments.second_moment, reference(layer, [image[None]])[0], 1e-6)
    assert MomentSums(PatchGeometry.of(layer)).take() is None


def test_inputs_that_do_not_fit() -> None:
    sums = MomentSums(PatchGeometry.of(convolution("padded")))
    with pytest.raises(RuntimeError, match=r"\(N, 8, H, W\).*got \(2, 3, 5, 5\)"):
        sums.add(torch.randn(2, 3, 5, 5))
    with pytest.raises(RuntimeError, match=r"\(\.\.\., 6\).*got \(2, 5\)"):
        MomentSums(PatchGeometry.of(nn.Linear(6, 4))).add(torch.randn(2, 5))
    with pytest.raises(TypeError, match="got Bilinear"):
        PatchGeometry.of(nn.Bilinear(3, 4, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["padded", "strided", "one pixel"])
def test_inputs_that_are_not_finite(name: str, bad: float) -> None:
    inputs = torch.randn(2, 8, 6, 6)
    inputs[1, 3, 2, 4] = bad
    inputs[0, 3, 2, 4] = -bad  # must not cancel
    sums = MomentSums(PatchGeometry.of(convolution(name)))
    with pytest.raises(NonFiniteError, match=r"got (NaN|Inf)") as raised:
        sums.add(inputs)
    assert raised.value.found == ("NaN" if bad != bad else "Inf") + " 2 times"


def test_squares_that_are_too_large() -> None:
    sums = MomentSums(PatchGeometry.of(convolution("padded")))
    sums.add(torch.full((1, 8, 4, 4), 1e25))
    with pytest.raises(NonFiniteError, match="too large"):
        sums.take()
    moments = moments_of(convolution("padded"), [torch.full((1, 8, 4, 4), 1e25).double()])
    assert moments.second_moment.isfinite().all()


def uneven_inputs() -> Tensor:
    """Positive, correlated, and of channels whose sizes span four decades."""
    scales = torch.logspace(-3, 1, 16).view(1, -1, 1, 1)
    smooth = F.avg_pool2d(torch.randn(24, 16, 28, 28) * scales, 3, 1, 1)
    return torch.einsum("nchw,cd->ndhw", smooth, torch.randn(16, 16)).relu()


@pytest.mark.parametrize("way", [PatchProducts, ShiftProducts])
def test_rounding_stays_below_the_bounds_that_are_stated(way: Callable[..., Products]) -> None:
    inputs = uneven_inputs()
    geometry = PatchGeometry.of(nn.Conv2d(16, 4, 3, padding=1))
    sums = []
    for maps in (inputs, inputs.double()):
        products = way(geometry, CPU)
        products.add(maps)
        sums.append(products.take()[0])
    error, exact = sums[0] - sums[1], sums[1]
    scale = exact.diagonal().sqrt()
    assert (error / scale / scale[:, None]).abs().max() < 2e-7
    assert torch.linalg.matrix_norm(error, 2) < 1e-6 * exact.diagonal().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    inputs = torch.randn(4, 8, 6, 6).to(dtype)
    layer = convolution("padded")
    got, expected = moments_of(layer, [inputs]), moments_of(layer, [inputs.float()])
    assert torch.equal(got.second_moment, expected.second_moment)
    assert torch.equal(got.mean, expected.mean)


@pytest.mark.parametrize("name", ["padded", "strided"])
def test_low_precision_and_modes_around_do_not_matter(name: str) -> None:
    layer, inputs = convolution(name), torch.randn(16, 8, 12, 12, requires_grad=True)
    expected = moments_of(layer, [inputs])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            got = moments_of(layer, [inputs])
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.second_moment, expected.second_moment)
    assert torch.equal(got.mean, expected.mean)
    assert not got.second_moment.requires_grad and not got.second_moment.is_inference()


def test_sums_begin_anew_after_they_were_taken() -> None:
    layer = convolution("padded")
    sums = MomentSums(PatchGeometry.of(layer))
    for seed in range(2):
        inputs = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(seed))
        sums.add(inputs)
        moments = sums.take()
        assert moments is not None
        assert_near(moments.second_moment, reference(layer, [inputs])[0], 1e-6)


# --------------------------------------------------------------------------------------- threads


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["padded", "strided", "grouped"])
def test_threads_do_not_change_the_sums(name: str) -> None:
    layer, inputs = convolution(name), torch.randn(16, 8, 12, 12)
    with threads(1):
        one = moments_of(layer, [inputs])
    with threads(2):
        two = moments_of(layer, [inputs])
    assert_near(two.second_moment, one.second_moment, 1e-7)


def test_tasks_have_a_thread_each() -> None:
    """The caller, its threads and new ones go on as before."""
    caller = threading.get_ident()
    seen: list[tuple[int, int, bool]] = []
    both = threading.Barrier(2, timeout=600)

    def task() -> None:
        both.wait()  # so both threads have one
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    def fail() -> None:
        raise OSError("in a task")

    with threads(2):
        in_parallel([task, task])
        assert len({ident for ident, _, _ in seen} | {caller}) == 3
        assert [(count, grad) for _, count, grad in seen] == [(1, False)] * 2
        assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
        new: list[int] = []
        other = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert new == [2]
        with pytest.raises(OSError, match="in a task"):
            in_parallel([fail, lambda: None])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["padded", "strided", "grouped"])
def test_gpu_gives_the_same(name: str) -> None:
    layer, inputs = convolution(name), uneven_inputs()[:, :8]
    expected = moments_of(layer, [inputs])
    got = moments_of(layer, [inputs.cuda()])
    assert got.second_moment.device.type == "cpu"
    assert_near(got.second_moment, expected.second_moment, 1e-6)
    assert_near(got.mean, expected.mean, 1e-6)
