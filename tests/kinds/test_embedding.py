"""Tables of vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers import LowRankEmbedding

from .checks import assert_same, check_model

WORDS, LENGTH = 60, 8


class Tagger(nn.Module):
    """Words and their places; the padding is word 0."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 24, padding_idx=0)
        self.places = nn.Embedding(LENGTH, 24)
        self.hidden = nn.Linear(24, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, words):
        x = self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))
        return self.head(self.hidden(x).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Tagger().eval()
    with torch.no_grad():  # nearly of low rank, as tables of trained networks are
        table = torch.randn(WORDS, 6) @ torch.randn(6, 24) + 0.1 * torch.randn(WORDS, 24)
        table[0] = 0
        model.words.weight.copy_(table)
    return model


@pytest.fixture
def sentences():
    torch.manual_seed(1)
    return [torch.randint(0, WORDS, (16, LENGTH)) for _ in range(3)]


@pytest.mark.parametrize("method", ["svd", "auto"])
def test_tables_are_compressed(model, sentences, method, tmp_path):
    options = {"candidates": ("svd",)} if method == "auto" else {}
    taken = ("words", "places", "hidden", "head")
    small = check_model(model, sentences, taken, method=method, tmp_path=tmp_path, **options)
    assert isinstance(small.words, LowRankEmbedding)


def test_a_whole_rate_and_the_report(model, sentences):
    small, report = sketchlayers.compress(model, "svd", rate=0.7, calibration=sentences)
    (row,) = [row for row in report.layers if row.name == "words"]
    assert row.shape == (WORDS, 24)
    assert row.parameters_before == WORDS * 24
    assert row.parameters_after == sum(p.numel() for p in small.words.parameters())
    assert report.output_change < 0.2


def test_tables_alone(model, sentences):
    small, report = sketchlayers.compress(
        model, "svd", rate=0.8, layers=["words"], calibration=sentences
    )
    assert [row.name for row in report.layers if row.method] == ["words"]
    assert isinstance(small.words, LowRankEmbedding)
    assert report.output_change < 0.2


def test_without_data(model, sentences):
    small, report = sketchlayers.compress(model, "svd", rate={"words": 0.5})
    (row,) = [row for row in report.layers if row.name == "words"]
    change = torch.linalg.norm(small.words.weight - model.words.weight)
    expected = float(change.detach() / torch.linalg.norm(model.words.weight))
    assert row.relative_error == pytest.approx(expected, rel=1e-4)
    assert_same(small.words(sentences[0]), small.words.weight[sentences[0]])


@pytest.mark.parametrize("rank", [1, 5, 24])
def test_the_table_is_the_nearest_of_its_rank(model, rank):
    table = model.words
    layer = LowRankEmbedding.from_embedding(table, rank=rank)
    u, s, v = torch.linalg.svd(table.weight.double(), full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(layer.weight.double(), nearest, rtol=1e-4, atol=1e-5)
    error = torch.linalg.norm(s[rank:]) / torch.linalg.norm(s)
    assert layer.fit_error == pytest.approx(float(error), abs=1e-6)


def test_the_padding_stays_zero_and_is_not_trained(model):
    layer = LowRankEmbedding.from_embedding(model.words, rate=0.5)
    assert layer.padding_idx == 0
    assert not layer(torch.tensor([0])).any()
    layer(torch.tensor([0, 1, 2])).sum().backward()
    assert not layer.first.weight.grad[0].any()
    assert layer.fold().padding_idx == 0
    new = LowRankEmbedding(10, 4, padding_idx=3, rank=2)
    assert not new(torch.tensor([3])).any()


@pytest.mark.parametrize(
    "option", [{"sparse": True}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str
)
def test_options_that_need_the_whole_table(model, sentences, option):
    model.words = nn.Embedding(WORDS, 24, **option)
    _, report = sketchlayers.compress(model, "svd", rate={"head": 0.5}, calibration=sentences)
    reasons = {row.name: row.reason for row in report.layers}
    (name,) = option
    assert name in reasons["words"]


def test_a_table_that_is_tied_to_the_output_stays(model, sentences):
    model.out = nn.Linear(24, WORDS, bias=False)
    model.out.weight = model.words.weight
    _, report = sketchlayers.compress(model, "svd", rate={"head": 0.5}, calibration=sentences)
    reasons = {row.name: row.reason for row in report.layers}
    assert "tied" in reasons["words"] and "out.weight" in reasons["words"]


def test_a_subclass_with_its_own_forward_stays(model, sentences):
    class Scaled(nn.Embedding):
        def forward(self, input):
            return 2 * super().forward(input)

    model.words = Scaled(WORDS, 24)
    _, report = sketchlayers.compress(model, "svd", rate={"head": 0.5}, calibration=sentences)
    reasons = {row.name: row.reason for row in report.layers}
    assert "forward" in reasons["words"]


def test_a_table_that_is_never_used_stays(model, sentences):
    model.unused = nn.Embedding(WORDS, 24)
    _, report = sketchlayers.compress(model, "svd", rate=0.9, calibration=sentences)
    (row,) = [row for row in report.layers if row.name == "unused"]
    assert row.method is None and "called" in row.reason


@pytest.mark.parametrize("budget", [{"flops_rate": 0.9}, {"latency_rate": 1.0}], ids=str)
def test_other_budgets(model, sentences, budget):
    small, _ = sketchlayers.compress(model, "svd", **budget, calibration=sentences)
    assert small(sentences[0]).isfinite().all()


def test_half_types(model, sentences):
    model.bfloat16()
    small, _ = sketchlayers.compress(model, "svd", rate={"*": 0.5}, calibration=sentences)
    assert isinstance(small.words, LowRankEmbedding)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


def test_errors():
    with pytest.raises(ValueError, match="rank"):
        LowRankEmbedding(10, 4)
    with pytest.raises(ValueError, match="rank"):
        LowRankEmbedding(10, 4, rank=5)
    with pytest.raises(AttributeError):
        LowRankEmbedding(10, 4, rank=2).weight = torch.zeros(10, 4)
