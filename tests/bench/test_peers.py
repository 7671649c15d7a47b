"""Plain forms that equal the layer, ranks at equal size, packages that are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from sketchlayers.bench import peers
from sketchlayers.bench.cases import Case
from sketchlayers.nn import SKConv2d, SKLinear


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
@pytest.mark.parametrize("sketches", [1, 2])
def test_the_plain_convolution_is_the_layer(mixing: str, sketches: int) -> None:
    layer = SKConv2d(6, 8, 3, stride=2, padding=1, rank=2, num_sketches=sketches, mixing=mixing)
    layer = layer.double()
    data = torch.randn(2, 6, 9, 9, dtype=torch.double)
    torch.testing.assert_close(peers.plain(layer).double()(data), layer(data))


def test_the_plain_fully_connected_layer_is_the_layer() -> None:
    layer = SKLinear(12, 10, rank=2, num_sketches=2)
    data = torch.randn(3, 12)
    torch.testing.assert_close(peers.plain(layer)(data), layer(data))


@pytest.mark.parametrize("options", [{"groups": 2}, {"blocks": 2}, {"frame": "signs"}])
def test_layers_without_a_plain_form_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the plain form has neither"):
        peers.plain(SKConv2d(4, 4, 3, rank=1, **options))


@pytest.mark.parametrize(
    "case", [Case("", 96, 192, kernel=5, size=16), Case("", 512, 512, kernel=3, size=7)]
)
def test_ranks_give_the_same_number_of_parameters(case: Case) -> None:
    budget = case.in_channels * case.out_channels * case.taps // 10
    outer, inner = peers.tucker_ranks(case, budget)
    tucker = (
        outer * inner * case.taps
        + outer * case.out_channels
        + inner * case.in_channels
        + 2 * case.kernel**2
    )
    assert tucker == pytest.approx(budget, rel=0.02)
    rank = peers.cp_rank(case, budget)
    assert rank * (case.in_channels + case.out_channels + 2 * case.kernel + 1) == pytest.approx(
        budget, rel=0.02
    )


def test_missing_packages_are_named_in_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch)
    found, missing = peers.available()
    assert [peer.name for peer in found] == ["compiled"]
    assert missing == [
        "tensorly-torch is left out: no module named tltorch",
        "panther-ml is left out: no module named panther.nn",
    ]


def hide_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no peer were installed."""
    original = importlib.import_module

    def fail(name: str, package: str | None = None) -> ModuleType:
        if name.startswith(("tltorch", "panther")):
            raise ImportError(f"no module named {name}")
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.mark.parametrize("name", ["tensorly Tucker", "tensorly CP", "Panther"])
def test_installed_peers_have_about_our_size(name: str) -> None:
    found = {peer.name: peer for peer in peers.available()[0]}
    if name not in found:
        pytest.skip(f"{name} is not installed")
    case = Case("", 32, 48, kernel=3, size=6, padding=1)
    layer = SKConv2d(32, 48, 3, padding=1, rate=0.2)
    module = found[name].build(case, layer)
    assert module(torch.randn(2, 32, 6, 6)).shape == (2, 48, 6, 6)
    own, theirs = (sum(p.numel() for p in m.parameters()) for m in (layer, module))
    assert theirs == pytest.approx(own, rel=0.1)
