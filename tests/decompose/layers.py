"""Layers with explicit patches, so that what a decomposition says can be measured on outputs."""

from __future__ import annotations

import math

import torch

FLOAT = {"dtype": torch.float64}


class Layer:
    """A weight, patches ``(samples, n)`` that it is applied to, and a sensitivity of its outputs.

    Patches have correlated entries of unequal size and a mean, as after a rectifier.
    """

    def __init__(self, shape, samples=None, *, sensitivity="full", seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*size):
            return torch.randn(*size, **FLOAT, generator=generator)

        outputs, inputs = shape[0], math.prod(shape[1:])
        self.weight = randn(*shape) * torch.logspace(0, -1, shape[0], **FLOAT).reshape(
            -1, *[1] * (len(shape) - 1)
        )
        mixing = randn(inputs, inputs) * torch.logspace(0, -2, inputs, **FLOAT)[:, None]
        self.patches = (randn(4 * inputs if samples is None else samples, inputs) @ mixing).relu()
        self.root = randn(outputs, outputs)
        if sensitivity == "diagonal":
            self.root = self.root.diagonal().diag()
        full = self.root @ self.root.mT
        self.sensitivity = full.diagonal() if sensitivity == "diagonal" else full

    @property
    def second_moment(self):
        return self.patches.mT @ self.patches / len(self.patches)

    def output_change(self, weight):
        """Relative change of the outputs when ``weight`` takes the layer's place."""
        change = self.patches @ (weight - self.weight).flatten(1).mT
        return (change.norm() / (self.patches @ self.weight.flatten(1).mT).norm()).item()

    def weighted_change(self, weight, ridge=0.0):
        """The same where the sensitivity weighs the outputs, with a ridge in the second moment."""
        mean = self.second_moment.diagonal().mean() * len(self.patches)
        extra = (ridge * mean).sqrt() * torch.eye(self.patches.shape[1], **FLOAT)
        patches = torch.cat([self.patches, extra])
        change = patches @ (weight - self.weight).flatten(1).mT @ self.root
        return (change.norm() / (patches @ self.weight.flatten(1).mT @ self.root).norm()).item()


def minimum(error, start, steps=200):
    """Parameters that minimise ``error(*parameters)``, by L-BFGS from ``start``, and the error."""
    parameters = [
        tensor.clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in start
    ]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=50,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = error(*parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    return [tensor.detach() for tensor in parameters], error(*parameters).item()
