"""Times exported networks, dense against compressed, one image at a time.

    python experiments/export_latency.py --plan                     what would be measured
    python experiments/export_latency.py --threads 1 --csv export_1.csv
    python experiments/export_latency.py --networks resnet18 --runtimes onnx --methods svd sketch

Networks have random weights and are compressed by multiply-adds, with the same rate for every
layer: how long a call takes depends on the shapes alone. Dense and compressed networks of a runtime
take turns in one process; a speed is the median of the ratios to the dense network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from distributed import alone
from runs import versions, write_csv
from sketchlayers import compress, optimize_for_inference
from sketchlayers.bench.table import machine
from sketchlayers.bench.timing import WIDE, Step, paired_times, quartiles, speeds
from sketchlayers.cli.bench import check_measurement_arguments
from tables import Column, decimals, format_table, speed_columns

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "googlenet": partial(models.googlenet, aux_logits=False, init_weights=False),
    "resnet50": models.resnet50,
}
SIZE = 224

METHODS: dict[str, dict[str, Any]] = {
    "tucker2": {},
    "svd": {},
    "cp": {},
    "sketch": {"mixing": "channel"},
}
"""Options of `sketchlayers.compress` by method."""

NEEDED = {"aoti": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages by runtime."""

COLUMNS = (
    Column("network", "network", left=True),
    Column("runtime", "runtime", left=True),
    Column("method", "method", left=True),
    Column("threads", "threads"),
    Column("multiply_adds", "multiply-adds", decimals(3)),
    Column("parameters", "parameters", decimals(3)),
    *speed_columns(2),
    Column("reached", "reached"),
)


@dataclass(frozen=True)
class Row:
    """A compressed network against the dense one of the same runtime.

    Times are medians in milliseconds; multiply-adds, parameters and speeds are relative to dense.
    """

    network: str
    runtime: str
    method: str
    threads: int
    multiply_adds: float
    parameters: float
    dense_ms: float
    ms: float
    speed: float
    speed_low: float
    speed_high: float
    reached: str
    rounds: int


@dataclass(frozen=True)
class Compressed:
    """A network, and what it has of the dense one's multiply-adds and parameters."""

    network: nn.Module
    multiply_adds: float = 1.0
    parameters: float = 1.0


def compressed(dense: nn.Module, method: str, rate: float, image: Tensor) -> Compressed:
    """The network with this part of its multiply-adds, every layer alike."""
    network, report = compress(
        dense,
        method,
        flops_rate=rate,
        allocation="uniform",
        example_inputs=image,
        init="random",
        seed=0,
        **METHODS[method],
    )
    assert report.budget_rate is not None
    return Compressed(network.eval(), report.budget_rate, report.rate)


def aot_inductor(network: nn.Module, image: Tensor, folder: Path) -> Step:
    """The network as a package of AOTInductor's, for the threads that are set.

    Sketched layers get the form that is the fastest here first, as the package keeps it.
    """
    network, _ = optimize_for_inference(network, image)
    program = torch.export.export(network, (image,))
    file = torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "network.pt2")
    )
    run = torch._inductor.aoti_load_package(file)
    return lambda: run(image)


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


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Path], Step]] = {
    "aoti": aot_inductor,
    "onnx": onnx_runtime,
}


def measure(name: str, runtime: str, args: argparse.Namespace) -> list[Row]:
    """Times the dense network and its compressed forms in turn."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, args.size, args.size)
    dense = NETWORKS[name]().eval()
    forms = [Compressed(dense)]
    forms += [compressed(dense, method, args.rate, image) for method in args.methods]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        steps: list[Step] = []
        for index, form in enumerate(forms):
            folder = Path(temporary, str(index))
            folder.mkdir()
            steps.append(RUNTIMES[runtime](form.network, image, folder))
        times = paired_times(steps, args.seconds, torch.device("cpu"))
    return [
        make_row(name, runtime, method, form, times[0], own)
        for method, form, own in zip(args.methods, forms[1:], times[1:], strict=True)
    ]


def make_row(
    name: str,
    runtime: str,
    method: str,
    form: Compressed,
    dense_times: Sequence[float],
    times: Sequence[float],
) -> Row:
    """One line of the table from the times of both sides, round by round."""
    speed = speeds(dense_times, times)
    return Row(
        network=name,
        runtime=runtime,
        method=method,
        threads=torch.get_num_threads(),
        multiply_adds=form.multiply_adds,
        parameters=form.parameters,
        dense_ms=1e3 * quartiles(dense_times).median,
        ms=1e3 * quartiles(times).median,
        speed=speed.median,
        speed_low=speed.low,
        speed_high=speed.high,
        reached="yes" if speed.median > 1 else "no",
        rounds=len(times),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="all by default"
    )
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="all by default"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="all by default"
    )
    parser.add_argument("--rate", type=float, default=0.5, help="multiply-adds kept (0.5)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"of the images ({SIZE})")
    parser.add_argument("--plan", action="store_true", help="say what would be measured and stop")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table (20)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.set_defaults(device="cpu", tf32=False, png=None)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 for arguments that cannot be used."""
    alone()
    args = parse(arguments)
    missing = [
        package
        for runtime in args.runtimes
        for package in NEEDED[runtime]
        if find_spec(package) is None
    ]
    try:
        if missing:
            raise ValueError(f"--runtimes: needs `pip install {' '.join(missing)}`")
        check_measurement_arguments(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.plan:
        for name in args.networks:
            print(f"{name}, {', '.join(args.methods)}, on {' and '.join(args.runtimes)}")
        return 0
    print(f"{machine(torch.device('cpu'))}, PyTorch {torch.__version__}", flush=True)
    rows: list[Row] = []
    for name in args.networks:
        for runtime in args.runtimes:
            own = measure(name, runtime, args)
            rows += own
            print("\n" + format_table([asdict(row) for row in own], COLUMNS), flush=True)
    finish(rows, args)
    return 0


def finish(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """A note on noise, and the file that was asked for."""
    noisy = sum((row.speed_high - row.speed_low) / row.speed > WIDE for row in rows)
    if noisy:
        print(
            f"\n{noisy} of {len(rows)} rows have quartiles more than {WIDE:.0%} apart: the machine "
            "was busy, or --seconds is too short; measure them again"
        )
    if args.csv:
        label = {"hardware": machine(torch.device("cpu")), **versions()}
        if "onnx" in args.runtimes:
            import onnxruntime

            label["onnxruntime"] = onnxruntime.__version__
        write_csv(args.csv, [{**asdict(row), **label} for row in rows])
        print(f"written to {args.csv}")


if __name__ == "__main__":
    sys.exit(main())
