"""Arguments of ``sketchlayers bench``, and what it does with them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from sketchlayers import _extension, ops
from sketchlayers._runtime.files import write_csv
from sketchlayers._version import __version__
from sketchlayers.bench import factors, figures, plot, table, tune
from sketchlayers.bench.bound import Mode, measure_peaks
from sketchlayers.bench.cases import ALL, TABLE, Case, select
from sketchlayers.bench.figures import Goal
from sketchlayers.bench.table import Format, Row, Settings
from sketchlayers.cli.kinds import positive, share
from sketchlayers.cli.messages import WrongInput
from sketchlayers.cli.options import chosen_device
from sketchlayers.reports.plot import check_picture

DTYPES = ("float32", "float64", "bfloat16", "float16")
_DEVICES = ("cpu", "cuda")
_FIXED_BY_FIGURES = ("batch", "rate", "blocks", "mixing", "path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``sketchlayers bench``."""
    parser.add_argument(
        "--figures",
        action="store_true",
        help="measure the layers with a speed to reach, and say which reach it",
    )
    parser.add_argument(
        "--factors",
        action="store_true",
        help="measure CP and Tucker-2 layers on a CPU, against dense ones and their own parts",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure the planner's constants on this machine and keep them",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="measure layers drawn at random and judge the planner's choices",
    )
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="PATTERN", help='such as "3x3*" "FC*" NinN'
    )
    parser.add_argument(
        "--batch", type=positive, nargs="+", help="images in a batch (64); several too"
    )
    parser.add_argument("--rate", type=share, help="rate of every layer (0.1)")
    parser.add_argument(
        "--blocks", type=positive, help="blocks of every layer, as far as they fit (1)"
    )
    parser.add_argument("--mixing", choices=["spatial", "channel"], help="only this mixing")
    parser.add_argument(
        "--mode", choices=["forward", "training"], help="only this: default is both in turn"
    )
    parser.add_argument("--path", choices=["auto", "factored", "folded"], help="path (auto)")
    parser.add_argument(
        "--channels-last", action="store_true", help="the sketched layers in both memory formats"
    )
    add_measurement_arguments(parser, seconds=3.0)
    parser.add_argument("--graphs", action="store_true", help="time CUDA graphs, on a GPU")


def add_measurement_arguments(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """Declares how to measure and where results go: what benchmarks of networks need too."""
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"time for each measurement ({seconds:g})",
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="float32; with --figures on a GPU bfloat16")
    parser.add_argument("--tf32", action="store_true", help="let a GPU's float32 use TF32")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--png", type=Path, help="also draw the speeds into this file")


def check_measurement_arguments(args: argparse.Namespace) -> torch.device:
    """Refuses what could only fail after minutes of measuring; sets threads and TF32.

    Returns:
        The device.

    Raises:
        ImportError: matplotlib is needed and not installed.
        WrongInput: an argument is out of range, the device is not there, or a file could not be
            written.
    """
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise WrongInput(f"--seconds: must be positive (got {args.seconds})")
    if args.threads is not None and args.threads < 1:
        raise WrongInput(f"--threads: must be at least 1 (got {args.threads})")
    for option, path in (("--csv", args.csv), ("--png", args.png)):
        if path is not None and not path.resolve().parent.is_dir():
            raise WrongInput(f"{option}: its folder must exist (got {path})")
    if args.png is not None:
        check_picture(args.png)
    device = chosen_device(args.device)
    if device.type not in _DEVICES:
        raise WrongInput(f"--device: must be one of {', '.join(_DEVICES)} (got {args.device})")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = args.tf32
        torch.backends.cudnn.allow_tf32 = args.tf32
    return device


Measurement = tuple[Case, int, Mode, tuple[ops.Mixing, ...]]
"""A layer, its batch, the mode and the mixings: the rows come from one paired run."""


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    check_arguments(args)
    _extension.require("sketched layers")
    if (args.figures or args.factors) and args.threads is None:
        args.threads = min(figures.THREADS, os.cpu_count() or 1)
    device = check_measurement_arguments(args)
    if args.tune or args.verify:
        return _tune(args, device)
    if args.factors:
        return _factors(args, table.machine(device))
    goals = _chosen_goals(args, device) if args.figures else []
    plan = list(_plan_figures(goals) if args.figures else _plan_table(args, device))
    settings = _settings(args, device)
    hardware = table.machine(device)
    rows = _measure(plan, settings, _head(settings, hardware))
    print("\n" + "\n".join(table.notes(rows)))
    if args.figures:
        print(figures.summary(goals, rows))
    dtype = str(settings.dtype).removeprefix("torch.")
    if args.csv:
        versions = {"torch": torch.__version__, "sketchlayers": __version__}
        common = {"dtype": dtype, "hardware": hardware, **versions}
        write_csv(args.csv, [{**asdict(row), **common} for row in rows])
        print(f"written to {args.csv}")
    if args.png:
        plot.write_png(args.png, rows, f"rate {settings.rate:g}, {dtype}, {hardware}")
        print(f"drawn in {args.png}")
    return 0


def _factors(args: argparse.Namespace, hardware: str) -> int:
    dtype = args.dtype or "float32"
    print(
        f"{dtype}, {hardware}, PyTorch {torch.__version__}\n"
        "speed: times the faster of PyTorch's layers in both memory formats, median of paired "
        "runs\nparts: the layer's parts one after the other, as without the package's operators"
    )
    modes: list[Mode] = [args.mode] if args.mode else ["forward", "training"]
    rows: list[factors.FactoredRow] = []
    cases = select([chain.case for chain in factors.CHAINS], args.layers)
    for mode in modes:
        print(f"\n{plot.TITLES[mode]}\n{factors.TABLE.header()}", flush=True)
        for chain in factors.CHAINS:
            if chain.case not in cases:
                continue
            for row in factors.rows_of(chain, mode, getattr(torch, dtype), args.seconds):
                rows.append(row)
                print(factors.TABLE.line(*factors.cells(row)), flush=True)
    print("\n" + factors.summary(rows))
    if args.csv:
        versions = {"torch": torch.__version__, "sketchlayers": __version__}
        common = {"dtype": dtype, "hardware": hardware, **versions}
        write_csv(args.csv, [{**asdict(row), **common} for row in rows])
        print(f"written to {args.csv}")
    return 0


def _tune(args: argparse.Namespace, device: torch.device) -> int:
    hardware = table.machine(device)
    if args.tune:
        names = [args.dtype] if args.dtype else ["float32", "bfloat16"]
        path = tune.tune(device, [getattr(torch, name) for name in names], hardware)
        print(f"written to {path}")
    if args.verify:
        rows, words = tune.verify(device, getattr(torch, args.dtype or "float32"))
        print(words)
        if args.csv:
            common = {"hardware": hardware, "torch": torch.__version__}
            write_csv(args.csv, [{**row, **common} for row in rows])
            print(f"written to {args.csv}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses arguments that do not go together.

    Raises:
        WrongInput: with the option's name.
    """
    if args.graphs and not args.device.startswith("cuda"):
        raise WrongInput(f"--graphs: needs a GPU (got --device {args.device})")
    given = [f"--{name}" for name in _FIXED_BY_FIGURES if getattr(args, name) is not None]
    for option in ("figures", "factors"):
        if getattr(args, option) and given:
            raise WrongInput(f"--{option}: fixes {', '.join(given)}, which cannot be given with it")
    if args.factors and not args.device.startswith("cpu"):
        raise WrongInput(f"--factors: measures on a CPU (got --device {args.device})")


def _chosen_goals(args: argparse.Namespace, device: torch.device) -> list[Goal]:
    on_cpu = figures.BFLOAT16_GOALS if args.dtype == "bfloat16" else figures.CPU_GOALS
    goals = figures.GPU_GOALS if device.type == "cuda" else on_cpu
    names = {case.name for case in select([goal.case for goal in goals], args.layers)}
    return [goal for goal in goals if goal.case.name in names and args.mode in (None, goal.mode)]


def _plan_figures(goals: Sequence[Goal]) -> Iterator[Measurement]:
    """One measurement for the goals of a layer that differ in the mixing alone."""
    mixings: dict[tuple[Case, int, Mode], list[ops.Mixing]] = {}
    for goal in goals:
        mixing: ops.Mixing = "spatial" if goal.mixing == "spatial" else "channel"
        mixings.setdefault((goal.case, goal.batch, goal.mode), []).append(mixing)
    for (case, batch, mode), needed in sorted(mixings.items(), key=lambda item: item[0][2]):
        yield case, batch, mode, tuple(needed)


def _plan_table(args: argparse.Namespace, device: torch.device) -> Iterator[Measurement]:
    mixings: tuple[ops.Mixing, ...] = (args.mixing,) if args.mixing else ("spatial", "channel")
    modes: list[Mode] = [args.mode] if args.mode else ["forward", "training"]
    cases = select(ALL if device.type == "cuda" else TABLE, args.layers)
    for mode in modes:
        for case in cases:
            for batch in args.batch or [64]:
                yield case, batch, mode, mixings


def _settings(args: argparse.Namespace, device: torch.device) -> Settings:
    """Everything that measuring needs; the machine's peaks are measured here."""
    on_gpu = device.type == "cuda"
    name = args.dtype or ("bfloat16" if args.figures and on_gpu else "float32")
    dtype: torch.dtype = getattr(torch, name)
    formats: tuple[Format, ...] = ("nchw", "nhwc") if args.channels_last else ("nchw",)
    if args.figures and on_gpu:
        formats = ("nhwc",)
    return Settings(
        rate=figures.RATE if args.rate is None else args.rate,
        path=args.path or "auto",
        seconds=args.seconds,
        device=device,
        dtype=dtype,
        formats=formats,
        peaks=measure_peaks(device, dtype),
        graphs=args.graphs,
        blocks=args.blocks or 1,
    )


def _head(settings: Settings, hardware: str) -> str:
    dtype = str(settings.dtype).removeprefix("torch.")
    blocks = f", {settings.blocks} blocks" if settings.blocks > 1 else ""
    return (
        f"{dtype}, rate {settings.rate:g}{blocks}, {hardware}, PyTorch {torch.__version__}\n"
        f"peaks: {settings.peaks}\n"
        "speed: times the faster of PyTorch's layers in both memory formats, median of paired "
        "runs\nbound: part of the least possible time that is reached (above 100 % where data stay "
        "in caches); memory: peak relative to dense"
    )


def _measure(plan: Sequence[Measurement], settings: Settings, head: str) -> list[Row]:
    print(head)
    rows: list[Row] = []
    for case, batch, mode, mixings in plan:
        if not rows or mode != rows[-1].mode:
            print(f"\n{plot.TITLES[mode]}\n{table.ROWS.header()}", flush=True)
        for row in table.run_case(case, batch, mode, mixings, settings):
            rows.append(row)
            print(table.format_row(row), flush=True)
    return rows
