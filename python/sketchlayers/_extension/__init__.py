"""The compiled extension: the operators (``torch.ops.sketchlayers``) and the module ``_C``.

All that computes with PyTorch's own operators works without it. So it is loaded when something
first needs it, and here alone: whoever needs it calls `require`, and the user is told in one
sentence what is missing and what to type. PyTorch, too, is imported when a function needs it, since
``sketchlayers doctor`` works where it does not load.

==================  ===========================================================
``installation``    the files of the extension, pip's records, and what is wrong
``toolkit``         the CUDA toolkit that it would be compiled with
``plan_costs``      the planner's constants of this machine
``flops``           formulas for PyTorch's counter of operations
==================  ===========================================================
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any, NoReturn

from sketchlayers._extension import installation
from sketchlayers._extension.installation import ExtensionFacts


@functools.cache
def load() -> ModuleType:
    """Registers the operators with PyTorch and returns the module ``sketchlayers._C``.

    Raises:
        ImportError, OSError: a file is missing or does not load, in PyTorch's or Python's words.
    """
    import torch

    from sketchlayers._extension import flops, plan_costs

    torch.ops.load_library(installation.LIBRARY)
    compiled = importlib.import_module("sketchlayers._C")
    plan_costs.load(compiled)
    flops.register()
    return compiled


def examine() -> ExtensionFacts:
    """Looks at the extension's files and pip's records, and loads it if they fit this PyTorch."""
    import torch

    facts = ExtensionFacts(
        torch=str(torch.__version__),
        required_torch=installation.required_torch(),
        pure=installation.is_pure(),
        missing=installation.missing_files(),
    )
    if not facts.may_load:
        return facts
    try:
        return dataclasses.replace(facts, build=load().build_info())
    except Exception as error:  # whatever it is, it is what the user needs to see
        cause = error.__cause__ or error  # PyTorch's own message is but the file's name
        message = " ".join(f"{type(cause).__name__}: {cause}".split())
        return dataclasses.replace(facts, load_error=message)


@functools.cache
def problem() -> str | None:
    """Why the extension cannot be used and what to type; None where it can be, and is loaded."""
    found = installation.diagnose_extension(examine())
    return None if found is None else f"{found.what}; type {found.remedy}"


def require(user: str) -> ModuleType:
    """The module ``sketchlayers._C``, with the operators registered.

    Args:
        user: what needs them, to begin the message with, such as ``"SKConv2d"``.

    Raises:
        ImportError: the extension cannot be used; the message says why and what to type.
    """
    why = problem()
    if why is not None:
        raise ImportError(f"{user} cannot be used: {why}")
    return load()


class _NoOperators:
    """In the place of the operators where there are none."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and its tools look for such names in any object
            raise AttributeError(name)
        raise ImportError(f"operator {name} cannot be used: {problem()}")


def operators() -> Any:
    """``torch.ops.sketchlayers``, or an object whose operators raise an ImportError when called."""
    import torch

    return torch.ops.sketchlayers if problem() is None else _NoOperators()
