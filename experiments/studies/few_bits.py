r"""Accuracy over the bytes of a file, without training: few bits, low rank, both in turn, together.

    python experiments/study.py few_bits --network resnet20 --weights FILE --data cifar10 \
        --root DIR --csv few_bits.csv --png few_bits.png
    python experiments/study.py few_bits ... --fold-batch-norms --bits --rates --bytes-rates 0.0645
    python experiments/study.py few_bits --csv few_bits.csv --show       # the table once more

Four ways to a small file, all by `compress` with the calibration images: dense layers in few bits
("bits"), low rank in float32 ("rank"), low rank whose factors are then rounded to the nearest
numbers ("in turn"), and ranks and bits under one budget of bytes ("together"). Bytes are those of
the file that `save` writes. Takes zero_shot.py's options for network and images; --bits, --rates
and --bytes-rates are the sizes of the ways, and without a value leave one out.

Found: on ResNet-20 all bytes go into few bits first: 3 bits in every layer keep the accuracy at an
eighth of the bytes, and one budget for ranks and bits leaves most layers dense. Low rank in float32
needs two to four times the bytes, and low rank rounded afterwards loses (docs/compressing.md).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import zero_shot
from common.plots import Line, Panel, plot_sizes
from common.runs import hardware, read_csv, versions
from common.tables import Column, decimals, format_table, whole
from sketchlayers import save
from sketchlayers._runtime.files import write_csv
from sketchlayers.cli import kinds
from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.nn import Configured
from trained.pictures import accuracies
from trained.results import Row
from trained.variants import quietly_compressed
from zero_shot import Experiment

_COLUMNS = (
    Column("network", "network", left=True),
    Column("way", "way", left=True),
    Column("size", "bits or rate"),
    Column("bytes", "bytes", whole),
    Column("accuracy", "accuracy %", decimals(2)),
    Column("difference", "difference", decimals(2)),
    Column("standard_error", "standard error", decimals(2)),
    Column("seconds", "seconds", decimals(0)),
)

WAYS = ("dense", "bits", "rank", "in turn", "together")
_NAMES = {
    "bits": "few bits",
    "rank": "low rank",
    "in turn": "low rank, then 8 bits",
    "together": "ranks and bits together",
}
_FOLDED = " folded"
_POINTS_SHOWN = 10.0
BITS = (8, 6, 5, 4, 3, 2)
RATES = (0.7, 0.5, 0.3, 0.15)
BYTES_RATES = (0.24, 0.15, 0.12, 0.09, 0.075, 0.06)


def ways(args: argparse.Namespace) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """The way, its size, and the arguments of `compress`."""
    for bits in args.bits:
        yield "bits", bits, {"rate": 1.0, "bits": bits}
    for rate in args.rates:
        yield "rank", rate, {"rate": rate}
    for rate in args.bytes_rates:
        yield "together", rate, {"bytes_rate": rate}


def rounded_afterwards(network: nn.Module, bits: int) -> None:
    """Rounds every layer of a compressed network in place, to the nearest numbers."""
    inside: tuple[str, ...] = ()
    for name, layer in network.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(layer, Configured):
            inside = (*inside, f"{name}.")
        if isinstance(layer, (Configured, nn.Conv2d, nn.Linear)):
            round_layer(layer, bits)


def measure(experiment: Experiment) -> Iterator[Row]:
    """A row for each network."""
    args = experiment.args
    dense = experiment.found(experiment.trained.network)
    label = {
        "network": args.network + (_FOLDED if args.fold_batch_norms else ""),
        "data": args.label or args.data,
        "images": len(experiment.labels),
        "calibration_images": len(experiment.calibration.labels),
        **hardware(experiment.device),
        **versions(),
    }

    def row(way: str, size: float, network: nn.Module, **more: object) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            stored = save(network, Path(folder) / "network.safetensors").stat().st_size
        found = accuracies(experiment.found(network), dense)
        return {"way": way, "size": size, "bytes": stored, **found, **more, **label}

    yield row("dense", 1, experiment.trained.network, parameters=None, seconds=None)
    for way, size, arguments in ways(args):
        begin = time.perf_counter()
        small, report = quietly_compressed(
            experiment.trained.network,
            "auto",
            calibration=experiment.calibration,
            keep_first=False,
            measure_latency=False,
            seed=args.seed,
            **arguments,
        )
        seconds = time.perf_counter() - begin
        kept = {"parameters": report.parameters_after, "seconds": seconds}
        yield row(way, size, small, **kept)
        if way == "rank":
            rounded_afterwards(small, 8)
            yield row("in turn", size, small, **kept)


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows by way, each with its bytes and its accuracy."""
    return format_table(rows, _COLUMNS, markdown=markdown)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy over bytes, a panel for each network, that with folded batch norms in it."""
    networks = dict.fromkeys(str(row["network"]).removesuffix(_FOLDED) for row in rows)
    panels = [_panel(network, rows) for network in networks]
    plot_sizes(panels, path, lowest=_POINTS_SHOWN)


def _panel(network: str, rows: Sequence[Row]) -> Panel:
    ways: dict[str, list[tuple[float, ...]]] = {}
    level = None
    for row in rows:
        folded = str(row["network"]).endswith(_FOLDED)
        accuracy = float(str(row["accuracy"]))
        if str(row["network"]).removesuffix(_FOLDED) != network:
            continue
        if row["way"] == "dense":
            level = accuracy if level is None else level
            continue
        name = _NAMES[str(row["way"])] + (", batch norms folded" if folded else "")
        point = float(str(row["bytes"])) / 1000, accuracy, float(str(row["standard_error"]))
        ways.setdefault(name, []).append(point)
    lines = []
    for name, points in ways.items():
        x, y, spread = zip(*sorted(points), strict=True)
        lines.append(Line(name, x, y, spread))
    return Panel(f"{network}, without training", tuple(lines), level)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By network, way and size; each once, as it was measured last."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    once = {(row["network"], row["way"], float(str(row["size"]))): row for row in rows}
    places = {key: (networks.index(key[0]), WAYS.index(str(key[1])), -key[2]) for key in once}
    return [once[key] for key in sorted(once, key=places.__getitem__)]


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = zero_shot.parser(__doc__)
    parser.set_defaults(rates=list(RATES))
    parser.add_argument("--bits", nargs="*", type=int, default=list(BITS))
    parser.add_argument("--bytes-rates", nargs="*", type=kinds.share, default=list(BYTES_RATES))
    args = parser.parse_args(arguments)
    rows: list[Row] = []
    if args.csv.is_file():
        rows = [{key: cell or None for key, cell in row.items()} for row in read_csv(args.csv)]
    if not args.show:
        zero_shot.check(args)
        for row in measure(Experiment(args)):
            rows = in_order([*rows, row])
            print(f"{row['way']} {row['size']:g}: {row['accuracy']:.2f} %, {row['bytes']:,} bytes")
            write_csv(args.csv, rows)
    print(table(rows, markdown=args.markdown))
    if args.png is not None:
        plot(rows, args.png)
