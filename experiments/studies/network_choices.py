"""Whether the planner ever takes a path that is slower than dense, in the layers of four networks.

    python experiments/study.py network_choices --threads 2 --csv network_choices.csv
    python experiments/study.py network_choices --threads 2 --dtype bfloat16 --channels-last

The layers are all convolutions of Network-in-Network, GoogLeNet, ResNet-18 and ResNet-50 but the
first, at a tenth of their parameters, with either mixing. Dense layer, factored layer and forming
take turns in one process. In inference the folded path is the dense layer, whose weight is kept.

Found: on an Intel Xeon the chosen path is slower than 0.95 of dense, and the other one is not, in 4
and 8 of 484 calls in float32 (contiguous, channels_last). In bfloat16 with AMX it is so in none of
the contiguous ones, and in 27 in channels_last: mostly in training of 1x1 layers, at 0.83 to 0.94.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import nn

from common.runs import circumstances
from common.tables import Column, decimals, format_table
from networks import googlenet_bn, ninn
from options import add_options, documented_parser
from sketchlayers._runtime.files import write_csv
from sketchlayers.bench import tune

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "NinN": (ninn, 32),
    "GoogLeNet": (googlenet_bn, 224),
    "ResNet-18": (torchvision.models.resnet18, 224),
    "ResNet-50": (torchvision.models.resnet50, 224),
}
RATE = 0.1
SLOW = 0.95
"""Times as fast as dense."""

COLUMNS = (
    Column("network", "network", left=True),
    Column("layer", "layer", left=True),
    Column("mode", "mode", left=True),
    Column("dense_ms", "dense ms", decimals(3)),
    Column("path", "path", left=True),
    Column("speed", "times as fast", decimals(2)),
    Column("other", "other path", decimals(2)),
)


def shapes_of(network: str, batch: int, channels_last: bool) -> list[tune.Shape]:
    """The distinct layers of a network, as the planner's benchmark takes them."""
    build, size = NETWORKS[network]
    found: dict[tune.Shape, None] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        kernel = layer.kernel_size[0]
        square = layer.kernel_size == (kernel, kernel) and layer.padding == (kernel // 2,) * 2
        if layer.in_channels == 3 or not square:
            return
        kinds: tuple[tune.Kind, ...] = ("pointwise",) if kernel == 1 else ("spatial", "channel")
        for kind in kinds:
            shape = tune.Shape(
                kind=kind,
                batch=batch,
                in_channels=layer.in_channels,
                out_channels=layer.out_channels,
                kernel=kernel,
                size=inputs[0].shape[2],
                stride=layer.stride[0],
                rate=RATE,
                blocks=1,
                channels_last=channels_last,
            )
            found[shape] = None

    model = build().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return list(found)


def rows_of(network: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Two rows a layer: inference and training."""
    cpu, dtype = torch.device("cpu"), getattr(torch, args.dtype)
    processor = tune.processor_of(cpu, args.dtype)
    for batch in args.batch:
        for shape in shapes_of(network, batch, args.channels_last):
            own = tune.measure(shape, cpu, dtype, args.seconds)
            for training in (False, True):
                mode = "training" if training else "forward"
                dense = getattr(own, f"dense_{mode}")
                seconds = {
                    "folded": dense + (own.form_training if training else 0.0),
                    "factored": getattr(own, f"factored_{mode}"),
                }
                path = own.plan(training=training, processor=processor, dtype=args.dtype).path
                (other,) = seconds.keys() - {path}
                yield {
                    "network": network,
                    "layer": str(shape),
                    "mode": mode,
                    "dense_ms": 1e3 * dense,
                    "path": path,
                    "speed": dense / seconds[path],
                    "other": dense / seconds[other],
                }


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = documented_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each layer and mode")
    add_options(parser, "--threads", "--csv")
    args = parser.parse_args(arguments)
    rows = [row for network in args.networks for row in rows_of(network, args)]
    if args.csv is not None:
        here = circumstances(torch.device("cpu")) | {"dtype": args.dtype}
        write_csv(args.csv, [{**row, **here} for row in rows])
    slow = [row for row in rows if row["speed"] < SLOW]
    avoidable = [row for row in slow if row["other"] >= SLOW]
    print(format_table(avoidable or slow, COLUMNS))
    print(
        f"{len(slow)} of {len(rows)} calls are slower than {SLOW} of dense; "
        f"for {len(avoidable)} of them the other path is not"
    )
