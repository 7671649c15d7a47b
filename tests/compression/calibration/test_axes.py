"""Moments of 1-D, 3-D and transposed convolutions, against the patches as the layer itself sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration import calibration as stored
from sketchlayers.compression.calibration.moments import MomentSums
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.fitting.target import TargetSums
from sketchlayers.nn import dense_arguments
from sketchlayers.nn._geometry import Geometry, own_weight

LAYERS: dict[str, nn.Module] = {
    "1d": nn.Conv1d(8, 6, 3, padding=1),
    "1d strided": nn.Conv1d(8, 6, 3, stride=2, padding=2, dilation=2, groups=2),
    "1d circular": nn.Conv1d(8, 6, 4, padding="same", padding_mode="circular"),
    "1d same": nn.Conv1d(8, 6, 2, padding="same"),
    "3d": nn.Conv3d(8, 6, (2, 3, 2), padding=1),
    "3d strided": nn.Conv3d(4, 6, 2, stride=(1, 2, 1), padding=1, groups=2),
    "3d reflect": nn.Conv3d(8, 6, (1, 2, 2), padding=1, padding_mode="reflect"),
    "3d dilated": nn.Conv3d(8, 6, 2, dilation=(1, 2, 3), padding=2),
    "transposed 1d": nn.ConvTranspose1d(8, 6, 4, 2, 1),
    "transposed 1d dilated": nn.ConvTranspose1d(8, 6, 3, 3, 2, 1, groups=2, dilation=2),
    "transposed 2d": nn.ConvTranspose2d(8, 6, (3, 4), (1, 2), (1, 2), (0, 1)),
    "transposed 2d gaps": nn.ConvTranspose2d(4, 6, 2, stride=3),
    "transposed 2d cut": nn.ConvTranspose2d(4, 6, 2, stride=2, padding=2, groups=2),
    "transposed 3d": nn.ConvTranspose3d(8, 6, 2, 2),
    "transposed 3d uneven": nn.ConvTranspose3d(4, 6, (1, 3, 2), (2, 1, 2), (0, 1, 1), (1, 0, 0)),
}


def inputs(layer: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (6, 5, 4)[: len(layer.kernel_size)]
    return torch.randn(3, layer.in_channels, *size, dtype=torch.float64, generator=generator)


def outputs(layer: nn.Module, input: Tensor) -> Tensor:
    """Without the bias, (groups, outputs, positions)."""
    arguments = dense_arguments(layer) | {"bias": False}
    plain = type(layer)(**arguments, dtype=torch.float64)
    plain.weight.data.copy_(layer.weight)
    return plain(input).transpose(0, 1).reshape(layer.groups, -1, plain(input)[:, 0].numel())


def unfolded(layer: nn.Module, input: Tensor) -> Tensor:
    """All patches, (groups, inputs, positions), by filters that pick one entry each."""
    geometry = Geometry.of(layer)
    arguments: dict[str, Any] = dense_arguments(layer)
    arguments |= {"bias": False, "out_channels": geometry.patch * layer.groups}
    picking = type(layer)(**arguments, dtype=torch.float64)
    identity = torch.eye(geometry.patch, dtype=torch.float64).repeat(layer.groups, 1)
    picking.weight.data.copy_(own_weight(picking, identity))
    return outputs(picking, input).detach()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("alone", [False, True])
def test_moments_are_those_of_the_patches(name: str, alone: bool) -> None:
    layer = LAYERS[name]
    sums, batch = MomentSums(PatchGeometry.of(layer)), inputs(layer)
    for part in batch if alone else batch.split(2):
        sums.add(part)
    moments, patches = sums.take(), unfolded(layer, batch)
    assert moments is not None and moments.count == patches.shape[2]
    torch.testing.assert_close(moments.second_moment, patches @ patches.mT / moments.count)
    torch.testing.assert_close(moments.mean, patches.mean(2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("alone", [False, True])
def test_targets_are_the_outputs(name: str, alone: bool) -> None:
    layer = LAYERS[name].double()
    sums, before, now = TargetSums(layer), inputs(layer), inputs(layer, seed=1)
    pairs = zip(before, now, strict=True) if alone else [(before, now)]
    for pair in pairs:
        sums.add(*pair)
    target = sums.take(Processes("test", join=False))
    patches, wanted = unfolded(layer, now), outputs(layer, before).detach()
    count = patches.shape[2]
    assert target is not None
    torch.testing.assert_close(target.cross, wanted @ patches.mT / count)
    torch.testing.assert_close(target.mean, wanted.mean(2))
    assert target.square == pytest.approx(float(wanted.square().sum() / count))


@pytest.mark.parametrize("name", ["1d", "3d", "transposed 2d"])
def test_inputs_of_another_shape(name: str) -> None:
    layer = LAYERS[name]
    sums = MomentSums(PatchGeometry.of(layer))
    with pytest.raises(RuntimeError, match=r"inputs must have shape \(N, 8, "):
        sums.add(torch.randn(2, 7, 6, 6, 6))


def test_files(tmp_path: Any) -> None:
    """A calibration of all kinds of layers comes back from its file."""
    moments = {}
    for name, layer in LAYERS.items():
        sums = MomentSums(PatchGeometry.of(layer))
        sums.add(inputs(layer))
        moments[name] = sums.take()
    path = tmp_path / "moments.safetensors"
    stored.Calibration(moments, images=3, missing={}).save(path)
    again = stored.Calibration.load(path)
    for name, layer in LAYERS.items():
        assert again[name].geometry == PatchGeometry.of(layer)
        assert torch.equal(again[name].second_moment, moments[name].second_moment)
