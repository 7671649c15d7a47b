"""Convolutions as chains of factors: values, derivatives, transforms and bad input."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sketchlayers import ops

Array = np.ndarray[Any, np.dtype[np.float64]]
NAMES = ("input", "inputs", "core", "outputs", "bias")


@dataclass(frozen=True)
class Chain:
    """Sizes of a call; ranks of one group, 0 where there is no factor."""

    batch: int | None = 2
    in_channels: int = 4
    out_channels: int = 6
    size: tuple[int, int] = (6, 5)
    kernel: tuple[int, int] = (3, 3)
    ranks: tuple[int, int] = (3, 2)
    depthwise: bool = False
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def operands(self, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
        """Input, factors and bias, the same at every call."""
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

        g = self.groups
        inputs, outputs = self.in_channels // g, self.out_channels // g
        first, second = self.ranks[0] or inputs, self.ranks[1] or outputs
        lead = () if self.batch is None else (self.batch,)
        return [
            draw(*lead, self.in_channels, *self.size),
            draw(g * first, inputs, 1, 1) if self.ranks[0] else None,
            draw(g * second, 1 if self.depthwise else first, *self.kernel),
            draw(self.out_channels, second, 1, 1) if self.ranks[1] else None,
            draw(self.out_channels) if self.bias else None,
        ]

    @property
    def window(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def __call__(self, operands: list[Tensor | None], path: str = "fused") -> Tensor:
        input, inputs, core, outputs, bias = operands
        assert input is not None and core is not None
        return ops.tucker_conv2d(input, inputs, core, outputs, bias, *self.window, path=path)


def convolved(x: Array, w: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Array:
    """One pixel at a time: ``x (n, c, h, w)``, ``w (t, c / groups, h, w)``."""
    x = np.pad(x, [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2])
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    result = np.zeros((len(x), len(w), *sizes))
    filters, channels = w.reshape(groups, -1, *w.shape[1:]), w.shape[1]
    for i, j in itertools.product(*map(range, sizes)):
        top, left = i * stride[0], j * stride[1]
        seen = x[:, :, top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
        for g, own in enumerate(filters):
            part = seen[:, g * channels : (g + 1) * channels]
            columns = slice(g * len(own), (g + 1) * len(own))
            result[:, columns, i, j] = np.einsum("nchw,tchw->nt", part, own)
    return result


def reference(chain: Chain, operands: list[Tensor | None]) -> Array:
    """The chain in float64, factor after factor."""
    x, inputs, core, outputs, bias = (
        None if one is None else one.detach().double().numpy() for one in operands
    )
    assert x is not None and core is not None
    x = x if chain.batch is not None else x[None]
    once = ((1, 1), (0, 0), (1, 1))
    if inputs is not None:
        x = convolved(x, inputs, *once, chain.groups)
    groups = len(core) if chain.depthwise else chain.groups
    x = convolved(x, core, chain.stride, chain.padding, chain.dilation, groups)
    if outputs is not None:
        x = convolved(x, outputs, *once, chain.groups)
    x = x if bias is None else x + bias[:, None, None]
    return x if chain.batch is not None else x[0]


CHAINS = {
    "tucker": Chain(),
    "cp": Chain(ranks=(5, 5), depthwise=True),
    "no inputs": Chain(ranks=(0, 2)),
    "no outputs": Chain(ranks=(3, 0)),
    "core alone": Chain(ranks=(0, 0)),
    "rank 1": Chain(ranks=(1, 1)),
    "rank 1 to 3": Chain(ranks=(1, 3)),
    "groups": Chain(groups=2),
    "cp in groups": Chain(groups=2, ranks=(3, 3), depthwise=True),
    "strides": Chain(stride=(2, 1), padding=(0, 2)),
    "cp with strides": Chain(
        ranks=(5, 5), depthwise=True, stride=(2, 3), dilation=(2, 1), size=(9, 8)
    ),
    "pointwise": Chain(kernel=(1, 1), padding=(0, 0), ranks=(0, 2)),
    "pointwise with stride": Chain(kernel=(1, 1), padding=(0, 0), ranks=(0, 2), stride=(2, 2)),
    "row": Chain(kernel=(1, 3), padding=(0, 1), ranks=(4, 4), depthwise=True, bias=False),
    "unbatched": Chain(batch=None),
    "no images": Chain(batch=0),
    # More than a tile, of channels and of rows.
    "many": Chain(
        batch=3, in_channels=70, out_channels=65, size=(40, 37), ranks=(33, 50), kernel=(3, 5)
    ),
    "many of cp": Chain(
        batch=1, in_channels=50, out_channels=65, size=(70, 67), ranks=(90, 90), depthwise=True
    ),
    "small images": Chain(
        batch=1, in_channels=96, out_channels=80, size=(4, 4), ranks=(70, 70), depthwise=True
    ),
}
SMALL = {
    name: dataclasses.replace(chain, size=(4, 3) if max(chain.size) < 8 else (5, 4))
    for name, chain in CHAINS.items()
    if max(chain.size) < 10 and chain.in_channels < 10
}


def relative_error(got: Tensor, want: Array) -> float:
    difference = got.detach().double().numpy() - want
    return float(np.linalg.norm(difference) / max(np.linalg.norm(want), 1e-300))


@pytest.mark.parametrize("path", ["fused", "plain", "auto"])
@pytest.mark.parametrize("name", CHAINS)
def test_values(name: str, path: str) -> None:
    chain = CHAINS[name]
    operands = chain.operands()
    got = chain(operands, path)
    want = reference(chain, operands)
    assert got.shape == want.shape
    assert relative_error(got, want) < 1e-13


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CHAINS)
def test_precision(name: str, dtype: torch.dtype, threads: int) -> None:
    """No more than twice the error of PyTorch's layers in a row, or of rounding the result."""
    chain = CHAINS[name]
    operands = chain.operands(dtype)
    want = reference(chain, operands)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            if layout == torch.channels_last and chain.batch is not None:
                assert operands[0] is not None
                operands[0] = operands[0].contiguous(memory_format=layout)
            got = chain(operands)
            assert got.dtype == dtype
            allowed = 2 * relative_error(chain(operands, "plain"), want)
            assert relative_error(got, want) <= allowed + 4 * torch.finfo(dtype).eps
    finally:
        torch.set_num_threads(before)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_drawn_calls(data: st.DataObject) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    def pair(low: int, high: int) -> tuple[int, int]:
        return number(low, high), number(low, high)

    groups = number(1, 3)
    depthwise = data.draw(st.booleans())
    rank = number(1, 30)
    kernel, dilation, padding = pair(1, 4), pair(1, 3), pair(0, 3)
    least = [
        max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    chain = Chain(
        batch=number(1, 3),
        in_channels=groups * number(1, 20),
        out_channels=groups * number(1, 60),
        size=(number(least[0], least[0] + 20), number(least[1], least[1] + 30)),
        kernel=kernel,
        ranks=(rank, rank) if depthwise else (number(0, 20), number(0, 20)),
        depthwise=depthwise,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    operands = chain.operands(torch.float32)
    assert operands[0] is not None
    if data.draw(st.booleans()):
        operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
    want = chain([None if x is None else x.double() for x in operands], "plain").numpy()
    assert relative_error(chain(operands), want) < 1e-5


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name].batch != 0])
def test_derivatives(name: str) -> None:
    chain = SMALL[name]
    operands = [None if x is None else x.requires_grad_() for x in chain.operands()]
    leaves = [x for x in operands if x is not None]

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        return chain([None if x is None else next(given) for x in operands])

    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", [{name} for name in NAMES] + [{"core", "bias"}])
@pytest.mark.parametrize("name", ["tucker", "cp", "no inputs", "no outputs"])
def test_gradients_that_are_wanted(name: str, wanted: set[str]) -> None:
    chain = CHAINS[name]
    found = []
    for path in ("fused", "plain"):
        operands = chain.operands()
        leaves = [
            one.requires_grad_()
            for one, own in zip(operands, NAMES, strict=True)
            if one is not None and own in wanted
        ]
        if not leaves:
            return
        chain(operands, path).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for got, want in zip(*found, strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["tucker", "cp", "no inputs", "no outputs", "cp with strides"])
def test_opcheck(name: str) -> None:
    chain = SMALL[name]
    for dtype in (torch.float32, torch.float64):
        operands = [None if x is None else x.requires_grad_() for x in chain.operands(dtype)]
        operator = torch.ops.sketchlayers.tucker_conv2d_fused.default
        torch.library.opcheck(operator, (*operands, *chain.window), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_opcheck_of_composites(path: str) -> None:
    chain = Chain()
    input, inputs, core, outputs, bias = (
        None if x is None else x.requires_grad_() for x in chain.operands()
    )
    rows, columns = torch.randn(2, 1, 3, 1).double(), torch.randn(2, 1, 1, 3).double()
    assert inputs is not None
    calls = {
        "tucker_conv2d": (input, inputs, core, outputs, bias),
        "cp_conv2d": (input, inputs[:2], rows, columns, outputs, bias),
        "low_rank_conv2d": low_rank(chain)[0],
    }
    for name, operands in calls.items():
        operator = getattr(torch.ops.sketchlayers, name).default
        torch.library.opcheck(operator, (*operands, *chain.window), {"path": path})


def test_cp_is_tucker_with_a_depthwise_core() -> None:
    chain = CHAINS["cp"]
    input, inputs, _, outputs, bias = chain.operands()
    rows, columns = torch.randn(5, 1, 3, 1).double(), torch.randn(5, 1, 1, 3).double()
    assert input is not None and inputs is not None and outputs is not None
    want = reference(chain, [input, inputs, rows * columns, outputs, bias])
    for path in ("fused", "plain", "auto"):
        got = ops.cp_conv2d(input, inputs, rows, columns, outputs, bias, *chain.window, path=path)
        assert relative_error(got, want) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    chain = CHAINS["tucker"]
    operands = chain.operands(torch.float32)
    want = chain([None if x is None else x.to(dtype) for x in operands])
    with torch.autocast("cpu", dtype):
        got = chain(operands)
    assert got.dtype == dtype and torch.equal(got, want)


def test_vmap_and_forward_mode() -> None:
    chain = CHAINS["cp"]
    operands = chain.operands()
    x = torch.stack([torch.randn(2, 4, 6, 5).double() for _ in range(3)])
    got = torch.func.vmap(lambda one: chain([one, *operands[1:]], "auto"))(x)
    want = torch.stack([chain([one, *operands[1:]]) for one in x])
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(x[0])
    _, slope = torch.func.jvp(
        lambda one: chain([one, *operands[1:]], "auto"), (x[0],), (direction,)
    )
    torch.testing.assert_close(slope, chain([direction, *operands[1:4], None]))
    with pytest.raises(NotImplementedError, match="path 'auto' or 'plain'"):
        torch.func.jvp(lambda one: chain([one, *operands[1:]]), (x[0],), (direction,))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    chain = CHAINS["cp"]
    operands = chain.operands(torch.float32)
    compiled = torch.compile(
        lambda *tensors: chain(list(tensors), "auto") * 2,
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(*operands), chain(operands) * 2)


def right() -> dict[str, Any]:
    chain = Chain(groups=2)
    window = dict(zip(("stride", "padding", "dilation", "groups"), chain.window, strict=True))
    return dict(zip(NAMES, chain.operands(torch.float32), strict=True)) | window


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": lambda t: t.double()}, TypeError, "input must have the type"),
    ({"input": lambda t: t.long()}, TypeError, "input"),
    ({"inputs": lambda t: t.double()}, TypeError, "inputs must have the type"),
    ({"outputs": lambda t: t.half()}, TypeError, "outputs must have the type"),
    ({"bias": lambda t: t.half()}, TypeError, "bias must have the type"),
    ({"core": lambda t: t.int()}, TypeError, "core must be float32"),
    ({"core": lambda t: t.to("meta")}, RuntimeError, "inputs must be on the device"),
    ({"input": lambda t: t.to("meta")}, RuntimeError, "input must be on the device"),
    ({"core": lambda t: t.to_sparse()}, RuntimeError, "core must be a dense tensor"),
    ({"input": lambda t: t[:, :3]}, RuntimeError, "input must have shape"),
    ({"input": lambda t: t[0, 0]}, RuntimeError, "input must have shape"),
    ({"core": lambda t: t[0]}, RuntimeError, "core must have 4 dimensions"),
    ({"core": lambda t: t[:3]}, RuntimeError, "core must have a multiple of the groups"),
    ({"core": lambda t: t[:, :0]}, RuntimeError, "core must have sizes of at least 1"),
    ({"core": lambda t: t[:, :2]}, RuntimeError, "core must take the features"),
    ({"inputs": lambda t: t[:5]}, RuntimeError, "inputs must have a multiple"),
    ({"inputs": lambda t: t.expand(-1, -1, 3, 1)}, RuntimeError, "inputs must be a filter of"),
    ({"outputs": lambda t: t[:, :1]}, RuntimeError, "outputs must take the 2 features"),
    ({"bias": lambda t: t[:-1]}, RuntimeError, "bias must have shape"),
    ({"groups": 0}, ValueError, "groups must be at least 1"),
    ({"groups": -1}, ValueError, "groups must be at least 1"),
    ({"stride": 0}, ValueError, "stride must be two numbers"),
    ({"padding": -1}, ValueError, "padding must be two numbers"),
    ({"dilation": 2**40}, ValueError, "dilation must be two numbers"),
    ({"padding": 0, "input": lambda t: t[..., :2]}, RuntimeError, "kernel must fit"),
    ({"path": "folded"}, ValueError, "path must be 'auto', 'fused' or 'plain'"),
]


@pytest.mark.parametrize("path", ["auto", "fused", "plain"])
@pytest.mark.parametrize(("changes", "error", "match"), BAD)
def test_bad_input(changes: dict[str, Any], error: type[Exception], match: str, path: str) -> None:
    arguments = {"path": path} | right()
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    with pytest.raises(error, match=rf"(?s)^tucker_conv2d: .*{match}.*\(got ") as caught:
        ops.tucker_conv2d(**arguments)
    assert caught.type is error


def test_bad_filters_of_cp() -> None:
    x, inputs, outputs = torch.randn(1, 4, 6, 6), torch.randn(3, 4, 1, 1), torch.randn(5, 3, 1, 1)
    rows, columns = torch.randn(3, 1, 3, 1), torch.randn(3, 1, 1, 3)
    for bad in ((columns, rows), (rows[:2], columns), (rows, columns[0])):
        with pytest.raises(RuntimeError, match=r"cp_conv2d: .*(rows and columns|columns).*got"):
            ops.cp_conv2d(x, inputs, *bad, outputs)


def test_result_does_not_share_memory() -> None:
    chain = CHAINS["core alone"]
    operands = chain.operands(torch.float32)
    assert operands[0] is not None
    before = operands[0].clone()
    chain(operands).zero_()
    assert torch.equal(operands[0], before)


def test_layouts() -> None:
    """The result has the layout that PyTorch's convolution gives it."""
    chain = CHAINS["tucker"]
    for format in (torch.contiguous_format, torch.channels_last):
        operands = chain.operands(torch.float32)
        assert operands[0] is not None
        operands[0] = operands[0].contiguous(memory_format=format)
        for path in ("fused", "plain", "auto"):
            got = chain(operands, path)
            assert got.is_contiguous(memory_format=format)


def low_rank(chain: Chain, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Array]:
    """Operands of `ops.low_rank_conv2d` for a chain's convolution, and the float64 result."""
    generator = torch.Generator().manual_seed(4)
    (h, w), g, rank = chain.kernel, chain.groups, chain.ranks[0]
    shapes = [
        (2, chain.in_channels, *chain.size),
        (g * rank, chain.in_channels // g, h, 1),
        (chain.out_channels, rank, 1, w),
        (chain.out_channels,),
    ]
    operands = [
        torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes
    ]
    x, vertical, horizontal, bias = (one.double().numpy() for one in operands)
    window = chain.stride, chain.padding, chain.dilation
    rows = [(own[0], none) for own, none in zip(window, (1, 0, 1), strict=True)]
    columns = [(none, own[1]) for own, none in zip(window, (1, 0, 1), strict=True)]
    features = convolved(x, vertical, *rows, g)
    return operands, convolved(features, horizontal, *columns, g) + bias[:, None, None]


LOW_RANK = {
    "ordinary": Chain(),
    "groups": Chain(groups=2),
    "strides": Chain(stride=(2, 1), padding=(0, 2), dilation=(1, 2), kernel=(2, 3)),
    "row": Chain(kernel=(1, 3), padding=(0, 1)),
    "many": Chain(in_channels=40, out_channels=70, size=(33, 37), ranks=(50, 50), kernel=(5, 3)),
}


@pytest.mark.parametrize("path", ["fused", "plain", "auto"])
@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank(name: str, path: Any) -> None:
    chain = LOW_RANK[name]
    operands, want = low_rank(chain)
    assert relative_error(ops.low_rank_conv2d(*operands, *chain.window, path=path), want) < 1e-13
    operands = [one.float() for one in operands]
    for format in (torch.contiguous_format, torch.channels_last):
        operands[0] = operands[0].contiguous(memory_format=format)
        got = ops.low_rank_conv2d(*operands, *chain.window, path=path)
        assert relative_error(got, want) < 1e-5
        assert got.is_contiguous(memory_format=format)
    one = ops.low_rank_conv2d(operands[0][0], *operands[1:], *chain.window, path=path)
    assert relative_error(one, want[0]) < 1e-5


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_derivatives_of_low_rank(path: Any) -> None:
    chain = LOW_RANK["groups"]
    leaves = [one.requires_grad_() for one in low_rank(chain)[0]]

    def call(*tensors: Tensor) -> Tensor:
        return ops.low_rank_conv2d(*tensors, *chain.window, path=path)

    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)
    images = torch.stack([leaves[0].detach()] * 3)
    got = torch.func.vmap(lambda x: ops.low_rank_conv2d(x, *leaves[1:], *chain.window))(images)
    torch.testing.assert_close(got[2], call(*leaves))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"vertical": lambda t: t.mT}, RuntimeError, "must have shapes"),
        ({"horizontal": lambda t: t[:, :1]}, RuntimeError, "must have shapes"),
        ({"horizontal": lambda t: t[:-1]}, RuntimeError, "must have shapes"),
        ({"horizontal": lambda t: t.double()}, TypeError, "horizontal must have the type"),
        ({"vertical": lambda t: t[0]}, RuntimeError, "vertical must have 4 dimensions"),
        ({"input": lambda t: t[:, 1:]}, RuntimeError, "input must have shape"),
        ({"bias": lambda t: t[1:]}, RuntimeError, "bias must have shape"),
        ({"groups": 0}, ValueError, "groups must be at least 1"),
        ({"stride": 0}, ValueError, "stride must be two numbers"),
        ({"stride": (1, 1, 1)}, ValueError, "stride must be two numbers"),
        ({"padding": 0, "input": lambda t: t[..., :2]}, RuntimeError, "kernel must fit"),
        ({"path": "folded"}, ValueError, "path must be"),
    ],
)
def test_bad_input_of_low_rank(changes: dict[str, Any], error: Any, match: str) -> None:
    chain = LOW_RANK["groups"]
    operands, _ = low_rank(chain, torch.float32)
    names = ("input", "vertical", "horizontal", "bias")
    window = dict(zip(("stride", "padding", "dilation", "groups"), chain.window, strict=True))
    arguments = dict(zip(names, operands, strict=True)) | window
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    with pytest.raises(error, match=rf"(?s)^low_rank_conv2d: .*{match}.*\(got "):
        ops.low_rank_conv2d(**arguments)
