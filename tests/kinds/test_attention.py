"""`nn.MultiheadAttention`, alone and in PyTorch's transformer layers."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.nn.plain import PlainForm, form_of

from .checks import assert_same, check_model

BATCH, QUERIES, KEYS, HEADS = 3, 5, 7, 2


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, HEADS, **options).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def inputs(layer):
    torch.manual_seed(1)
    sizes = ((QUERIES, layer.embed_dim), (KEYS, layer.kdim), (KEYS, layer.vdim))
    batched = [torch.randn(BATCH, length, features) for length, features in sizes]
    return batched if layer.batch_first else [x.transpose(0, 1) for x in batched]


def masks():
    hidden = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    hidden[1, 5:] = hidden[2, 3:] = True
    return {
        "none": {},
        "padding": {"key_padding_mask": hidden},
        "float padding": {"key_padding_mask": torch.zeros(BATCH, KEYS).masked_fill(hidden, -2.0)},
        "bool": {"attn_mask": torch.rand(QUERIES, KEYS) > 0.7},
        "float": {"attn_mask": torch.randn(QUERIES, KEYS)},
        "of heads, and padding": {
            "attn_mask": torch.randn(BATCH * HEADS, QUERIES, KEYS),
            "key_padding_mask": torch.zeros(BATCH, KEYS).masked_fill(hidden, -math.inf),
        },
        "causal": {
            "attn_mask": torch.ones(QUERIES, KEYS).triu(1).bool(),
            "is_causal": True,
        },
    }


def form(layer):
    return form_of(layer)(layer)


OPTIONS = [
    {"bias": bias, "batch_first": first, "kdim": kdim, "vdim": vdim, **more}
    for bias, first, (kdim, vdim), more in itertools.product(
        (True, False),
        (True, False),
        ((None, None), (6, 10)),
        ({}, {"add_bias_kv": True}, {"add_zero_attn": True}),
    )
]


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_plain_form_gives_what_the_layer_gives(options, mask):
    layer = attention(**options)
    call = inputs(layer)
    for need_weights, average in ((True, True), (True, False), (False, True)):
        how = {"need_weights": need_weights, "average_attn_weights": average, **masks()[mask]}
        torch.manual_seed(2)
        expected = layer(*call, **how)
        assert_same(form(layer)(*call, **how), expected)
    alone = [x[0] if layer.batch_first else x[:, 0] for x in call]
    assert_same(form(layer)(*alone), layer(*alone))


def test_a_loop_over_heads_gives_the_same_after_compression():
    layer = attention(batch_first=True)
    query, key, value = inputs(layer)
    batches = [torch.randn(32, 6, 8) for _ in range(3)]
    small, _ = sketchlayers.compress(
        layer,
        "svd",
        rate={"*": 0.6},
        calibration=batches,
        forward=lambda model, x: model(x, x, x),
        keep_first=False,
    )
    parts = {name: sketchlayers.fold(part) for name, part in small.named_children()}
    q, k, v = (parts[f"{n}_proj"](x) for n, x in (("q", query), ("k", key), ("v", value)))
    heads = []
    for head in range(HEADS):
        own = slice(4 * head, 4 * head + 4)
        scores = torch.einsum("bqe,bke->bqk", q[..., own], k[..., own]) / 2
        heads.append(scores.softmax(-1) @ v[..., own])
    assert_same(small(query, key, value)[0], parts["out_proj"](torch.cat(heads, -1)))


def test_dropout_and_errors():
    layer = attention(batch_first=True, dropout=0.5)
    query, key, value = inputs(layer)
    plain = form(layer)
    assert_same(plain(query, key, value), layer(query, key, value))
    plain.train()
    assert not torch.equal(plain(query, key, value)[0], plain(query, key, value)[0])
    with pytest.raises(ValueError, match="is_causal"):
        plain(query, key, value, is_causal=True)
    with pytest.raises(RuntimeError, match="attn_mask"):
        plain(query, key, value, attn_mask=torch.zeros(2, 2))


def encoder(**options):
    torch.manual_seed(0)
    options = {"batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(16, 4, 32, **options)
    nested = options["batch_first"] and not options.get("norm_first", False)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=nested).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def sequences():
    torch.manual_seed(1)
    return [torch.randn(32, 6, 16) for _ in range(3)]


LAYERS = [
    f"layers.{number}.{name}"
    for number in range(3)
    for name in (
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "linear1",
        "linear2",
    )
]


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False}], ids=str)
def test_all_layers_of_an_encoder_are_taken(options, tmp_path):
    small = check_model(encoder(**options), sequences(), LAYERS, tmp_path=tmp_path)
    assert all(isinstance(layer.self_attn, PlainForm) for layer in small.layers)


def test_a_decoder_is_taken(tmp_path):
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 1, 1, 32, batch_first=True).eval()
    names = [
        f"decoder.layers.0.{attention}.{part}_proj"
        for attention in ("self_attn", "multihead_attn")
        for part in ("q", "k", "v", "out")
    ]
    check_model(
        model,
        sequences(),
        names,
        tmp_path=tmp_path,
        call=lambda model, x: model(x, x[:, :4] * 0.5),
    )


def padding():
    hidden = torch.zeros(32, 6, dtype=torch.bool)
    hidden[8:, 4:] = hidden[16:, 2:] = True
    return hidden


def calls():
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    return {
        "plain": {},
        "padded": {"src_key_padding_mask": padding()},
        "causal": {"mask": causal, "is_causal": True},
    }


@pytest.mark.parametrize("how", calls())
@pytest.mark.parametrize("grad", [True, False])
def test_the_fast_path_gives_the_same_as_the_factors(how, grad):
    """A folded encoder takes PyTorch's fast path, a compressed one must not."""
    small, _ = sketchlayers.compress(
        encoder(), "svd", rate={"*": 0.6}, calibration=sequences(), keep_first=False
    )
    called = []
    for name in LAYERS:
        small.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: called.append(name)
        )
    dense = sketchlayers.fold(small)
    for module in dense.modules():
        module._forward_hooks.clear()
    batch = sequences()[0]
    with torch.set_grad_enabled(grad):
        found, expected = small(batch, **calls()[how]), dense(batch, **calls()[how])
    assert sorted(called) == sorted(LAYERS)
    assert_same(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", range(3))
def test_compressed_layers_take_the_nested_tensors_of_dense_ones(kept):
    """PyTorch packs padded sequences if the first layer is a dense one."""
    model = encoder()
    rates = {f"layers.{number}.*": 0.6 for number in range(3) if number != kept}
    small, _ = sketchlayers.compress(
        model, "svd", rate=rates, calibration=sequences(), keep_first=False
    )
    assert [isinstance(layer.self_attn, PlainForm) for layer in small.layers].count(False) == 1
    batch, how = sequences()[0], calls()["padded"]
    with torch.no_grad():
        expected = sketchlayers.fold(small)(batch, **how)
        assert_same(small(batch, **how), expected, rtol=1e-4, atol=1e-5)


def test_an_attention_layer_stays_split_where_pytorch_would_use_its_neighbours_weights():
    rates = {"layers.1.linear1": 0.5}
    small, _ = sketchlayers.compress(encoder(), "svd", rate=rates, calibration=sequences())
    kinds = [type(layer.self_attn) is nn.MultiheadAttention for layer in small.layers]
    assert kinds == [True, False, True]


def test_calibration_with_padded_sequences():
    batches = [(x, padding()) for x in sequences()]
    small, report = sketchlayers.compress(
        encoder(),
        "svd",
        rate=0.7,
        calibration=batches,
        forward=lambda model, batch: model(batch[0], src_key_padding_mask=batch[1]),
    )
    assert report.output_change < 0.2
    assert any(isinstance(module, PlainForm) for module in small.modules())


def test_moments_are_those_of_the_real_inputs():
    model = encoder()
    calibration = sketchlayers.calibrate(model, sequences())
    rows = torch.cat(sequences()).flatten(0, 1).double()
    for part in ("q", "k", "v"):
        found = calibration[f"layers.0.self_attn.{part}_proj"].second_moment[0]
        torch.testing.assert_close(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)


def test_tied_and_shared_attention_stays():
    model = nn.ModuleDict({"first": attention(), "second": attention()})
    model["second"].in_proj_weight = model["first"].in_proj_weight
    model["third"] = model["fourth"] = attention()
    reasons = {row.name: row.reason for row in sketchlayers.inspect(model, method="svd").layers}
    assert "tied" in reasons["first"] and "tied" in reasons["second"]
    assert all("shared" in reasons[f"third.{part}_proj"] for part in ("q", "k", "v", "out"))


def test_a_subclass_with_its_own_forward_stays():
    class Gated(nn.MultiheadAttention):
        def forward(self, query, *args, **kwargs):
            output, weights = super().forward(query, *args, **kwargs)
            return output * query.sigmoid(), weights

    model = nn.ModuleDict({"gated": Gated(8, 2), "head": nn.Linear(8, 8)})
    reasons = {row.name: row.reason for row in sketchlayers.inspect(model, method="svd").layers}
    assert reasons["gated"] and reasons["head"] != reasons["gated"]
    assert reasons["gated.out_proj"]


def test_half_and_trained_parameters():
    model = encoder().bfloat16()
    model.layers[0].self_attn.in_proj_weight.requires_grad_(False)
    batches = [x.bfloat16() for x in sequences()]
    small, _ = sketchlayers.compress(
        model, "svd", rate={"*": 0.6}, calibration=batches, keep_first=False
    )
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen and all("layers.0.self_attn." in name for name in frozen)
    folded = sketchlayers.fold(small)
    assert not folded.layers[0].self_attn.in_proj_weight.requires_grad
    assert folded.layers[1].self_attn.in_proj_weight.requires_grad


def test_compile():
    small, _ = sketchlayers.compress(encoder(), "svd", rate=0.6, calibration=sequences())
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    batch = sequences()[0]
    with torch.no_grad():
        for how in (calls()["plain"], calls()["causal"]):
            assert_same(compiled(batch, **how), small(batch, **how))


def test_a_budget_of_time():
    small, report = sketchlayers.compress(
        encoder(), "svd", latency_rate=1.0, calibration=sequences(), keep_first=False
    )
    assert all(one.before > 0 and one.after > 0 for one in report.latencies)
    assert small(sequences()[0]).isfinite().all()


def test_several_sizes():
    model = encoder()
    kinds = [type(module) for module in model.modules()]
    made = sketchlayers.sweep(model, (0.8, 0.6), calibration=sequences(), method="svd")
    assert [type(module) for module in model.modules()] == kinds
    for rate in (0.8, 0.6):
        small, report = made[rate]
        assert report.rate == pytest.approx(rate, rel=0.02)
        assert sum(p.numel() for p in small.parameters()) == report.parameters_after
        folded = sketchlayers.fold(small)
        assert [type(module) for module in folded.modules()] == kinds
        assert_same(folded(sequences()[0]), small(sequences()[0]), rtol=1e-3, atol=1e-4)


def test_in_place():
    model = encoder()
    expected, _ = sketchlayers.compress(model, "svd", rate=0.6, calibration=sequences())
    small, _ = sketchlayers.compress(
        copy.deepcopy(model), "svd", rate=0.6, calibration=sequences(), inplace=True
    )
    assert_same(small(sequences()[0]), expected(sequences()[0]))
    sizes = {p.untyped_storage().nbytes() == p.numel() * 4 for p in small.parameters()}
    assert sizes == {True}  # none holds on to a larger tensor
