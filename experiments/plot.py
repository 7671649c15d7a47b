"""Collects training runs into results.csv and draws accuracy.png.

    python experiments/plot.py experiments/results/cifar10_jpeg_q75

The folder holds one folder for each run, as train.py leaves them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.distributed import alone
from common.plots import Curve, plot_curves
from common.runs import RunError, read_csv, write_csv
from common.stopping import exit_code
from options import documented_parser

_NAMES = {
    "ninn": "Network-in-Network",
    "ninn_fc": "Network-in-Network with FC layers",
    "googlenet_bn": "GoogLeNet",
}

# What has no column of its own; empty where a summary of an earlier version does not have it.
_OF_RECIPE = (
    *("momentum", "weight_decay", "compressed_lr", "gain", "warmup", "schedule"),
    *("label_smoothing", "clip", "precision", "channels_last", "compile", "test_every"),
)
_OF_NETWORK = ("batch_norm", "dropout", "init", "init_scale", "sign_seed")


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
    curves = [
        _curve(path.with_name("log.csv"), summary)
        for path, summary in runs
        if path.with_name("log.csv").is_file()
    ]
    curves = [curve for curve in curves if curve.epochs]
    if not curves:
        raise RunError(f"plot: {folder} must hold run folders with summary.json and log.csv")
    write_csv(folder / "results.csv", [result_row(summary) for _, summary in runs])
    plot_curves(curves, folder / "accuracy.png", title=title or _title(runs[0][1]))
    print(f"wrote {folder / 'results.csv'} and {folder / 'accuracy.png'}")


def result_row(summary: dict[str, Any]) -> dict[str, object]:
    """What of a run's ``summary.json`` goes into ``results.csv``."""
    network, recipe, data = summary["network"], summary["recipe"], summary["data"]
    last = summary.get("last_epoch") or {}
    hardware, versions = summary["hardware"], summary["versions"]
    return {
        "name": summary["name"],
        "status": summary["status"],
        "network": network["network"],
        "width": network["width"],
        "method": network["method"],
        "rate": summary["rate"],
        "parameters": summary["parameters"],
        "stored_bytes": summary["stored_bytes"],
        "data": data["label"],
        "train_images": data["train_images"],
        "test_images": data["test_images"],
        "size": data["size"],
        "epochs": last.get("epoch", 0),
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        "train_loss": last.get("train_loss"),
        "options": " ".join(f"{name}={value}" for name, value in network["options"].items()),
        "lr": recipe["lr"],
        "batch_size": recipe["batch_size"],
        "amp": recipe["amp"],
        "seed": recipe["seed"],
        "seconds": summary.get("seconds"),
        "hardware": hardware.get("gpu", hardware["cpu"]),
        "threads": hardware["threads"],
        "processes": summary["processes"],
        **{name: versions[name] for name in ("torch", "sketchlayers", "torchvision", "python")},
        "epochs_asked": recipe["epochs"],
        **{name: recipe.get(name) for name in _OF_RECIPE},
        **{name: network.get(name) for name in _OF_NETWORK},
        "command": summary["command"].get("line"),
    }


def _curve(log: Path, summary: dict[str, Any]) -> Curve:
    rows = [row for row in read_csv(log) if row["test_accuracy"]]
    return Curve(
        summary["name"],
        summary["parameters"],
        tuple(int(row["epoch"]) for row in rows),
        tuple(float(row["test_accuracy"]) for row in rows),
    )


def _title(summary: dict[str, Any]) -> str:
    network, data = summary["network"], summary["data"]
    width = "" if network["width"] == 1 else f" at width {network['width']:g}"
    name = _NAMES.get(network["network"], network["network"])
    return f"{name}{width} on {data['label']}, {data['train_images']:,} images"


if __name__ == "__main__":
    sys.exit(main())
