"""Packages that only some functions need, and the extra that installs each of them."""

from __future__ import annotations


def missing(what: str, package: str, extra: str | None = None) -> str:
    """What to say where a package is missing, in one sentence with the command that installs it.

    Args:
        what: needs the package.
        package: that cannot be imported.
        extra: of ``sketchlayers``; it has the package among its requirements. None: it has none.
    """
    install = package if extra is None else f'"sketchlayers[{extra}]"'
    return f"{what} needs {package}, which is not installed: pip install {install}"
