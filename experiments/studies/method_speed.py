"""What a training step of each method costs beside the dense layer, layer by layer.

    python experiments/study.py method_speed --threads 2 --csv method_speed.csv

The layers are those of Network-in-Network that the paper compresses, CONV_2 to CONV_8 by a factor
of 10, and FC_1 by 4. Every method takes turns with the dense layer in one process; times are
medians of paired ratios, forward and all gradients. Memory is what a step holds beyond the dense
one, in dense weights of the layer.

Found: no method takes more than 1.13 times the dense layer's time on a convolution and 2.44 times
on FC_1; the paper's sketch and eight blocks take a fraction of it (docs/results.md).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from common.runs import circumstances
from common.tables import Column, decimals, format_table
from figures.contenders import CONTENDERS, chosen
from options import add_options, documented_parser
from sketchlayers import compress
from sketchlayers._runtime.files import write_csv
from sketchlayers.bench.cases import FULLY_CONNECTED, NINN, build_dense
from sketchlayers.bench.memory import step_memory
from sketchlayers.bench.timing import paired_times, quartiles, training_step

LAYERS = {case.label.removeprefix("NinN "): case for case in NINN} | {"FC_1": FULLY_CONNECTED[0]}
COLUMNS = (
    Column("layer", "layer", left=True),
    Column("method", "method", left=True),
    Column("dense_ms", "dense ms", decimals(2)),
    Column("time", "times dense", decimals(2)),
    Column("time_low", "low", decimals(2)),
    Column("time_high", "high", decimals(2)),
    Column("memory", "memory", decimals(2)),
)


def smaller(layer: nn.Module, method: str, factor: float) -> nn.Module:
    """The layer in the form of a method."""
    contender = CONTENDERS[method]
    small, _ = compress(
        nn.Sequential(layer),
        contender.method,
        rate=1 / factor,
        keep_first=False,
        init="random",
        seed=0,
        **contender.options,
    )
    return small.get_submodule("0")


def measure(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    layer, factor = build_dense(LAYERS[name]), 4 if name.startswith("FC") else 10
    methods = [method for method in chosen(args.methods) if method != "dense"]
    layers = [layer, *(smaller(layer, method, factor) for method in methods)]
    shape = LAYERS[name].input_shape(args.batch)
    inputs = [torch.randn(shape, requires_grad=True) for _ in layers]
    steps = [training_step(one, data) for one, data in zip(layers, inputs, strict=True)]
    times = paired_times(steps, args.seconds, torch.device("cpu"))
    weight = layer.get_parameter("weight")
    before = step_memory(layer, inputs[0])
    for method, one, data, own in zip(methods, layers[1:], inputs[1:], times[1:], strict=True):
        ratio = quartiles([mine / theirs for mine, theirs in zip(own, times[0], strict=True)])
        yield {
            "layer": name,
            "method": method,
            "batch": shape[0],
            "factor": factor,
            "dense_ms": 1e3 * statistics.median(times[0]),
            "time": ratio.median,
            "time_low": ratio.low,
            "time_high": ratio.high,
            "memory": (step_memory(one, data) - before) / (4 * weight.numel()),
        }


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = documented_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each layer")
    add_options(parser, "--threads", "--csv")
    args = parser.parse_args(arguments)
    rows = [row for name in args.layers for row in measure(name, args)]
    if args.csv is not None:
        here = circumstances(torch.device("cpu"))
        write_csv(args.csv, [{**row, **here} for row in rows])
    print(format_table(rows, COLUMNS))
    for key, text in (("time", "slowest"), ("memory", "most memory")):
        largest = max(rows, key=lambda row: row[key])
        print(f"{text}: {largest[key]:.2f}, {largest['method']} on {largest['layer']}")
