"""Times exported networks, dense against compressed, one image at a time.

    python experiments/study.py export_latency --plan                     what would be measured
    python experiments/study.py export_latency --threads 1 --csv export_1.csv
    python experiments/study.py export_latency --networks resnet18 --runtimes onnx

Networks have random weights and are compressed by multiply-adds, with the same rate for every
layer: how long a call takes depends on the shapes alone. Dense and compressed networks of a runtime
take turns in one process; a speed is the median of the ratios to the dense network.

Found: with half of the multiply-adds every method is faster than dense in both runtimes, by 1.2 to
2.3 times, for ResNet-18, GoogLeNet and ResNet-50 (docs/export.md).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from common.runs import versions, write_csv
from common.speed import ONNX_PACKAGES, compared, onnx_runtime, print_noise
from common.tables import Column, decimals, format_table, speed_columns
from options import documented_parser
from sketchlayers import compress, optimize_for_inference
from sketchlayers.bench.table import machine
from sketchlayers.bench.timing import Step, paired_times
from sketchlayers.cli.bench import check_measurement_arguments

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


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Path], Step]] = {
    "aoti": aot_inductor,
    "onnx": onnx_runtime,
}


def measure(name: str, runtime: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times the dense network and its compressed forms in turn; a row for each of these.

    Times are medians in milliseconds; multiply-adds, parameters and speeds are relative to dense.
    """
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
    rows = []
    for method, form, own in zip(args.methods, forms[1:], times[1:], strict=True):
        row: dict[str, Any] = {
            "network": name,
            "runtime": runtime,
            "method": method,
            "threads": torch.get_num_threads(),
            "multiply_adds": form.multiply_adds,
            "parameters": form.parameters,
            **compared(times[0], own),
        }
        rows.append(row | {"reached": "yes" if row["speed"] > 1 else "no"})
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = documented_parser(__doc__)
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


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = parse(arguments)
    check_measurement_arguments(args)
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing and "onnx" in args.runtimes:
        raise ValueError(f"--runtimes: onnx needs `pip install {' '.join(missing)}`")
    if args.plan:
        for name in args.networks:
            print(f"{name}, {', '.join(args.methods)}, on {' and '.join(args.runtimes)}")
        return
    print(f"{machine(torch.device('cpu'))}, PyTorch {torch.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        for runtime in args.runtimes:
            own = measure(name, runtime, args)
            rows += own
            print("\n" + format_table(own, COLUMNS), flush=True)
    print_noise(rows)
    if args.csv:
        label = {"hardware": machine(torch.device("cpu")), **versions()}
        if "onnx" in args.runtimes:
            label["onnxruntime"] = version("onnxruntime")
        write_csv(args.csv, [{**row, **label} for row in rows])
        print(f"written to {args.csv}")
