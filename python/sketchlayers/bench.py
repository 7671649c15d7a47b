"""``sketchlayers bench``: sketched layers against PyTorch's own, layer by layer, on this machine.

Every pair is timed in one process, run by run in turn, so that a busy machine slows both; a row
gives the median of the ratios with its quartiles. Peak memory is that of one training step: the
parameters, the input, and the largest sum of what PyTorch's allocator held during the step.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn import SKConv2d, SKLinear

Mode = Literal["forward", "training"]


@dataclass(frozen=True)
class Case:
    """A layer and the side length of its square input; ``size`` 0 is a fully connected layer."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 1
    size: int = 0
    padding: int = 0


# Network-in-Network for 32x32 images: the layers that the paper compresses.
NINN = (
    Case("CONV_2", 192, 160, size=32),
    Case("CONV_3", 160, 96, size=32),
    Case("CONV_4", 96, 192, kernel=5, size=16, padding=2),
    Case("CONV_5", 192, 192, size=16),
    Case("CONV_6", 192, 192, size=16),
    Case("CONV_7", 192, 192, kernel=3, size=8, padding=1),
    Case("CONV_8", 192, 192, size=8),
)
FULLY_CONNECTED = (Case("FC 768x768", 768, 768), Case("FC 4096x4096", 4096, 4096))


@dataclass(frozen=True)
class Row:
    """One layer, one mixing: times in milliseconds, speed and memory relative to dense."""

    layer: str
    mixing: str
    path: str
    mode: str
    batch: int
    dense_ms: float
    sketch_ms: float
    speed: float
    speed_low: float
    speed_high: float
    memory: float | None


def build_dense(case: Case) -> nn.Module:
    """PyTorch's own layer."""
    if case.size == 0:
        return nn.Linear(case.in_channels, case.out_channels)
    return nn.Conv2d(case.in_channels, case.out_channels, case.kernel, padding=case.padding)


def build_sketch(
    case: Case, rate: float, mixing: ops.Mixing, path: ops.Path
) -> SKConv2d | SKLinear:
    """The sketched layer of the same shape."""
    layer: SKConv2d | SKLinear
    if case.size == 0:
        layer = SKLinear(case.in_channels, case.out_channels, rate=rate)
    else:
        layer = SKConv2d(
            case.in_channels,
            case.out_channels,
            case.kernel,
            padding=case.padding,
            rate=rate,
            mixing=mixing,
        )
    layer.path = path
    return layer


def synchronize(device: torch.device) -> None:
    """Waits for the work that a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_step(layer: nn.Module, data: Tensor) -> Callable[[], None]:
    """A step without the optimiser: forward and every gradient, the input's included."""
    with torch.no_grad():
        gradient = torch.randn_like(layer(data))

    def step() -> None:
        data.grad = None
        layer.zero_grad(set_to_none=True)
        layer(data).backward(gradient)

    return step


def inference(layer: nn.Module, data: Tensor) -> Callable[[], None]:
    """A forward call without gradients."""

    @torch.no_grad()
    def step() -> None:
        layer(data)

    return step


def paired_times(
    steps: Sequence[Callable[[], None]], seconds: float, device: torch.device
) -> list[list[float]]:
    """Times of the steps in seconds, run in turn for about ``seconds`` and at least 5 times."""
    for step in steps:
        step()
        step()
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for step, taken in zip(steps, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return times


def allocation_peak(step: Callable[[], None], device: torch.device) -> int:
    """The most bytes that the allocator held during a step, beyond what it held before.

    What was allocated before must not be freed in the step.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def held_bytes(layer: nn.Module, data: Tensor) -> int:
    """Bytes of parameters, buffers and input."""
    tensors = [data, *layer.parameters(), *layer.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step_memory(layer: nn.Module, data: Tensor) -> int:
    """Peak bytes of a training step, gradients made anew in it."""
    step = training_step(layer, data)
    step()
    data.grad = None
    layer.zero_grad(set_to_none=True)
    return held_bytes(layer, data) + allocation_peak(step, data.device)


def run_case(
    case: Case,
    *,
    batch: int,
    rate: float,
    mixings: Sequence[ops.Mixing],
    mode: Mode,
    path: ops.Path,
    seconds: float,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> list[Row]:
    """Times one layer: the dense one and each mixing, in turn."""
    shape = (batch, case.in_channels, case.size, case.size)
    data = torch.randn(shape[:2] if case.size == 0 else shape, device=device, dtype=dtype)
    sketches = [build_sketch(case, rate, mixing, path) for mixing in mixings]
    layers = [build_dense(case), *sketches]
    for layer in layers:  # in place
        layer.to(device, dtype)
    if channels_last and case.size:
        data = data.contiguous(memory_format=torch.channels_last)
        for layer in layers:
            layer.to(memory_format=torch.channels_last)
    prepare = inference if mode == "forward" else training_step
    data.requires_grad_(mode == "training")
    times = paired_times([prepare(layer, data) for layer in layers], seconds, device)
    memory = [step_memory(layer, data) for layer in layers] if mode == "training" else None
    rows = []
    for index, (mixing, sketch) in enumerate(zip(mixings, sketches, strict=True), start=1):
        ratios = [dense / own for dense, own in zip(times[0], times[index], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        sketch.train(mode == "training")
        rows.append(
            Row(
                layer=case.name,
                mixing=mixing if case.kernel > 1 else "any",
                path=sketch.plan(tuple(data.shape)).path if path == "auto" else path,
                mode=mode,
                batch=batch,
                dense_ms=1e3 * statistics.median(times[0]),
                sketch_ms=1e3 * statistics.median(times[index]),
                speed=middle,
                speed_low=low,
                speed_high=high,
                memory=memory[index] / memory[0] if memory else None,
            )
        )
    return rows


HEADER = (
    f"{'layer':14} {'mixing':8} {'path':9} {'batch':>5}  {'dense ms':>9} {'sketch ms':>9}"
    f"  {'speed':>6} {'(quartiles)':>13}  {'memory':>6}"
)


def format_row(row: Row) -> str:
    """One line of the table."""
    memory = f"{row.memory:6.3f}" if row.memory is not None else "     -"
    return (
        f"{row.layer:14} {row.mixing:8} {row.path:9} {row.batch:5}  {row.dense_ms:9.3f}"
        f" {row.sketch_ms:9.3f}  {row.speed:6.2f} ({row.speed_low:5.2f}-{row.speed_high:5.2f})"
        f"  {memory}"
    )


def machine(device: torch.device) -> str:
    """The hardware in words, for the head of the table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_csv(path: Path, rows: Sequence[Row], hardware: str) -> None:
    """Writes the rows with the hardware and versions they were measured on."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "hardware", "torch"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**values, "hardware": hardware, "torch": torch.__version__})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``sketchlayers bench``."""
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (64)")
    parser.add_argument("--rate", type=float, default=0.1, help="rate of every layer (0.1)")
    parser.add_argument("--mixing", choices=["spatial", "channel"], help="only this mixing")
    parser.add_argument(
        "--mode", choices=["forward", "training"], help="only this: default is both in turn"
    )
    parser.add_argument(
        "--path", choices=["auto", "factored", "folded"], default="auto", help="computation path"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each layer (3)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32"
    )
    parser.add_argument("--channels-last", action="store_true", help="both sides channels_last")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    if args.batch < 1:
        raise ValueError(f"--batch must be at least 1 (got {args.batch})")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    hardware = machine(device)
    mixings: list[ops.Mixing] = [args.mixing] if args.mixing else ["spatial", "channel"]
    modes: list[Mode] = [args.mode] if args.mode else ["forward", "training"]
    rows: list[Row] = []
    for mode in modes:
        what = "forward + backward" if mode == "training" else "forward"
        print(f"\n{what}, {args.dtype}, rate {args.rate}, {hardware}\n{HEADER}", flush=True)
        for case in (*NINN, *FULLY_CONNECTED):
            for row in run_case(
                case,
                batch=args.batch,
                rate=args.rate,
                mixings=mixings if case.kernel > 1 else mixings[:1],
                mode=mode,
                path=args.path,
                seconds=args.seconds,
                device=device,
                dtype=getattr(torch, args.dtype),
                channels_last=args.channels_last,
            ):
                rows.append(row)
                print(format_row(row), flush=True)
    slowest = min(rows, key=lambda row: row.speed)
    print(f"\nlowest speed: {slowest.speed:.2f} times dense ({slowest.layer}, {slowest.mode})")
    if args.csv:
        write_csv(args.csv, rows, hardware)
        print(f"written to {args.csv}")
    return 0
