"""Writes the files in ``data`` that every later version must read; see ``test_versions.py``.

    python tests/checkpoint/make_data.py

Run once for each version of the format; files that are there are never written again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import sketchlayers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.checkpoint.networks import compressed

from sketchlayers.checkpoint._container import VERSION

DATA = Path(__file__).with_name("data")


def main() -> None:
    """Writes a network with every kind of layer, and what its layers compute."""
    network = compressed()
    path, outputs = DATA / f"version_{VERSION}.safetensors", DATA / f"outputs_{VERSION}.safetensors"
    if path.exists() or outputs.exists():
        raise SystemExit(f"{path} is there already, and must stay as it is")
    sketchlayers.save(network, path, reports=[{"method": "by hand", "layers": []}])
    with torch.no_grad():
        save_file({name: value.float() for name, value in network.outputs().items()}, outputs)


if __name__ == "__main__":
    main()
