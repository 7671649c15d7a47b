"""Fits of layers: each by itself, and one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.calibrate import calibrate
from sketchlayers.compression.fitting.layer import Choice, Norm, fit_alone
from sketchlayers.compression.fitting.sequence import fit_one_after_the_other
from sketchlayers.methods import SVD, Tucker2
from sketchlayers.surgery.batches import call_model
from sketchlayers.surgery.replay import plan_replays
from sketchlayers.surgery.sample import Sample

ALONE = Processes("compress", join=False)


class Net(nn.Module):
    """Convolutions of several kinds; takes (N, 3, 10, 10)."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 3, padding=1, bias=bias)
        self.grouped = nn.Conv2d(12, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias)
        self.mirrored = nn.Conv2d(8, 10, 3, padding=1, padding_mode="reflect", bias=bias)
        self.head = nn.Linear(10, 6, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.grouped(self.wide(x).relu()).relu()
        return self.head(self.mirrored(x).relu().mean((2, 3)))


RANKS = {"wide": (3, 4), "grouped": (3, 2), "mirrored": (2, 5), "head": 2}


def data(count: int = 64) -> Sample:
    # Correlated channels with means, or there would be nothing to know of the data.
    mixing = torch.randn(3, 3)
    x = torch.einsum("ij,njhw->nihw", mixing, torch.randn(count, 3, 10, 10)) + 0.5
    return Sample(tuple(x.split(24)), call_model)


def outputs(net: nn.Module, name: str, sample: Sample, layer: nn.Module | None = None) -> Tensor:
    """What the layer, or another one in its place, gives on the inputs that it has in ``net``."""
    found: list[Tensor] = []
    own = net.get_submodule(name)
    handle = own.register_forward_pre_hook(
        lambda _, args: found.append((own.forward if layer is None else layer)(args[0]))
    )
    with torch.no_grad():
        for x in sample.batches:
            net(x)
    handle.remove()
    return torch.cat(found)


def without_bias(y: Tensor, layer: nn.Module) -> Tensor:
    if layer.bias is None:
        return y
    return y - layer.bias.detach().reshape(1, -1, *[1] * (y.ndim - 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", list(RANKS))
def test_error_is_the_measured_change_of_the_output(name: str, bias: bool) -> None:
    net, sample = Net(bias).eval(), data()
    layer = net.get_submodule(name)
    moments = calibrate(net, sample.batches)[name]
    choice = Choice(layer, Tucker2(), RANKS[name], 0)
    fitted = fit_alone(choice, Norm(moments), init="fit")
    before, after = outputs(net, name, sample), outputs(net, name, sample, fitted.module)
    change = (after - before).norm() / without_bias(before, layer).norm()
    assert fitted.relative_error == pytest.approx(float(change), rel=1e-4)
    plain = fit_alone(choice, Norm(), init="fit")
    theirs = outputs(net, name, sample, plain.module)
    assert (after - before).norm() <= (theirs - before).norm() * (1 + 1e-6)


def test_bias_takes_up_the_mean() -> None:
    net, sample = Net(bias=True).eval(), data()
    moments = calibrate(net, sample.batches)["wide"]
    choice = Choice(net.wide, Tucker2(), (2, 2), 0)
    y = outputs(net, "wide", sample)
    errors = {}
    for correct in (True, False):
        fitted = fit_alone(choice, Norm(moments), init="fit", correct_bias=correct)
        change = outputs(net, "wide", sample, fitted.module) - y
        errors[correct] = float(change.norm())
        if correct:
            assert change.mean((0, 2, 3)).abs().max() < 1e-4 * y.abs().max()
        else:
            assert torch.equal(fitted.module.bias, net.wide.bias)
    assert errors[True] < errors[False]


def choices(net: Net, **ranks: object) -> dict[str, Choice]:
    return {
        name: Choice(net.get_submodule(name), None if rank is None else Tucker2(), rank, 0)
        for name, rank in ranks.items()
    }


def sequential(net: Net, sample: Sample, **ranks: object) -> dict:
    return fit_one_after_the_other(
        net,
        choices(net, **ranks),
        {name: Norm() for name in ranks},
        sample,
        plan_replays(net, list(ranks), sample.calls()),
        ALONE,
        fitted={},
        starts={},
        correct_bias=True,
        known={},
        keep=lambda name, layer: None,
        advance=lambda steps: None,
    )


def replaced(net: Net, fitted: dict) -> Net:
    small = copy.deepcopy(net)
    for name, one in fitted.items():
        setattr(small, name, one.module)
    return small


@pytest.mark.parametrize("bias", [False, True])
def test_sequential_fit_reports_the_distance_from_the_original_output(bias: bool) -> None:
    net, sample = Net(bias).eval(), data()
    fitted = sequential(net, sample, **RANKS)
    assert list(fitted) == list(RANKS)
    small = replaced(net, fitted)
    for name in RANKS:
        wanted = outputs(net, name, sample)
        got = outputs(small, name, sample)
        size = without_bias(wanted, net.get_submodule(name)).norm()
        change = float((got - wanted).norm() / size)
        assert fitted[name].relative_error == pytest.approx(change, rel=2e-3), name


def test_sequential_fit_is_nearer_than_fits_of_single_layers() -> None:
    net, sample = Net(bias=True).eval(), data(96)
    moments = calibrate(net, sample.batches)
    alone = {
        name: fit_alone(choice, Norm(moments[name]), init="fit")
        for name, choice in choices(net, **RANKS).items()
    }
    z = torch.cat([net(x) for x in sample.batches])

    def distance(fitted: dict) -> float:
        small = replaced(net, fitted)
        return float((torch.cat([small(x) for x in sample.batches]) - z).norm())

    with torch.no_grad():
        assert distance(sequential(net, sample, **RANKS)) < distance(alone)


def test_a_layer_that_stays_dense_makes_up_for_the_ones_before_it() -> None:
    net, sample = Net(bias=True).eval(), data(96)
    fitted = sequential(net, sample, wide=(2, 3), grouped=None)
    assert type(fitted["grouped"].module) is nn.Conv2d
    small = replaced(net, {"wide": fitted["wide"]})
    wanted = outputs(net, "grouped", sample)
    as_it_was = outputs(small, "grouped", sample)
    corrected = outputs(small, "grouped", sample, fitted["grouped"].module)
    assert (corrected - wanted).norm() < 0.99 * (as_it_was - wanted).norm()


def test_at_full_rank_nothing_changes() -> None:
    net, sample = Net(bias=True).eval().double(), data()
    sample = Sample(tuple(x.double() for x in sample.batches), call_model)
    full = {"wide": (8, 12), "grouped": (6, 4), "mirrored": (8, 10), "head": 6}
    fitted = sequential(net, sample, **full)
    small = replaced(net, fitted)
    x = sample.batches[0]
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-6, atol=1e-6)


def test_sensitivity_moves_the_error_to_where_it_does_not_matter() -> None:
    net, sample = Net().eval(), data()
    moments = calibrate(net, sample.batches)["wide"]
    choice = Choice(net.wide, SVD(), 3, 0)
    weights = torch.diag(torch.tensor([100.0] * 3 + [1.0] * 9, dtype=torch.float64))[None]
    y = outputs(net, "wide", sample)
    errors = []
    for sensitivity in (None, weights):
        fitted = fit_alone(choice, Norm(moments, sensitivity), init="fit")
        change = (outputs(net, "wide", sample, fitted.module) - y).square().mean((0, 2, 3))
        errors.append((float(change[:3].sum()), float(change.sum())))
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[1][1] > errors[0][1]


def test_inputs_that_are_not_finite_are_named() -> None:
    net = Net().eval()
    x = torch.randn(4, 3, 10, 10)
    x[2, 0, 3, 3] = torch.nan
    sample = Sample((x,), call_model)
    with pytest.raises(ValueError, match=r"inputs of 'wide' must be finite.*NaN"):
        sequential(net, sample, wide=(2, 2))


def test_types_and_modes_are_kept() -> None:
    net = Net(bias=True).to(torch.bfloat16)
    x = torch.randn(32, 3, 10, 10, dtype=torch.bfloat16)
    small, _ = sketchlayers.compress(net, "tucker2", rate=0.6, calibration=[x], seed=1)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert all(module.training for module in small.modules())
    assert small(x).isfinite().all()
