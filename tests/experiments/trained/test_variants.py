from __future__ import annotations

from sketchlayers.compression import Refinement
from trained import variants


def test_steps_add_one_thing_each() -> None:
    for before, after in zip(variants.STEPS[1:], variants.STEPS[2:], strict=False):
        assert len(after.options.items() - before.options.items()) == 1
    assert len({variant.name for variant in variants.GROUPS["all"]}) == len(variants.GROUPS["all"])


def test_variants_of_ones_own() -> None:
    own = variants.parsed(["mine", "allocation=uniform", "sequential=False", "refine.epochs=3"])
    assert (own.name, own.images) == ("mine", True)
    assert own.options["refine"] == Refinement(epochs=3)
    assert (own.options["allocation"], own.options["sequential"]) == ("uniform", False)
    assert own.options["sensitivity"] is True
