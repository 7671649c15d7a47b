"""Times exported networks, dense against compressed, one image at a time.

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
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from common.speed import ONNX_PACKAGES, compared, exported_steps, measure_all, onnx_runtime
from common.tables import Column, decimals, speed_columns
from options import add_options, documented_parser
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
)


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
    compressed = {
        method: compress(
            dense,
            method,
            flops_rate=args.rate,
            allocation="uniform",
            example_inputs=image,
            init="random",
            seed=0,
            **METHODS[method],
        )
        for method in args.methods
    }
    networks = {"dense": dense} | {name: own.model.eval() for name, own in compressed.items()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        steps = exported_steps(RUNTIMES[runtime], networks, image, Path(folder))
        dense_times, *times = paired_times(list(steps.values()), args.seconds, torch.device("cpu"))
    return [
        {
            "network": name,
            "runtime": runtime,
            "method": method,
            "threads": torch.get_num_threads(),
            "multiply_adds": report.budget_rate,
            "parameters": report.rate,
            **compared(dense_times, own),
        }
        for (method, (_, report)), own in zip(compressed.items(), times, strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = documented_parser(__doc__)
    for option, choices in (
        ("--networks", NETWORKS),
        ("--runtimes", RUNTIMES),
        ("--methods", METHODS),
    ):
        parser.add_argument(option, nargs="+", choices=choices, default=list(choices))
    parser.add_argument("--rate", type=float, default=0.5, help="multiply-adds kept (0.5)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"of the images ({SIZE})")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table (20)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    add_options(parser, "--csv")
    parser.set_defaults(device="cpu", tf32=False, png=None)
    args = parser.parse_args(arguments)
    check_measurement_arguments(args)
    missing = [package for package in ONNX_PACKAGES if find_spec(package) is None]
    if missing and "onnx" in args.runtimes:
        raise ValueError(f"--runtimes: onnx needs `pip install {' '.join(missing)}`")
    print(f"{machine(torch.device('cpu'))}, PyTorch {torch.__version__}", flush=True)
    label = {"hardware": machine(torch.device("cpu"))}
    if "onnx" in args.runtimes:
        label["onnxruntime"] = version("onnxruntime")
    measurements = (
        measure(name, runtime, args) for name in args.networks for runtime in args.runtimes
    )
    measure_all(measurements, COLUMNS, args.csv, label)
