"""Milliseconds an image of networks that take turns: PyTorch, ONNX Runtime, training steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.runs import versions
from common.tables import Column, format_table
from sketchlayers._runtime.files import write_csv
from sketchlayers.bench.timing import WIDE, Step, inference, paired_times, quartiles, speeds

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@contextmanager
def set_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(dense_times: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    """Cells of a row from the times of both sides, round by round; see `tables.speed_columns`."""
    speed = speeds(dense_times, times)
    return {
        "dense_ms": 1e3 * quartiles(dense_times).median,
        "ms": 1e3 * quartiles(times).median,
        "speed": speed.median,
        "speed_low": speed.low,
        "speed_high": speed.high,
        "rounds": len(times),
    }


def measure_all(
    measurements: Iterable[list[dict[str, Any]]],
    columns: Sequence[Column],
    csv: Path | None,
    label: Mapping[str, object],
) -> list[dict[str, Any]]:
    """Prints a table of each measurement as it is made, and notes on noise; writes all rows.

    Args:
        measurements: rows with the cells of `compared`, made when they are asked for.
        columns: of the tables.
        csv: file of results, if any.
        label: more columns of the file, besides the versions.
    """
    rows: list[dict[str, Any]] = []
    for own in measurements:
        rows += own
        print("\n" + format_table(own, columns), flush=True)
    noisy = sum((row["speed_high"] - row["speed_low"]) / row["speed"] > WIDE for row in rows)
    if noisy:
        print(
            f"\n{noisy} of {len(rows)} rows have quartiles more than {WIDE:.0%} apart: the machine "
            "was busy, or --seconds is too short; measure them again"
        )
    if csv is not None:
        write_csv(csv, [{**row, **label, **versions()} for row in rows])
        print(f"written to {csv}")
    return rows


@dataclass(frozen=True)
class Speed:
    """Median milliseconds an image, and the median of the ratios to the first network's."""

    milliseconds: float
    times_as_fast: float


def measure_speeds(
    steps: Mapping[str, Step], images: int, device: torch.device, seconds: float
) -> dict[str, Speed]:
    """Times steps in turn, each on the same number of images; the first is the reference.

    With one thread of a processor the clock is that of the calling thread, which stands still while
    other programs run.

    Args:
        steps: one for each network, by name.
        images: that a step works on.
        device: where it does.
        seconds: for all steps together.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    times = paired_times(list(steps.values()), seconds, device, clock=clock)
    return {
        name: Speed(1e3 * quartiles(own).median / images, speeds(times[0], own).median)
        for name, own in zip(steps, times, strict=True)
    }


def pytorch_steps(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Step]:
    """Calls of the networks in eval mode, with channels_last images."""
    images = images.contiguous(memory_format=torch.channels_last)
    return {name: inference(network, images) for name, network in networks.items()}


def onnx_steps(
    networks: Mapping[str, nn.Module], images: Tensor, folder: Path
) -> dict[str, Step] | None:
    """Calls of the networks in ONNX Runtime; None where a package for that is not installed."""
    installed = all(map(find_spec, ONNX_PACKAGES))
    return exported_steps(onnx_runtime, networks, images, folder) if installed else None


def exported_steps(
    export: Callable[[nn.Module, Tensor, Path], Step],
    networks: Mapping[str, nn.Module],
    images: Tensor,
    folder: Path,
) -> dict[str, Step]:
    """Calls of exported networks.

    Args:
        export: such as `onnx_runtime`.
        networks: in eval mode, on the processor.
        images: of one call.
        folder: gets a folder of files for each network.
    """
    steps = {}
    for number, (name, network) in enumerate(networks.items()):
        own = folder / str(number)
        own.mkdir()
        steps[name] = export(network, images, own)
    return steps


def onnx_runtime(network: nn.Module, image: Tensor, folder: Path) -> Step:
    """The network in a session of ONNX Runtime's, with as many threads as PyTorch has."""
    import onnxruntime

    file = folder / "network.onnx"
    torch.onnx.export(network, (image,), file, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def training_steps(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Step]:
    """Steps of SGD on copies of the networks, with channels_last images."""
    images = images.contiguous(memory_format=torch.channels_last)
    return {name: sgd_step(copy.deepcopy(own), images)[0] for name, own in networks.items()}


def sgd_step(network: nn.Module, images: Tensor) -> tuple[Step, torch.optim.Optimizer]:
    """A whole step and its optimiser, whose steps are too small to change the timings."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step, optimizer
