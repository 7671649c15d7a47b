"""Networks that have been compressed, compressed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sketchlayers

from .networks import assert_unchanged, network, state_of

IMAGES = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
SEEN = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(9))
HOW: dict[str, Any] = {"method": "tucker2", "calibration": IMAGES}


def test_from_folded_layers() -> None:
    """As if the network had been folded before."""
    small = sketchlayers.compress(network(), rate=0.7, **HOW).model
    modules, state = list(small.modules()), state_of(small)
    smaller, report = sketchlayers.compress(small, rate=0.4, **HOW)
    expected = sketchlayers.compress(sketchlayers.fold(small), rate=0.4, **HOW)
    assert_unchanged(small, modules, state)
    assert torch.equal(smaller(SEEN), expected.model(SEEN))
    assert report.layers == expected.report.layers
    assert report.parameters_before == sum(p.numel() for p in network().parameters())
    assert report.rate == pytest.approx(0.4, rel=0.02)
    assert any("layers were compressed already: they were folded" in n for n in report.notes)


def test_from_the_original_weights() -> None:
    model = network()
    small = sketchlayers.compress(model, rate=0.7, reestimate_batch_norm=True, **HOW).model
    modules, state = list(model.modules()), state_of(model)
    smaller, report = sketchlayers.compress(small, original=model, rate=0.4, **HOW)
    expected = sketchlayers.compress(model, rate=0.4, **HOW)
    assert torch.equal(smaller(SEEN), expected.model(SEEN))
    assert report.layers == expected.report.layers
    assert any("the weights are those of original" in note for note in report.notes)
    assert_unchanged(model, modules, state)


@pytest.mark.parametrize("with_original", [False, True])
def test_layers_that_are_not_meant_stay_compressed(with_original: bool) -> None:
    model = network()
    small = sketchlayers.compress(model, rate={"3": 0.5}, **HOW).model
    how = {**HOW, "original": model if with_original else None}
    smaller, report = sketchlayers.compress(small, rate={"5": 0.5}, **how)
    assert type(smaller[3]) is type(small[3])
    assert smaller[3] is not small[3]
    for mine, theirs in zip(smaller[3].parameters(), small[3].parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine is not theirs
    assert "already compressed" in str(report.layers[1].reason)
    assert smaller[5].multiply_adds((1, 16, 8, 8)) < 16 * 16 * 9 * 64
    again, _ = sketchlayers.compress(smaller, rate={"3": 0.3}, **HOW)
    before, after = (sum(p.numel() for p in net[3].parameters()) for net in (smaller, again))
    assert after < before


@pytest.mark.parametrize("refolded", [False, True])
def test_in_place_with_hooks(refolded: bool) -> None:
    """Layers that stay dense this time become plain ones."""
    small = sketchlayers.compress(network(), rate=0.5, **HOW).model
    calls: list[int] = []
    handle = small[5].register_forward_hook(lambda *_: calls.append(1))
    expected = sketchlayers.compress(small, rate=1.0 if refolded else 0.4, **HOW)
    modules = list(small)
    changed, report = sketchlayers.compress(
        small, rate=1.0 if refolded else 0.4, inplace=True, **HOW
    )
    assert changed is small and report.layers == expected.report.layers
    assert small[0] is modules[0] and small[5] is not modules[5]
    calls.clear()
    assert torch.equal(small(SEEN), expected.model(SEEN)) and len(calls) == 2
    handle.remove()
    small(SEEN)
    assert len(calls) == 2
    assert sum(p.numel() for p in small.parameters()) == report.parameters_after


def test_moments_of_either_network() -> None:
    """Those of the folded one know all layers; those of the compressed one, only its plain ones."""
    model = network()
    small = sketchlayers.compress(model, rate={"3": 0.5}, **HOW).model
    folded = sketchlayers.fold(small)
    how: dict[str, Any] = {"method": "svd", "rate": {"*": 0.4}, "keep_first": False}
    of_folded = sketchlayers.calibrate(folded, IMAGES)
    _, report = sketchlayers.compress(small, calibration=of_folded, **how)
    assert [row.method for row in report.layers] == ["svd"] * 4
    how["rate"] = {"[059]": 0.4}
    of_small = sketchlayers.calibrate(small, IMAGES)
    _, report = sketchlayers.compress(small, calibration=of_small, **how)
    assert [row.method for row in report.layers] == ["svd", None, "svd", "svd"]


def test_without_fits_they_stay() -> None:
    small = sketchlayers.compress(network(), rate={"3": 0.5}, **HOW).model
    with_random, report = sketchlayers.compress(small, "svd", rate={"*": 0.5}, init="random")
    assert type(with_random[3]) is type(small[3])
    assert "already compressed" in str(report.layers[1].reason)


def test_a_sweep_and_a_search() -> None:
    model = network()
    small = sketchlayers.compress(model, rate=0.7, **HOW).model
    with torch.no_grad():
        wanted = small(SEEN)
    seen = []

    def evaluate(network: nn.Module) -> float:
        seen.append(float((network(SEEN) - wanted).square().mean()))
        return 1.0

    sweep = sketchlayers.sweep(small, (0.5, 0.4), evaluate=evaluate, original=model, **HOW)
    assert torch.equal(
        sweep[0.4].model(SEEN), sketchlayers.compress(model, rate=0.4, **HOW).model(SEEN)
    )
    assert len(seen) == 3 and seen[0] > 0, "the original is what drops are measured from"
    sketchlayers.compress(small, evaluate=evaluate, max_drop=0.0, **HOW)
    assert seen[3] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "made from"),
        (network()[:-1], "made from"),
        ("resnet20", "original must be an nn.Module"),
    ],
)
def test_another_original(original: Any, message: str) -> None:
    small = sketchlayers.compress(network(), rate=0.7, **HOW).model
    with pytest.raises((TypeError, ValueError), match=message):
        sketchlayers.compress(small, original=original, rate=0.5, **HOW)


def test_an_original_is_not_changed_in_place() -> None:
    model = network()
    with pytest.raises(ValueError, match="inplace must be False with original"):
        sketchlayers.compress(model, original=model, rate=0.5, inplace=True, **HOW)
