"""The file itself: tensors and JSON in a safetensors file, under one checksum."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sketchlayers._runtime.files import shortened, written_whole
from sketchlayers._version import __version__

VERSION = 3
"""The latest of the format; see ``docs/file_format.md``."""

_READ = ("1", "2", "3")

LARGEST_HEADER = 16 * 2**20
"""Bytes; a header beyond that is refused unread. A tensor takes some hundred of them."""

PARTS = ("model", "reports")
"""What of the metadata is JSON."""

_PREFIX = "sketchlayers."
_ZIP = b"PK\x03\x04"
"""How a file of ``torch.save``, a ZIP archive, begins; as a length it is above any header's."""
_CHECKSUM = f"{_PREFIX}crc32"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Types of tensors that a file may hold, by the name that safetensors gives them."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """What the header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Entry:
        """That of this tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{_NAMES[self.dtype]} [{','.join(map(str, self.shape))}]"


class WrongFileError(ValueError):
    """What is wrong with a file."""


def write(
    path: Path, tensors: Mapping[str, Tensor], parts: Mapping[str, Any], *, version: int
) -> int:
    """Writes all or nothing; returns the size in bytes.

    Args:
        path: of the file.
        tensors: contiguous ones on the CPU, of `DTYPES`, no two with the same memory.
        parts: what JSON can hold, by a name of `PARTS`.
        version: of the format, the earliest that has what the file needs.
    """
    metadata = {"format": "pt", f"{_PREFIX}version": str(version), f"{_PREFIX}writer": __version__}
    for name, value in parts.items():
        metadata[_PREFIX + name] = json.dumps(value, separators=(",", ":"), allow_nan=False)
    metadata[_CHECKSUM] = checksum(metadata, tensors.items())
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, metadata)
    return path.stat().st_size


def checksum(metadata: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """CRC-32 of metadata and tensors as eight hexadecimal digits; both sorted by name."""
    crc = 0
    for name in sorted(metadata.keys() - {_CHECKSUM}):
        crc = zlib.crc32(f"{name}={metadata[name]}\n".encode(), crc)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        crc = zlib.crc32(f"{name} {Entry.of(tensor)}\n".encode(), crc)
        values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(values, crc)
    return f"{crc:08x}"


class Container:
    """An open file, of which the header has been read and found sound.

    Attributes:
        version: of the format.
        parts: what JSON held, by a name of `PARTS`.
        entries: of the tensors, by name.
    """

    def __init__(self, path: Path, file: Any) -> None:
        """Reads the header.

        Raises:
            WrongFileError: it is damaged, or of another kind of file.
        """
        self._file = file
        self._metadata: dict[str, str] = file.metadata() or {}
        self.version = _checked_version(self._metadata)
        self.parts = {
            name: _parsed(name, self._metadata[_PREFIX + name])
            for name in PARTS
            if _PREFIX + name in self._metadata
        }
        self.entries = {name: self._entry(name) for name in file.keys()}  # noqa: SIM118

    def _entry(self, name: str) -> Entry:
        view = self._file.get_slice(name)
        dtype, shape = view.get_dtype(), tuple(view.get_shape())
        if dtype not in DTYPES:
            raise WrongFileError(f"{name} must be of one of the types of the format (got {dtype})")
        return Entry(DTYPES[dtype], shape)

    def read(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, in memory of their own.

        Raises:
            WrongFileError: the checksum is another one, or a tensor has NaN.
        """
        # The file may change or shrink later on; what is mapped would, too.
        mapped = ((name, self._file.get_tensor(name)) for name in self.entries)
        tensors = {name: tensor.clone() for name, tensor in mapped}
        found, stored = checksum(self._metadata, tensors.items()), self._metadata.get(_CHECKSUM)
        if found != stored:
            raise WrongFileError(f"its checksum is {found} and should be {stored}")
        for name, tensor in tensors.items():
            if has_nan(tensor):
                raise WrongFileError(f"{name} holds NaN")
        return tensors


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The file at ``path``; no tensor is read before the caller asks for them.

    Raises:
        FileNotFoundError: there is no such file.
        WrongFileError: the file is no safetensors file of this package, damaged, or of a later
            version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    _check_header_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield Container(path, file)
    except SafetensorError as error:
        raise WrongFileError(
            f"it is no safetensors file, or damaged ({shortened(error)})"
        ) from error


def has_nan(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if tensor.element_size() == 1:  # there is no arithmetic in these types
        tensor = tensor.float()
    # A sum is many times faster; it may also be NaN because of infinities of both signs.
    return bool(tensor.sum().isnan()) and bool(tensor.isnan().any())


def _check_header_size(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_ZIP):
        raise WrongFileError("it is no safetensors file but one of torch.save, for torch.load")
    length = int.from_bytes(start, "little")
    if size < 8 or length > size - 8:
        raise WrongFileError(
            f"it is no safetensors file, or cut off (a header of {length:,} bytes in a file of "
            f"{size:,})"
        )
    if length > LARGEST_HEADER:
        raise WrongFileError(
            f"its header must have at most {LARGEST_HEADER:,} bytes (got {length:,})"
        )


def _checked_version(metadata: Mapping[str, str]) -> int:
    version = metadata.get(f"{_PREFIX}version")
    if version is None:
        kind = metadata.get("format", "")
        other = f" (it is a file of {kind})" if kind.startswith(_PREFIX) else ""
        raise WrongFileError(
            f"it was not written by sketchlayers.save{other}; for a file that holds tensors alone "
            "there is safetensors.torch.load_model"
        )
    if version not in _READ:
        raise WrongFileError(
            f"it is in version {version[:20]} of the format, written by sketchlayers "
            f"{metadata.get(f'{_PREFIX}writer', '')[:20]} (this one reads up to {VERSION}); "
            "update sketchlayers"
        )
    return int(version)


def _parsed(name: str, text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WrongFileError(f"{name} in its header is no JSON ({shortened(error)})") from error
