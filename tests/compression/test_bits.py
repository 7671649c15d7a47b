"""Numbers of few bits: what `compress` makes with ``bits`` and ``bytes_rate``."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.checkpoint import read_description
from sketchlayers.compression import Compressed
from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.nn import CPConv2d, TuckerConv2d
from sketchlayers.nn._rounding import roundings

from .networks import assert_unchanged, state_of

SLACK = 64 * 2**10
QUIET: dict[str, Any] = {"progress": False, "measure_latency": False}
NEEDS_TRAINING = "ignore:compress.*training:UserWarning"
NEAREST = "compress. without calibration images every number"


def correlated(count: int, channels: int, *size: int, seed: int = 0) -> Tensor:
    """Images of few sources, which all channels mix."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, 2, generator=generator)
    sources = torch.randn(count, 2, *size, generator=generator)
    noise = torch.randn(count, channels, *size, generator=generator)
    return torch.einsum("cd,nd...->nc...", mixing, sources) + 0.1 * noise


IMAGES = [correlated(24, 4, 6, 6, seed=seed) for seed in (0, 1)]
HELD_OUT = correlated(24, 4, 6, 6, seed=2)


def network(seed: int = 0) -> nn.Sequential:
    """Takes (N, 4, 6, 6); its batch norms have the statistics of such images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(4, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=None), nn.ReLU()),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24, momentum=None), nn.ReLU()),
        *(nn.Conv2d(24, 24, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )
    with torch.no_grad():
        for batch in IMAGES:
            model(batch)
    return model.eval()


def compress(model: nn.Module, *args: Any, **how: Any) -> Compressed:
    return sketchlayers.compress(model, *args, **{**QUIET, **how})


@torch.no_grad()
def change(model: nn.Module, small: nn.Module, images: Tensor = HELD_OUT) -> float:
    """Of the outputs, relative to them."""
    expected = model(images)
    return float((small(images) - expected).norm() / expected.norm())


def assert_noted(model: nn.Module, *expected: str) -> None:
    """There are notes, of parameters of the model, and they hold."""
    found = dict(roundings(model))
    assert found and set(expected) <= found.keys()
    for name, rounding in found.items():
        parameter = model.get_parameter(name)
        assert rounding.integers(parameter) is not None, name
        assert torch.equal(rounding.scale.bfloat16().float(), rounding.scale), name


def assert_stored(result: Compressed, folder: Path) -> None:
    """A file of the model has the bytes that the report says, and gives the model again."""
    small, report = result
    path = sketchlayers.save(small, folder / "small.safetensors", reports=report)
    description = read_description(path)
    assert description.version == 3
    assert dict(description.bits) == {name: one.bits for name, one in roundings(small)}
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - header == report.bytes_after
    assert path.stat().st_size <= 1.02 * report.bytes_after + SLACK


@cache
def rounded(bits: int) -> Compressed:
    """With images, layers dense."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compress(network(), rate=1.0, bits=bits, calibration=IMAGES)


# ---------------------------------------------------------------------------------------- bits


def test_eight_bits_change_next_to_nothing(tmp_path: Path) -> None:
    small, report = rounded(8)
    assert change(network(), small) < 0.02
    assert_noted(small, "0.weight", "3.weight", "6.weight", "10.weight")
    assert_stored(rounded(8), tmp_path)
    assert [row.bits for row in report.layers] == [8] * 4
    assert [type(one) for one in small] == [type(one) for one in network()]


def test_images_halve_the_error_of_four_bits(tmp_path: Path) -> None:
    model = network()
    with pytest.warns(UserWarning, match=NEAREST) as told:
        alone = compress(model, rate=1.0, bits=4)
    assert len(told) == 1
    assert_noted(alone.model)
    assert_stored(alone, tmp_path)
    small, report = rounded(4)
    assert change(model, small) < 0.7 * change(model, alone.model)
    assert_noted(small, "0.weight", "3.weight", "6.weight", "10.weight")
    assert_stored(rounded(4), tmp_path)
    # The first layer is not what the method takes: it has 8 bits, as small ones have.
    assert [row.bits for row in report.layers] == [8, 4, 4, 4]
    assert report.bytes_after < 0.25 * report.bytes_before
    assert report.bytes_before == sum(
        x.numel() * x.element_size() for x in state_of(model).values()
    )


def test_more_bits_are_nearer() -> None:
    model = network()
    changes = [change(model, rounded(bits).model) for bits in (4, 8)]
    coarse = compress(model, rate=1.0, bits=2, calibration=IMAGES).model
    assert change(model, coarse) > 2 * changes[0] > 20 * changes[1]


def test_the_model_that_is_given_stays() -> None:
    model = network().train()
    modules, state = list(model.modules()), state_of(model)
    small = compress(model, rate=1.0, bits=4, calibration=IMAGES[:1]).model
    assert_unchanged(model, modules, state)
    assert not dict(roundings(model)) and all(one.training for one in small.modules())
    with pytest.warns(UserWarning, match=NEAREST):
        inplace = compress(model, rate=1.0, bits=4, inplace=True).model
    assert inplace is model
    assert_noted(model)


@pytest.mark.parametrize(
    ("method", "images"),
    [
        *((name, True) for name in ("tucker2", "cp", "svd", "lowrank", "sketch", "auto")),
        *((name, True) for name in ("hashednet", "freshnet", "dictionary")),
        *((name, False) for name in ("sketch", "hashednet", "freshnet", "dictionary")),
    ],
)
@pytest.mark.filterwarnings(NEEDS_TRAINING, f"ignore:{NEAREST}:UserWarning")
def test_all_methods(method: str, images: bool, tmp_path: Path) -> None:
    model = network()
    how: dict[str, Any] = {"calibration": IMAGES[:1]} if images else {}
    if method == "cp":
        how |= {"max_sweeps": 2, "starts": 1}
    result = compress(model, method, rate=0.6, bits=6, **how)
    assert_noted(result.model)
    assert_stored(result, tmp_path)
    rows = {row.name: row for row in result.report.layers}
    assert rows["6"].bits is not None and rows["6"].bits in (6, 8) and rows["10"].bits is not None
    assert rows["0"].bits == 8
    if images and method != "dictionary":
        assert change(model, result.model) < 0.7
    if method != "dictionary":  # whose seeds are long
        assert result.report.bytes_after < 0.3 * result.report.bytes_before


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 16, 3)),
        (8, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU()),
            nn.Conv2d(16, 24, 1),
        ),
        (8, 6, 6),
    ),
    "transposed": (
        lambda: nn.Sequential(
            *(nn.ConvTranspose2d(8, 12, 3), nn.ReLU()),
            nn.ConvTranspose2d(12, 16, 2, stride=2, groups=2),
        ),
        (8, 4, 4),
    ),
    "1-D": (
        lambda: nn.Sequential(nn.Conv1d(8, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 5)),
        (8, 12),
    ),
    "3-D": (
        lambda: nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 2)),
        (4, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings(NEEDS_TRAINING, f"ignore:{NEAREST}:UserWarning")
def test_convolutions_of_all_kinds(kind: str, tmp_path: Path) -> None:
    make, size = NETWORKS[kind]
    torch.manual_seed(0)
    model = make().eval()
    images = [correlated(24, *size)]
    dense = compress(model, rate=1.0, bits=5, calibration=images)
    assert change(model, dense.model, images[0]) < 0.06
    for result in (
        dense,
        compress(model, rate=1.0, bits=5),
        compress(model, "tucker2", rate=0.6, bits=5, calibration=images, keep_first=False),
        compress(model, "svd", rate=0.6, bits=5, keep_first=False),
        compress(model, "cp", rate=0.6, bits=5, keep_first=False, max_sweeps=2, starts=1),
    ):
        assert_noted(result.model)
        assert_stored(result, tmp_path)
        assert result.model(images[0]).shape == model(images[0]).shape
        assert {row.bits for row in result.report.layers} <= {5, 8}


class Words(nn.Module):
    """A table and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 16, padding_idx=0)
        self.hidden = nn.Linear(16, 24)
        self.last = nn.Linear(24, 8)

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.hidden(self.table(words).mean(1)).relu())


def test_embeddings(tmp_path: Path) -> None:
    model = Words().eval()
    words = torch.randint(0, 60, (32, 5))
    small, report = result = compress(model, rate=1.0, bits=6, calibration=[words])
    assert_noted(small, "table.weight", "hidden.weight", "last.weight")
    assert_stored(result, tmp_path)
    assert change(model, small, words) < 0.05
    assert not small.table.weight[0].any()  # of the padding
    assert sorted(row.bits or 0 for row in report.layers) == [6, 6, 8]  # the first one has 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_models_of_other_types(dtype: torch.dtype, images: bool, tmp_path: Path) -> None:
    model = network().to(dtype)
    how = {"calibration": [IMAGES[0].to(dtype)]} if images else {}
    result = compress(model, rate=1.0, bits=6, **how)
    assert_noted(result.model, "0.weight", "3.weight", "6.weight", "10.weight")
    assert all(x.dtype == dtype for x in result.model.parameters())
    assert_stored(result, tmp_path)
    assert change(model, result.model, HELD_OUT.to(dtype)) < 0.1


def test_channels_last() -> None:
    model = network().to(memory_format=torch.channels_last)
    small = compress(model, rate=1.0, bits=4, calibration=IMAGES).model
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert_noted(small, "3.weight")
    assert change(rounded(4).model, small) < 0.05


@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_groups_of_inputs(tmp_path: Path) -> None:
    model = network()
    whole = compress(model, rate=1.0, bits=3)
    result = compress(model, rate=1.0, bits=3, group_size=12)
    scales = {name: tuple(one.scale.shape) for name, one in roundings(result.model)}
    # 36 inputs, 108, 216 and 24
    assert scales == {
        "0.weight": (12, 3),
        "3.weight": (24, 9),
        "6.weight": (24, 18),
        "10.weight": (10, 2),
    }
    assert_noted(result.model)
    assert_stored(result, tmp_path)
    for name in scales:
        own = model.get_parameter(name)
        errors = [(own - one.model.get_parameter(name)).norm() for one in (result, whole)]
        assert errors[0] <= errors[1]
    assert result.report.bytes_after > whole.report.bytes_after


@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_a_group_size_that_does_not_divide_leaves_one_scale_and_a_note() -> None:
    result = compress(network(), rate=1.0, bits=3, group_size=27)
    scales = {name: one.scale.shape[1] for name, one in roundings(result.model)}
    # 36 inputs, 108, 216 and 24, fewer than a group.
    assert scales == {"0.weight": 1, "3.weight": 4, "6.weight": 8, "10.weight": 1}
    told = [note for note in result.report.notes if "group size does not divide" in note]
    assert len(told) == 1
    assert told[0].endswith(": 0.weight (36)")


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_weights_that_rounding_would_make_larger_stay(images: bool, tmp_path: Path) -> None:
    """One input for each output, and a scale of its own for it, in half precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 24), nn.ReLU(), nn.Linear(24, 8)).to(torch.bfloat16)
    data = {"calibration": [torch.randn(32, 1).to(torch.bfloat16)]} if images else {}
    result = compress(model, rate=1.0, bits=4, keep_first=False, **data)
    assert [name for name, _ in roundings(result.model)] == ["2.weight"]
    own = result.model.get_parameter("0.weight")
    torch.testing.assert_close(own, model.get_parameter("0.weight"), rtol=2e-2, atol=2e-2)
    assert [layer.bits for layer in result.report.layers] == [None, 4]
    told = [note for note in result.report.notes if note.startswith("not rounded")]
    assert len(told) == 1
    assert told[0].endswith(": 0.weight")
    assert_stored(result, tmp_path)


@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_rates_of_layers_and_other_budgets() -> None:
    model = network()
    small, report = compress(
        model, "tucker2", rate={"3": 0.5, "6": 1.0}, bits=4, calibration=IMAGES[:1]
    )
    assert_noted(small, "3.core.weight")
    rows = {row.name: row for row in report.layers}
    assert rows["3"].method == "tucker2" and rows["3"].bits == 4
    small, report = compress(model, "tucker2", flops_rate=0.8, bits=4, calibration=IMAGES[:1])
    assert_noted(small)
    moments = sketchlayers.calibrate(model, IMAGES, progress=False)
    small, report = compress(model, rate=1.0, bits=4, calibration=moments)
    assert_noted(small, "3.weight")
    assert report.images == 48


def test_the_report_tells_bits_and_bytes() -> None:
    report = rounded(4).report
    told = report.to_dict()
    assert [row["bits"] for row in told["layers"]] == [8, 4, 4, 4]
    assert told["bytes_after"] == report.bytes_after
    lines = str(report).splitlines()
    assert any(" bits" in line for line in lines)
    weights = {"0": (12, 36), "3": (24, 108), "6": (24, 216), "10": (10, 24)}
    for row in report.layers:
        rows, inputs = weights[row.name]
        assert row.bytes_after == rows * inputs * (row.bits or 0) // 8 + 2 * rows + 4 * rows
        assert row.bytes_before == 4 * (rows * inputs + rows)


# ---------------------------------------------------------------------------- what becomes of it


def test_copies_keep_the_notes() -> None:
    small = rounded(4).model
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert_noted(other, "3.weight")
        with torch.no_grad():
            assert torch.equal(other(HELD_OUT), small(HELD_OUT))


def test_a_step_of_training_makes_floats_again(tmp_path: Path) -> None:
    small = copy.deepcopy(rounded(4).model).train()
    small[0].requires_grad_(False)
    optimizer = torch.optim.SGD([x for x in small.parameters() if x.requires_grad], lr=0.01)
    small(HELD_OUT).square().sum().backward()
    optimizer.step()
    path = sketchlayers.save(small, tmp_path / "trained.safetensors")
    assert dict(read_description(path).bits) == {"0.weight": 8}
    loaded = sketchlayers.load(path, into=network())
    assert torch.equal(loaded[3].weight, small[3].weight)


def test_a_file_computes_the_same(tmp_path: Path) -> None:
    small, report = rounded(4)
    path = sketchlayers.save(small, tmp_path / "small.safetensors", reports=report)
    loaded = sketchlayers.load(path, into=network())
    with torch.no_grad():
        assert torch.equal(loaded(HELD_OUT), small(HELD_OUT))
    assert_noted(loaded, "0.weight", "3.weight")
    (told,) = read_description(path).reports
    assert [row["bits"] for row in told["layers"]] == [8, 4, 4, 4]


def test_the_cache_gives_the_same(tmp_path: Path) -> None:
    model = network()
    how: dict[str, Any] = {"calibration": IMAGES[:1], "rate": 0.9, "method": "tucker2"}
    kept = [compress(model, bits=bits, cache=tmp_path, **how) for bits in (4, 4, 5)]
    alone = compress(model, bits=4, **how)
    for one in kept[:2]:
        assert one.report.layers == alone.report.layers
        assert_noted(one.model)
        notes = {name: x.bits for name, x in roundings(one.model)}
        assert notes == {name: x.bits for name, x in roundings(alone.model)}
        state = state_of(alone.model)
        assert_unchanged(one.model, list(one.model.modules()), state)
    assert "fits" in str(kept[1].report.notes)
    assert {row.bits for row in kept[2].report.layers} == {5, 8}


# ----------------------------------------------------------------------------------- bytes_rate


def assert_within(result: Compressed, rate: float) -> None:
    """Not above by more than 2 %, nor below by more than what whole ranks and bits leave over."""
    report = result.report
    found = report.bytes_after / report.bytes_before
    assert 0.9 * rate <= found <= 1.02 * rate
    assert report.budget == "bytes_rate" and report.rate_asked == rate


@pytest.mark.parametrize("rate", [0.25, 0.15, 0.09])
def test_a_rate_of_bytes(rate: float, tmp_path: Path) -> None:
    result = compress(network(), "tucker2", bytes_rate=rate, calibration=IMAGES, keep_first=False)
    assert_within(result, rate)
    assert_noted(result.model)
    assert_stored(result, tmp_path)
    assert change(network(), result.model) < {0.25: 0.05, 0.15: 0.3, 0.09: 0.6}[rate]


def test_a_rate_of_bytes_with_the_first_layer_kept() -> None:
    result = compress(network(), "tucker2", bytes_rate=0.15, calibration=IMAGES)
    assert_within(result, 0.15)
    assert result.report.layers[0].bits == 8


def test_a_rate_of_bytes_with_given_bits() -> None:
    result = compress(network(), "tucker2", bytes_rate=0.12, bits=6, calibration=IMAGES)
    assert_within(result, 0.12)
    assert {row.bits for row in result.report.layers} == {6, 8}


def test_a_sweep_over_bytes() -> None:
    sweep = sketchlayers.sweep(
        network(), (0.25, 0.15), budget="bytes_rate", method="tucker2", calibration=IMAGES, **QUIET
    )
    for rate, one in sweep.items():
        assert_within(Compressed(one.model, one.report), rate)
        assert_noted(one.model)
    alone = compress(network(), "tucker2", bytes_rate=0.15, calibration=IMAGES)
    assert alone.report.layers == sweep[0.15].report.layers


def test_the_fewest_bytes_that_are_good_enough() -> None:
    model = network()

    def likeness(small: nn.Module) -> float:
        return 1 - change(model, small)

    result = compress(
        model,
        "tucker2",
        max_drop=0.1,
        budget="bytes_rate",
        calibration=IMAGES[:1],
        evaluate=likeness,
    )
    report = result.report
    assert report.budget == "bytes_rate"
    assert likeness(result.model) >= 0.9 - 1e-6
    assert report.bytes_after < 0.3 * report.bytes_before
    assert_noted(result.model)


def test_a_rate_of_bytes_that_is_large_leaves_the_model() -> None:
    model = network()
    small, report = compress(model, "tucker2", bytes_rate=1.0, calibration=IMAGES[:1])
    assert change(model, small) < 0.02
    assert report.bytes_after <= report.bytes_before


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 1.0, "bits": 1}, ValueError, r"bits must be at least 2 \(got bits=1\)"),
        ({"rate": 1.0, "bits": 17}, ValueError, r"bits must be at most 16 \(got bits=17\)"),
        ({"rate": 1.0, "bits": -4}, ValueError, r"bits must be at least 2"),
        ({"rate": 1.0, "bits": True}, TypeError, r"bits must be an int \(got bits=True\)"),
        ({"rate": 1.0, "bits": 4.5}, TypeError, r"bits must be an int \(got bits=4.5\)"),
        ({"rate": 1.0, "bits": "4"}, TypeError, r"bits must be an int"),
        ({"bits": 4}, TypeError, r"rate must be given"),
        ({"rate": 1.0, "bits": 4, "group_size": 0}, ValueError, r"group_size must be at least 1"),
        ({"rate": 1.0, "bits": 4, "group_size": -8}, ValueError, r"group_size must be at least 1"),
        ({"rate": 1.0, "bits": 4, "group_size": 8.0}, TypeError, r"group_size must be an int"),
        ({"rate": 1.0, "bits": 4, "group_size": True}, TypeError, r"group_size must be an int"),
        ({"rate": 0.5, "group_size": 8}, ValueError, r"group_size goes with bits or bytes_rate"),
        ({"rate": 0.5, "bits": 4, "refine": True}, ValueError, r"refine must be left out"),
        ({"bytes_rate": 0.2, "refine": True}, ValueError, r"refine must be left out"),
        (
            {"rate": 0.5, "bits": 4, "init": "random", "calibration": None},
            ValueError,
            r"init='random' must be left out with bits",
        ),
        (
            {"bytes_rate": 0.5, "init": "random", "calibration": None},
            ValueError,
            r"init='random' must be left out with bits",
        ),
        (
            {"bytes_rate": 0.2, "allocation": "uniform"},
            ValueError,
            r"allocation must be 'error' with bytes_rate \(got 'uniform'\)",
        ),
        ({"bytes_rate": 0.2, "rate": 0.5}, ValueError, r"one of .* \(got rate and bytes_rate\)"),
        ({"bytes_rate": 0.2, "flops_rate": 0.5}, ValueError, r"one of .* and bytes_rate must be"),
        ({"bytes_rate": 0.001}, ValueError, r"bytes_rate must be at least 0\.\d+ for this model"),
        ({"bytes_rate": 0.001, "bits": 2}, ValueError, r"bytes_rate must be at least 0\.\d+ for"),
        ({"bytes_rate": 0.0}, ValueError, r"bytes_rate must be in \(0, 1\]"),
        ({"bytes_rate": 1.5}, ValueError, r"bytes_rate must be in \(0, 1\]"),
        ({"bytes_rate": float("nan")}, ValueError, r"bytes_rate must be in \(0, 1\]"),
        ({"bytes_rate": "0.5"}, TypeError, r"bytes_rate must be a number"),
        ({"bytes_rate": True}, TypeError, r"bytes_rate must be a number"),
        ({"bytes_rate": {"3": 0.5}}, TypeError, r"bytes_rate must be a number"),
        ({"rate": 0.5, "budget": "bytes_rate"}, ValueError, r"budget goes with max_drop"),
        (
            {"bytes_rate": 0.2, "max_drop": 0.1, "evaluate": len},
            ValueError,
            r"max_drop must be given without bytes_rate",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    modules, state = list(model.modules()), state_of(model)
    with pytest.raises(error, match=f"compress: .*{message}"):
        compress(model, "tucker2", **{"calibration": IMAGES[:1], **arguments})
    assert_unchanged(model, modules, state)
    assert not dict(roundings(model))


@pytest.mark.filterwarnings(NEEDS_TRAINING, f"ignore:{NEAREST}:UserWarning")
@pytest.mark.parametrize("method", ["svd", "tucker2", "cp", "auto"])
def test_factors_of_fully_connected_layers(method: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
    for how in ({}, {"calibration": [torch.randn(64, 32)]}):
        small, report = compress(model, method, rate=0.5, bits=6, keep_first=False, **how)
        assert_noted(small)
        assert all(row.bits == 6 for row in report.layers)


def test_a_budget_knows_the_scales_of_groups(tmp_path: Path) -> None:
    result = compress(
        network(), "tucker2", bytes_rate=0.2, group_size=12, calibration=IMAGES, keep_first=False
    )
    assert result.report.bytes_after <= 1.02 * 0.2 * result.report.bytes_before
    assert_stored(result, tmp_path)


@pytest.mark.parametrize("bits", [None, 4])
def test_dense_layers_come_out_of_the_cache_as_they_went_in(
    bits: int | None, tmp_path: Path
) -> None:
    layers = nn.ConvTranspose2d(8, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 16, 2, stride=2)
    model, images = nn.Sequential(*layers).eval(), [torch.randn(24, 8, 6, 6)]
    how: dict[str, Any] = {"rate": 1.0, "bits": bits, "calibration": images, "cache": tmp_path}
    first, again = (compress(model, "svd", keep_first=False, **how) for _ in range(2))
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    if bits is not None:
        assert_noted(again.model)


def test_tables_come_out_of_the_cache(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    words = [torch.randint(0, 60, (32, 5))]
    for _ in range(2):
        result = compress(Words().eval(), rate=1.0, bits=4, calibration=words, cache=tmp_path)
        assert_noted(result.model)
    assert not [one for one in recwarn if "damaged" in str(one.message)]


@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_compressing_again_leaves_the_notes_of_the_model_that_was_given() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
    small = compress(model, rate=1.0, bits=4, keep_first=False).model
    other = compress(small, rate=1.0, bits=8, keep_first=False).model
    for one, bits in ((small, 4), (other, 8)):
        assert_noted(one)
        assert {rounding.bits for _, rounding in roundings(one)} == {bits}


@pytest.mark.filterwarnings(NEEDS_TRAINING, f"ignore:{NEAREST}:UserWarning")
def test_attention_in_few_bits(tmp_path: Path) -> None:
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    result = compress(encoder, rate=1.0, bits=8)
    path = sketchlayers.save(result.model, tmp_path / "encoder.safetensors")
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == result.report.bytes_after
    again = sketchlayers.load(
        path, into=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    ).eval()
    words = torch.randn(2, 5, 16)
    assert torch.equal(again(words), result.model(words))


@pytest.mark.filterwarnings(f"ignore:{NEAREST}:UserWarning")
def test_a_weight_of_zeros_has_no_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    nn.init.zeros_(model[2].weight)
    rows = compress(model, rate=1.0, bits=4, keep_first=False).report.layers
    assert rows[1].relative_error == 0


@pytest.mark.filterwarnings(NEEDS_TRAINING, f"ignore:{NEAREST}:UserWarning")
def test_factors_of_rank_one() -> None:
    conv = nn.Conv2d(6, 9, 3)
    for layer in (CPConv2d.from_conv(conv, rank=1), TuckerConv2d.from_conv(conv, ranks=(1, 1))):
        round_layer(layer, 4)
        assert_noted(layer)
