"""Formulas by which PyTorch's ``FlopCounterMode`` counts the operators: 2 for a multiply-add.

Importing ``torch.utils.flop_counter`` takes longer than a small network's forward call, so that the
formulas are registered when somebody else has imported it. A counter takes the registry as it is
when it is made; one that is active already is told, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]


def register() -> None:
    """Register the formulas, if there may be a counter, with it too if it is active."""
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    _register_globally(module)
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        registry = getattr(getattr(mode, "counter", mode), "flop_registry", None)
        if isinstance(registry, dict):
            for operator in _formulas():
                registry.setdefault(operator, module.flop_registry[operator])


def _register_globally(module: ModuleType) -> None:
    for operator, formula in _formulas().items():
        if operator not in module.flop_registry:
            module.register_flop_formula(operator)(formula)


def _formulas() -> dict[Any, Any]:
    operators = torch.ops.sketchlayers
    return {
        operators.sk_weight: _weight,
        operators.sk_weight_backward: _weight_backward,
        operators.sk_linear_factored: _linear,
        operators.sk_linear_factored_backward: _linear_backward,
        operators.sk_conv2d_factored: _conv2d,
        operators.sk_conv2d_factored_backward: _conv2d_backward,
        operators.tucker_conv2d_fused: _tucker_conv2d,
    }


class _Factored:
    """Multiply-adds of the products in ``A (S1 x) + S2 (B x)``."""

    def __init__(
        self, inputs: int, outputs: int, s1: Shape, s2: Shape, u1: Shape, spatial: bool
    ) -> None:
        """Takes the numbers of positions in all inputs and in all outputs of the call."""
        groups, signed_rank = u1[0], u1[1]
        d1, rank, taps = s2[0], s2[1], math.prod(s2[2:])
        d2 = s1[1] * groups
        self.s1 = outputs * rank * d2 * taps
        self.a = outputs * signed_rank * d1
        self.s2 = outputs * taps * rank * d1
        self.b = outputs * taps * signed_rank * d2 * taps if spatial else inputs * signed_rank * d2

    def forward(self) -> int:
        return 2 * (self.s1 + self.a + self.s2 + self.b)

    def backward(self, output_mask: Sequence[bool]) -> int:
        """Of the gradients of input, s1 and s2; those of the latter two form an operand again."""
        of_input, of_s1, of_s2 = output_mask
        count = (self.s1 + self.s2 + self.b) * of_input + self.s1 * of_s1
        return 2 * (count + self.a * (of_input or of_s1) + (self.b + self.s2) * of_s2)


def _weight(
    s1: Shape, s2: Shape, u1: Shape, u2: Shape, *, mixing: str = "spatial", **_: Any
) -> int:
    (d1, rank), taps = s2[:2], math.prod(s2[2:])
    terms = 1 + taps if mixing == "spatial" else 2
    return 2 * rank * s1[1] * taps * d1 * terms


def _weight_backward(
    grad: Shape,
    u1: Shape,
    u2: Shape,
    *,
    mixing: str = "spatial",
    blocks: int = 1,
    out_val: Any = None,
    **_: Any,
) -> int:
    taps = math.prod(grad[2:])
    terms = 1 + taps if mixing == "spatial" else 2
    return 2 * (u1[1] // blocks) * math.prod(grad) * terms


def _linear_amounts(input: Shape, s1: Shape, s2: Shape, u1: Shape) -> _Factored:
    rows = math.prod(input[:-1])
    return _Factored(rows, rows, s1, s2, u1, spatial=True)


def _linear(input: Shape, s1: Shape, s2: Shape, u1: Shape, u2: Shape, *_: Any, **__: Any) -> int:
    return _linear_amounts(input, s1, s2, u1).forward()


def _linear_backward(
    grad: Shape, input: Shape, s1: Shape, s2: Shape, u1: Shape, u2: Shape, output_mask: Any,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _linear_amounts(input, s1, s2, u1).backward(output_mask)


def _conv2d_amounts(
    input: Shape, output: Shape, s1: Shape, s2: Shape, u1: Shape, mixing: str
) -> _Factored:
    images = math.prod(input[:-3])
    inputs, outputs = images * math.prod(input[-2:]), images * math.prod(output[-2:])
    spatial = mixing == "spatial" or math.prod(s2[2:]) == 1
    return _Factored(inputs, outputs, s1, s2, u1, spatial)


def _conv2d(
    input: Shape, s1: Shape, s2: Shape, u1: Shape, u2: Shape, *_: Any,
    mixing: str = "spatial", out_shape: Shape, **__: Any,
) -> int:  # fmt: skip
    return _conv2d_amounts(input, out_shape, s1, s2, u1, mixing).forward()


def _conv2d_backward(
    grad: Shape, input: Shape, s1: Shape, s2: Shape, u1: Shape, u2: Shape, output_mask: Any,
    *_: Any, mixing: str = "spatial", **__: Any,
) -> int:  # fmt: skip
    return _conv2d_amounts(input, grad, s1, s2, u1, mixing).backward(output_mask)


def _tucker_conv2d(
    input: Shape, inputs: Shape | None, core: Shape, outputs: Shape | None, *_: Any,
    out_shape: Shape, **__: Any,
) -> int:  # fmt: skip
    images = input[0]
    pixels = images * math.prod(out_shape[2:])
    count = pixels * math.prod(core)
    if inputs is not None:
        count += images * math.prod(input[2:]) * math.prod(inputs)
    if outputs is not None:
        count += pixels * math.prod(outputs)
    return 2 * count
