"""Bad input: one clear error that names the operator, the rule and what was got."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sketchlayers import ops

from .problems import Conv, Layer, Linear

Arguments = dict[str, Any]


def conv_arguments(layer: Conv | None = None) -> Arguments:
    """A call of sk_conv2d that is right, as keyword arguments."""
    layer = layer or Conv(in_channels=6, out_channels=8, groups=2, rank=2, num_sketches=2)
    return {
        **common_arguments(layer),
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "mixing": layer.mixing,
    }


def linear_arguments() -> Arguments:
    """A call of sk_linear that is right, as keyword arguments."""
    return common_arguments(Linear(in_channels=6, out_channels=8, rank=2, num_sketches=2))


def common_arguments(layer: Layer) -> Arguments:
    return {
        **layer.operands(torch.float32).named(),
        **layer.packed_signs(),
        "num_sketches": layer.num_sketches,
    }


def fails(op: Callable, arguments: Arguments, error: type[Exception], match: str) -> None:
    """The call raises ``error``; its message names the operator, ``match`` and what was got."""
    name = op.__name__
    with pytest.raises(error, match=rf"^{name}: (?=.*\(got .+\)).*(?:{match})") as caught:
        op(**arguments)
    # ValueError and TypeError are what they say; RuntimeError must not be one of its subclasses.
    assert caught.type is error


def changed(arguments: Arguments, **changes: Any) -> Arguments:
    """The arguments with some replaced; a function is given the old value."""
    return arguments | {
        name: value(arguments[name]) if callable(value) else value
        for name, value in changes.items()
    }


PACKED_FRAME = torch.zeros(2, 4, 4, dtype=torch.int32)

EITHER = [
    # Types.
    ({"input": lambda t: t.double()}, TypeError, "input must have the type"),
    ({"input": lambda t: t.long()}, TypeError, "input"),
    ({"s2": lambda t: t.double()}, TypeError, "s1 and s2.* same type"),
    ({"s1": lambda t: t.int(), "s2": lambda t: t.int()}, TypeError, "s1 must be float32"),
    ({"s1": lambda t: t.to(torch.complex64)}, TypeError, "s1 must be float32"),
    ({"bias": lambda t: t.half()}, TypeError, "bias must have the type"),
    ({"u1": lambda t: t.float()}, TypeError, "u1 must be packed signs of type int32"),
    ({"u2": lambda t: t.long()}, TypeError, "u2 must be packed signs of type int32"),
    ({"frame": PACKED_FRAME.long()}, TypeError, "frame must be packed signs of type int32"),
    # Devices.
    ({"u1": lambda t: t.to("meta")}, RuntimeError, "u1.* device"),
    ({"u2": lambda t: t.to("meta")}, RuntimeError, "u2.* device"),
    ({"s2": lambda t: t.to("meta")}, RuntimeError, "s2.* device"),
    ({"input": lambda t: t.to("meta")}, RuntimeError, "input.* device"),
    ({"bias": lambda t: t.to("meta")}, RuntimeError, "bias.* device"),
    # Shapes.
    ({"s1": lambda t: t[:-1]}, RuntimeError, "s1 must have"),
    ({"s1": lambda t: t[:0], "s2": lambda t: t[:, :0], "u1": lambda t: t[:, :0]}, RuntimeError,
     "rank must be at least 1"),
    ({"s1": lambda t: t[None]}, RuntimeError, "s1"),
    ({"s1": lambda t: t[..., None, None, None]}, RuntimeError, "s1"),
    ({"s2": lambda t: t[:, :-1]}, RuntimeError, "s2 must have"),
    ({"s2": lambda t: t.flatten()}, RuntimeError, "s2"),
    ({"s2": lambda t: t[:0]}, RuntimeError, "at least 1"),
    ({"u1": lambda t: t[0]}, RuntimeError, "u1 must have"),
    ({"u1": lambda t: t[..., :-1]}, RuntimeError, "u1 must have"),
    ({"u1": lambda t: torch.cat([t, t], 1)}, RuntimeError, "blocks must divide|u2 must have"),
    ({"u1": lambda t: torch.cat([t, t[:, :1]], 1)}, RuntimeError, "s1 must have.* u1"),
    ({"u2": lambda t: t[:, :-1]}, RuntimeError, "u2 must have"),
    ({"u2": lambda t: torch.cat([t, t], 2)}, RuntimeError, "u2 must have"),
    ({"u2": lambda t: t[0]}, RuntimeError, "u2 must have"),
    ({"frame": PACKED_FRAME[:, :-1]}, RuntimeError, "frame must have"),
    ({"frame": PACKED_FRAME[..., :-1]}, RuntimeError, "frame must have"),
    ({"bias": lambda t: t[:-1]}, RuntimeError, "bias must have"),
    ({"bias": lambda t: t[None]}, RuntimeError, "bias must have"),
    ({"bias": lambda t: t[:1]}, RuntimeError, "bias must have"),
    # Values.
    ({"num_sketches": 0}, ValueError, "num_sketches must be at least 1"),
    ({"num_sketches": -2}, ValueError, "num_sketches must be at least 1"),
    ({"num_sketches": 3}, ValueError, "num_sketches must .*divide"),
    ({"scale": math.nan}, ValueError, "scale must be finite"),
    ({"scale": math.inf}, ValueError, "scale must be finite"),
    ({"path": "fastest"}, ValueError, "path must be 'auto', 'factored' or 'folded'"),
    ({"path": ""}, ValueError, "path must be"),
]  # fmt: skip

CONV = [
    ({"input": lambda t: t[0, 0]}, RuntimeError, "input must have"),
    ({"input": lambda t: t[None]}, RuntimeError, "input must have"),
    ({"input": lambda t: t[:, :-1]}, RuntimeError, "input must have shape"),
    ({"input": lambda t: t[0, :-1]}, RuntimeError, r"input must have shape.*got \[5, 5, 6\]"),
    ({"input": lambda t: t[..., :1]}, RuntimeError, "kernel"),
    ({"input": lambda t: t[:, :, :2]}, RuntimeError, "kernel"),
    ({"dilation": (1, 6)}, RuntimeError, "kernel"),
    ({"input": lambda t: t[..., :0]}, RuntimeError, "height and width must be at least 1"),
    ({"input": lambda t: t[..., :0], "padding": 4}, RuntimeError, "must be at least 1"),
    ({"stride": (0, 1)}, ValueError, "stride must be"),
    ({"stride": -1}, ValueError, "stride must be"),
    ({"stride": (1, 1, 1)}, ValueError, "stride must"),
    ({"padding": (0, -1)}, ValueError, "padding must"),
    ({"padding": (1, 1, 1)}, ValueError, "padding must"),
    ({"dilation": (0, 1)}, ValueError, "dilation must be"),
    ({"dilation": -3}, ValueError, "dilation must be"),
    ({"dilation": (1, 1, 1)}, ValueError, "dilation must"),
    ({"groups": 0}, (ValueError, RuntimeError), "groups"),
    ({"groups": -1}, (ValueError, RuntimeError), "groups"),
    ({"groups": 1}, RuntimeError, "groups|s1"),
    ({"groups": 4}, RuntimeError, "groups|s1"),
    ({"mixing": "spacial"}, ValueError, "mixing must be 'spatial' or 'channel'"),
    ({"mixing": "channel"}, RuntimeError, "u2 must have"),
    ({"s1": lambda t: t[..., :1]}, RuntimeError, "s2|u2"),
    ({"s1": lambda t: t.flatten(1), "s2": lambda t: t.flatten(1)}, RuntimeError,
     "4 dimensions|one group"),
]  # fmt: skip

LINEAR = [
    ({"input": lambda t: t[:, :-1]}, RuntimeError, "last dimension of input must be 6"),
    ({"input": lambda t: t[0, 0]}, RuntimeError, "last dimension of input must be 6"),
    ({"u1": lambda t: torch.cat([t, t])}, RuntimeError, "one group"),
    ({"s1": lambda t: t[..., None, None], "s2": lambda t: t[..., None, None]}, RuntimeError, "s1"),
]

WEIGHT = [
    ({"s1": lambda t: t.double()}, TypeError, "s1 and s2.* same type"),
    ({"u1": lambda t: t.float()}, TypeError, "u1 must be packed signs of type int32"),
    ({"s1": lambda t: t[:-1]}, RuntimeError, "s1 must have"),
    ({"s2": lambda t: t[:-1]}, RuntimeError, "out_channels must be divisible by groups"),
    ({"s2": lambda t: t[:, :-1]}, RuntimeError, "s2 must have"),
    ({"u1": lambda t: t[:1]}, RuntimeError, "s1 must have|u1 must have|u2 must have"),
    ({"u2": lambda t: t[:1]}, RuntimeError, "u2 must have"),
    ({"frame": PACKED_FRAME[:1]}, RuntimeError, "frame must have"),
    ({"mixing": ""}, ValueError, "mixing must be 'spatial' or 'channel'"),
    ({"num_sketches": 3}, ValueError, "num_sketches must .*divide"),
]


def check(op: Callable, arguments: Arguments, changes: Arguments, error: Any, match: str) -> None:
    bad = changed(arguments, **changes)
    if isinstance(error, tuple):
        with pytest.raises(error, match=rf"^{op.__name__}: (?=.*\(got .+\)).*(?:{match})"):
            op(**bad)
    else:
        fails(op, bad, error, match)


def on_every_path(cases: list) -> list:
    """Each case with each path; a frame has no factored one."""
    return [
        (*case, path)
        for case in cases
        for path in ("auto", "folded", "factored")
        if path != "factored" or "frame" not in case[0]
    ]


@pytest.mark.parametrize(("changes", "error", "match", "path"), on_every_path(EITHER + CONV))
def test_sk_conv2d(changes, error, match, path):
    check(ops.sk_conv2d, conv_arguments() | {"path": path}, changes, error, match)


@pytest.mark.parametrize(("changes", "error", "match", "path"), on_every_path(EITHER + LINEAR))
def test_sk_linear(changes, error, match, path):
    check(ops.sk_linear, linear_arguments() | {"path": path}, changes, error, match)


def test_a_frame_cannot_be_factored():
    bad = {"path": "factored", "frame": PACKED_FRAME}
    fails(ops.sk_conv2d, conv_arguments() | bad, ValueError, "frame")
    bad["frame"] = PACKED_FRAME.view(1, 8, 4)
    fails(ops.sk_linear, linear_arguments() | bad, ValueError, "frame")


@pytest.mark.parametrize(("changes", "error", "match"), WEIGHT)
def test_sk_weight(changes, error, match):
    arguments = conv_arguments()
    names = ("s1", "s2", "u1", "u2", "frame", "num_sketches", "mixing")
    check(ops.sk_weight, {name: arguments[name] for name in names}, changes, error, match)


def test_the_calls_that_the_errors_are_made_from_are_right():
    assert ops.sk_conv2d(**conv_arguments()).shape == (3, 8, 3, 5)
    assert ops.sk_linear(**linear_arguments()).shape == (3, 8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"matrix": -1}, "matrix must be in"),
        ({"matrix": 2**32}, "matrix must be in"),
        ({"rows": -1}, "rows must be in"),
        ({"rows": 2**32 + 1}, "rows must be in"),
        ({"columns": -1}, "columns must be in"),
        ({"columns": 2**39 + 1}, "columns must be in"),
        ({"columns": 2**63 - 1}, "columns must be in"),
        # Each is allowed; their product does not fit in 64 bits.
        ({"rows": 2**32, "columns": 2**39}, "fewer than 2"),
    ],
)
def test_sign_matrix(arguments, match):
    right = {"seed": 0, "matrix": 0, "rows": 2, "columns": 2}
    fails(ops.sign_matrix, right | arguments, ValueError, match)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_matrix_beyond_64_bits_fails_before_memory_is_asked_for(device):
    arguments = {"seed": 0, "matrix": 0, "rows": 2**32, "columns": 2**39, "device": device}
    fails(ops.sign_matrix, arguments, ValueError, "fewer than 2")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"packed": lambda t: t.long()}, TypeError, "packed signs must be int32"),
        ({"packed": lambda t: t.float()}, TypeError, "packed signs must be int32"),
        ({"packed": lambda t: t[0, 0]}, RuntimeError, "at least one dimension"),
        ({"columns": 129}, ValueError, "columns"),
        ({"columns": -1}, ValueError, "columns"),
        ({"columns": 2**63 - 1}, ValueError, "columns"),
        ({"start": -1}, ValueError, "start"),
        ({"start": 1}, ValueError, "columns"),
        ({"start": 2**63 - 1}, ValueError, "columns"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float32"),
        ({"dtype": torch.complex64}, TypeError, "dtype must be"),
    ],
)
def test_unpack_signs(changes, error, match):
    arguments = {"packed": ops.sign_matrix(0, 0, 2, 128), "columns": 128, "dtype": torch.float32}
    fails(ops.unpack_signs, changed(arguments, **changes), error, match)


def huge(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of any size that takes no memory."""
    return torch.zeros(1, dtype=dtype).expand(*sizes)


def test_a_weight_beyond_64_bits_is_refused():
    arguments = {
        "s1": huge(1, 2**34),
        "s2": huge(2**34, 1),
        "u1": huge(1, 1, 2**29, dtype=torch.int32),
        "u2": huge(1, 1, 2**29, dtype=torch.int32),
    }
    fails(ops.sk_weight, arguments, ValueError, "fewer than 2")
    fails(ops.sk_linear, {"input": huge(1, 2**34), **arguments}, ValueError, "fewer than 2")


def on(device: str, arguments: Arguments) -> Arguments:
    """The arguments on a device."""
    return {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("path", ["auto", "folded", "factored"])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_geometry_that_no_convolution_of_pytorchs_can_hold_is_refused(name, path, device):
    """Their 32 bits would wrap around to something that looks right."""
    arguments = on(device, conv_arguments())
    for number in (2**15 + 1, 2**31, 2**33 + 1, 2**62, 2**63 - 1):
        for pair in ([1, number], [number, 1]):
            changes = {name: pair, "path": path}
            fails(ops.sk_conv2d, arguments | changes, ValueError, rf"{name} must be .* to 32768")


@pytest.mark.parametrize("path", ["auto", "folded", "factored"])
def test_the_largest_stride_padding_and_dilation_are_allowed(path):
    arguments = on("meta", conv_arguments()) | {"path": path}
    largest = {"stride": (1, 2**15), "padding": (2**15, 2**15), "dilation": (2**15, 2**15)}
    # (5 + 2 * 2^15 - 2 * 2^15 - 1) + 1 rows, (6 + 2 * 2^15 - 2^15 - 1) // 2^15 + 1 columns
    assert ops.sk_conv2d(**arguments | largest).shape == (3, 8, 5, 2)


def test_an_error_leaves_the_operands_as_they_were():
    arguments = conv_arguments()
    before = {name: value.clone() for name, value in arguments.items() if torch.is_tensor(value)}
    with pytest.raises(ValueError, match="path must be"):
        ops.sk_conv2d(**arguments, path="fast")
    for name, value in before.items():
        assert torch.equal(arguments[name], value)


@pytest.mark.parametrize("path", ["auto", "folded", "factored"])
@pytest.mark.parametrize("op", [ops.sk_conv2d, ops.sk_linear])
def test_autocast_reconciles_no_double_with_other_types(op, path):
    """Autocast leaves float64 alone, so that it cannot meet the half type of the others."""
    arguments = conv_arguments() if op is ops.sk_conv2d else linear_arguments()
    arguments |= {"input": arguments["input"].double(), "path": path}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fails(op, arguments, TypeError, "input must have the type")


OPERATORS = torch.ops.sketchlayers


def backward_arguments(arguments: Arguments) -> Arguments:
    """The same operands for the backward operator of the factored path."""
    dropped = ("bias", "frame")
    kept = {name: value for name, value in arguments.items() if name not in dropped}
    return {"grad": torch.ones(3, 8, 3, 5), "output_mask": [True] * 3, **kept}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"grad": torch.ones(3, 8, 3, 4)}, RuntimeError, "shape of the output"),
        ({"grad": torch.ones(8, 3, 5)}, RuntimeError, "shape of the output"),
        ({"grad": torch.ones(3, 8, 3, 5).double()}, TypeError, "grad must have the type"),
        ({"input": lambda t: t[:, :-1]}, RuntimeError, "input must have shape"),
        ({"s2": lambda t: t[:, :-1]}, RuntimeError, "s2 must have"),
        ({"u1": lambda t: t.float()}, TypeError, "u1 must be packed signs of type int32"),
        ({"stride": 0}, ValueError, "stride must be"),
    ],
)
def test_the_backward_of_the_factored_convolution(changes, error, match):
    right = backward_arguments(conv_arguments())
    assert len(OPERATORS.sk_conv2d_factored_backward(**right)) == 3
    with pytest.raises(
        error, match=rf"^sk_conv2d_factored_backward: (?=.*\(got .+\)).*(?:{match})"
    ):
        OPERATORS.sk_conv2d_factored_backward(**changed(right, **changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"grad": torch.ones(3, 7)}, RuntimeError, "shape of the output"),
        ({"grad": torch.ones(8)}, RuntimeError, "shape of the output"),
        ({"grad": torch.ones(3, 8).half()}, TypeError, "grad must have the type"),
        ({"s2": lambda t: t[:, :-1]}, RuntimeError, "s2 must have"),
    ],
)
def test_the_backward_of_the_factored_linear_layer(changes, error, match):
    right = backward_arguments(linear_arguments()) | {"grad": torch.ones(3, 8)}
    assert len(OPERATORS.sk_linear_factored_backward(**right)) == 3
    with pytest.raises(
        error, match=rf"^sk_linear_factored_backward: (?=.*\(got .+\)).*(?:{match})"
    ):
        OPERATORS.sk_linear_factored_backward(**changed(right, **changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"grad": torch.ones(8, 3, 3)}, RuntimeError, "shape of the dense weight"),
        ({"grad": torch.ones(8, 3, 3, 3)}, RuntimeError, "u2 must have"),
        ({"grad": torch.ones(600, 3, 3, 2)}, RuntimeError, "u1 must have"),
        ({"grad": torch.ones(7, 3, 3, 2)}, RuntimeError, "divisible by groups"),
        ({"grad": torch.ones(8, 3, 3, 2).int()}, TypeError, "grad must be float32"),
        ({"mixing": "channels"}, ValueError, "mixing must be"),
    ],
)
def test_the_backward_of_the_weight(changes, error, match):
    arguments = conv_arguments()
    kept = {name: arguments[name] for name in ("u1", "u2", "num_sketches", "mixing", "frame")}
    right = {"grad": torch.ones(8, 3, 3, 2), **kept}
    assert len(OPERATORS.sk_weight_backward(**right)) == 2
    with pytest.raises(error, match=rf"^sk_weight_backward: (?=.*\(got .+\)).*(?:{match})"):
        OPERATORS.sk_weight_backward(**changed(right, **changes))


@pytest.mark.parametrize("path", ["auto", "folded", "factored"])
def test_types_are_checked_on_the_meta_device(path):
    """Where there is no autocast to ask about."""
    arguments = {
        name: value.to("meta") if torch.is_tensor(value) else value
        for name, value in conv_arguments().items()
    }
    changes = {"input": arguments["input"].double(), "path": path}
    fails(ops.sk_conv2d, arguments | changes, TypeError, "input must have the type")


def test_errors_reach_compiled_code():
    """The fake kernels raise the same errors, while the program is still being traced."""
    arguments = conv_arguments()
    arguments["u2"] = arguments["u2"][:, :-1]
    meta = {
        name: value.to("meta") if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }
    for path in ("factored", "folded"):
        fails(ops.sk_conv2d, meta | {"path": path}, RuntimeError, "u2 must have")


@pytest.mark.parametrize(
    ("op", "arguments"), [(ops.sk_conv2d, conv_arguments()), (ops.sk_linear, linear_arguments())]
)
def test_the_factored_path_refuses_torch_func(op, arguments):
    def loss(s1):
        return op(**arguments | {"s1": s1, "path": "factored"}).sum()

    with pytest.raises(NotImplementedError, match=rf"{op.__name__}: .*folded.*\(got 'factored'\)"):
        torch.func.grad(loss)(arguments["s1"])
