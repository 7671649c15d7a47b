"""Whole networks of 1-D, 3-D and transposed convolutions: compressed, stored, loaded, folded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.nn.factored.other_axes import CP_LAYERS, TUCKER_LAYERS

from . import convolutions

OTHER_AXES = TUCKER_LAYERS + CP_LAYERS

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3-D U-Net": (convolutions.UNet3d, (2, 2, 4, 8, 8)),
    "WaveNet": (convolutions.WaveNet, (4, 1, 40)),
    "DCGAN": (convolutions.dcgan_generator, (8, 20, 1, 1)),
    "R3D": (convolutions.r3d, (2, 3, 4, 16, 16)),
    "Swin3D": (convolutions.swin3d, (2, 3, 4, 16, 16)),
}


def network(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return make().eval(), [torch.randn(shape) for _ in range(3)]


CP = methods.CP(starts=1, max_sweeps=20)
QUICK = [(name, "tucker2") for name in NETWORKS] + [("WaveNet", CP), ("DCGAN", "svd")]
SLOW = [(name, CP) for name in NETWORKS if name != "WaveNet"]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_compressed_stored_loaded_and_folded(
    name: str, method: str | methods.Method, tmp_path: Path
) -> None:
    model, batches = network(name)
    how = {"layers": ["patch_embed.proj"], "rate": 0.99} if name == "Swin3D" else {"rate": 0.6}
    small, report = sketchlayers.compress(
        model, method, **how, calibration=batches, keep_first=False, progress=False
    )
    assert report.parameters_after <= how["rate"] * report.parameters_before
    new = {type(layer) for layer in small.modules()}
    assert new & set(OTHER_AXES)
    path = sketchlayers.save(small, tmp_path / "small.safetensors", reports=report)
    again = sketchlayers.load(path, into=NETWORKS[name][0]()).eval()
    folded = sketchlayers.fold(small)
    assert not any(isinstance(layer, methods.compressed_layers()) for layer in folded.modules())
    with torch.no_grad():
        expected = small(batches[0])
        assert torch.equal(again(batches[0]), expected)
        torch.testing.assert_close(folded(batches[0]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["3-D U-Net", "WaveNet", "DCGAN", "R3D"])
def test_exports(name: str) -> None:
    model, batches = network(name)
    small, _ = sketchlayers.compress(model, "tucker2", rate=0.6, init="fit", keep_first=False)
    program = torch.export.export(small, (batches[0],))
    torch.testing.assert_close(program.module()(batches[0]), small(batches[0]))


@pytest.mark.parametrize("name", ["WaveNet", "DCGAN"])
def test_data_help(name: str) -> None:
    """Fits in the norm of the outputs change them less than fits of the weights alone."""
    model, batches = network(name)
    how = {"rate": 0.6, "keep_first": False, "progress": False}
    _, fitted = sketchlayers.compress(model, "tucker2", calibration=batches, **how)
    plain, _ = sketchlayers.compress(model, "tucker2", init="fit", **how)
    with torch.no_grad():
        wanted, got = model(batches[0]), plain(batches[0])
    assert fitted.output_change < 0.9 * float((got - wanted).norm() / wanted.norm())


def test_inspection_lists_all_kinds() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 16, 5), nn.ConvTranspose1d(16, 16, 4, 2), nn.Conv1d(16, 16, 3, groups=16)
    )
    found = sketchlayers.inspect(model, example_inputs=torch.randn(1, 8, 20), keep_first=False)
    assert [row.reason is None for row in found.layers] == [True, True, False]
    assert "depthwise" in str(found.layers[2].reason)
    assert [row.multiply_adds for row in found.layers] == [16 * 16 * 40, 16 * 16 * 64, 32 * 16 * 3]


class Signals(nn.Module):
    """A convolution over the whole length of many signals."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, channels, 1)
        self.long = nn.Conv2d(channels, 64, (64, 1))
        self.leave = nn.Linear(64, 10)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.leave(self.long(self.enter(input).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("channels", [256, 1024])
def test_huge_kernels_need_no_moment(channels: int) -> None:
    """Of 16,384 and 65,536 inputs: a second moment would have 2 and 32 GiB."""
    torch.manual_seed(0)
    model = Signals(channels).eval()
    signals = torch.randn(128, 4, 66, 1)
    small, report = sketchlayers.compress(
        model, rate=0.5, calibration=[signals], memory_budget=256 << 20, progress=False
    )
    row = next(row for row in report.layers if row.name == "long")
    assert row.method == "svd"
    assert report.parameters_after <= 0.5 * report.parameters_before
    assert any("fitted in the norm of its weight" in note for note in report.notes)
    assert small(signals).shape == (128, 10)
    for method in ("tucker2", "cp"):
        found = sketchlayers.inspect(model, method=method).layers
        assert "method 'svd' takes it" in str(found[1].reason)
