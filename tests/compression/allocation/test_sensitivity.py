"""What errors of a layer's outputs do to the network's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.allocation.damage import (
    SQUARED_ERRORS,
    Damage,
    DamageMeter,
    Point,
    images_to_measure_on,
)
from sketchlayers.compression.allocation.sensitivity import (
    images_to_look_at,
    output_sensitivity,
)
from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.surgery.batches import call_model
from sketchlayers.surgery.replay import plan_replays
from sketchlayers.surgery.sample import Sample

ALONE = Processes("compress", join=False)


class Net(nn.Module):
    """A grouped convolution, an in-place activation and two linear layers; takes (N, 4, 5, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.conv(x)))
        return self.head(torch.tanh(self.hidden(x.mean((2, 3)))))


def sample_of(count: int = 6) -> Sample:
    return Sample((torch.randn(count, 4, 5, 5), torch.randn(count, 4, 5, 5)), call_model)


def exactly(net: Net, sample: Sample, name: str, groups: int) -> Tensor:
    """``E[sum over positions of J^T J]`` with the whole Jacobian."""
    layer = net.get_submodule(name)
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    total, images = torch.zeros(()), 0
    for batch in sample.batches:
        for x in batch:
            kept.clear()
            z = net(x[None])
            for value in z.flatten():
                (g,) = torch.autograd.grad(value, kept[0], retain_graph=True)
                g = g.flatten(2)[0] if g.ndim == 4 else g.T
                g = g.reshape(groups, -1, g.shape[-1]).double()
                total = total + g @ g.mT
            images += 1
    handle.remove()
    return total / images


def meter_of(net: nn.Module, sample: Sample) -> DamageMeter:
    outputs = OriginalOutputs(net, sample, ALONE, most_bytes=1 << 30)
    layers = ["conv", "hidden", "head"]
    return DamageMeter(net, layers, outputs, plan_replays(net, layers, sample.calls()))


def test_expectation_is_the_squared_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sketchlayers.compression.allocation.sensitivity.PROJECTIONS", 3000)
    net, sample = Net().eval(), sample_of(3)
    found = output_sensitivity(net, ["conv", "hidden", "head", "unused"], sample, ALONE)
    assert found.keys() == {"conv", "hidden", "head"}  # the other one is not reached
    for name, groups in (("conv", 2), ("hidden", 1), ("head", 1)):
        want = exactly(net, sample, name, groups)
        assert found[name].shape == want.shape, name
        assert (found[name] - want).norm() < 0.1 * want.norm(), name


def test_it_predicts_the_damage_of_a_small_change() -> None:
    """``tr(F D Sigma D^T)`` of the last layer is exact: the network is linear in it."""
    net, sample = Net().eval(), sample_of(40)
    f = output_sensitivity(net, ["head"], sample, ALONE)["head"][0]
    inputs: list[Tensor] = []
    handle = net.head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for batch in sample.batches:
        call_model(net, batch)
    handle.remove()
    meter = meter_of(net, sample)
    x = torch.cat(inputs).double()
    change = torch.randn(3, 7, dtype=torch.float64) / 10
    other = nn.Linear(7, 3)
    with torch.no_grad():
        other.weight.copy_(net.head.weight + change)
        other.bias.copy_(net.head.bias)
    predicted = ((f @ change @ (x.T @ x / len(x))) * change).sum()
    # F of the head is the identity; random signs leave noise off its diagonal.
    torch.testing.assert_close(f.diagonal(), torch.ones(3, dtype=torch.float64))
    assert meter.measure("head", other) == pytest.approx(float(predicted), rel=0.3)
    exact = (change @ (x.T @ x / len(x)) * change).sum()
    assert meter.measure("head", other) == pytest.approx(float(exact), rel=1e-4)


def test_more_outputs_than_passes() -> None:
    """The sum of few passes is singular; errors of every output do harm all the same."""
    net = nn.Sequential(nn.Conv2d(4, 40, 3), nn.Flatten(), nn.Linear(40 * 9, 500)).eval()
    found = output_sensitivity(net, ["0", "2"], sample_of(), ALONE)
    values = torch.linalg.eigvalsh(found["2"][0])  # the identity is right
    assert values[0] > 0.7 and values[-1] < 1.5
    mean = 3 * found["2"].diagonal(dim1=1, dim2=2).mean()
    assert mean.item() == pytest.approx(3)
    # What passes agree on stays: here that the first outputs count most.
    with torch.no_grad():
        net[2].weight *= torch.linspace(2, 0, 40).repeat_interleave(9)
    found = output_sensitivity(net, ["0"], sample_of(), ALONE)
    diagonal = found["0"][0].diagonal()
    assert diagonal[:10].mean() > 10 * diagonal[-10:].mean()


def test_frozen_parameters_and_modes_are_left_alone() -> None:
    net = Net().train()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    statistics = net.norm.running_mean.clone()
    found = output_sensitivity(net, ["conv", "hidden"], sample_of(), ALONE)
    assert found.keys() == {"conv", "hidden"}
    assert net.training and torch.equal(net.norm.running_mean, statistics)
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not net.conv._forward_hooks


def test_meter_puts_the_layers_back() -> None:
    net, sample = Net().eval(), sample_of()
    meter = meter_of(net, sample)
    first = meter.measure("hidden", nn.Linear(6, 7))
    assert first > 0
    assert meter.measure("hidden", net.hidden) == 0
    broken = nn.Linear(6, 7)
    nn.init.constant_(broken.weight, torch.nan)
    assert meter.measure("hidden", broken) == torch.inf
    assert isinstance(net.hidden, nn.Linear)


def test_large_graphs_are_cut() -> None:
    """Parts of a batch have a graph each; their sum is that of the batch."""

    class One(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum(1, keepdim=True)  # whose sign does not matter

    net, sample = One().eval(), sample_of()
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    whole = output_sensitivity(net, ["conv", "head"], sample, ALONE)
    batches = list(map(len, sample.batches))
    assert seen == [batches[0], *batches]
    seen.clear()
    # At least the inputs of both products and the activations between them.
    budget = 4 * 4 * (4 * 25 + 6 * 9 + 6 + 7)
    parts = output_sensitivity(net, ["conv", "head"], sample, ALONE, memory_budget=budget)
    assert seen[0] == batches[0] and max(seen[1:]) <= 4 and sum(seen[1:]) == sum(batches)
    for name, matrix in whole.items():
        torch.testing.assert_close(parts[name], matrix, rtol=1e-5, atol=0)


def test_an_eighth_of_many_images_is_enough() -> None:
    assert [images_to_look_at(images) for images in (50, 300, 1600, 9999)] == [50, 128, 200, 256]


@pytest.mark.parametrize(
    ("damage", "at", "want"),
    [
        (Damage([Point(1, 10), Point(4, 160)]), 2, 40),  # a straight line in logarithms
        (Damage([Point(1, 10), Point(4, 160)]), 0.5, 5),  # in proportion below
        (Damage([Point(1, 10), Point(4, 160)]), 8, 320),  # and above
        (Damage([Point(1, 10), Point(4, 5)]), 2, 10),  # never falls
        (Damage([Point(1, 10)]), 0, 0),
        (Damage([]), 0.7, 0.7),
    ],
)
def test_damage_is_interpolated(damage: Callable[[float], float], at: float, want: float) -> None:
    assert damage(at) == pytest.approx(want)


def test_measuring_costs_a_few_passes() -> None:
    assert images_to_measure_on(1024, 18) * 18 * len(SQUARED_ERRORS) <= 2.1 * 1024
    assert images_to_measure_on(1024, 2000) == 16
