"""``sketchlayers doctor``: what is installed, and the first thing that is wrong with it.

Three steps, so that each can be tested alone: :func:`examine` looks at the machine,
:func:`diagnose` judges what was seen, :func:`render` writes it down. Nothing here needs the
compiled extension, or even PyTorch, to work. With ``--device`` the CUDA kernels are checked instead
(`sketchlayers.cli.cuda_kernels`).
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sketchlayers import _extension
from sketchlayers._extension import toolkit
from sketchlayers._extension.installation import (
    PACKAGE,
    REBUILD,
    ExtensionFacts,
    Problem,
    diagnose_extension,
    minor_version,
)
from sketchlayers._extension.toolkit import Choice, ToolkitError
from sketchlayers._version import OLDEST_TORCH, __version__
from sketchlayers.cli import cuda_kernels


@dataclass(frozen=True)
class Gpu:
    """A GPU that PyTorch can use, and its compute capability, such as ``(9, 0)``."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts(ExtensionFacts):
    """What was seen of an installation.

    Attributes:
        torch_error: Why PyTorch cannot be imported.
        torch_cuda: The CUDA version that PyTorch was built with.
        gpus: The GPUs that PyTorch can use.
        toolkit: The CUDA toolkit that a build would use, and the reason.
        kernel_mode_error: What is wrong with the variable that says when CUDA kernels are used.
    """

    torch_error: str = ""
    torch_cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    toolkit: Choice = field(default_factory=lambda: Choice(None, ""))
    kernel_mode_error: str = ""


def examine() -> Facts:
    """Looks at this Python environment and this machine."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return Facts(torch=None, torch_error=f"{type(error).__name__}: {error}")
    extension = _extension.examine()
    return Facts(
        **vars(extension),
        torch_cuda=torch.version.cuda,
        gpus=tuple(
            Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
            for index in range(torch.cuda.device_count())
        ),
        toolkit=_choose_toolkit(torch),
        kernel_mode_error=_kernel_mode_error() if extension.build else "",
    )


def _kernel_mode_error() -> str:
    try:
        _extension.load().cuda_kernel_mode()
    except ValueError as error:
        return str(error)
    return ""


def _choose_toolkit(torch: Any) -> Choice:
    try:
        return toolkit.choose(torch.version.cuda, gpus=toolkit.gpus(torch))
    except (ValueError, ToolkitError) as error:
        return Choice(None, str(error))


def diagnose(facts: Facts) -> Problem | None:
    """The first thing that is wrong, or None."""
    if facts.torch is None:
        return Problem(f"PyTorch cannot be imported ({facts.torch_error})", "pip install torch")
    if minor_version(facts.torch) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Problem(
            f"PyTorch must be {oldest} or newer (got {facts.torch})", "pip install --upgrade torch"
        )
    if facts.left_out:
        return None
    return diagnose_extension(facts) or _diagnose_kernel_mode(facts) or _diagnose_gpus(facts)


def _diagnose_kernel_mode(facts: Facts) -> Problem | None:
    if not facts.kernel_mode_error:
        return None
    return Problem(facts.kernel_mode_error, "unset SKETCHLAYERS_CUDA_KERNELS")


def _diagnose_gpus(facts: Facts) -> Problem | None:
    assert facts.build is not None
    if not facts.gpus:
        return None
    if facts.build["cuda"] is None:
        remedy = REBUILD
        if facts.toolkit.toolkit is None and facts.torch_cuda is not None:
            remedy = f"{toolkit.install_hint(facts.torch_cuda)}, then {REBUILD}"
        return Problem(
            f"PyTorch has a GPU ({facts.gpus[0].name}) and this build is for CPU only", remedy
        )
    for gpu in facts.gpus:
        if not covers(facts.build["cuda_archs"], gpu.capability):
            wanted = ".".join(map(str, gpu.capability))
            return Problem(
                f"{gpu.name} has compute capability {wanted} and this build is for "
                f"{facts.build['cuda_archs']}",
                f'TORCH_CUDA_ARCH_LIST="{wanted}" {REBUILD}',
            )
    return None


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for some architectures runs on a GPU.

    Machine code runs on GPUs of its own major version and the same or a later minor one; PTX is
    compiled by the driver for any later GPU.

    Args:
        architectures: In the form of ``TORCH_CUDA_ARCH_LIST``, such as ``"8.0;9.0+PTX"``.
        capability: Compute capability of the GPU.
    """
    for architecture in re.split(r"[;\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", architecture)
        if match is None:  # a name, such as Hopper: nothing can be said against it
            return True
        compiled = int(match.group(1)), int(match.group(2))
        if compiled == capability:
            return True
        if match.group(3):  # architecture-specific code runs nowhere else
            continue
        if compiled < capability and (match.group(4) or compiled[0] == capability[0]):
            return True
    return False


def render(facts: Facts, problem: Problem | None) -> str:
    """The report, for people."""
    build = facts.build or {}
    rows = [
        ("sketchlayers", f"{__version__} at {PACKAGE}"),
        ("Python", f"{platform.python_version()} at {sys.executable}"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("PyTorch", _torch_line(facts)),
        ("built for", f"PyTorch {build['torch']}" if build else facts.required_torch or "unknown"),
        ("compiler", build.get("compiler", "unknown")),
        ("OpenMP", {True: "yes", False: "no", None: "unknown"}[build.get("openmp")]),
        ("CUDA kernels", _cuda_line(build)),
        ("GPU", ", ".join(_gpu_line(gpu) for gpu in facts.gpus) or "none that PyTorch can use"),
        ("CUDA toolkit", str(facts.toolkit.toolkit or facts.toolkit.reason or "not looked for")),
    ]
    lines = [f"{name:<14}{value}" for name, value in rows]
    if problem is not None:
        return "\n".join([*lines, "", f"Wrong: {problem.what}", f"Type:  {problem.remedy}"])
    without = diagnose_extension(facts)
    if without is None:
        return "\n".join([*lines, "", "All is well."])
    return "\n".join(
        [
            *lines,
            "",
            f"All is well, but {without.what}:",
            "sketched and hashed layers cannot be used, everything else works without it.",
            f"To have them type: {without.remedy}",
        ]
    )


def _torch_line(facts: Facts) -> str:
    if facts.torch is None:
        return "cannot be imported"
    return f"{facts.torch} ({f'CUDA {facts.torch_cuda}' if facts.torch_cuda else 'CPU only'})"


def _cuda_line(build: Mapping[str, Any]) -> str:
    if not build:
        return "unknown"
    if build["cuda"] is None:
        return "none (built for CPU only)"
    return f"CUDA {build['cuda']} for {build['cuda_archs']}"


def _gpu_line(gpu: Gpu) -> str:
    return f"{gpu.name} ({gpu.capability[0]}.{gpu.capability[1]})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``sketchlayers doctor``."""
    parser.add_argument(
        "--device",
        type=cuda_kernels.cuda_device,
        help="check and time all CUDA kernels on this device (cuda, cuda:1) instead",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report, or that on the CUDA kernels.

    Returns:
        0 when all is well, 1 when something is wrong.
    """
    if args.device is not None:
        return cuda_kernels.run(args.device)
    facts = examine()
    problem = diagnose(facts)
    print(render(facts, problem))
    return 0 if problem is None else 1
