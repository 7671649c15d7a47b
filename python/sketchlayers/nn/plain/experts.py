"""Experts of a mixture whose matrices are stacked in parameters of three dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers.nn.plain.form import PlainForm, dense_refusal, sharing

_BIAS = "_bias"


class PlainExperts(PlainForm):
    """The plain form of the experts of transformers: a linear layer for each matrix of an expert.

    Experts are computed one after the other, each for the tokens that are routed to it, as the
    original ones are with ``experts_implementation="eager"``.

    Attributes:
        gate_up_proj: a linear layer for each expert; ``up_proj`` for experts without a gate.
        down_proj: a linear layer for each expert.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self._first = "gate_up_proj" if layer.has_gate else "up_proj"
        for name in (self._first, "down_proj"):
            weights = getattr(layer, name)
            weights = weights.mT if layer.is_transposed else weights
            biases: Any = getattr(layer, name + _BIAS) if layer.has_bias else [None] * len(weights)
            parts = (sharing(*pair) for pair in zip(weights, biases, strict=True))
            self.add_module(name, nn.ModuleList(parts))
        self.train(layer.training)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See `PlainForm.refusal`."""
        if not all(hasattr(layer, name) for name in ("has_gate", "has_bias", "is_transposed")):
            return f"{type(layer).__name__} holds its weights in another way than other experts"
        known: Any = layer
        names = ["gate_up_proj" if known.has_gate else "up_proj", "down_proj"]
        names += [name + _BIAS for name in names] if known.has_bias else []
        if getattr(known, "has_post_expert_norm", False):
            return "each expert has a norm of its own"
        if getattr(known, "_is_expert_parallel", False):
            return "its experts are on several devices"
        refusal = dense_refusal(layer, tuple(names))
        if refusal is None and any(getattr(known, name).dim() != 3 for name in names[:2]):
            refusal = "its weights are not stacked"
        return refusal

    def restore(self, layer: Any) -> None:
        """See `PlainForm.restore`."""
        for name in (self._first, "down_proj"):
            count = len(self._modules[name])  # type: ignore[arg-type]
            parts = [self.plain(f"{name}.{number}") for number in range(count)]
            weights = [part.weight.T if layer.is_transposed else part.weight for part in parts]
            setattr(layer, name, _stacked(weights))
            if layer.has_bias:
                setattr(layer, name + _BIAS, _stacked([part.bias for part in parts]))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sums up what the experts make of their tokens.

        Args:
            hidden_states: tokens, (N, d).
            top_k_index: the experts of each, (N, k).
            top_k_weights: their weights, (N, k).
        """
        output = torch.zeros_like(hidden_states)
        first: Any = self._modules[self._first]
        down: Any = self._modules["down_proj"]
        for number in range(len(down)):
            tokens, places = torch.where(top_k_index == number)
            if not torch.compiler.is_compiling() and not len(tokens):
                continue
            inner = first[number](hidden_states[tokens])
            inner = self._gated(inner)
            result = down[number](inner) * top_k_weights[tokens, places, None]
            output = output.index_add(0, tokens, result.to(output.dtype))
        return output

    def _gated(self, inner: Tensor) -> Tensor:
        shell: Any = self._shell
        result: Tensor = shell._apply_gate(inner) if shell.has_gate else shell.act_fn(inner)
        return result


def _stacked(parts: list[Tensor]) -> nn.Parameter:
    values = torch.stack([part.detach() for part in parts])
    return nn.Parameter(values, any(part.requires_grad for part in parts))
