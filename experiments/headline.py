r"""Measures what compression gives: parameters, file, multiply-adds, accuracy, time of an image.

    python experiments/headline.py --network resnet20 --weights FILE --data cifar10 --root DIR \
        --files DIR --csv headline.csv
    python experiments/headline.py ... --methods auto --rates 0.3 0.15 --forms refined fine-tuned
    python experiments/headline.py --csv headline.csv --show --png headline.png

Networks are compressed by `sketchlayers.compress` with its defaults ("fitted"), with refine=True
("refined"), or trained on with labels afterwards ("fine-tuned": three epochs unless --epochs says
otherwise); --bytes-rates adds networks of low rank and few bits ("few bits"). They are saved in the
folder of --files, each with its report. What is there is not made again: a command that was stopped
goes on where it was, and networks can be timed when the machine is idle. Other rows of the CSV file
stay.

An image's time is that of one call with one image, on one thread and on two, dense and compressed
networks of a runtime in turn: medians.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import image_data
from common.distributed import alone
from common.plots import Line, Panel, plot_sizes
from common.runs import read_csv
from common.speed import Speed, measure_speeds, onnx_steps, pytorch_steps, set_threads
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, whole
from networks import count_parameters
from options import add_options
from sketchlayers import load, save
from sketchlayers._runtime.files import write_csv
from sketchlayers.checkpoint import read_description
from sketchlayers.cli import kinds
from trained.pictures import accuracies
from trained.results import TITLES, Row, identity
from trained.variants import quietly_compressed
from training import Recipe, Trainer, recipe_of
from zero_shot import Experiment, check
from zero_shot import parser as zero_shot_parser

METHODS = ("auto", "tucker2", "svd")
RATES = (0.7, 0.5, 0.3, 0.15)
FORMS = ("fitted", "refined", "fine-tuned")
FEW_BITS = "few bits"
THREADS = (1, 2)
KEY = ("network", "data", "method", "form", "rate")
"""Columns that tell rows from each other; the dense network's method and form are "dense"."""
_FINE_TUNING = Recipe(epochs=3, batch_size=128, lr=0.01, warmup=0.2)
_POINTS_SHOWN = 20.0
_RUNTIMES = {"pytorch": "PyTorch", "onnx": "ONNX Runtime"}


class Size(NamedTuple):
    """A network of the table."""

    method: str
    form: str
    rate: float

    @property
    def name(self) -> str:
        """In names of files."""
        form = "" if self.form in ("dense", FORMS[0]) else f"_{self.form}"
        return f"{self.method}_{self.rate:g}{form}".replace(" ", "_")


DENSE = Size("dense", "dense", 1.0)


class Headline(Experiment):
    """A network, its compressed forms, and images to test them on; errors are those of its base."""

    def rows(self) -> list[Row]:
        """Makes what is missing, then tests and times all."""
        files = {DENSE: save(self.trained.network, self._file(DENSE))}
        files |= {size: self._made(size) for size in self._sizes()}
        networks = {size: self._loaded(size) for size in files}
        print("timing ...", flush=True)
        times = [self._times(networks, threads) for threads in THREADS]
        rows = []
        for size, network in networks.items():
            report = _report(files[size]) or _report(list(files.values())[-1])
            after = "before" if size is DENSE else "after"
            rows.append(
                {
                    "network": self.args.network,
                    "data": self.args.label or self.args.data,
                    **size._asdict(),
                    "images": len(self.labels),
                    "calibration_images": 0 if size is DENSE else len(self.calibration.labels),
                    "parameters": count_parameters(network),
                    "file_bytes": files[size].stat().st_size,
                    "multiply_adds": report.get(f"multiply_adds_{after}"),
                    **accuracies(self.found(network), self._dense_found),
                    **{key: value for own in times for key, value in own[size].items()},
                    "seconds": None if size is DENSE else sum(report["seconds"].values()),
                    "note": self.args.note,
                    **self._circumstances,
                }
            )
        return rows

    def _sizes(self) -> Iterator[Size]:
        args = self.args
        yield from itertools.starmap(Size, itertools.product(args.methods, args.forms, args.rates))
        for rate in args.bytes_rates:
            yield Size("auto", FEW_BITS, rate)

    def _file(self, size: Size) -> Path:
        return self.args.files / f"{self.args.network}_{size.name}.safetensors"

    def _loaded(self, size: Size) -> nn.Module:
        return load(self._file(size), into=copy.deepcopy(self.trained.network)).eval()

    def _made(self, size: Size) -> Path:
        """The file of a network, which is made if it is not there."""
        file = self._file(size)
        if not file.exists():
            if size.form == "fine-tuned":
                network, reports = self._fine_tuned(size)
            else:
                print(f"compressing: {size.name} ...", flush=True)
                network, reports = quietly_compressed(
                    self.trained.network,
                    size.method,
                    **{"bytes_rate" if size.form == FEW_BITS else "rate": size.rate},
                    calibration=self.calibration,
                    refine=size.form == "refined",
                    seed=self.args.seed,
                )
            save(network, file, reports=reports)
        return file

    def _fine_tuned(self, size: Size) -> tuple[nn.Module, Any]:
        """The fitted network, trained on, and its report, whose seconds have those of training."""
        fitted = self._made(size._replace(form="fitted"))
        network = self._loaded(size._replace(form="fitted"))
        print(f"fine-tuning: {size.name} ...", flush=True)
        args, begin = self.args, time.perf_counter()
        data = image_data.load(
            args.data,
            args.root,
            size=args.size or self.trained.size,
            crop_scale=args.crop_scale,
            train_size=args.train_size,
        )
        data = replace(data, normalisation=self.trained.normalisation)
        outcome = Trainer(network, data, self._recipe(), name=size.name).fit()
        if outcome.status != "finished":
            raise ValueError(f"--lr: must be smaller (got {args.lr}, {outcome.status})")
        report = dict(_report(fitted))
        seconds = report["seconds"] | {"fine-tuning": time.perf_counter() - begin}
        return network.eval(), [report | {"seconds": seconds}]

    def _recipe(self) -> Recipe:
        """That of fine-tuning; --batch-size is of tests and calibration."""
        own = {"batch_size": _FINE_TUNING.batch_size, "test_every": self.args.epochs}
        return recipe_of(self.args, **own)

    def _times(self, networks: Mapping[Size, nn.Module], threads: int) -> dict[Size, Row]:
        """Columns with the milliseconds of one image, in PyTorch and in ONNX Runtime."""
        image = next(iter(self.measured))[:1].to(self.device)
        last = {
            size.name: copy.deepcopy(network).to(memory_format=torch.channels_last)
            for size, network in networks.items()
        }
        plain = {size.name: network for size, network in networks.items()}
        rows: dict[Size, Row] = {size: {} for size in networks}
        with set_threads(threads), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for runtime, steps in (
                ("pytorch", pytorch_steps(last, image)),
                ("onnx", onnx_steps(plain, image, Path(folder))),
            ):
                speeds: Mapping[str, Speed] = {}
                if steps is not None:
                    speeds = measure_speeds(steps, 1, self.device, self.args.seconds)
                for size in networks:
                    own = speeds.get(size.name)
                    rows[size] |= {
                        f"{runtime}_ms_{threads}": own.milliseconds if own else None,
                        f"{runtime}_speed_{threads}": own.times_as_fast if own else None,
                    }
        return rows


def _report(file: Path) -> Any:
    """Of the compression of a saved network, if it was compressed."""
    reports = read_description(file).reports
    return reports[-1] if reports else None


def merged(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """New rows in the place of those with the same key; others stay.

    So does the row of the dense network that these were timed in turn with.
    """
    own = {identity(row, KEY) for row in rows}
    kept = [row for row in before if identity(row, KEY) not in own]
    timed = {(row["network"], row["data"]) for row in kept}
    kept += [
        row
        for row in before
        if row["method"] == "dense" and (row["network"], row["data"]) in timed and row not in kept
    ]
    stay = {identity(row, KEY) for row in kept}
    return [*kept, *(row for row in rows if identity(row, KEY) not in stay)]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By network, the dense one first, then by method, form and size."""
    networks = list(dict.fromkeys((row["network"], row["data"]) for row in rows))
    methods = ("dense", *METHODS, *(str(row["method"]) for row in rows))
    forms = ("dense", *FORMS, FEW_BITS)

    def place(row: Row) -> tuple[int, int, int, float]:
        own = networks.index((row["network"], row["data"]))
        method, form = methods.index(str(row["method"])), forms.index(str(row["form"]))
        return own, method, form, -float(row["rate"])

    return sorted(rows, key=place)


def table(rows: Sequence[Mapping[str, str]], *, markdown: bool = False) -> str:
    """The rows for people."""
    columns = [
        Column("network", "network", left=True),
        Column("kept", "rate and method", left=True),
        Column("parameters", "parameters", whole),
        Column("file_bytes", "file MB", lambda value: f"{float(str(value)) / 1e6:.2f}"),
        Column("multiply_adds", "M multiply-adds", lambda value: f"{_millions(value):.0f}"),
        Column("accuracy", "top-1 %", decimals(1)),
        Column("change", "against dense"),
        *(
            Column(f"{kind}_{threads}", f"ms, {name}, {threads} thread{'s' * (threads > 1)}")
            for kind, name in _RUNTIMES.items()
            for threads in THREADS
        ),
        Column("seconds", "made in s", decimals(0)),
    ]
    return format_table([{**row, **_cells(row)} for row in rows], columns, markdown=markdown)


def _millions(value: object) -> float:
    return float(str(value)) / 1e6


def _cells(row: Mapping[str, str]) -> Row:
    dense = row["method"] == "dense"
    change = f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}"
    form = "" if row["form"] == FORMS[0] else f", {row['form']}"
    return {
        "kept": "dense" if dense else f"{float(row['rate']):g}, {row['method']}{form}",
        "change": None if dense else change,
        **{
            f"{kind}_{threads}": _time(row, kind, threads)
            for kind in _RUNTIMES
            for threads in THREADS
        },
        "multiply_adds": row["multiply_adds"] or None,
        "seconds": row["seconds"] or None,
    }


def _time(row: Mapping[str, str], kind: str, threads: int) -> str | None:
    if not row[f"{kind}_ms_{threads}"]:
        return None
    speed = float(row[f"{kind}_speed_{threads}"])
    ratio = "" if row["method"] == "dense" else f" ({speed:.1f}x)"
    return f"{float(row[f'{kind}_ms_{threads}']):.1f}{ratio}"


def plot(
    rows: Sequence[Mapping[str, str]], path: Path, others: Sequence[Mapping[str, str]] = ()
) -> None:
    """Draws accuracy over bytes and over the time of an image, both as shares of the dense ones.

    Args:
        rows: of the CSV file; each network has two panels, each method and form a line.
        path: of the PNG file.
        others: rows of peers.py, whose networks are drawn in grey.
    """
    panels = []
    for network, data in dict.fromkeys((row["network"], row["data"]) for row in rows):
        own = [
            # Measured in turn with the dense network; milliseconds differ from run to run.
            {**row, "time": str(1 / float(row["pytorch_speed_1"]))}
            for row in rows
            if (row["network"], row["data"]) == (network, data)
        ]
        peers = [
            row
            for row in others
            if row["network"] == network and row["accuracy"] and not row["peer"].startswith("ours")
        ]
        level = next(float(row["accuracy"]) for row in own if row["method"] == "dense")
        for axis, column, peer_column in (
            ("bytes of the file", "file_bytes", "bytes"),
            ("time of one image (PyTorch, one thread)", "time", "milliseconds"),
        ):
            lines = [
                Line("dense", (1.0,), (level,), grey=True),
                *_lines(own, column, _title),
                *_lines(peers, peer_column, lambda row: row["peer"], grey=True),
            ]
            title = f"{TITLES.get(network, network)}, {data}"
            panels.append(Panel(title, tuple(lines), level, f"{axis} / dense"))
    plot_sizes(panels, path, across=2, lowest=_POINTS_SHOWN)


def _title(row: Mapping[str, str]) -> str:
    form = "" if row["form"] in (FORMS[0], "dense") else f", {row['form']}"
    return row["method"] + form


def _lines(
    rows: Sequence[Mapping[str, str]],
    column: str,
    name: Callable[[Mapping[str, str]], str],
    *,
    grey: bool = False,
) -> Iterator[Line]:
    """A line for each name but the dense network's, whose size all others are shares of."""
    points: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        cells = (row[column], row["accuracy"], row["standard_error"])
        points.setdefault(name(row), []).append(tuple(map(float, cells)))
    for line, own in points.items():
        if line != "dense":
            x, y, spread = zip(*sorted(own), strict=True)
            sizes = tuple(size / points["dense"][0][0] for size in x)
            yield Line(line, sizes, y, spread, grey)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 on bad arguments or data."""
    alone()
    parser = zero_shot_parser(__doc__)
    parser.set_defaults(methods=list(METHODS), rates=list(RATES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[FORMS[0]])
    parser.add_argument(
        "--bytes-rates",
        nargs="+",
        type=kinds.share,
        default=[],
        help="bytes of the file to keep of networks of low rank and few bits, by auto",
    )
    parser.add_argument("--files", type=Path, help="folder for the compressed networks")
    parser.add_argument("--peers", type=Path, help="CSV file of peers.py, for the plot")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, each runtime (20)")
    parser.add_argument("--note", default="", help="a remark for the CSV file, such as on the load")
    tuning = parser.add_argument_group("fine-tuning")
    add_options(tuning, "--epochs", "--lr", "--warmup", **asdict(_FINE_TUNING))
    add_options(tuning, "--label-smoothing", "--crop-scale", "--train-size")
    args = parser.parse_args(arguments)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    check(args)
    if not args.show:
        if args.files is None or not args.files.is_dir():
            raise ValueError(f"--files: must be a folder that exists (got {args.files})")
        before = read_csv(args.csv) if args.csv.is_file() else []
        write_csv(args.csv, in_order(merged(before, Headline(args).rows())))
    rows = read_csv(args.csv)
    print(table(rows, markdown=args.markdown))
    if args.png is not None:
        plot(rows, args.png, read_csv(args.peers) if args.peers else ())


if __name__ == "__main__":
    sys.exit(main())
