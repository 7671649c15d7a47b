"""Experts whose matrices are stacked in parameters of three dimensions."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sketchlayers
from sketchlayers.nn.plain.experts import PlainExperts

from .checks import check_model

EXPERTS, TOKENS = 3, 8


class StackedExperts(nn.Module):
    """As ``MixtralExperts`` and ``GptOssExperts`` of transformers, computed token by token."""

    def __init__(self, features, inner, *, gate=True, transposed=False, bias=False):
        super().__init__()
        self.has_gate, self.is_transposed, self.has_bias = gate, transposed, bias
        self.first = "gate_up_proj" if gate else "up_proj"
        shapes = {
            self.first: (inner * (2 if gate else 1), features),
            "down_proj": (features, inner),
        }
        for name, (outputs, inputs) in shapes.items():
            weight = torch.randn(EXPERTS, outputs, inputs) / inputs**0.5
            weight = weight.mT.contiguous() if transposed else weight
            setattr(self, name, nn.Parameter(weight))
            if bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, outputs)))
        self.act_fn = nn.SiLU()

    def _apply_gate(self, both):
        gate, up = both.chunk(2, -1)
        return self.act_fn(gate) * up

    def _multiply(self, name, expert, x):
        weight = getattr(self, name)[expert]
        bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        return F.linear(x, weight.T if self.is_transposed else weight, bias)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        rows = []
        for x, experts, weights in zip(hidden_states, top_k_index, top_k_weights, strict=True):
            row = 0
            for expert, weight in zip(experts, weights, strict=True):
                inner = self._multiply(self.first, expert, x)
                inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
                row = row + weight * self._multiply("down_proj", expert, inner)
            rows.append(row)
        return torch.stack(rows)


class Router(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(EXPERTS, features))

    def forward(self, x):
        return (x @ self.matrix.T).softmax(-1).topk(2)


class Mixture(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.router = Router(16)
        self.experts = StackedExperts(16, 12, **options)

    def forward(self, x):
        x = self.stem(x)
        weights, experts = self.router(x)
        return x + self.experts(x, experts, weights)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    registry = sys.modules["sketchlayers.nn.plain.registry"]
    monkeypatch.setattr(registry, "_forms", dict(registry._forms))
    sketchlayers.register_layer(f"{__name__}.Stacked*", PlainExperts)


def tokens():
    torch.manual_seed(1)
    return [torch.randn(TOKENS, 16) for _ in range(4)]


@pytest.mark.parametrize(
    "options",
    [{}, {"transposed": True, "bias": True}, {"gate": False}],
    ids=str,
)
def test_every_expert_is_taken(options, tmp_path):
    torch.manual_seed(0)
    model = Mixture(**options).eval()
    first = model.experts.first
    taken = [f"experts.{name}.{n}" for name in (first, "down_proj") for n in range(EXPERTS)]
    check_model(model, tokens(), ["stem", *taken], tmp_path=tmp_path)


def test_the_compressed_network_can_be_exported():
    torch.manual_seed(0)
    small, _ = sketchlayers.compress(Mixture().eval(), "svd", rate={"*": 0.6}, calibration=tokens())
    program = torch.export.export(small, (tokens()[0],)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(tokens()[1]), small(tokens()[1]))


def test_an_expert_that_no_token_reaches_stays():
    torch.manual_seed(0)
    model = Mixture().eval()
    with torch.no_grad():
        model.router.matrix[0] = 0
        model.stem.weight.zero_()
        model.stem.bias.copy_(model.router.matrix[1] + model.router.matrix[2])
    _, report = sketchlayers.compress(model, "svd", rate={"*": 0.6}, calibration=tokens())
    reasons = {row.name: row.reason for row in report.layers}
    assert "never called" in reasons["experts.down_proj.0"]
    assert reasons["experts.down_proj.1"] is None


def test_other_modules_with_matrices_of_their_own_are_listed_with_a_reason():
    torch.manual_seed(0)
    model = Mixture().eval()
    found = sketchlayers.inspect(model, tokens()[0], method="svd")
    (row,) = [row for row in found.layers if row.name == "router"]
    assert row.kind == "Router" and row.parameters == EXPERTS * 16
    assert "register_layer" in row.reason
    del sys.modules["sketchlayers.nn.plain.registry"]._forms[f"{__name__}.Stacked*"]
    found = sketchlayers.inspect(model, tokens()[0], method="svd")
    (row,) = [row for row in found.layers if row.name == "experts"]
    assert row.parameters == sum(p.numel() for p in model.experts.parameters())
    assert "register_layer" in row.reason
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_recurrent_layers_have_a_reason():
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 8), "gru": nn.GRU(8, 8), "head": nn.Linear(8, 8)})
    rows = {row.name: row for row in sketchlayers.inspect(model, method="svd").layers}
    for name in ("lstm", "gru"):
        assert "fused kernel" in rows[name].reason
        assert rows[name].parameters == sum(p.numel() for p in model[name].parameters())
