"""Collects training runs into results.csv and draws accuracy.png.

    python experiments/plot.py experiments/results/cifar10_jpeg_q75

The folder holds one folder for each run, as train.py leaves them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.distributed import alone
from common.plots import Line, plot_curves
from common.runs import RunError, read_csv
from common.stopping import exit_code
from options import documented_parser
from sketchlayers._runtime.files import write_csv

_NAMES = {
    "ninn": "Network-in-Network",
    "ninn_fc": "Network-in-Network with FC layers",
    "googlenet_bn": "GoogLeNet",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 when there is nothing to draw."""
    alone()
    parser = documented_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of run folders")
    parser.add_argument("--title", help="default: network and data set of the first run")
    args = parser.parse_args(arguments)
    return exit_code(lambda: collect(args.folder, args.title))


def collect(folder: Path, title: str | None = None) -> None:
    """Writes ``results.csv`` and ``accuracy.png`` from the runs below `folder`, largest first.

    A run that diverged in its first epoch has a row and no curve.

    Raises:
        RunError: if there is no run with at least one epoch.
    """
    found = [(path, json.loads(path.read_text())) for path in folder.glob("*/summary.json")]
    runs = sorted(found, key=lambda run: (-run[1]["parameters"], run[1]["name"]))
    curves = [_curve(path.with_name("log.csv"), summary) for path, summary in runs]
    curves = [curve for curve in curves if curve.x]
    if not curves:
        raise RunError(f"plot: {folder} must hold run folders with summary.json and log.csv")
    write_csv(folder / "results.csv", [result_row(summary) for _, summary in runs])
    plot_curves(curves, folder / "accuracy.png", title=title or _title(runs[0][1]))
    print(f"wrote {folder / 'results.csv'} and {folder / 'accuracy.png'}")


def result_row(summary: dict[str, Any]) -> dict[str, object]:
    """What of a run's ``summary.json`` goes into ``results.csv``."""
    network, recipe, data = summary["network"], summary["recipe"], summary["data"]
    last, hardware = summary.get("last_epoch") or {}, summary["hardware"]

    def columns(source: Mapping[str, Any], *names: str) -> dict[str, object]:
        # Empty where a summary of an earlier version does not have it.
        return {name: source.get(name) for name in names}

    return {
        **columns(summary, "name", "status"),
        **columns(network, "network", "width", "method"),
        **columns(summary, "rate", "parameters", "stored_bytes"),
        "data": data["label"],
        **columns(data, "train_images", "test_images", "size"),
        "epochs": last.get("epoch", 0),
        **columns(last, "test_accuracy", "test_loss", "train_loss"),
        "options": " ".join(f"{name}={value}" for name, value in network["options"].items()),
        **columns(recipe, "lr", "batch_size", "amp", "seed"),
        **columns(summary, "seconds"),
        "hardware": hardware.get("gpu", hardware["cpu"]),
        **columns(hardware, "threads"),
        **columns(summary, "processes"),
        **columns(summary["versions"], "torch", "sketchlayers", "torchvision", "python"),
        "epochs_asked": recipe["epochs"],
        **columns(recipe, "momentum", "weight_decay", "warmup", "clip", "compile", "test_every"),
        **columns(network, "batch_norm", "dropout"),
        "command": summary.get("command", {}).get("line"),
    }


def _curve(log: Path, summary: dict[str, Any]) -> Line:
    rows = [row for row in read_csv(log) if row["test_accuracy"]] if log.is_file() else []
    accuracies = tuple(float(row["test_accuracy"]) for row in rows)
    size = f"{summary['name']}: {summary['parameters']:,} parameters"
    name = f"{size}, {accuracies[-1]:.1f} %" if rows else size
    return Line(name, tuple(float(row["epoch"]) for row in rows), accuracies)


def _title(summary: dict[str, Any]) -> str:
    network, data = summary["network"], summary["data"]
    width = "" if network["width"] == 1 else f" at width {network['width']:g}"
    name = _NAMES.get(network["network"], network["network"])
    return f"{name}{width} on {data['label']}, {data['train_images']:,} images"


if __name__ == "__main__":
    sys.exit(main())
