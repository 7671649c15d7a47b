"""Figure 3 of the paper: Network-in-Network with fully connected layers, those compressed too.

    python experiments/figure3.py --data cifar10 --root DIR
    python experiments/figure3.py --data cifar10 --root DIR --plan
    python experiments/figure3.py --plot runs/figure3_*/results.csv --png figure3.png

CONV_2 to CONV_8 and then FC_1 are compressed one after the other, each by a factor of 4: nominal
rates .985 .978 .757 .739 .721 .562 .544 .261 of the weights. With FreshNets the fully connected
layer is that of HashedNets. All methods train at a learning rate of 0.05. A stopped run goes on
with the same command; results.csv and the plot are written after every point.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from figures.figure import Figure, main_of

FIGURE = Figure(
    "figure3",
    "ninn_fc",
    (*(f"CONV_{number}" for number in range(2, 9)), "FC_1"),
    factor=4,
    lr=0.05,  # at 0.1 the dense network loses some points
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; see `figures.figure.main_of`."""
    return main_of(FIGURE, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
