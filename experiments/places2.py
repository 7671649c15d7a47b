"""Places2: GoogLeNet with batch norm, all but the first layer compressed to a fifth.

    torchrun --nproc-per-node 8 experiments/places2.py --root places365_standard --amp bf16
    python experiments/places2.py --root places365_standard --plan

The folder is that of the standard download of Places365 (train/CLASS/*.jpg, val/CLASS/*.jpg). In
the paper the dense network has 32.3 % top-1 error and the sketched one 36.4 % at an overall rate of
about 0.2. Images are decoded again in every epoch (--workers). A stopped run goes on with the same
command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from figures.figure import Figure, main_of

FIGURE = Figure(
    "places2",
    "googlenet_bn",
    (),
    factor=5,
    rate=0.2,
    methods=("sketch", "sketch-channel", "sketch-paper"),
    epochs=30,
    data="places365",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; see `figures.figure.main_of`."""
    return main_of(FIGURE, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
