"""The LibTorch modules are the Python layers: parameters, signs, outputs and steps bit for bit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sketchlayers import SKConv2d, SKLinear

CONV = {"in_channels": 8, "out_channels": 12, "kernel_size": [3, 2], "seed": 5}
LINEAR = {"in_features": 70, "out_features": 40, "seed": 2**60 + 7}
CASES: dict[str, tuple[type[SKConv2d] | type[SKLinear], dict[str, Any], str]] = {
    "spatial": (SKConv2d, CONV | {"rank": 2, "padding": [1, 0], "stride": [2, 1]}, "auto"),
    "spatial, factored": (SKConv2d, CONV | {"rank": 2, "dilation": [2, 1]}, "factored"),
    "channel": (
        SKConv2d,
        CONV | {"rate": 0.4, "mixing": "channel", "groups": 2, "num_sketches": 2, "bias": False},
        "factored",
    ),
    "blocks": (
        SKConv2d,
        CONV | {"rank": 2, "blocks": 4, "signs": "hadamard", "padding": "same", "scale": 0.3},
        "auto",
    ),
    "dense parts": (
        SKConv2d,
        CONV
        | {"rank": 3, "frame": "signs", "groups": 2, "seed": 2**63 - 1}
        | {"padding": [2, 1], "padding_mode": "circular"},
        "auto",
    ),
    "reflected": (
        SKConv2d,
        CONV | {"rank": 1, "padding": [1, 1], "padding_mode": "reflect", "seed": None},
        "folded",
    ),
    "linear": (SKLinear, LINEAR | {"rate": 0.3, "scale": "normalized"}, "auto"),
    "linear, factored": (SKLinear, LINEAR | {"rank": 3, "num_sketches": 2}, "factored"),
    "linear, kept": (SKLinear, LINEAR | {"rank": 9, "blocks": 2, "frame": "signs"}, "auto"),
}
SIGNS = ("u1", "u2", "frame_signs")


def made(name: str) -> SKConv2d | SKLinear:
    """The layer of a case, and the path that it takes."""
    kind, options, path = CASES[name]
    layer = kind(**options)
    layer.path = path
    return layer


def results(layer: SKConv2d | SKLinear, input: Tensor, other: SKConv2d | SKLinear) -> dict:
    """What parity.cpp records, from the Python layer."""
    tensors = dict(layer.state_dict()) | {name: getattr(layer, name) for name in SIGNS}
    recorded = {name: value.clone() for name, value in tensors.items() if value is not None}
    recorded["in training"] = layer(input).detach()
    for _ in range(3):
        layer.zero_grad()
        layer(input).square().mean().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
    layer.eval()
    with torch.no_grad():
        recorded["in inference"] = layer(input)
        recorded["in inference again"] = layer(input)
        recorded["after loading"] = other.eval()(input)
    return recorded


def test_a_program_has_the_layers_of_python(program: Callable[[str], Path], tmp_path: Path) -> None:
    jobs, expected, trained = [], [], []
    for number, name in enumerate(CASES):
        kind, options, path = CASES[name]
        shape = (3, 8, 9, 10) if kind is SKConv2d else (3, 2, 70)
        input = torch.randn(shape)
        other = made(name)
        torch.manual_seed(number)
        layer = made(name)
        load, save = tmp_path / f"{number}_python.pt", tmp_path / f"{number}_cpp.pt"
        torch.save(dict(other.state_dict()), load)
        expected.append(results(layer, input, other))
        trained.append((layer, save))
        jobs.append(
            {"layer": kind.__name__, "options": options, "manual_seed": number, "path": path}
            | {"input": input, "load": str(load), "save": str(save)}
        )
    torch.save(jobs, tmp_path / "jobs.pt")

    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    files = [tmp_path / "jobs.pt", tmp_path / "results.pt"]
    subprocess.run([program("tests/cpp/parity.cpp"), *files], env=os.environ | threads, check=True)
    actual = [dict(pairs) for pairs in torch.load(tmp_path / "results.pt")]

    for name, ours, theirs in zip(CASES, expected, actual, strict=True):
        assert ours.keys() == theirs.keys(), name
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, f"{name}: {different}"
    for layer, save in trained:
        state = dict(torch.load(save))
        assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
        layer.load_state_dict(state)
