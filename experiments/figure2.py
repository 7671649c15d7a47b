"""Figure 2 of the paper: Network-in-Network, one convolution more compressed at every point.

    python experiments/figure2.py --data cifar10 --root DIR
    python experiments/figure2.py --data cifar10 --root DIR --plan
    torchrun --nproc-per-node 8 experiments/figure2.py --data cifar10 --root DIR
    python experiments/figure2.py --plot runs/figure2_*/results.csv --png figure2.png
    python experiments/figure2.py --show runs/figure2_*/results.csv

CONV_2 to CONV_8 are compressed one after the other, each by a factor of 10: nominal rates .971
.957 .528 .493 .459 .150 .115 of the weights. In the paper on CIFAR10, STL10, SVHN and ImageNet10
(--data cifar10, stl10, svhn, imagefolder). A stopped run goes on with the same command; results.csv
and the plot are written after every point.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from figures.figure import Figure, main_of

FIGURE = Figure("figure2", "ninn", tuple(f"CONV_{number}" for number in range(2, 9)), factor=10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; see `figures.figure.main_of`."""
    return main_of(FIGURE, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
