"""Random calls of every operator: each gives a sound result or a Python exception that says why.

    python tests/ops/fuzz.py --calls 1000000 --seed random

More than half of the calls are valid. The others are valid ones with something else in them: other
sizes, strides, types, devices and layouts, numbers from -2^63 to 2^64, arguments that are missing.
A result must have the shape and type that it should. Some are compared to another way to compute
them, to the Meta kernel's answer, and to the same call again.
"""

from __future__ import annotations

import contextlib
import math
import random
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sketchlayers import ops  # noqa: F401  registers the operators

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests import fuzzing

_OPERATORS = torch.ops.sketchlayers
_SCHEMAS = [schema.name.partition("::") for schema in torch._C._jit_get_all_schemas()]
NAMES = sorted({name for package, _, name in _SCHEMAS if package == "sketchlayers"})

_TYPES = (torch.float32,) * 4 + (torch.float64, torch.bfloat16, torch.float16)
_OTHER_TYPES = (*_TYPES, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64)
_OTHER_TYPES += (torch.float8_e4m3fn,)
_SIZES = (1, 1, 1, 2, 2, 3, 4, 5, 7, 8, 16, 17, 33)
_NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 2**16, 2**31 - 1, 2**31, 2**32, 2**33 + 1)
_NUMBERS += (2**34, 2**39, 2**40, 2**62, 2**63 - 1, 2**63, 2**64)

# A call beyond these may ask for more memory than it is left; others fit many times over.
_MEMORY = 1 << 30  # bytes
_VAST = 1 << 22  # elements of all tensors together
_FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan)
_STRINGS = (
    "",
    "auto",
    "factored",
    "folded",
    "fused",
    "plain",
    "spatial",
    "channel",
    "Spatial",
    "\0",
    "é" * 99,
)

# Relative error of a result in the norm of all its elements, and in units of its elements.
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

# A message with one of these is not for people: something inside was not expected.
_NEVER = ("INTERNAL ASSERT", "bad_alloc", "std::", "please report", "vector::", "length_error")


@dataclass
class Call:
    """One call of an operator."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] | None = None  # of the results of a call known as valid
    dtype: torch.dtype = torch.float32  # of the results
    plain: bool = True  # nothing but ordinary numbers in all tensors
    trained: int = 0  # bit i: argument i requires gradients
    mode: str = ""  # "inference" or "autocast"

    def __str__(self) -> str:
        args = [_described(value) for value in self.args]
        args += [f"{name}={_described(value)}" for name, value in self.kwargs.items()]
        extra = f"  # {self.mode}" if self.mode else ""
        return f"torch.ops.sketchlayers.{self.name}({', '.join(args)}){extra}"

    def __call__(self) -> tuple[Tensor, ...]:
        result = getattr(_OPERATORS, self.name)(*self.args, **self.kwargs)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def of(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call of changed tensors."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        kwargs = {name: changed(value) for name, value in self.kwargs.items()}
        return Call(self.name, [changed(value) for value in self.args], kwargs)

    def on_meta(self) -> Call:
        """The same call of tensors without values."""
        return self.of(
            lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        )

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]

    def leaves(self) -> list[Tensor]:
        """The arguments that require gradients."""
        return [x for i, x in enumerate(self.args) if self.trained >> i & 1]


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    facts = [str(tuple(value.shape)), str(value.dtype).removeprefix("torch.")]
    if value.layout == torch.strided:
        facts.append(f"stride={value.stride()}")
        with contextlib.suppress(RuntimeError):  # nothing behind it
            first = value.detach().as_strided((min(3, value.numel()),), (1,))
            facts.append("".join(f"{x}, " for x in first.tolist()) + "...")
    else:
        facts.append(str(value.layout))
    if value.requires_grad:
        facts.append("requires_grad")
    return f"Tensor<{', '.join([*facts, *([] if value.is_cpu else [str(value.device)])])}>"


# ------------------------------------------------------------------------------- valid arguments


class Maker:
    """Makes valid calls: one method for each operator."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._numbers = torch.randn(1 << 21, generator=generator)
        bits = torch.randint(-(2**31), 2**31, (1 << 21,), generator=generator)
        self._bits = bits.to(torch.int32)
        self.draw = random.Random()

    def make(self, name: str) -> Call:
        """A valid call of an operator."""
        call: Call = getattr(self, f"_{name}")()
        call.name = name
        call.plain = self._plain
        return call

    def begin(self, draw: random.Random) -> None:
        """Everything that follows comes from here."""
        self.draw = draw
        self._dtype = draw.choice(_TYPES)
        self._plain = draw.random() < 0.9

    # Tensors.

    def _size(self) -> int:
        return self.draw.choice(_SIZES)

    def _tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers in memory of exactly their size, in one of many layouts."""
        dtype = dtype or self._dtype
        source = self._bits if dtype == torch.int32 else self._numbers

        def fresh(sizes: tuple[int, ...]) -> Tensor:
            count = math.prod(sizes)
            start = self.draw.randrange(len(source) - count)
            piece = source[start : start + count]
            values = piece.clone() if dtype == source.dtype else piece.to(dtype)
            if not self._plain and count and dtype.is_floating_point:
                self._spoil(values)
            return values.view(sizes)

        way = self.draw.random()
        if way < 0.6 or not shape:
            return fresh(shape)
        if way < 0.75 and len(shape) == 4:
            return fresh((shape[0], *shape[2:], shape[1])).permute(0, 3, 1, 2)
        if way < 0.85:
            order = self.draw.sample(range(len(shape)), len(shape))
            back = sorted(range(len(shape)), key=order.__getitem__)
            return fresh(tuple(shape[i] for i in order)).permute(back)
        if way < 0.95:
            at = self.draw.randrange(len(shape))
            wide = fresh((*shape[:at], 2 * shape[at], *shape[at + 1 :]))
            return wide[(slice(None),) * at + (slice(self.draw.randrange(2), None, 2),)]
        at = self.draw.randrange(len(shape))
        return fresh((*shape[:at], 1, *shape[at + 1 :])).expand(shape)

    def _spoil(self, values: Tensor) -> None:
        largest = torch.finfo(values.dtype).max
        special = self.draw.choice((math.nan, math.inf, -math.inf, 0.0, largest, 1e-45))
        if self.draw.random() < 0.5:
            values.fill_(special)
        else:
            values[self.draw.randrange(len(values))] = special

    def _seed(self) -> int:
        return self.draw.choice((0, 1, -1, 2**63 - 1, -(2**63), self.draw.getrandbits(40)))

    # Signs.

    def _signs(self, limit: int, columns: int) -> Call:
        rows = self.draw.choice((0, *_SIZES))
        matrix = self.draw.choice((0, 1, limit - 1, self.draw.randrange(limit)))
        kwargs = {} if self.draw.random() < 0.7 else {"device": torch.device("cpu")}
        shape = (rows, 4 * -(-columns // 128))
        call = Call("", [self._seed(), matrix, rows, columns], kwargs, (shape,), torch.int32)
        call.trained = -1
        return call

    def _sign_matrix(self) -> Call:
        return self._signs(2**32, self.draw.choice((0, 31, 32, 127, 128, 129, 300, *_SIZES)))

    def _hadamard_signs(self) -> Call:
        return self._signs(2**29, self.draw.choice((31, 32, 64, 129, *_SIZES)))

    def _unpack_signs(self) -> Call:
        lead = [self._size() for _ in range(self.draw.randrange(3))]
        words = self.draw.choice((0, 1, 3, 4, 8))
        start = self.draw.randrange(32 * words + 1)
        columns = self.draw.randrange(32 * words - start + 1)
        packed = self._tensor(*lead, words, dtype=torch.int32)
        kwargs: dict[str, Any] = {"start": start} if start or self.draw.random() < 0.5 else {}
        dtype = torch.float32
        if self.draw.random() < 0.6:
            dtype = kwargs["dtype"] = self._dtype
        if self.draw.random() < 0.5:
            kwargs["scale"] = self.draw.choice((1.0, -0.5, 0.0, 3.25))
        return Call("", [packed, columns], kwargs, ((*lead, columns),), dtype)

    # Sketches.

    def _sketch(self, linear: bool) -> None:
        """Draws the sizes of a sketched weight and makes its tensors."""
        draw = self.draw
        groups = 1 if linear else draw.choice((1, 1, 2, 3))
        blocks = draw.choice((1, 1, 1, 2, 4))
        sketches, rank = draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3, 6, 17))
        stacked = sketches * rank
        inputs, outputs = blocks * self._size(), blocks * self._size()
        kernel = () if linear else (draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3, 5)))
        taps = math.prod(kernel)
        spatial = linear or draw.random() < 0.5
        columns = inputs * taps
        self._groups, self._kernel = groups, kernel
        self._channels, self._outputs = groups * inputs, groups * outputs
        self._s1 = self._tensor(groups * stacked, inputs, *kernel)
        self._s2 = self._tensor(groups * outputs, stacked, *kernel)
        self._u1 = self._packed(blocks * stacked, outputs)
        rows = blocks * stacked * (taps if spatial else 1)
        self._u2 = self._packed(rows, columns if spatial else inputs)
        self._weight = (groups * outputs, inputs, *kernel)
        self._blocks, self._columns = blocks, columns
        self._options: dict[str, Any] = {}
        if not linear and (not spatial or draw.random() < 0.3):
            self._options["mixing"] = "spatial" if spatial else "channel"
        if sketches > 1 or draw.random() < 0.3:
            self._options["num_sketches"] = sketches
        if draw.random() < 0.5:
            self._options["scale"] = draw.choice((None, 0.5, -1.5))

    def _packed(self, rows: int, columns: int) -> Tensor:
        return self._tensor(self._groups, rows, 4 * -(-columns // 128), dtype=torch.int32)

    def _frame(self) -> dict[str, Tensor]:
        if self.draw.random() > 0.25:
            return {}
        return {"frame": self._packed(self._outputs // self._groups, self._columns)}

    def _is_linear(self) -> bool:
        return self.draw.random() < 0.4

    def _sk_weight(self) -> Call:
        self._sketch(self._is_linear())
        options = self._options | self._frame()
        operands = [self._s1, self._s2, self._u1, self._u2]
        return Call("", operands, options, (self._weight,), self._dtype)

    def _sk_weight_backward(self) -> Call:
        self._sketch(self._is_linear())
        options = self._options | self._frame()
        if self._blocks > 1 or self.draw.random() < 0.2:
            options["blocks"] = self._blocks
        shapes = (tuple(self._s1.shape), tuple(self._s2.shape))
        grad = self._tensor(*self._weight)
        return Call("", [grad, self._u1, self._u2], options, shapes, self._dtype)

    def _bias(self) -> Tensor | None:
        return self._tensor(self._outputs) if self.draw.random() < 0.5 else None

    def _pathed(self, options: dict[str, Any]) -> dict[str, Any]:
        frame = self._frame()
        paths = ("auto", "folded") if frame else ("auto", "folded", "factored", "factored")
        return options | frame | {"path": self.draw.choice(paths)}

    def _linear_call(self) -> Call:
        self._sketch(linear=True)
        lead = [self.draw.choice((0, *_SIZES)) for _ in range(self.draw.choice((0, 1, 1, 1, 2)))]
        x = self._tensor(*lead, self._channels)
        operands = [x, self._s1, self._s2, self._u1, self._u2, self._bias()]
        return Call("", operands, self._options, ((*lead, self._outputs),), self._dtype)

    def _sk_linear_factored(self) -> Call:
        return self._linear_call()

    def _sk_linear(self) -> Call:
        call = self._linear_call()
        call.kwargs = self._pathed(call.kwargs)
        return call

    def _sk_linear_factored_backward(self) -> Call:
        return self._backward(self._linear_call())

    def _geometry(self, kernels: Sequence[int]) -> list[list[int]]:
        """Stride, padding and dilation, and sizes of the input and of the output."""
        draw = self.draw
        stride, dilation, padding, sizes, results = [], [], [], [], []
        for kernel in kernels:
            far = draw.random() < 0.02  # numbers that are allowed, though nobody would take them
            stride.append(draw.choice((1, 1, 1, 2, 3, 5)))
            dilation.append(draw.choice((1, 1, 1, 2, 3)))
            padding.append(draw.choice((0, 0, 1, 2, 4)))
            if far:
                stride[-1] = dilation[-1] = draw.choice((63, 200, 1000))
                padding[-1] = dilation[-1] * (kernel - 1) // 2
            extent = dilation[-1] * (kernel - 1) + 1
            sizes.append(max(1, draw.randrange(1, 10), extent - 2 * padding[-1]))
            results.append((sizes[-1] + 2 * padding[-1] - extent) // stride[-1] + 1)
        if max(sizes) > 16:  # a dilated kernel that only a large image would hold
            stride, dilation, padding, sizes, results = [[n] * 2 for n in (1, 1, 2, 5, 0)]
            results = [10 - kernel for kernel in kernels]
        return [stride, padding, dilation, sizes, results]

    def _conv_call(self, unbatched: bool = False) -> Call:
        draw = self.draw
        self._sketch(linear=False)
        stride, padding, dilation, sizes, results = self._geometry(self._kernel)
        lead = [] if unbatched and draw.random() < 0.2 else [draw.choice((0, 1, 1, 2, 3))]
        x = self._tensor(*lead, self._channels, *sizes)
        operands = [x, self._s1, self._s2, self._u1, self._u2, self._bias()]
        geometry = [stride, padding, dilation, self._groups]
        shape = (*lead, self._outputs, *results)
        return Call("", operands + geometry, self._options, (shape,), self._dtype)

    def _sk_conv2d_factored(self) -> Call:
        return self._conv_call()

    def _sk_conv2d(self) -> Call:
        call = self._conv_call(unbatched=True)
        call.kwargs = self._pathed(call.kwargs)
        return call

    def _sk_conv2d_factored_backward(self) -> Call:
        return self._backward(self._conv_call())

    def _backward(self, forward: Call) -> Call:
        assert forward.shapes
        mask = [self.draw.random() < 0.7 for _ in range(3)]
        results = [
            tuple(like.shape) if want else (0,)
            for want, like in zip(mask, forward.args[:3], strict=True)
        ]
        args = [self._tensor(*forward.shapes[0]), *forward.args[:5], mask, *forward.args[6:]]
        return Call("", args, forward.kwargs, tuple(results), self._dtype)

    # Chains of factors.

    def _chain_call(self, unbatched: bool, cp: bool = False) -> Call:
        draw = self.draw
        groups = draw.choice((1, 1, 2, 3))
        channels, outputs, first, second = (self._size() for _ in range(4))
        depthwise = cp or draw.random() < 0.4
        has_inputs, has_outputs = (depthwise or draw.random() < 0.7 for _ in range(2))
        first = first if has_inputs else channels
        second = first if depthwise else second if has_outputs else outputs
        kernel = draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3, 5))
        stride, padding, dilation, sizes, results = self._geometry(kernel)
        lead = [] if unbatched and draw.random() < 0.2 else [draw.choice((0, 1, 1, 2, 3))]
        core = [self._tensor(groups * second, 1 if depthwise else first, *kernel)]
        if cp:
            shapes = (kernel[0], 1), (1, kernel[1])
            core = [self._tensor(groups * second, 1, *shape) for shape in shapes]
        bias = self._tensor(groups * outputs) if draw.random() < 0.5 else None
        operands = [
            self._tensor(*lead, groups * channels, *sizes),
            self._tensor(groups * first, channels, 1, 1) if has_inputs else None,
            *core,
            self._tensor(groups * outputs, second, 1, 1) if has_outputs else None,
            bias,
        ]
        shape = (*lead, groups * outputs, *results)
        geometry = [stride, padding, dilation, groups]
        return Call("", operands + geometry, {}, (shape,), self._dtype)

    def _chain_path(self) -> dict[str, Any]:
        return {"path": self.draw.choice(("auto", "plain", "fused", "fused"))}

    def _tucker_conv2d_fused(self) -> Call:
        return self._chain_call(unbatched=False)

    def _tucker_conv2d(self) -> Call:
        call = self._chain_call(unbatched=True)
        call.kwargs = self._chain_path()
        return call

    def _cp_conv2d(self) -> Call:
        call = self._chain_call(unbatched=True, cp=True)
        call.kwargs = self._chain_path()
        return call

    def _low_rank_conv2d(self) -> Call:
        draw = self.draw
        groups = draw.choice((1, 1, 2, 3))
        channels, outputs, rank = (self._size() for _ in range(3))
        kernel = draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3, 5))
        stride, padding, dilation, sizes, results = self._geometry(kernel)
        lead = [] if draw.random() < 0.2 else [draw.choice((0, 1, 1, 2, 3))]
        operands = [
            self._tensor(*lead, groups * channels, *sizes),
            self._tensor(groups * rank, channels, kernel[0], 1),
            self._tensor(groups * outputs, rank, 1, kernel[1]),
            self._tensor(groups * outputs) if draw.random() < 0.5 else None,
        ]
        geometry = [stride, padding, dilation, groups]
        shape = (*lead, groups * outputs, *results)
        return Call("", operands + geometry, self._chain_path(), (shape,), self._dtype)

    # Hashes.

    def _hashes(self) -> tuple[int, int, int, dict[str, list[int]]]:
        """Rows, columns, number of values, and tables."""
        draw = self.draw
        rows, columns = draw.choice((0, *_SIZES)), draw.choice((0, *_SIZES))
        count = self._size() * self._size()
        if draw.random() < 0.4:
            return rows, columns, count, {}
        taps = draw.choice((1, 2, 3, 9))
        first = [draw.randrange(count) for _ in range(taps)]
        buckets = [draw.randint(1, count - place) for place in first]
        return rows, columns * taps, count, {"first": first, "buckets": buckets}

    def _hash_seed(self) -> Tensor:
        seed = torch.tensor(self._seed())
        return seed if self.draw.random() < 0.8 else seed.reshape(1, 1)

    def _hashed_weight(self) -> Call:
        rows, columns, count, tables = self._hashes()
        args = [self._tensor(count), self._hash_seed(), rows, columns]
        return Call("", args, tables, ((rows, columns),), self._dtype)

    def _fresh_weight(self) -> Call:
        call = self._hashed_weight()
        taps = len(call.kwargs.get("first", [0]))
        dtype = self.draw.choice((torch.float32, torch.float64))
        call.args.insert(2, self._tensor(taps, taps, dtype=dtype))
        return call

    def _hashed_weight_backward(self) -> Call:
        rows, columns, count, tables = self._hashes()
        args = [self._tensor(rows, columns), self._hash_seed(), count]
        return Call("", args, tables, ((count,),), self._dtype)

    def _hash_entries(self) -> Call:
        rows, columns, count, tables = self._hashes()
        args = [self._hash_seed(), rows, columns, count]
        return Call("", args, tables, ((rows, columns),), torch.int64)


# ------------------------------------------------------------------------ arguments of any kind


def spoiled(draw: random.Random, call: Call) -> Call:
    """The call with something else in one argument or two; it may still be valid."""
    args, kwargs = list(call.args), dict(call.kwargs)
    for _ in range(draw.choice((1, 1, 1, 2))):
        what = draw.random()
        if what < 0.02 and args:
            args.pop()
        elif what < 0.04:
            args.append(draw.choice((None, 1, "x")))
        elif what < 0.06:
            kwargs[draw.choice(("blocks", "device", "nothing", "mixing", "first"))] = 3
        elif what < 0.3 and kwargs:
            name = draw.choice(list(kwargs))
            kwargs[name] = _other(draw, kwargs[name])
        elif args:
            at = draw.randrange(len(args))
            args[at] = _other(draw, args[at])
    return Call(call.name, args, kwargs, None, call.dtype, False)


def _other(draw: random.Random, value: Any) -> Any:
    if draw.random() < 0.03:
        return draw.choice((None, 1, -1, 0.5, "spatial", [1, 2], torch.ones(1), True))
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            with contextlib.suppress(RuntimeError):  # PyTorch makes no such tensor
                return _other_tensor(draw, value)
        return value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((*_NUMBERS, value + 1, value - 1, 2 * value))
    if isinstance(value, float) or value is None:
        return draw.choice(_FLOATS)
    if isinstance(value, str):
        return draw.choice(_STRINGS)
    if isinstance(value, torch.dtype):
        return draw.choice(_OTHER_TYPES)
    if isinstance(value, torch.device):
        return torch.device(draw.choice(("meta", "meta", "mps")))
    if isinstance(value, list):
        at = draw.randrange(len(value) + 1)
        if at == len(value) or draw.random() < 0.2:
            return value[:-1] if draw.random() < 0.5 else [*value, 1]
        return [*value[:at], _other(draw, value[at]), *value[at + 1 :]]
    return None


def _other_tensor(draw: random.Random, x: Tensor) -> Tensor:
    if x.numel() > 1 << 22:  # another change has made it so; a copy would not fit
        return x
    dims = x.dim()
    at = draw.randrange(dims) if dims else 0
    match draw.randrange(12):
        case 0:
            return x.to(draw.choice(_OTHER_TYPES))
        case 1 if dims:  # another size
            sizes = list(x.shape)
            sizes[at] = max(0, draw.choice((0, 1, sizes[at] - 1, sizes[at] + 1, 2 * sizes[at])))
            return x.new_zeros(sizes)
        case 2 if dims:  # no memory behind it
            sizes = [1] * dims
            sizes[at] = draw.choice((2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**61))
            return torch.zeros((), dtype=x.dtype).expand(sizes)
        case 3 if dims:
            sizes = list(x.shape)
            sizes[at] = draw.choice((0, 2**31 - 1, 2**31, 2**40, 2**58, 2**61))
            with contextlib.suppress(RuntimeError):
                return torch.empty(sizes, dtype=x.dtype, device="meta")
        case 4 if dims:  # nothing in it, and sizes that overflow
            sizes = list(x.shape)
            sizes[at] = draw.choice((2**31, 2**58, 2**60))
            sizes[draw.randrange(dims)] = 0
            with contextlib.suppress(RuntimeError):
                return torch.empty(sizes, dtype=x.dtype)
        case 5:
            return x.to("meta")
        case 6:
            with contextlib.suppress(RuntimeError):
                return x.to_sparse()
        case 7 if x.is_floating_point() and x.is_cpu:
            return torch._neg_view(x)
        case 8:
            return x.unsqueeze(0) if draw.random() < 0.5 else x.flatten()
        case 9 if dims > 1:
            return x.transpose(0, dims - 1)
        case 10 if x.dtype == torch.float32:
            with contextlib.suppress(RuntimeError):
                return x.to_mkldnn()
        case 11:
            return torch._efficientzerotensor(x.shape, dtype=x.dtype)
    return x[..., :0] if dims else x


# ---------------------------------------------------------------------------------- the verdict


class Operators:
    """The target: all operators."""

    def __init__(self, names: list[str] | None = None) -> None:
        torch.set_num_threads(1)
        self.maker = Maker()
        self.names = names or NAMES

    def attempt(self, draw: random.Random) -> str:
        """Makes one call and looks at what came of it."""
        call = self.call(draw)
        try:
            with _mode(call.mode):
                return self._judge(draw, call)
        except BaseException as error:
            error.add_note(f"the call was: {call}")
            raise

    def pytorch_alone(self, draw: random.Random) -> None:
        """Does the convolutions of a call, forward and backward, as PyTorch does them."""
        call = self.call(draw)
        with _mode(call.mode), torch.inference_mode(False):
            for image, filter, geometry in _convolutions(call):
                weight = filter.to(image.dtype).requires_grad_()
                image = image.clone().requires_grad_()
                output = torch.conv2d(image, weight, None, *geometry)
                torch.autograd.grad(output, [image, weight], torch.ones_like(output))

    def call(self, draw: random.Random) -> Call:
        """The call that a case is."""
        self.maker.begin(draw)
        call = self.maker.make(draw.choice(self.names))
        if draw.random() < 0.4:
            return spoiled(draw, call)
        differentiable = not call.name.endswith("backward") and call.trained == 0
        way = draw.random()
        if way < 0.1 and differentiable:
            call.trained = draw.getrandbits(6) & sum(
                1 << i
                for i, x in enumerate(call.args)
                if isinstance(x, Tensor) and x.is_floating_point()
            )
            if call.name in ("fresh_weight",):
                call.trained &= 1
        elif way < 0.13:
            call.mode = "inference"
        elif way < 0.16:
            call.mode = "autocast"
        call.trained = max(0, call.trained)
        return call

    def _judge(self, draw: random.Random, call: Call) -> str:
        for leaf in call.leaves():
            leaf.requires_grad_()
        try:
            with contextlib.nullcontext() if call.shapes else _little_memory():
                results = call()
        except Exception as error:
            assert call.shapes is None, f"a valid call was refused: {error}"
            _check_refusal(call, error)
            if draw.random() < 0.1:
                _check_meta(call, error)
            return "refused"
        if any(x.is_meta for x in results):
            return "shapes alone (meta)"
        assert all(x.is_cpu for x in results)
        if call.shapes is not None:
            assert tuple(tuple(x.shape) for x in results) == call.shapes, [x.shape for x in results]
            assert call.mode == "autocast" or {x.dtype for x in results} == {call.dtype}
        if call.trained:
            _check_gradients(draw, call, results[0])
        what = draw.random()
        if what < 0.05:
            _check_again(call, results)
        elif what < 0.15:
            _check_meta(call, results)
        elif what < 0.3 and call.shapes is not None and call.plain and not call.mode:
            _check_values(call, results)
        return "computed"


@contextlib.contextmanager
def _mode(name: str) -> Iterator[None]:
    if name == "inference":
        with torch.inference_mode():
            yield
    elif name == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    else:
        yield


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Refuses large allocations, as if the machine were small.

    Sanitizers reserve terabytes of addresses, and have a limit of their own (``make sanitize``).
    """
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if used < 1 << 40:
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _is_ours(error: Exception) -> bool:
    return str(error).partition(": ")[0] in NAMES


def _check_refusal(call: Call, error: Exception) -> None:
    """A type that PyTorch uses too, and a message for people.

    The message is the operator's own, unless the call never reached it, or ran out of memory.
    """
    message = str(error)
    kinds = (ValueError, TypeError, RuntimeError, NotImplementedError, OverflowError)
    assert type(error) in kinds, f"{type(error)}: {message}"
    assert not any(bad in message for bad in _NEVER), message
    excused = _is_ours(error) or not _fits_schema(call) or _is_foreign(call) or _is_vast(call)
    assert excused, f"PyTorch refuses what the operator took: {message}"


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


_IS_A: dict[str, Callable[[Any], bool]] = {
    "Tensor": lambda value: isinstance(value, Tensor),
    "int": _is_int,
    "float": lambda value: type(value) is float,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "ScalarType": lambda value: isinstance(value, torch.dtype),
    "Device": lambda value: isinstance(value, torch.device),
    "List[int]": lambda value: type(value) is list and all(map(_is_int, value)),
    "List[bool]": lambda value: type(value) is list and {type(x) for x in value} <= {bool},
}


def _given(call: Call) -> dict[str, Any]:
    """The arguments by the schema's names."""
    parameters = getattr(_OPERATORS, call.name).default._schema.arguments
    return dict(zip([one.name for one in parameters], call.args, strict=False)) | call.kwargs


def _fits_schema(call: Call) -> bool:
    """Whether each argument is plainly of its kind, so that PyTorch must hand it on."""
    parameters = getattr(_OPERATORS, call.name).default._schema.arguments
    given, names = _given(call), {one.name for one in parameters}
    if len(call.args) > sum(not one.kwarg_only for one in parameters):
        return False
    if len(given) < len(call.args) + len(call.kwargs) or given.keys() - names:
        return False
    return all(
        _fits(one, given[one.name]) if one.name in given else one.has_default_value()
        for one in parameters
    )


def _fits(parameter: Any, value: Any) -> bool:
    kind = str(parameter.real_type)
    if kind.startswith("Optional["):
        if value is None:
            return True
        kind = kind.removeprefix("Optional[").removesuffix("]")
    return _IS_A[kind](value) and parameter.N in (None, len(value) if "List" in kind else None)


def _is_foreign(call: Call) -> bool:
    """Whether PyTorch fails before a kernel could refuse the call.

    It does for a device, mix of devices or layout without a kernel, and for a negative view of a
    type that it cannot negate.
    """
    tensors = call.tensors()
    devices = {x.device.type for x in tensors}
    devices |= {x.type for x in call.kwargs.values() if isinstance(x, torch.device)}
    plain = all(x.layout == torch.strided and not x._is_zerotensor() for x in tensors)
    plain = plain and not any(x.is_neg() and x.dtype not in _TYPES for x in tensors)
    return not plain or len(devices) > 1 or not devices <= {"cpu", "meta"}


def _is_vast(call: Call) -> bool:
    """Whether operands, padded input and results, as the Meta kernels tell them, are large."""
    tensors = call.tensors()
    if any(_elements(x.shape) > _VAST for x in tensors):
        return True  # copies of it, though it may itself have no memory
    meta = call.on_meta()
    if not tensors:
        meta.kwargs["device"] = torch.device("meta")
    shapes = [tuple(x.shape) for x in meta()]
    if "conv2d" in call.name:
        given = _given(call)
        shape, (top, left) = given["input"].shape, given.get("padding", (0, 0))
        shapes.append((*shape[:-2], shape[-2] + 2 * top, shape[-1] + 2 * left))
    return any(_elements(shape) > _VAST for shape in shapes)


def _elements(shape: Sequence[int]) -> int:
    """Of zeros PyTorch counts none, but multiplies the other sizes for the strides."""
    return math.prod(max(1, size) for size in shape)


def _check_meta(call: Call, outcome: Exception | tuple[Tensor, ...]) -> None:
    """The meta device's answer is the same: shapes and types, or a refusal of the same kind."""
    tensors = call.tensors()
    if not tensors or call.mode or call.trained:
        return
    if not all(x.layout == torch.strided and x.is_cpu for x in tensors):
        return
    if not _fits_schema(call):  # a tensor may stand for a number, which it is not on that device
        return
    try:
        results = call.on_meta()()
    except Exception as error:
        assert isinstance(outcome, Exception), f"the meta device refuses: {error}"
        ours = _is_ours(outcome) and _is_ours(error)
        same = type(error) is type(outcome) or not ours
        assert same, f"{outcome!r} against {error!r} on the meta device"
        return
    if isinstance(outcome, Exception):
        assert not _is_ours(outcome), f"refused on the CPU alone: {outcome}"
        return
    facts = [[(x.shape, x.dtype) for x in found] for found in (outcome, results)]
    assert facts[0] == facts[1], facts


def _check_again(call: Call, results: tuple[Tensor, ...]) -> None:
    """The same bits every time."""
    for x, y in zip(call(), results, strict=True):
        bits = [z.detach().reshape(-1).contiguous().view(torch.uint8) for z in (x, y)]
        assert torch.equal(*bits) or _convolutions_are_wrong(call), "other bits"


def _check_gradients(draw: random.Random, call: Call, result: Tensor) -> None:
    leaves = call.leaves()
    if not leaves:
        return
    assert result.requires_grad
    grads = torch.autograd.grad(result, leaves, torch.ones_like(result))
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.shape == leaf.shape and grad.dtype == leaf.dtype


def _check_values(call: Call, results: tuple[Tensor, ...]) -> None:
    """Another way to compute the same: compositions of PyTorch's operations in float64."""
    with torch.no_grad():
        expected = _EXPECTED.get(call.name, _in_float64)(call)
    types = {x.dtype for x in (*call.tensors(), *results)}
    tolerance = max(_TOLERANCE.get(dtype, 1e-12) for dtype in types)
    for actual, right in zip(results, expected, strict=True):
        if not right.is_floating_point():
            assert torch.equal(actual, right), "wrong signs or places"
            continue
        error = (actual.detach().double() - right).norm()
        size = right.norm() + 3 * math.sqrt(right.numel())
        close = error <= tolerance * size or _convolutions_are_wrong(call)
        assert close, f"off by {float(error)} of {float(size)}"


@torch.inference_mode(False)
@torch.enable_grad()
def _convolutions_are_wrong(call: Call) -> bool:
    """Whether PyTorch's own convolution of this geometry and type is wrong on this processor.

    That of bfloat16 is with AMX, and that of one channel in channels_last (PyTorch 2.14), where a
    stride leaves one column: it, or the gradient of its filter, reads what nobody has written.
    """
    for image, filter, geometry in 3 * [*_convolutions(call)]:  # memory differs from call to call
        results = []
        for dtype in (torch.float64, image.dtype):
            weight = filter.to(dtype).requires_grad_()
            output = torch.conv2d(image.to(dtype), weight, None, *geometry)
            (gradient,) = torch.autograd.grad(output, weight, torch.ones_like(output))
            results.append((output.detach().double(), gradient.double()))
        for right, found in zip(*results, strict=True):
            if not (found - right).norm() <= 0.1 * right.norm():
                return True
    return False


def _convolutions(call: Call) -> Iterator[tuple[Tensor, Tensor, list[Any]]]:
    """Input, filter and geometry of the convolutions in a call: the dense one, a factor's."""
    if "conv2d" not in call.name:
        return
    backward = call.name.endswith("backward")
    given = _given(call)
    image = given["input"].detach()
    image = image if image.dim() == 4 else image[None]
    geometry = call.args[7:11] if backward else call.args[-4:]
    generator = torch.Generator().manual_seed(0)
    if call.name.startswith("sk_"):
        s1, s2, u2 = given["s1"], given["s2"], given["u2"]
        stacked = s1.shape[0] + math.prod(u2.shape[:2])  # with the signs beside S1
        shapes = [(rows, *s1.shape[1:]) for rows in (s2.shape[0], s1.shape[0], stacked)]
    elif call.name == "low_rank_conv2d":
        heights = image.shape[2], call.shapes[0][-2] if call.shapes else 1
        for axis, name in enumerate(("vertical", "horizontal")):
            filter = given[name].detach().clone()
            own = [[1, 1], [0, 0], [1, 1]]
            for pair, whole in zip(own, geometry[:3], strict=True):
                pair[axis] = whole[axis]
            shape = len(image), geometry[3] * filter.shape[1], heights[axis], image.shape[3]
            # Of one channel a copy would not have the strides.
            taken = torch.empty(shape, dtype=image.dtype, memory_format=torch.channels_last)
            yield taken.normal_(generator=generator), filter, [*own, geometry[3]]
        return
    else:  # the core's, of as many images as it reads
        core = given["core"] if "core" in given else given["rows"] * given["columns"]
        first, last = given.get("inputs"), given.get("outputs")
        depthwise = first is not None and last is not None and len(first) == len(core)
        groups = len(core) if depthwise and core.shape[1] == 1 else geometry[3]
        geometry = [*geometry[:3], groups]
        shapes = [tuple(core.shape)]
        image = image[:, :1].expand(-1, groups * core.shape[1], -1, -1)
        image = image.contiguous(memory_format=torch.channels_last)  # as the plain path takes it
    for shape in shapes:
        filter = torch.randn(shape, dtype=torch.float64, generator=generator)
        yield image, filter, geometry


def _in_float64(call: Call) -> tuple[Tensor, ...]:
    """There are no kernels of our own for it: compositions do it."""
    return call.of(lambda x: x.double() if x.is_floating_point() else x)()


def _sign_matrix(call: Call) -> tuple[Tensor, ...]:
    seed, matrix, rows, columns = call.args
    larger = _OPERATORS.sign_matrix(seed, matrix, rows + 1, columns + 130)
    return (larger[:rows, : 4 * -(-columns // 128)],)


def _hadamard_signs(call: Call) -> tuple[Tensor, ...]:
    seed, matrix, rows, columns = call.args
    more = _OPERATORS.hadamard_signs(seed, matrix, rows, columns)
    signs = _OPERATORS.unpack_signs(more, columns, dtype=torch.float64)
    if columns & (columns - 1) == 0:  # whole rows of one transform are orthogonal
        few = signs[:columns]
        assert torch.equal(few @ few.T, columns * torch.eye(len(few), dtype=torch.float64))
    return (more,)


def _unpack_signs(call: Call) -> tuple[Tensor, ...]:
    packed, columns = call.args
    bits = packed.unsqueeze(-1).bitwise_right_shift(torch.arange(32, dtype=torch.int32))
    start, scale = call.kwargs.get("start", 0), call.kwargs.get("scale", 1.0)
    signs = 1 - 2 * bits.bitwise_and(1).flatten(-2).double()
    return (signs[..., start : start + columns] * scale,)


def _entries(call: Call, seed: Tensor, rows: int, columns: int, count: int) -> tuple[Tensor, ...]:
    """Places and signs."""
    entries = _OPERATORS.hash_entries(seed, rows, columns, count, **call.kwargs)
    places = torch.where(entries < 0, ~entries, entries)
    return places, torch.where(entries < 0, -1.0, 1.0).double()


def _hashed_weight(call: Call) -> tuple[Tensor, ...]:
    values, seed, rows, columns = call.args
    places, signs = _entries(call, seed, rows, columns, len(values))
    return (values.double()[places] * signs,)


def _fresh_weight(call: Call) -> tuple[Tensor, ...]:
    basis = call.args[2].double()
    plain = Call("", [*call.args[:2], *call.args[3:]], call.kwargs)
    weight = _hashed_weight(plain)[0]
    return ((weight.reshape(-1, len(basis)) @ basis).reshape(weight.shape),)


def _hashed_weight_backward(call: Call) -> tuple[Tensor, ...]:
    grad, seed, count = call.args
    places, signs = _entries(call, seed, *grad.shape, count)
    total = torch.zeros(count, dtype=torch.float64)
    return (total.index_add(0, places.flatten(), (grad.double() * signs).flatten()),)


def _hash_entries(call: Call) -> tuple[Tensor, ...]:
    """Of more rows the first."""
    seed, rows, columns, count = call.args
    return (_OPERATORS.hash_entries(seed, rows + 3, columns, count, **call.kwargs)[:rows],)


_EXPECTED: dict[str, Callable[[Call], tuple[Tensor, ...]]] = {
    "sign_matrix": _sign_matrix,
    "hadamard_signs": _hadamard_signs,
    "unpack_signs": _unpack_signs,
    "hashed_weight": _hashed_weight,
    "fresh_weight": _fresh_weight,
    "hashed_weight_backward": _hashed_weight_backward,
    "hash_entries": _hash_entries,
}


if __name__ == "__main__":
    fuzzing.main("Calls the operators with random arguments.", "calls", 1_000_000, Operators)
