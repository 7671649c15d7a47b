"""Which children a module uses through their weight instead of calling them.

``nn.MultiheadAttention`` hands ``self.out_proj.weight`` to a function, the fast path of
``nn.TransformerEncoderLayer`` does so with ``self.linear1.weight``, torchvision's Swin blocks with
``self.qkv.weight``. Such reads are found in the bytecode of ``forward`` and of the methods it
calls, so that code which only initialises ``self.conv.weight`` does not count.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from types import CodeType

from torch import nn

# An attribute of the weight that tells nothing of its values: `x.to(self.wo.weight.dtype)`.
_METADATA = frozenset({"dtype", "device", "shape", "size", "ndim", "dim", "is_cuda", "numel"})


@functools.cache
def weights_read(module: type[nn.Module]) -> frozenset[str]:
    """Finds the children whose weight ``forward`` reads: "out_proj", "attention.qkv"."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = ["forward"]
    while pending:
        method = pending.pop()
        if method in seen:
            continue
        seen.add(method)
        for code in _codes(module, method):
            for *path, last in _attribute_chains(code):
                pending.append(path[0] if path else last)
                chain = [*path, last]
                if "weight" not in chain[1:]:
                    continue
                at = chain.index("weight", 1)
                if not _METADATA.intersection(chain[at + 1 : at + 2]):
                    found.add(".".join(chain[:at]))
    return frozenset(found)


def _codes(module: type[nn.Module], method: str) -> Iterator[CodeType]:
    """Code of the method or property, as written in the class and in the bases it may extend."""
    for base in module.__mro__:
        if base is nn.Module:
            return
        member = vars(base).get(method)
        member = getattr(member, "fget", member) or getattr(member, "__func__", member)
        code = getattr(inspect.unwrap(member) if callable(member) else None, "__code__", None)
        if code is not None:
            yield from _with_nested(code)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def _attribute_chains(code: CodeType) -> Iterator[list[str]]:
    """Attribute names read one after the other from ``self``, such as ["out_proj", "weight"].

    An attribute of anything else comes alone: ``super().forward`` gives ["forward"].
    """
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")):
            if chain is None:
                yield [str(value)]
            else:
                chain.append(str(value))
            continue
        if chain:
            yield chain
        loaded = value[-1] if isinstance(value, tuple) and value else value
        chain = [] if ("LOAD_FAST" in name or name == "LOAD_DEREF") and loaded == "self" else None
    if chain:
        yield chain
