"""What is global stays as it was: random generators, precisions, modes; and no file decides."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import _extension
from sketchlayers._runtime.settings import SharedSetting, full_float32
from sketchlayers.compression import Refinement
from sketchlayers.compression.calibration.moments import exactly


class Network(nn.Module):
    """Draws random numbers in every call, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.more = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x + 0.01 * torch.randn_like(x))
        x = x + random.random() * 0.01 + float(np.random.rand()) * 0.01
        return self.head(self.more(x).mean((-2, -1)))


IMAGES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]

PRECISIONS: tuple[Any, ...] = (
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
)


def everything() -> list[object]:
    numpy: Any = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy[1].tolist(),
        numpy[2:],
        [backend.fp32_precision for backend in PRECISIONS],
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
    ]


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "auto": lambda model: sketchlayers.compress(model, rate=0.6, calibration=IMAGES),
    "refined": lambda model: sketchlayers.compress(
        model, rate=0.6, calibration=IMAGES, refine=Refinement(epochs=1)
    ),
    "multiply-adds": lambda model: sketchlayers.compress(model, flops_rate=0.6, calibration=IMAGES),
    "seconds": lambda model: sketchlayers.compress(
        model, "tucker2", latency_rate=0.9, calibration=IMAGES
    ),
    "seconds of sketches": lambda model: sketchlayers.compress(
        model, "sketch", latency_rate=0.9, init="random", example_inputs=IMAGES[0]
    ),
    **{
        method: lambda model, method=method: sketchlayers.compress(  # type: ignore[misc]
            model, method, rate=0.6, calibration=IMAGES
        )
        for method in ("svd", "cp", "tucker2", "lowrank")
    },
    **{
        f"{method}, random": lambda model, method=method: sketchlayers.compress(  # type: ignore[misc]
            model, method, rate=0.6, init="random"
        )
        for method in ("sketch", "hashednet", "freshnet", "dictionary", "tucker2")
    },
    "calibrate": lambda model: sketchlayers.calibrate(model, IMAGES),
    "inspect": lambda model: sketchlayers.inspect(model, example_inputs=IMAGES[0]),
    "fold": lambda model: sketchlayers.fold(
        sketchlayers.compress(model, "sketch", rate=0.6, init="random").model
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_the_state_of_the_process_stays(call: str) -> None:
    model = Network().eval()
    torch.manual_seed(3)
    before = everything()
    with contextlib.suppress(ValueError):  # the time outside of the layers may be too much
        CALLS[call](model)
    for expected, actual in zip(before, everything(), strict=True):
        assert actual == expected


def test_optimize_for_inference_leaves_the_state_of_the_process() -> None:
    model = nn.Sequential(sketchlayers.SKConv2d(3, 8, 3, rate=0.5), nn.Dropout())
    before = everything()
    sketchlayers.optimize_for_inference(model, IMAGES[0], seconds=0.01)
    assert everything() == before


def test_multiply_adds_of_sketches_do_not_depend_on_the_planners_constants() -> None:
    """Those that were measured on a machine lie in the user's cache directory."""

    def compressed() -> list[object]:
        options = {"flops_rate": 0.8, "init": "random", "example_inputs": IMAGES[0]}
        report = sketchlayers.compress(Network().eval(), "sketch", **options).report
        return [(row.rank, row.multiply_adds_after) for row in report.layers]

    planner = _extension.load()
    expected = compressed()
    try:
        for factored, others in ((1e-9, 1.0), (1.0, 1e-9)):
            lines = [
                f"cpu float32 {form} all {seconds:g} 0 0 0"
                for form, seconds in (("dense", others), ("form", others), ("factored", factored))
            ]
            planner.load_plan_costs("\n".join(lines))
            assert compressed() == expected
    finally:
        planner.reset_plan_costs()


# ------------------------------------------------------------------------------------- threads


@pytest.fixture
def lowered() -> Any:
    before = [backend.fp32_precision for backend in PRECISIONS]
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    yield
    for backend, precision in zip(PRECISIONS, before, strict=True):
        backend.fp32_precision = precision


def test_threads_that_overlap_leave_the_precisions(lowered: None) -> None:
    """Neither the first to leave nor the last to enter decides."""
    before = [backend.fp32_precision for backend in PRECISIONS]
    first, second = (exactly(torch.device("cpu")) for _ in range(2))
    entered, left = threading.Event(), threading.Event()
    seen: list[object] = []

    def other() -> None:
        with second:
            entered.set()
            assert left.wait(60)
            seen.append([backend.fp32_precision for backend in PRECISIONS])

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        assert entered.wait(60)
    left.set()
    thread.join()
    assert seen == [["ieee"] * 4]
    assert [backend.fp32_precision for backend in PRECISIONS] == before


def test_a_setting_is_put_back_after_errors(lowered: None) -> None:
    before = [backend.fp32_precision for backend in PRECISIONS]
    with pytest.raises(KeyError), full_float32:
        raise KeyError
    assert [backend.fp32_precision for backend in PRECISIONS] == before

    def fails() -> Any:
        raise OSError

    setting = SharedSetting(fails)
    for _ in range(2):  # nobody is in it
        with pytest.raises(OSError, match=""), setting:
            pass
