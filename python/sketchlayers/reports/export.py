"""What all reports can do: become a dict, become JSON, print as a table."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class Exported:
    """A dataclass that can be exported."""

    _derived: ClassVar[tuple[str, ...]] = ()
    """Properties that are exported beside the fields."""

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int, float and None."""
        fields = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: _plain(getattr(self, name)) for name in (*fields, *self._derived)}


class Printed(Exported):
    """A report whose ``str`` is a table, which also stands in place of a long ``repr``."""

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __repr__(self) -> str:
        return str(self)


def _plain(value: Any) -> Any:
    """The value as JSON knows it, which has neither tuples nor numbers that are not finite."""
    if isinstance(value, Exported):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ratio(after: float, before: float) -> float:
    """After / before; 1 where there was nothing."""
    return after / before if before else 1.0


def sum_known(values: Iterable[int | None]) -> int | None:
    """The sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
