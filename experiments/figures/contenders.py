"""The methods that the paper's figures compare, each with the recipe that was found for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A method as the figures show it.

    Attributes:
        label: in plots and tables.
        method: of `sketchlayers.compress`, or "dense".
        lr: largest learning rate, for batches of 64; that of a dense network for a dense weight.
        options: of the method.
    """

    label: str
    method: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)


CONTENDERS: dict[str, Contender] = {
    "dense": Contender("dense", "dense", 0.05),
    "sketch": Contender("sketch in a sign frame, spatial", "sketch", 0.1, {"frame": "signs"}),
    "sketch-channel": Contender(
        "sketch in a sign frame, channel", "sketch", 0.1, {"frame": "signs", "mixing": "channel"}
    ),
    "sketch-paper": Contender("sketch as in the paper, spatial", "sketch", 0.1),
    "sketch-paper-channel": Contender(
        "sketch as in the paper, channel", "sketch", 0.1, {"mixing": "channel"}
    ),
    "sketch-blocks": Contender(
        "sketch with eight blocks, channel",
        "sketch",
        0.1,
        {"mixing": "channel", "blocks": 8, "signs": "hadamard"},
    ),
    "freshnet": Contender("FreshNets", "freshnet", 0.1),
    "hashednet": Contender("HashedNets", "hashednet", 0.1),
    "lowrank1": Contender("LOWRANK1 (dictionary)", "dictionary", 0.1, {"num_columns": 4}),
    "lowrank2": Contender("LOWRANK2 (vertical-horizontal)", "lowrank", 0.05),
}
"""By the name that ``--methods`` takes. The scripts' default is all of them."""


def chosen(names: Sequence[str]) -> list[str]:
    """The names, or all for "all"; the dense network always comes first.

    Raises:
        ValueError: a name of no method.
    """
    for name in names:
        if name not in CONTENDERS and name != "all":
            raise ValueError(f"--methods: must be all or of {', '.join(CONTENDERS)} (got {name!r})")
    wanted = list(CONTENDERS) if "all" in names else list(names)
    return list(dict.fromkeys(["dense", *wanted]))
