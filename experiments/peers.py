r"""Sets other packages beside `sketchlayers.compress`, on the same network, without training.

    python experiments/peers.py --network resnet20 --weights FILE --data cifar10 --root DIR \
        --csv peers.csv --png peers.png
    python experiments/peers.py --csv peers.csv --show          # the table once more

Parameters, bytes of the file, top-1 accuracy, milliseconds an image, seconds to make, and lines of
Python that a user writes (trained/peers.py). A package that is not installed is named and left out;
``pip install ".[peers]"`` brings them. What the CSV file has is not made again, so that a command
that was stopped goes on with the next size. A package that fails has its error in its row.

An image's time is that of one call with one image, on one thread, all networks of a size that are
made in one run in turn: medians. Bytes are those of a file of `torch.save`, for our networks of
`save`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

import zero_shot
from common.distributed import alone
from common.plots import Line, Panel, plot_sizes
from common.runs import hardware, read_csv, versions
from common.speed import measure_speeds, pytorch_steps, set_threads
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, whole
from networks import count_parameters
from sketchlayers import save
from sketchlayers._runtime.files import shortened, write_csv
from trained.peers import PEERS, Peer
from trained.pictures import accuracies
from trained.results import Row, identity
from zero_shot import Experiment

DENSE = "dense"
KEY = ("network", "data", "peer", "rate")
_COLUMNS = (
    Column("network", "network", left=True),
    Column("rate", "rate"),
    Column("peer", "by", left=True),
    Column("parameters", "parameters", whole),
    Column("bytes", "bytes", whole),
    Column("accuracy", "top-1 %", decimals(1)),
    Column("difference", "against dense", decimals(1)),
    Column("standard_error", "standard error", decimals(1)),
    Column("milliseconds", "ms an image", decimals(2)),
    Column("seconds", "made in s", decimals(0)),
    Column("lines", "lines of code"),
    Column("note", "note", left=True),
)


def measure(experiment: Experiment, rate: float, peers: Sequence[Peer]) -> Iterator[Row]:
    """A row for the dense network and for that of each peer, of one share of the parameters."""
    args, dense = experiment.args, experiment.trained.network
    networks: dict[str, nn.Module] = {DENSE: dense}
    rows: dict[str, Row] = {DENSE: {}}
    for peer in peers:
        print(f"{peer.name} at {rate:g} ...", flush=True)
        torch.manual_seed(args.seed)
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = peer.compress(copy.deepcopy(dense), rate, experiment).eval()
        # Whatever a package raises is what its user would meet.
        except Exception as error:
            rows[peer.name] = {"note": f"{type(error).__name__}: {shortened(error)}"}
            continue
        rows[peer.name] = {"seconds": time.perf_counter() - begin, "lines": peer.lines}
        networks[peer.name] = network
    image = next(iter(experiment.measured))[:1]
    with set_threads(1), torch.no_grad():
        last = {
            name: copy.deepcopy(one).to(memory_format=torch.channels_last)
            for name, one in networks.items()
        }
        steps = pytorch_steps(last, image)
        times = measure_speeds(steps, 1, experiment.device, args.seconds)
    found = experiment.found(dense)
    for name, row in rows.items():
        measured: Row = {}
        if name in networks:
            network = networks[name]
            measured = {
                "parameters": count_parameters(network),
                "bytes": file_bytes(network, ours=name.startswith("ours")),
                "milliseconds": times[name].milliseconds,
                **accuracies(experiment.found(network), found),
            }
        yield {
            **_key(args, name, 1.0 if name == DENSE else rate),
            "images": len(experiment.labels),
            "calibration_images": len(experiment.calibration.labels),
            **dict.fromkeys(("parameters", "bytes", "accuracy", "difference", "standard_error")),
            **dict.fromkeys(("milliseconds", "seconds", "lines", "note")),
            **measured,
            **row,
            **hardware(experiment.device),
            **versions(),
        }


def _key(args: argparse.Namespace, peer: str, rate: float) -> Row:
    """What tells a row from others."""
    data = args.label or args.data
    return {"network": args.network, "data": data, "peer": peer, "rate": rate}


def file_bytes(network: nn.Module, *, ours: bool) -> int:
    """Of the file that a user would keep."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        if ours:
            save(network, path)
        else:  # copies, since a file has all that a tensor is a part of
            torch.save({name: one.clone() for name, one in network.state_dict().items()}, path)
        return path.stat().st_size


def missing_peers(peers: Sequence[Peer]) -> list[Peer]:
    """Those whose packages are not installed; they are named."""
    missing = [peer for peer in peers if not peer.installed]
    for peer in missing:
        print(f"left out: {peer.name} needs the package {peer.package}, which is not installed")
    return missing


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows, the most accurate of a size first."""

    def place(row: Mapping[str, object]) -> tuple[str, float, float]:
        return str(row["network"]), -float(str(row["rate"])), -float(str(row["accuracy"] or 0))

    return format_table(sorted(rows, key=place), _COLUMNS, markdown=markdown)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy over bytes, a panel for each network."""
    panels = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network and row["accuracy"]]
        dense = next(float(str(row["accuracy"])) for row in own if row["peer"] == DENSE)
        lines = []
        for peer in dict.fromkeys(str(row["peer"]) for row in own if row["peer"] != DENSE):
            points = sorted(
                (float(str(row["bytes"])) / 1000, float(str(row["accuracy"])))
                for row in own
                if row["peer"] == peer
            )
            lines.append(Line(peer, tuple(x for x, _ in points), tuple(y for _, y in points)))
        panels.append(Panel(f"{network}, without training", tuple(lines), dense))
    plot_sizes(panels, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 on bad arguments or data."""
    alone()
    parser = zero_shot.parser(__doc__)
    parser.set_defaults(rates=[0.5, 0.3])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, each rate (20)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    zero_shot.check(args)
    rows: list[Row] = []
    if args.csv.is_file():
        rows = [{key: cell or None for key, cell in row.items()} for row in read_csv(args.csv)]
    if not args.show:
        asked = [peer for peer in PEERS if peer.name in args.peers]
        left_out = missing_peers(asked)
        experiment = Experiment(args)
        for number, rate in enumerate(args.rates):
            own = [one for one in asked if one not in left_out and (one.rated or number == 0)]
            done = {identity(row, KEY) for row in rows if row["accuracy"]}
            own = [one for one in own if identity(_key(args, one.name, rate), KEY) not in done]
            if not own:
                continue
            made = list(measure(experiment, rate, own))
            replaced = {identity(row, KEY) for row in made}
            rows = [*(row for row in rows if identity(row, KEY) not in replaced), *made]
            write_csv(args.csv, rows)
    print(table(rows, markdown=args.markdown))
    if args.png is not None:
        plot(rows, args.png)


if __name__ == "__main__":
    sys.exit(main())
