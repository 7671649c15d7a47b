"""Compressed models as ONNX files, with the few bits of their weights; see ``docs/export.md``."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened, written_whole
from sketchlayers.decompose._integers import largest_integer
from sketchlayers.nn._rounding import Rounding, roundings, rows_of
from sketchlayers.surgery.evaluation import evaluating

if TYPE_CHECKING:
    import onnx

_PACKAGES = ("onnx", "onnxscript")
_MOST_BITS = 8
"""Of numbers that are written as such: with more the weight is written in floating point."""
_FOUR_BITS = 4
"""Up to these a number takes half a byte."""
_NEAR = 1e-5
"""Of its largest entry, what a weight may be off for its whole numbers to be written instead."""

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def export_onnx(
    model: nn.Module, example_inputs: Inputs, path: str | Path, *, quantized: bool = False
) -> Path:
    """Writes a model as ONNX, of standard operators, for batches of any size.

    ``torch.onnx.export`` does it, with ``dynamo=True``. Weights that `compress` has rounded to 8
    bits or fewer can be written as whole numbers and scales. They become floating point when a
    runtime loads the file and folds constants, so that it is no slower for them. (ONNX Runtime does
    not fold ``DequantizeLinear``, but runs it in every call: the numbers go through ``Cast`` and
    ``Mul``.)

    Args:
        model: in any mode; it is exported in evaluation mode.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, on the
            model's device. The first axis of those that share its size is the batch.
        path: of the file, which ends in ``.onnx``; weights are in it.
        quantized: write rounded weights in one byte each, or in half a byte up to 4 bits; those
            that a batch norm has been merged into, too. What PyTorch computes ahead, as the weights
            of small hashed layers, and transposed convolutions that a batch norm has been merged
            into are in floating point.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        RuntimeError: PyTorch cannot export the model.
        ValueError: another ending, or ``quantized`` of a model without weights in 8 bits or fewer.

    Warns:
        UserWarning: the model works for batches of the example's size alone, and so does the file.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        >>> images = torch.randn(64, 3, 8, 8)
        >>> small, report = sketchlayers.compress(model, rate=1.0, bits=4, calibration=[images])
        >>> path = sketchlayers.export_onnx(small, images, "small.onnx", quantized=True)
    """
    path = Path(path)
    check_onnx("export_onnx", path)
    known = few_bits(model) if quantized else {}
    if quantized and not known:
        raise ValueError(
            "export_onnx: quantized=True must have a model with weights rounded to 8 bits or fewer "
            "(got none); compress(..., bits=8) makes them"
        )
    with evaluating(model):
        proto = _exported(model, example_inputs).model_proto
        _write_numbers(proto, model, known)
    for node in proto.graph.node:  # lines of the program that each comes from, and folders of it
        del node.metadata_props[:]
    with written_whole(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return path


def few_bits(model: nn.Module) -> dict[str, Rounding]:
    """The parameters that a file can have whole numbers of, by name, and how they follow."""
    return {name: one for name, one in roundings(model) if one.bits <= _MOST_BITS}


def check_onnx(owner: str, path: Path) -> None:
    """Raises unless a model could be written there.

    Args:
        owner: to begin messages with.
        path: of the file.

    Raises:
        ImportError: a package that PyTorch needs for it is missing.
        ValueError: the file has another ending.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ImportError(missing(owner, package, "onnx"))
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{owner}: the file must end in .onnx (got {path})")


class _Arguments(NamedTuple):
    """Of a call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Inputs) -> _Arguments:
        """What example inputs stand for."""
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {})

    def batch_size(self) -> int | None:
        """Of the first tensor with an axis."""
        for one in (*self.args, *self.kwargs.values()):
            if isinstance(one, Tensor) and one.dim():
                return len(one)
        return None

    def each(self, change: Callable[[Any], Any]) -> _Arguments:
        """What becomes of every argument."""
        args = tuple(map(change, self.args))
        return _Arguments(args, {name: change(one) for name, one in self.kwargs.items()})


def _exported(model: nn.Module, inputs: Inputs) -> torch.onnx.ONNXProgram:
    """For batches of any size; for the size of the example where the model needs that."""
    call = _Arguments.of(inputs)
    size = call.batch_size()
    if size is not None:
        # PyTorch raises errors of many kinds where a model fixes the size, or fixes it as well.
        with contextlib.suppress(Exception):
            program = _with_any_batch(model, call, size)
            if any(not isinstance(axis, int) for axis in _axes(program)):
                return program
    try:
        program = _by_torch(model, call)
    except Exception as error:
        raise RuntimeError(
            f"export_onnx: PyTorch cannot export this model ({type(error).__name__}: "
            f"{shortened(error)})"
        ) from error
    if size is not None:
        warnings.warn(
            f"export_onnx: the model does not allow batches of any size: it gets {size}",
            stacklevel=3,
        )
    return program


def _axes(program: torch.onnx.ONNXProgram) -> Iterator[object]:
    """Sizes of the inputs' axes; of those that are open, no number."""
    for one in program.model.graph.inputs:
        yield from one.shape or ()


def _with_any_batch(model: nn.Module, call: _Arguments, size: int) -> torch.onnx.ONNXProgram:
    batch = torch.export.Dim("batch")

    def in_batch(one: Any) -> bool:
        return isinstance(one, Tensor) and one.dim() > 0 and len(one) == size

    def enough(one: Any) -> Any:  # PyTorch takes an axis of one entry for one that stays so
        return torch.cat([one, one]) if size == 1 and in_batch(one) else one

    def shape(one: Any) -> dict[int, Any] | None:
        return {0: batch} if in_batch(one) else None

    shapes = call.each(shape)
    return _by_torch(model, call.each(enough), shapes.kwargs or shapes.args)


def _by_torch(
    model: nn.Module, call: _Arguments, dynamic_shapes: Any = None
) -> torch.onnx.ONNXProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how PyTorch does it
        program = torch.onnx.export(
            model,
            call.args,
            kwargs=call.kwargs,
            dynamo=True,
            verbose=False,
            dynamic_shapes=dynamic_shapes,
        )
    assert program is not None
    return program


def _write_numbers(proto: onnx.ModelProto, model: nn.Module, known: Mapping[str, Rounding]) -> None:
    """Replaces rounded weights by their whole numbers, scales, and the nodes that multiply them."""
    from onnx import TensorProto, numpy_helper

    graph, nodes = proto.graph, []
    float_types = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    by_name = {one.name: one for one in graph.initializer if one.data_type in float_types}
    computed = [one for name, one in by_name.items() if name not in known]
    for name, rounding in known.items():
        # PyTorch gives transposed weights, which it computes ahead, other names.
        named = name in by_name
        for initializer in [by_name[name]] if named else computed:
            parameter = model.get_parameter(name)
            shape = tuple(parameter.shape) if named else tuple(parameter.shape)[::-1]
            if tuple(initializer.dims) != shape or not (named or len(shape) == 2):
                continue
            written = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            numbers = _numbers_of(written if named else written.T, parameter, rounding)
            if numbers is not None:
                graph.initializer.remove(initializer)
                steps = _formed(initializer, numbers, rounding.bits, transposed=not named)
                graph.initializer.extend(steps.tensors)
                nodes += steps.nodes
                computed = [one for one in computed if one is not initializer]
                break
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


class _Numbers(NamedTuple):
    """Whole numbers ``(rows, groups, width)`` and their scales ``(rows, groups, 1)``."""

    integers: Tensor
    scale: Tensor


def _numbers_of(written: Tensor, parameter: Tensor, rounding: Rounding) -> _Numbers | None:
    """What a weight of the file is made of; None where it is not.

    It may be the parameter times a factor for each row, as a batch norm is merged into it.
    """
    integers = rounding.integers(parameter)
    if integers is None or written.shape != parameter.shape:
        return None
    rows, groups = rows_of(parameter.shape), rounding.scale.shape[1]
    blocks = rows // len(rounding.scale)
    integers = integers.reshape(rows, groups, -1)
    scale = rounding.scale.double().repeat_interleave(blocks, 0)[..., None]
    own, there = (integers * scale).flatten(1), written.double().reshape(rows, -1)
    power = own.square().sum(1)
    factor = (own * there).sum(1) / torch.where(power > 0, power, 1.0)
    scale = (scale * factor[:, None, None]).float()
    off = (there - (integers * scale.double()).flatten(1)).abs().max()
    eps = max(_NEAR, 2 * torch.finfo(written.dtype).eps)
    return _Numbers(integers, scale) if off <= eps * there.abs().max() else None


class _Steps:
    """Tensors, and nodes that compute a tensor from them, with names that begin like its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, value: Tensor, name: str) -> str:
        """Adds a tensor; returns its name."""
        from onnx import numpy_helper

        name = f"{self.name}.{name}"
        self.tensors.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        from onnx import helper

        output = f"{self.name}.step{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def reshaped(self, value: str, shape: Sequence[int], name: str) -> str:
        """Adds a node that gives a value a shape; returns the name of its output."""
        return self.node("Reshape", value, self.constant(torch.tensor(shape), name))


def _formed(
    initializer: onnx.TensorProto, numbers: _Numbers, bits: int, *, transposed: bool
) -> _Steps:
    """The steps that form a weight from its whole numbers."""
    from onnx import TensorProto

    steps = _Steps(initializer.name)
    integers, scale = numbers
    dims = tuple(initializer.dims)[::-1] if transposed else tuple(initializer.dims)
    one_group = integers.shape[1] == 1
    if one_group:
        integers = integers.reshape(dims)
        scale = scale.reshape(-1, *[1] * (integers.dim() - 1))
    if bits <= _FOUR_BITS:
        value, scale = _of_half_bytes(steps, integers, largest_integer(bits)), 2 * scale
    else:
        value = steps.constant(integers.to(torch.int8), "numbers")
        value = steps.node("Cast", value, to=TensorProto.FLOAT)
    value = steps.node("Mul", value, steps.constant(scale, "scale"))
    if initializer.data_type != TensorProto.FLOAT:
        value = steps.node("Cast", value, to=initializer.data_type)
    if not one_group:
        value = steps.reshaped(value, dims, "shape")
    if transposed:
        steps.node("Transpose", value, perm=[1, 0])
    steps.nodes[-1].output[0] = initializer.name
    return steps


def _of_half_bytes(steps: _Steps, integers: Tensor, most: int) -> str:
    """Halves of the odd numbers up to ``most``, from two in a byte; returns the name.

    The lower halves of the bytes are the first half of the numbers, counted from the smallest on.
    ONNX has a type of four bits, but ONNX Runtime 1.22 no `Cast` of it.
    """
    from onnx import TensorProto

    count, half = integers.numel(), math.ceil(integers.numel() / 2)
    places = torch.zeros(2 * half, dtype=torch.uint8)
    places[:count] = ((integers.flatten() + most) // 2).to(torch.uint8)
    low, high = places.view(2, half)
    both = steps.node("Cast", steps.constant(low | high << 4, "numbers"), to=TensorProto.FLOAT)
    sixteen = steps.constant(torch.tensor(16.0), "sixteen")
    upper = steps.node("Floor", steps.node("Div", both, sixteen))
    lower = steps.node("Sub", both, steps.node("Mul", upper, sixteen))
    value = steps.node("Concat", lower, upper, axis=0)
    if count < 2 * half:
        begin = steps.constant(torch.tensor([0]), "begin")
        value = steps.node("Slice", value, begin, steps.constant(torch.tensor([count]), "end"))
    value = steps.reshaped(value, tuple(integers.shape), "shape of numbers")
    return steps.node("Sub", value, steps.constant(torch.tensor(most / 2), "middle"))
