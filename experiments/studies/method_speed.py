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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.runs import circumstances, write_csv
from common.tables import Column, decimals, format_table
from figures.contenders import CONTENDERS, chosen
from networks import convolutions_and_linears, ninn_fc
from options import add_options, documented_parser
from sketchlayers import compress
from sketchlayers.bench.memory import step_memory
from sketchlayers.bench.timing import paired_times, quartiles, training_step

LAYERS = (*(f"CONV_{number}" for number in range(2, 9)), "FC_1")
MOST = 2.5
"""Times of the dense layer that a step of any method may take."""


def layer_inputs(batch: int) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """The layers of Network-in-Network and the shapes of their inputs."""
    network = ninn_fc().eval()
    shapes: dict[str, tuple[int, ...]] = {}
    layers = dict(convolutions_and_linears(network))
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: shapes.update({name: tuple(inputs[0].shape)})
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        network(torch.zeros(batch, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return {name: (layers[name], shapes[name]) for name in LAYERS}


def smaller(layer: nn.Module, method: str, factor: float) -> nn.Module:
    """The layer in the form of a method."""
    contender = CONTENDERS[method]
    model = nn.Sequential(layer)
    small = compress(
        model,
        contender.method,
        rate=1 / factor,
        keep_first=False,
        init="random",
        seed=0,
        **contender.options,
    ).model
    return small.get_submodule("0")


def measure(name: str, layer: nn.Module, shape: Sequence[int], args: argparse.Namespace) -> Any:
    """A row for each method."""
    factor = 4 if name.startswith("FC") else 10
    methods = [method for method in chosen(args.methods) if method != "dense"]
    layers = [layer, *(smaller(layer, method, factor) for method in methods)]
    inputs = [torch.randn(*shape).requires_grad_() for _ in layers]
    if args.channels_last and len(shape) == 4:
        layers = [one.to(memory_format=torch.channels_last) for one in layers]
        inputs = [_channels_last(data) for data in inputs]
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


def _channels_last(data: Tensor) -> Tensor:
    return data.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


def parser() -> argparse.ArgumentParser:
    """All options."""
    root = documented_parser(__doc__)
    root.add_argument("--methods", nargs="+", default=["all"], metavar="METHOD")
    root.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    root.add_argument("--batch", type=int, default=64)
    root.add_argument("--channels-last", action="store_true")
    root.add_argument("--seconds", type=float, default=10.0, help="for each layer")
    add_options(root, "--threads", "--csv")
    return root


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = parser().parse_args(arguments)
    found = layer_inputs(args.batch)
    rows = [row for name in args.layers for row in measure(name, *found[name], args)]
    if args.csv is not None:
        here = circumstances(torch.device("cpu"))
        write_csv(args.csv, [{**row, **here} for row in rows])
    print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a layer, a column a method; then the slowest of each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == name]
        lines.append(
            {"layer": name, "dense": own[0]["dense_ms"]}
            | {row["method"]: row["time"] for row in own}
        )
    columns = [
        Column("layer", "layer", left=True),
        Column("dense", "dense ms", decimals(2)),
        *(Column(method, method, decimals(2)) for method in methods),
    ]
    slowest = max(rows, key=lambda row: row["time"])
    largest = max(rows, key=lambda row: row["memory"])
    reached = "reached" if slowest["time"] <= MOST else "not reached"
    return (
        f"times of a training step over the dense layer's\n\n{format_table(lines, columns)}\n\n"
        f"slowest: {slowest['method']} on {slowest['layer']}, {slowest['time']:.2f} "
        f"(at most {MOST}: {reached})\n"
        f"most memory beyond the dense layer: {largest['method']} on {largest['layer']}, "
        f"{largest['memory']:.2f} dense weights"
    )
