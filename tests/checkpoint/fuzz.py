"""Corrupted checkpoints by the thousand: each is refused in so many words, or it is sound.

    python tests/checkpoint/fuzz.py --files 100000

A quarter of them have bytes changed, cut out, inserted or cut off anywhere. The others have another
value somewhere in the JSON of the header or of what it holds, half of these under a checksum that
is right, so that the reader has to find what is wrong by itself.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import sketchlayers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.checkpoint.files import Parts
from tests.checkpoint.networks import Tiny, tiny

_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 4, 2**31, 2**63, 10**30, 0.5, 1e308, -0.0),
    *("", "same", "spatial", "SKConv2d", "SKLinear", "Conv2d", "Linear", "TuckerConv2d", "F16"),
    *([], [1, 1], [3, 3], [2**40, 2**40], [None, 1], {}, {"kind": "SKLinear"}, {"same_as": ""}),
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
            model = _changed(draw, model)
        metadata["sketchlayers.model"] = json.dumps(model)
    elif what < 0.8:
        parts.header = _changed(draw, parts.header)
    elif what < 0.9:
        place = draw.randrange(len(parts.data))
        new = draw.choice((b"\x7f", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 16))
        parts.data = (parts.data[:place] + new + parts.data[place:])[: len(parts.data)]
    else:
        key = draw.choice(list(metadata))
        metadata[key] = draw.choice((*map(str, _VALUES), "[" * 2000, '{"layers":{}}', "2"))
    try:
        return parts.signed().whole() if draw.random() < 0.5 else parts.whole()
    except Exception:  # not a file any more for which there is a checksum
        return parts.whole()


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

    def attempt(self, path: Path) -> None:
        """Loads a file; anything but a ``ValueError`` with a message or a sound network raises."""
        try:
            model = sketchlayers.load(path, into=self._network)
        except ValueError as error:
            reason = str(error).removeprefix(f"load: {path} cannot be loaded: ")
            assert reason and reason != str(error), error
            assert fingerprint(self._network) == self._before, "the network has changed"
            self.outcomes["refused"] += 1
            return
        assert not any(x.isnan().any() for x in model.state_dict().values())
        model.classifier(model.norm(model.features(torch.ones(1, 2, 3, 3))).flatten(1))
        self.outcomes["loaded"] += 1
        self._renew()


def main() -> None:
    """Runs as many files as asked for."""
    parser = argparse.ArgumentParser(description="Loads corrupted checkpoints.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin, target = time.perf_counter(), Target()
    with tempfile.TemporaryDirectory() as folder:
        path = sketchlayers.save(tiny(), Path(folder, "good.safetensors"))
        good, bad = path.read_bytes(), Path(folder, "bad.safetensors")
        for number in range(args.files):
            bad.write_bytes(corrupted(random.Random(f"{args.seed} {number}"), good))
            try:
                target.attempt(bad)
            except BaseException:
                print(f"file {number} of seed {args.seed}", file=sys.stderr)
                raise
            if (number + 1) % 10_000 == 0:
                print(f"{number + 1:,} files, {time.perf_counter() - begin:.0f} s", flush=True)
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(target.outcomes.items()))
    print(f"{args.files:,} corrupted files: {counts}; {time.perf_counter() - begin:.0f} seconds")


if __name__ == "__main__":
    main()
