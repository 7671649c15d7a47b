r"""Measures what compression without training gives: parameters, file, accuracy, time of an image.

    python experiments/headline.py --network resnet20 --weights FILE --data cifar10 --root DIR \
        --files DIR --csv headline.csv
    python experiments/headline.py --csv headline.csv --show      # the table once more

Networks are compressed by `sketchlayers.compress` with its defaults and saved in the folder of
--files, each with its report. What is there is not compressed again: a command that was stopped
goes on where it was, and networks can be timed when the machine is idle. Rows of other networks in
the CSV file stay.

An image's time is that of one call with one image, on one thread, dense and compressed networks of
a runtime in turn: medians.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from common.distributed import alone
from common.runs import read_csv
from common.speed import Speed, measure_speeds, one_thread, onnx_steps, pytorch_steps
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, whole
from networks import count_parameters
from sketchlayers import load, save
from sketchlayers._runtime.files import write_csv
from sketchlayers.checkpoint import read_description
from trained.pictures import accuracies
from trained.results import Row, identity
from trained.variants import quietly_compressed
from zero_shot import Experiment, check
from zero_shot import parser as zero_shot_parser

METHODS = ("auto", "tucker2")
RATES = (0.7, 0.5, 0.3)
KEY = ("network", "data", "method", "rate")
"""Columns that tell rows from each other; the dense network's method is "dense"."""


class Headline(Experiment):
    """A network, its compressed forms, and images to test them on; errors are those of its base."""

    def rows(self) -> list[Row]:
        """Compresses what is missing, then tests and times all."""
        networks = {("dense", 1.0): self.trained.network}
        files = {("dense", 1.0): save(self.trained.network, self._file("dense", 1.0))}
        for method, rate in itertools.product(self.args.methods, self.args.rates):
            files[method, rate] = file = self._compressed_file(method, rate)
            networks[method, rate] = load(file, into=copy.deepcopy(self.trained.network)).eval()
        names = {f"{method} {rate:g}": network for (method, rate), network in networks.items()}
        print("timing ...", flush=True)
        eager, exported = self._speeds(names)
        rows = []
        for (method, rate), network in networks.items():
            name = f"{method} {rate:g}"
            rows.append(
                {
                    "network": self.args.network,
                    "data": self.args.label or self.args.data,
                    "method": method,
                    "rate": rate,
                    "images": len(self.labels),
                    "calibration_images": 0 if method == "dense" else len(self.calibration.labels),
                    "parameters": count_parameters(network),
                    "file_bytes": files[method, rate].stat().st_size,
                    **accuracies(self.found(network), self._dense_found),
                    "pytorch_ms": eager[name].milliseconds,
                    "pytorch_speed": eager[name].times_as_fast,
                    "onnx_ms": exported[name].milliseconds if exported else None,
                    "onnx_speed": exported[name].times_as_fast if exported else None,
                    "seconds": _seconds(files[method, rate]),
                    "timing_threads": 1,
                    "note": self.args.note,
                    **self._circumstances,
                }
            )
        return rows

    def _file(self, method: str, rate: float) -> Path:
        return self.args.files / f"{self.args.network}_{method}_{rate:g}.safetensors"

    def _compressed_file(self, method: str, rate: float) -> Path:
        """The saved network, made if it is not there."""
        file = self._file(method, rate)
        if not file.exists():
            print(f"compressing: {method} at {rate:g} ...", flush=True)
            network, report = quietly_compressed(
                self.trained.network,
                method,
                rate=rate,
                calibration=self.calibration,
                seed=self.args.seed,
            )
            save(network, file, reports=report)
        return file

    def _speeds(
        self, networks: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Speed], dict[str, Speed] | None]:
        """In PyTorch and in ONNX Runtime, on one image."""
        image = next(iter(self.measured))[:1].to(self.device)
        last = {
            name: copy.deepcopy(network).to(memory_format=torch.channels_last)
            for name, network in networks.items()
        }
        timed = partial(measure_speeds, images=1, device=self.device, seconds=self.args.seconds)
        with one_thread(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            eager = timed(pytorch_steps(last, image))
            steps = onnx_steps(networks, image, Path(folder))
            return eager, None if steps is None else timed(steps)


def _seconds(file: Path) -> float | None:
    """That the compression of a saved network took; None for one that was not compressed."""
    reports = read_description(file).reports
    return sum(sum(report["seconds"].values()) for report in reports) if reports else None


def table(rows: Sequence[Mapping[str, str]], *, markdown: bool = False) -> str:
    """The rows for people."""
    columns = [
        Column("network", "network", left=True),
        Column("kept", "rate and method", left=True),
        Column("parameters", "parameters", whole),
        Column("file_bytes", "file MB", lambda value: f"{float(str(value)) / 1e6:.2f}"),
        Column("accuracy", "top-1 %", decimals(1)),
        Column("change", "against dense"),
        Column("pytorch", "ms an image, PyTorch"),
        Column("onnx", "ms an image, ONNX Runtime"),
        Column("seconds", "made in s", decimals(0)),
    ]
    return format_table([{**row, **_cells(row)} for row in rows], columns, markdown=markdown)


def _cells(row: Mapping[str, str]) -> Row:
    dense = row["method"] == "dense"
    change = f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}"
    return {
        "kept": "dense" if dense else f"{float(row['rate']):g}, {row['method']}",
        "change": None if dense else change,
        "pytorch": _time(row, "pytorch"),
        "onnx": _time(row, "onnx"),
        "seconds": row["seconds"] or None,
    }


def _time(row: Mapping[str, str], kind: str) -> str | None:
    if not row[f"{kind}_ms"]:
        return None
    speed = "" if row["method"] == "dense" else f" ({float(row[f'{kind}_speed']):.1f}x)"
    return f"{float(row[f'{kind}_ms']):.1f}{speed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 on bad arguments or data."""
    alone()
    parser = zero_shot_parser(__doc__)
    parser.set_defaults(methods=list(METHODS), rates=list(RATES))
    parser.add_argument("--files", type=Path, help="folder for the compressed networks")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, each runtime (20)")
    parser.add_argument("--note", default="", help="a remark for the CSV file, such as on the load")
    args = parser.parse_args(arguments)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    check(args)
    if not args.show:
        if args.files is None or not args.files.is_dir():
            raise ValueError(f"--files: must be a folder that exists (got {args.files})")
        rows = Headline(args).rows()
        replaced = {identity(row, KEY) for row in rows}
        before = read_csv(args.csv) if args.csv.is_file() else []
        write_csv(args.csv, [*(row for row in before if identity(row, KEY) not in replaced), *rows])
    print(table(read_csv(args.csv), markdown=args.markdown))


if __name__ == "__main__":
    sys.exit(main())
