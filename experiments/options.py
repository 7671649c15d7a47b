"""What the commands of this folder have in common on the command line."""

from __future__ import annotations

import argparse


def documented_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the first paragraph of a script and ends with the others."""
    description, _, details = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
