"""Each reason for which a layer is left alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sketchlayers
from sketchlayers import SKLinear

from ..networks import OutOfOrder, random_init


class OwnForward(nn.Linear):
    """Stands for LoRA, quantised layers and the like."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input.abs(), weight, bias)


class OnlyNamed(nn.Linear):
    """A subclass that computes what its base computes."""


class ReadsWeights(nn.Module):
    """Uses its layers through their weights in all the ways that code has for it."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.Linear(24, 24)
        self.helped = nn.Linear(24, 24)
        self.inner = nn.Sequential()
        self.inner.deep = nn.Linear(24, 24)
        self.property = nn.Linear(24, 24)
        self.closure = nn.Linear(24, 24)
        self.called = nn.Linear(24, 24)
        nn.init.zeros_(self.called.bias)
        nn.init.normal_(self.called.weight)

    @property
    def matrix(self) -> Tensor:
        return self.property.weight

    def _help(self, x: Tensor) -> Tensor:
        return x @ self.helped.weight.T + (lambda: x @ self.closure.weight)()

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.direct.weight, self.direct.bias) @ self.inner.deep.weight
        return self.called(self._help(x) @ self.matrix).to(self.called.weight.dtype)


def with_forward_replaced() -> nn.Module:
    layer = nn.Linear(24, 24)
    layer.forward = functools.partial(nn.Linear.forward, layer)
    return layer


def with_parameter_of_its_own() -> nn.Module:
    layer = nn.Linear(24, 24)
    layer.gain = nn.Parameter(torch.ones(1))
    return layer


LAYERS: list[tuple[str, Callable[[], nn.Module], str]] = [
    (
        "transposed",
        lambda: nn.ConvTranspose2d(24, 24, 3),
        "ConvTranspose2d is not a layer that sketch takes",
    ),
    ("transposed 1-D", lambda: nn.ConvTranspose1d(24, 24, 3), "ConvTranspose1d is not a layer"),
    ("bilinear", lambda: nn.Bilinear(24, 24, 24), "Bilinear is not a layer"),
    ("embedding", lambda: nn.Embedding(24, 24), "Embedding is not a layer"),
    ("recurrent", lambda: nn.GRU(24, 24), "fused kernel"),
    ("depthwise", lambda: nn.Conv2d(24, 48, 3, groups=24), "depthwise convolution"),
    ("grows", lambda: nn.Conv2d(1, 24, 3), "would grow, even at the smallest rank"),
    ("grows by groups", lambda: nn.Conv2d(24, 24, 1, groups=12), "would grow"),
    ("weight norm", lambda: parametrizations.weight_norm(nn.Linear(24, 24)), "_WeightNorm"),
    ("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(24, 24)), "parametrised: its"),
    ("old spectral norm", lambda: nn.utils.spectral_norm(nn.Linear(24, 24)), "weight_orig"),
    ("pruned", lambda: prune.random_unstructured(nn.Linear(24, 24), "weight", 0.5), "weight_orig"),
    ("own forward", lambda: OwnForward(24, 24), "OwnForward has a forward of its own"),
    ("own convolution", lambda: OwnConvolution(24, 24, 3), "has a forward of its own"),
    ("forward replaced", with_forward_replaced, "its forward has been replaced"),
    ("own parameter", with_parameter_of_its_own, "holds more than a weight and a bias"),
    ("lazy", lambda: nn.LazyLinear(24), "lazy"),
    ("complex", lambda: nn.Linear(24, 24, dtype=torch.complex64), "its dtype is complex64"),
    ("compressed", lambda: SKLinear(24, 24, rank=2), r"already compressed \(SKLinear\)"),
]


@pytest.mark.parametrize(
    ("layer", "reason"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS]
)
def test_unsuitable_layers(layer: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.Linear(24, 24), layer(), nn.Linear(24, 24))
    small, report = random_init(model, {"*": 0.5})
    row = next(row for row in report.layers if row.name == "1")
    assert row.reason is not None and re.search(reason, row.reason)
    assert row.method is None and row.parameters_before == row.parameters_after
    assert type(small[1]) is type(model[1])
    assert isinstance(small[2], SKLinear)  # its neighbour is replaced all the same


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_can_be_copied() -> None:
    model = nn.Sequential(
        nn.Linear(24, 24), nn.utils.weight_norm(nn.Linear(24, 24)), nn.Linear(24, 24)
    )
    small, report = random_init(model, {"2": 0.5})
    assert "weight_g, weight_v" in report.layers[1].reason
    x = torch.randn(2, 24)
    torch.testing.assert_close(small[:2](x), model[:2](x))
    small[1].weight_g.data *= 2
    assert not torch.equal(small[:2](x), model[:2](x))


def test_subclass_that_computes_the_same_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(24, 24), OnlyNamed(24, 24))
    assert isinstance(random_init(model, {"1": 0.5}).model[1], SKLinear)


def test_shared_modules() -> None:
    shared, block = nn.Linear(24, 24), nn.Sequential(nn.Linear(24, 24))
    model = nn.ModuleDict(
        {"a": nn.Linear(24, 24), "b": shared, "c": shared, "d": block, "e": block,
         "f": nn.Linear(24, 24)}
    )  # fmt: skip
    small, report = random_init(model, {"*": 0.5})
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons["b"] == "shared: also registered as 'c'"
    assert reasons["d.0"] == "inside a shared module: also registered as 'e'"
    assert reasons["f"] is None
    assert small["b"] is small["c"] and small["d"] is small["e"]
    assert report.parameters_before == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("through_view", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_parameters(through_view: bool, device: str) -> None:
    embedding = nn.Embedding(50, 24, device=device)
    head = nn.Linear(24, 50, bias=False, device=device)
    head.weight = nn.Parameter(embedding.weight.data) if through_view else embedding.weight
    model = nn.Sequential(embedding, nn.Linear(24, 24, device=device), head)
    small, report = random_init(model, {"*": 0.5}, keep_first=False)
    assert report.layers[2].reason == "tied: its weight is also '0.weight'"
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters_after == sum(p.numel() for p in small.parameters())


def test_attention_projections() -> None:
    class OwnAttention(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True)
    model.self_attn = OwnAttention(24, 2, batch_first=True)
    rows = {row.name: row for row in sketchlayers.inspect(model).layers}
    assert "used through its weight" in rows["self_attn.out_proj"].reason
    for name in ("linear1", "linear2"):
        assert rows[name].reason == "used through its weight by TransformerEncoderLayer"


def test_layers_that_nothing_calls_stay() -> None:
    """A module may hand its layers' weights to functions; then the layers are never called."""
    model = nn.Sequential(ReadsWeights()).eval()
    _, report = sketchlayers.compress(
        model, "svd", rate={"*": 0.5}, keep_first=False, calibration=[torch.randn(32, 24)]
    )
    reasons = {row.name: row.reason for row in report.layers}
    read = {"direct", "helped", "inner.deep", "property", "closure"}
    never = {name for name, reason in reasons.items() if reason and "never called" in reason}
    assert never == {f"0.{name}" for name in read}


def test_layers_that_are_never_called() -> None:
    rows = sketchlayers.inspect(OutOfOrder(), torch.zeros(2, 24)).layers
    assert [row.name for row in rows if (row.reason or "").startswith("the first")] == ["early"]
    rows = sketchlayers.inspect(OutOfOrder(), torch.zeros(2, 24), keep_first=False).layers
    reasons = {row.name: row.reason for row in rows}
    assert reasons == {
        "last": None, "early": None, "unused": "not called on the example inputs"
    }  # fmt: skip


def test_meta_weights_cannot_be_fitted() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)).to("meta")
    with pytest.raises(ValueError, match=r"1: nothing to fit: its weight is on the meta device"):
        sketchlayers.compress(model, rate=0.8)
    small = random_init(model, 0.8).model
    assert isinstance(small[1], SKLinear) and small[1].s1.is_meta


def test_lazy_layers_have_no_whole_model_rate() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.LazyLinear(24))
    with pytest.raises(ValueError, match=r"run the model once .*2: lazy"):
        random_init(model, 0.8)
    sketchlayers.inspect(model, torch.zeros(1, 24))
    assert isinstance(model[2], nn.LazyLinear)  # the run on a copy gave it no shape


def test_frozen_layers_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)).requires_grad_(False)
    small = random_init(model, {"1": 0.5}).model
    assert isinstance(small[1], SKLinear) and not small[1].s1.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_has_nothing_to_replace() -> None:
    scripted = torch.jit.trace(nn.Linear(24, 24), torch.zeros(1, 24))
    with pytest.raises(ValueError, match="no layer can be replaced: it has none"):
        random_init(scripted, 0.5)
