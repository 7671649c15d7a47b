"""Files taken apart and put together again, to be damaged on purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as load_bytes

from sketchlayers.checkpoint._container import checksum


@dataclass
class Parts:
    """The header of a safetensors file as JSON, and the bytes after it."""

    header: dict[str, Any]
    data: bytes

    @classmethod
    def of(cls, contents: bytes) -> Parts:
        """Those of a whole file."""
        end = 8 + int.from_bytes(contents[:8], "little")
        return cls(json.loads(contents[8:end]), contents[end:])

    @property
    def metadata(self) -> dict[str, str]:
        """All of it, the checksum too."""
        return self.header["__metadata__"]

    def model(self) -> dict[str, Any]:
        """The description of the model; a copy."""
        return json.loads(self.metadata["sketchlayers.model"])

    def with_model(self, **changes: Any) -> Parts:
        """Another description, under a checksum that is right."""
        metadata = self.metadata | {"sketchlayers.model": json.dumps(self.model() | changes)}
        return Parts(self.header | {"__metadata__": metadata}, self.data).signed()

    def signed(self) -> Parts:
        """The same under a checksum that is right."""
        tensors = load_bytes(self.whole())
        right = self.metadata | {"sketchlayers.crc32": checksum(self.metadata, tensors.items())}
        return Parts(self.header | {"__metadata__": right}, self.data)

    def whole(self) -> bytes:
        """The file."""
        header = json.dumps(self.header).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + self.data
