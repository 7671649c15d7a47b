"""Writes the table of registers in docs/cuda.md: compiles every CUDA kernel and reads ptxas.

Usage: python docs/cuda_registers.py [architecture ...]      (default: 80 90 100)
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda.md"
BEGIN, END = "<!-- registers: begin -->", "<!-- registers: end -->"
ENTRY = re.compile(
    r"entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def load_toolkit():
    """The package's toolkit finder, without importing the package, which may not be built."""
    path = ROOT / "python" / "sketchlayers" / "_extension" / "toolkit.py"
    spec = importlib.util.spec_from_file_location("toolkit", path)
    module = sys.modules["toolkit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernels(source: Path, architectures: list[str]) -> str:
    """What ptxas says about the kernels of a file."""
    finder = load_toolkit()
    toolkit = finder.choose(torch.version.cuda, {"PATH": "", "FORCE_CUDA": "1"}, gpus=()).toolkit
    standard = "c++20" if torch.__version__ >= "2.12" else "c++17"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(toolkit.home / "bin" / "nvcc"),
            *("-O3", f"-std={standard}", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-c"),
            *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures),
            f"-I{ROOT / 'csrc'}",
            *(f"-isystem={path}" for path in cpp_extension.include_paths("cpu")),
            *("-o", f"{folder}/kernels.o", str(source)),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{source} does not compile:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def readable(names: list[str]) -> dict[str, str]:
    """Mangled names to short ones."""
    output = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()

    def short(name: str) -> str:
        name = name.replace("(anonymous namespace)::", "")
        name = re.sub(r"\(.*\)$", "", name.removeprefix("void "))
        for prefix in ("sketchlayers::cuda::", "c10::"):
            name = name.replace(prefix, "")
        return name.replace(" >", ">").replace("(bool)1", "true").replace("(bool)0", "false")

    return {mangled: short(name) for mangled, name in zip(names, output, strict=True)}


def table(architectures: list[str]) -> str:
    """The Markdown table, and whether anything spills in its first line."""
    rows: dict[str, dict[str, str]] = {}
    spills = 0
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    for source in sources:
        entries = [m.groupdict() for m in ENTRY.finditer(compile_kernels(source, architectures))]
        names = readable(sorted({entry["name"] for entry in entries}))
        for entry in entries:
            spilled = int(entry["stores"]) + int(entry["loads"])
            spills += spilled > 0
            cell = entry["registers"] + (f" ({spilled} spilled)" if spilled else "")
            rows.setdefault(f"`{names[entry['name']]}`", {})[entry["architecture"]] = cell
        print(f"{source.name}: {len(names)} kernels", flush=True)
    lines = [
        f"{len(rows)} kernels; {spills or 'no'} spills "
        f"(CUDA {torch.version.cuda.split('.')[0]}, registers a thread).",
        "",
        "| kernel | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "|---|" + "---|" * len(architectures),
        *(
            f"| {name} | " + " | ".join(cells.get(a, "") for a in architectures) + " |"
            for name, cells in sorted(rows.items())
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Replaces what is between the marks in the page."""
    architectures = sys.argv[1:] or ["80", "90", "100"]
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(architectures)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
