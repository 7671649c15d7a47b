"""Forward calls of a user's model run one at a time, whole, and leave everything as it was."""

from __future__ import annotations

import contextvars
import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sketchlayers
from sketchlayers.compression import Compressed, Refinement


def batches(count: int = 3, size: int = 64) -> list[Tensor]:
    return [torch.randn(size, 32) for _ in range(count)]


def smaller(model: nn.Module, data: list[Tensor], rate: float = 0.8, **options: Any) -> Compressed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sketchlayers.compress(model.eval(), "svd", rate=rate, calibration=data, **options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x)).relu()))


def assert_fitted_like(model: nn.Module, plain: nn.Module, data: list[Tensor]) -> None:
    """The network is fitted as one that computes the same in a plain way."""
    ours, theirs = smaller(model, data), smaller(plain, data)
    state = ours.model.state_dict()
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    assert [row.rank for row in ours.report.layers] == [row.rank for row in theirs.report.layers]


@pytest.mark.parametrize("sizes", [(64, 64, 64), (64, 64, 30)])
def test_a_tensor_waits_on_the_module(sizes: tuple[int, ...]) -> None:
    class Waits(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.a(x)
            return self.head(self.c(self.b(self.kept.relu()).relu()) + self.kept)

    class Local(Net):
        def forward(self, x: Tensor) -> Tensor:
            kept = self.a(x)
            return self.head(self.c(self.b(kept.relu()).relu()) + kept)

    assert_fitted_like(Waits(), Local(), [torch.randn(size, 32) for size in sizes])


def test_a_lock_is_taken_in_forward() -> None:
    lock = threading.Lock()

    class Locked(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert lock.acquire(blocking=False)  # a call that is under way would hold it
            try:
                return super().forward(x)
            finally:
                lock.release()

    assert_fitted_like(Locked(), Net(), batches())
    assert not lock.locked()


def test_global_settings_are_put_back() -> None:
    class Sets(Net):
        def forward(self, x: Tensor) -> Tensor:
            with (
                torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
                torch.backends.mkldnn.flags(enabled=False),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("error")
                return super().forward(x)

    def settings() -> tuple[Any, ...]:
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.mkldnn.is_available(),
            torch.backends.mkldnn.enabled,
            list(warnings.filters),
        )

    before = settings()
    smaller(Sets(), batches())
    assert settings() == before


def test_context_variables_and_the_default_device_are_the_callers() -> None:
    scale = contextvars.ContextVar("scale", default=1.0)
    threads: set[int] = set()

    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            threads.add(threading.get_ident())
            assert torch.empty(1).device.type == device
            return super().forward(x * scale.get())

    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2.0)

    device = "cpu"
    data = batches()
    scale.set(2.0)
    assert_fitted_like(Scaled(), Twice(), data)
    assert threads == {threading.get_ident()}
    model, device = Scaled(), "meta"
    torch.set_default_device("meta")
    try:
        small, _ = smaller(model, data)
    finally:
        torch.set_default_device(None)
    device = "cpu"
    assert all(p.device.type == "cpu" for p in small.parameters())


class Noisy(Net):
    """Draws from all generators that a model may have, one of its own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(self.a(x).relu())
        z = z + torch.randn_like(z) + random.random() + np.random.rand()
        return self.head(self.c(z + torch.randn(64, generator=self.own)).relu())


@pytest.mark.parametrize("sequential", [True, False])
def test_both_networks_draw_the_same_numbers(sequential: bool) -> None:
    model, data = Noisy(), batches()
    before = (
        torch.get_rng_state(), model.own.get_state(), random.getstate(),
        np.random.get_state()[1],
    )  # fmt: skip
    small, report = smaller(model, data, rate=0.95, sequential=sequential)
    after = (
        torch.get_rng_state(), model.own.get_state(), random.getstate(),
        np.random.get_state()[1],
    )  # fmt: skip
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert before[2] == after[2] and np.array_equal(before[3], after[3])
    outputs = []
    for network in (model, small):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        network.own.manual_seed(1)
        with torch.no_grad():
            outputs.append(network(data[0]))
    change = float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
    assert change < 0.05
    assert report.output_change == pytest.approx(change, abs=0.02)


def test_the_number_of_calls_depends_on_the_batch() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.again, self.head = (
                nn.Linear(32, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 9),
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            for _ in range(1 if len(x) < 64 else 3):
                h = h + 0.5 * self.again(h).tanh()
            return self.head(h)

    data = [torch.randn(30, 32), *batches()]
    changes = {}
    for sequential in (None, False):
        report = smaller(Loop(), data, rate=0.6, sequential=sequential).report
        changes[sequential] = report.output_change
        noted = any("again: fitted alone" in note for note in report.notes)
        assert noted == (sequential is None)
    assert changes[None] < 1.05 * changes[False]


def test_batches_stay_whole() -> None:
    sizes: set[int] = set()

    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            sizes.add(len(x))
            return super().forward(x).reshape(8, 8, 8)

    options = {"reestimate_batch_norm": True, "measure_latency": False}
    _, report = smaller(Fixed(), batches(), rate=0.7, **options)
    assert sizes == {64} and report.output_change is not None
    smaller(Fixed(), batches(), flops_rate=0.7, rate=None, measure_latency=False)
    smaller(Fixed(), batches(), latency_rate=1.0, rate=None, measure_latency=False)
    assert sizes == {64}
    rows = {row.name: row for row in report.layers}
    assert rows["a"].multiply_adds_before == 32 * 64  # for one image
    with pytest.raises(RuntimeError) as failed:
        smaller(Fixed(), batches(), refine=Refinement(batch_size=16))
    assert any("refine calls the model with 16 images" in x for x in failed.value.__notes__)


@pytest.mark.parametrize("some", [True, False])
def test_outputs_are_as_many_as_was_found(some: bool) -> None:
    class Detector(Net):
        def forward(self, x: Tensor) -> Tensor:
            boxes = super().forward(x)
            # As after a threshold, but sure to be another number with other weights.
            return boxes[: int(1000 * boxes.abs().sum()) % len(boxes) if some else 0]

    for count in (1, 3):
        small, report = smaller(Detector(), batches(count))
        assert report.output_change is None
        assert any("own outputs" in note or "not measured" in note for note in report.notes)
        assert report.parameters_after < 0.81 * report.parameters_before
        assert small(torch.randn(5, 32)).shape[1] == 8


def test_layers_that_some_batches_reach() -> None:
    class Experts(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            right = x[:, 0] > 0
            out = torch.empty(len(x), 64)
            if right.any():
                out[right] = self.b(h[right])
            if (~right).any():
                out[~right] = self.c(h[~right])
            return self.head(out)

    mixed = batches()
    rights = mixed[0][mixed[0][:, 0] > 0]
    for options in ({}, {"example_inputs": rights}):
        _, report = smaller(Experts(), [rights, *mixed], rate=0.5, **options)
        rows = {row.name: row for row in report.layers}
        assert rows["b"].method == rows["c"].method == "svd"
    rows = {row.name: row for row in smaller(Experts(), [rights], rate=0.9).report.layers}
    assert "never called on the calibration data" in str(rows["c"].reason)


def test_many_batches_take_no_threads() -> None:
    most = 0

    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            most = max(most, threading.active_count())
            return super().forward(x)

    before = threading.active_count()
    smaller(Counts(), [torch.randn(2, 32) for _ in range(300)])
    assert most <= before + 1  # PyTorch may keep one of its own


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.b, self.a(x), use_reentrant=reentrant)
            return self.head(self.c(h.relu()))

    _, report = smaller(Checkpointed(), batches(), keep_first=False)
    assert report.output_change is not None and report.output_change < 0.2
    noted = any("gradients cannot be taken" in note for note in report.notes)
    assert noted == reentrant


def test_a_layer_that_no_gradient_reaches_is_named() -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.a, x, use_reentrant=True)  # x needs no gradients, so h has none
            return self.head(self.c(self.b(h.relu()).relu()))

    _, report = smaller(Checkpointed(), batches(), keep_first=False)
    note = next(note for note in report.notes if "no gradient" in note)
    assert "'a'" in note
    assert "'b'" not in note
    _, report = smaller(Net(), batches(), keep_first=False)
    assert not any("no gradient" in note for note in report.notes)


def test_refinement_takes_batches_that_the_model_can_run_with() -> None:
    class Exact(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 48:
                raise KeyError(f"48 signals are needed (got {len(x)})")
            return super().forward(x)

    class Normalises(Net):
        def forward(self, x: Tensor) -> Tensor:
            sizes.add(len(x))
            return super().forward(x / x.std(0))

    loader = [torch.randn(48, 32) for _ in range(6)]
    sizes: set[int] = set()
    for model in (Exact(), Normalises()):
        settings = Refinement(epochs=2, augment=None)
        _, report = smaller(model, loader, rate=0.4, refine=settings, measure_latency=False)
        assert any("refined for 2 epochs" in note for note in report.notes)
    assert sizes == {48, 32}  # 32: what was tried, and gave other outputs
    with pytest.raises(ValueError, match="at least 2 calibration batches"):
        smaller(Exact(), loader[:1], refine=True)


def test_an_exception_in_forward_ends_it() -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(None)
            if len(calls) == fails_at:
                raise KeyError("of the user's")
            return super().forward(x)

    calls: list[None] = []
    fails_at = 0
    smaller(Fails(), batches())
    total = len(calls)
    assert total > 8
    failed = 0
    for number in range(2, total, 3):
        fails_at = number
        calls.clear()
        model = Fails()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            smaller(model, batches(), inplace=True)
        except (KeyError, ValueError) as error:
            assert isinstance(error, KeyError) or isinstance(error.__cause__, KeyError)
            failed += 1
            assert all(
                torch.equal(value, state[name]) for name, value in model.state_dict().items()
            )
    assert failed > 2


def test_a_layer_that_few_batches_reach_is_fitted_in_sequence() -> None:
    """Also where other batches would have patches enough."""

    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.rare = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            loud = bool(x.abs().mean() > 4)
            x = self.first(x).relu()
            if loud:
                x = x + self.rare(x)
            return self.head(x)

    images = [
        torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        for number in range(8)
    ]
    images[3] *= 8
    report = sketchlayers.compress(
        Rare().eval(), "svd", rate={"first": 0.9, "rare": 0.5, "head": 0.5},
        keep_first=False, calibration=images,
    ).report  # fmt: skip
    assert [row.name for row in report.replaced] == ["first", "rare", "head"]
    assert not any("fitted alone" in note for note in report.notes), report.notes
