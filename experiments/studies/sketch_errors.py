"""How far one draw of the random signs is from the weight it stands for, and how that varies.

    python experiments/study.py sketch_errors --csv sketch_errors.csv

The paper sums several sketches for stability over the choice of the random matrices. Here a layer
of Network-in-Network (CONV_7, 3x3, 192 to 192, Gaussian weights) is sketched with many seeds:
relative errors of the paper's unbiased sketch and of the least-squares fit, mean and standard
deviation over the seeds, for l sketches at fixed k and at fixed l*k, both mixings, both families of
signs and several blocks. The exact mean square of the unbiased error stands beside it.

Found: only l*k matters, several sketches help no more than one of a higher rank, and the error
varies by 0.3 to 0.7 % between seeds (docs/negative_results.md).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from common.runs import write_csv
from common.tables import Column, decimals, format_table
from options import add_options, documented_parser
from sketchlayers import SKConv2d

CHANNELS, KERNEL = 192, 3
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("fixed k", {"num_sketches": sketches, "rank": 5}) for sketches in (1, 2, 4, 8)),
    *(
        ("fixed l*k", {"num_sketches": sketches, "rank": 16 // sketches})
        for sketches in (1, 2, 4, 8, 16)
    ),
    *(
        ("form", {"rank": 10, "mixing": mixing, "signs": signs, "blocks": blocks})
        for mixing in ("spatial", "channel")
        for signs in ("rademacher", "hadamard")
        for blocks in (1, 8)
    ),
]


def expected_error(layer: SKConv2d) -> float:
    """Root of the mean square of the unbiased sketch's relative error, for independent signs."""
    outputs, inputs = layer.out_channels, layer.in_channels
    taps = math.prod(layer.kernel_size)
    first = (outputs - 1) / layer.rank
    second = (inputs * taps - 1) / (layer.rank * taps)
    if layer.mixing == "channel":
        second = (inputs - 1) / layer.rank
    return math.sqrt((first + second) / (4 * layer.num_sketches))


def measure(question: str, arguments: dict[str, Any], seeds: int) -> dict[str, object]:
    """A row: errors over the seeds, of one weight."""
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    errors: dict[Literal["unbiased", "fit"], list[float]] = {"unbiased": [], "fit": []}
    for seed in range(seeds):
        for init, own in errors.items():
            layer = SKConv2d.from_conv(conv, **arguments, seed=seed, init=init)
            assert layer.fit_error is not None
            own.append(layer.fit_error)
    row: dict[str, object] = {
        "question": question,
        "mixing": layer.mixing,
        "signs": layer.signs,
        "blocks": layer.blocks,
        "l": layer.num_sketches,
        "k": layer.rank,
        "rate": layer.rate,
        "seeds": seeds,
        "expected": expected_error(layer),
    }
    for init, own in errors.items():
        row[init] = statistics.mean(own)
        row[f"{init}_spread"] = statistics.stdev(own)
    return row


_COLUMNS = [
    Column("question", "question", left=True),
    Column("mixing", "mixing", left=True),
    Column("signs", "signs", left=True),
    Column("blocks", "blocks"),
    Column("l", "l"),
    Column("k", "k"),
    Column("rate", "rate", decimals(3)),
    Column("unbiased", "unbiased", decimals(3)),
    Column("unbiased_spread", "spread", decimals(3)),
    Column("expected", "expected", decimals(3)),
    Column("fit", "least squares", decimals(4)),
    Column("fit_spread", "spread", decimals(4)),
]


def parser() -> argparse.ArgumentParser:
    """All options."""
    root = documented_parser(__doc__)
    root.add_argument("--seeds", type=int, default=30, help="draws of the signs")
    add_options(root, "--threads", "--csv", "--markdown")
    return root


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = parser().parse_args(arguments)
    if args.seeds < 2:
        raise ValueError(f"--seeds: must be at least 2 (got {args.seeds})")
    rows = [measure(question, case, args.seeds) for question, case in CASES]
    print(format_table(rows, _COLUMNS, markdown=args.markdown))
    if args.csv is not None:
        write_csv(args.csv, rows)
