"""Corrupted checkpoints by the thousand: each is refused in so many words, or it is sound.

    python tests/checkpoint/fuzz.py --files 100000 --seed random

A quarter of them have bytes changed, cut out, inserted or cut off anywhere. The others have another
value somewhere in the JSON of the header or of what it holds, half of these under a checksum that
is right, so that the reader has to find what is wrong by itself. Half of the files are of version
2, and half of version 3, with parameters of few bits.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import sketchlayers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests import fuzzing
from tests.checkpoint.files import Parts
from tests.checkpoint.networks import Tiny, tiny
from tests.checkpoint.rounded import tiny_rounded

_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 4, 2**31, 2**63, 10**30, 0.5, 1e308, -0.0),
    *("", "same", "spatial", "SKConv2d", "SKLinear", "Conv2d", "Linear", "TuckerConv2d", "F16"),
    *([], [1, 1], [3, 3], [2**40, 2**40], [None, 1], {}, {"kind": "SKLinear"}, {"same_as": ""}),
    *(8, 16, 17, "BF16", "U8", [4, 2], {"bits": 4, "shape": [4]}, {"bits": 8, "shape": [2, 2]}),
)


def corrupted(draw: random.Random, good: bytes) -> bytes:
    """The file with something else in it."""
    if draw.random() < 0.25:
        return _bytes_changed(draw, good)
    parts = Parts.of(good)
    metadata = parts.metadata
    what = draw.random()
    if what < 0.6:
        model = parts.model()
        for _ in range(draw.choice((1, 1, 2))):
            if isinstance(model, dict) and "rounded" in model and draw.random() < 0.5:
                model |= {"rounded": _changed(draw, model["rounded"])}
            else:
                model = _changed(draw, model)
        metadata["sketchlayers.model"] = json.dumps(model)
    elif what < 0.8:
        parts.header = _changed(draw, parts.header)
    elif what < 0.9:
        place = _place(draw, parts)
        new = draw.choice((b"\x7f", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 16))
        parts.data = (parts.data[:place] + new + parts.data[place:])[: len(parts.data)]
    else:
        key = draw.choice(list(metadata))
        metadata[key] = draw.choice((*map(str, _VALUES), "[" * 2000, '{"layers":{}}', "2"))
    try:
        return parts.signed().whole() if draw.random() < 0.5 else parts.whole()
    except Exception:  # not a file any more for which there is a checksum
        return parts.whole()


def _place(draw: random.Random, parts: Parts) -> int:
    """Where data is changed: anywhere, or in a tensor of few bits."""
    packed = [x["data_offsets"] for x in parts.header.values() if x.get("dtype") == "U8"]
    if packed and draw.random() < 0.5:
        return draw.randrange(*draw.choice(packed))
    return draw.randrange(len(parts.data))


def _bytes_changed(draw: random.Random, good: bytes) -> bytes:
    bad = bytearray(good)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(bad)) if draw.random() < 0.5 else draw.randrange(64)
        place = min(place, len(bad) - 1)
        length = draw.choice((1, 4, 8, 100))
        match draw.randrange(5):
            case 0:
                bad[place] ^= 1 << draw.randrange(8)
            case 1:
                bad[place : place + length] = draw.randbytes(length)
            case 2:
                del bad[place : place + length]
            case 3:
                bad[place:place] = draw.randbytes(length)
            case _:
                del bad[place + 1 :]
        bad = bad or bytearray(1)
    return bytes(bad)


def _changed(draw: random.Random, value: Any) -> Any:
    """JSON with one value, key or item changed, somewhere inside."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {name: x for name, x in value.items() if name != key}
            case 1:
                return value | {draw.choice((f"{key}x", "", "rate", "seed", "device")): value[key]}
            case _:
                return value | {key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 2, 2**40))
    return draw.choice(_VALUES)


def fingerprint(network: torch.nn.Module) -> tuple[object, ...]:
    """Which modules and tensors a network has, and the values of all of them."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    crcs = tuple((name, id(tensor), _crc(tensor.detach())) for name, tensor in tensors)
    return crcs, tuple((name, id(module)) for name, module in network.named_modules())


def _crc(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_meta else zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy())


class Target:
    """A network that files are loaded into."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._renew()

    def _renew(self) -> None:
        self._network = Tiny().eval()
        self._before = fingerprint(self._network)

    def attempt(self, path: Path) -> str:
        """Loads a file; anything but a ``ValueError`` with a message or a sound network raises."""
        try:
            model = sketchlayers.load(path, into=self._network)
        except ValueError as error:
            reason = str(error).removeprefix(f"load: {path} cannot be loaded: ")
            assert reason and reason != str(error), error
            assert fingerprint(self._network) == self._before, "the network has changed"
            self.outcomes["refused"] += 1
            return "refused"
        model.train().eval()  # where layers look at their seeds
        assert not any(x.isnan().any() for x in model.state_dict().values())
        model.classifier(model.norm(model.features(torch.ones(1, 2, 3, 3))).flatten(1))
        self.outcomes["loaded"] += 1
        self._renew()
        return "loaded"


class Files:
    """The target: files in a folder of their own."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory()
        self._bad = Path(self._folder.name, "bad.safetensors")
        self._good = [
            sketchlayers.save(network, self._bad).read_bytes()
            for network in (tiny(), tiny_rounded())
        ]
        self._target = Target()

    def attempt(self, draw: random.Random) -> str:
        """Writes one file and tries to load it."""
        self._bad.write_bytes(corrupted(draw, draw.choice(self._good)))
        return self._target.attempt(self._bad)


if __name__ == "__main__":
    fuzzing.main("Loads corrupted checkpoints.", "files", 100_000, Files)
