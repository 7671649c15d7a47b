"""Seeds of layers."""

from __future__ import annotations

import hashlib


def layer_seed(seed: int, name: str) -> int:
    """Derives the seed of one layer, 63 bits, from the model's seed and the layer's name.

    The rule never changes: it is the BLAKE2b hash, 8 bytes least significant first, of the text
    "seed:name".
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)
