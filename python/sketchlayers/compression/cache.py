"""Results of earlier calls, in a folder: what was done for the same inputs is not done again.

Every result is a file of its own, named by what it is and by a hash of all that it depends on, and
written whole or not at all: whatever ends a process, what was finished before stays. A file that
cannot be read is made again. Of a full disk, or one that cannot be written to, a warning tells, and
nothing more is kept.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sketchlayers._runtime.files import SAFETENSORS, shortened, written_whole

T = TypeVar("T")


class DamagedError(Exception):
    """What is wrong with a file."""


class Cache:
    """Results by kind and key, for one model, one set of images and one version of the package.

    Without a folder nothing is kept in files, and nothing found.

    Attributes:
        memory: what `remember` has been given.
    """

    def __init__(
        self, folder: Path | None = None, base: str = "", *, in_memory: bool = False
    ) -> None:
        """Makes the folder.

        Args:
            folder: of the caller, for any number of models; None: no files.
            base: tells apart models, images, and whatever all results depend on.
            in_memory: remember things for as long as this object lives.
        """
        self.memory: dict[str, Any] = {}
        self._in_memory = in_memory
        self._base = base
        self._folder = None if folder is None else folder / digest(base)[:16]
        self._keeps = self._folder is not None
        if self._folder is not None:
            self._trying(lambda: self._folder.mkdir(parents=True, exist_ok=True))  # type: ignore[union-attr]

    @property
    def in_use(self) -> bool:
        """Whether anything is kept, in files or in memory."""
        return self._keeps or self._in_memory

    def remember(self, key: str, value: object) -> None:
        """Keeps a value in memory."""
        if self._in_memory:
            self.memory[key] = value

    def key(self, *parts: object) -> str:
        """Returns a key that depends on ``repr`` of all parts."""
        return digest(self._base, *map(repr, parts))

    def get(self, kind: str, key: str, ending: str, read: Callable[[Path], T]) -> T | None:
        """Returns what ``read`` makes of a file; None if there is none, or it is damaged."""
        if self._folder is None:
            return None
        path = self._path(kind, key, ending)
        try:
            return read(path) if path.is_file() else None
        except Exception as error:  # whatever is wrong with it
            warnings.warn(
                f"compress: a file of the cache is damaged and will be made again: {path} "
                f"({type(error).__name__}: {shortened(error)})",
                UserWarning,
                stacklevel=2,
            )
            return None

    def put(self, kind: str, key: str, ending: str, write: Callable[[Path], object]) -> None:
        """Lets ``write`` write a file, whole or not at all."""
        if self._keeps:
            self._trying(lambda: write(self._path(kind, key, ending)))

    def _path(self, kind: str, key: str, ending: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{kind}-{key}{ending}"

    def _trying(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, SafetensorError) as error:
            self._keeps = False
            warnings.warn(
                f"compress: nothing more is kept in the cache {self._folder} "
                f"({type(error).__name__}: {shortened(error)})",
                UserWarning,
                stacklevel=2,
            )


def digest(*parts: str) -> str:
    """Returns a hash of texts, 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


JSON, TENSORS = ".json", SAFETENSORS
"""Endings of the two kinds of files."""


def write_json(path: Path, value: object) -> None:
    """Writes a value with a checksum."""
    text = json.dumps(value)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"checksum": digest(text), "value": value}))


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        DamagedError: the value is not what was written.
    """
    stored = json.loads(path.read_text())
    if digest(json.dumps(stored["value"])) != stored["checksum"]:
        raise DamagedError("its checksum is wrong")
    return stored["value"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], value: object = None) -> None:
    """Writes tensors, and a value that JSON knows, with a checksum."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(value)
    metadata = {"checksum": _checksum(whole, text), "value": text}
    with written_whole(path) as temporary:
        save_file(whole, temporary, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads what `write_tensors` wrote.

    Raises:
        DamagedError: the tensors are not what was written.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(tensors, metadata["value"]) != metadata["checksum"]:
        raise DamagedError("its checksum is wrong")
    return tensors, json.loads(metadata["value"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    return digest(text, *(f"{name} {hash_of(tensors[name])}" for name in sorted(tensors)))


def hash_of(tensor: Tensor) -> str:
    """Returns a hash of a tensor's type, shape and bytes; of a subclass, of its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, how = tensor.__tensor_flatten__()
        return digest(
            type(tensor).__qualname__, repr(how), *(hash_of(getattr(tensor, x)) for x in names)
        )
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    found = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
    found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
