"""Runs a study that was done once to answer a question; without a name, lists what each found.

python experiments/study.py
python experiments/study.py method_speed --threads 2 --csv method_speed.csv
python experiments/study.py method_speed --help
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Sequence

import studies
from common.distributed import alone
from common.stopping import exit_code


def names() -> list[str]:
    """The studies, each a file of the folder."""
    return sorted(module.name for module in pkgutil.iter_modules(studies.__path__))


def finding(name: str) -> str:
    """What a study found: the paragraph of its docstring that begins with "Found:"."""
    doc = importlib.import_module(f"studies.{name}").__doc__ or ""
    found = re.search(r"^Found: (.*?)(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return " ".join(found[1].split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study; 0 on success, 2 when it could not start."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name not in names():
        for known in names():
            print(f"{known}: {finding(known)}\n")
        if name in ("-h", "--help"):
            return 0
        print(f"error: study: must be one of those above (got {name!r})", file=sys.stderr)
        return 2
    if name != "recipe_study":  # whose runs the processes of ``torchrun`` share
        alone()
    study = importlib.import_module(f"studies.{name}")
    return exit_code(lambda: study.main(rest))


if __name__ == "__main__":
    sys.exit(main())
