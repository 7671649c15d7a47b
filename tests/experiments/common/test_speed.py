from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from common.speed import measure_speeds, onnx_steps, pytorch_steps, training_steps


def test_speeds_are_those_of_the_networks_and_leave_them_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = {
        name: nn.Sequential(
            *(nn.Conv2d(3, channels, 5), nn.Conv2d(channels, 4, 5)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        for name, channels in (("wide", 256), ("narrow", 4))
    }
    before = {name: copied(network) for name, network in networks.items()}
    images = torch.randn(4, 3, 24, 24)
    kinds = [pytorch_steps(networks, images), training_steps(networks, images)]
    with torch.no_grad():
        exported = onnx_steps(networks, images, tmp_path)
    for steps in [*kinds, *([exported] if exported else [])]:
        speeds = measure_speeds(steps, len(images), torch.device("cpu"), seconds=0.01)
        assert speeds["wide"].times_as_fast == 1
        assert speeds["narrow"].times_as_fast > 1  # 64 times fewer operations
        assert 0 < speeds["narrow"].milliseconds < speeds["wide"].milliseconds
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[name][key])


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}
