"""The planner's counts against the formulas, and its choices where they are beyond doubt."""

import csv
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from sketchlayers import _extension
from sketchlayers.bench import tune
from sketchlayers.nn import SKConv2d

_C = _extension.load()
RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def plan(**changes):
    """A plan for CONV_4 of NinN at a tenth of its parameters: 5x5, 96 to 192 channels, 16x16."""
    problem = {
        "batch": 64,
        "in_channels": 96,
        "out_channels": 192,
        "groups": 1,
        "kernel": (5, 5),
        "input_pixels": 256,
        "output_pixels": 256,
        "sketch_rank": 6,
        "mixing": "spatial",
        "training": False,
        "needs_folded": False,
    }
    return _C.plan(**problem | changes)


def test_multiply_adds_of_a_convolution():
    pixels = 64 * 256
    n, outputs, rank, taps = 96 * 25, 192, 6, 25
    dense = n * outputs * pixels
    spatial, channel = plan(), plan(mixing="channel")
    assert spatial.dense_multiply_adds == channel.dense_multiply_adds == dense == 460_800 * pixels
    assert spatial.factored_multiply_adds == pixels * rank * (n + outputs) * (1 + taps)
    assert channel.factored_multiply_adds == pixels * rank * (n + outputs + 96 + taps * outputs)
    assert spatial.folded_multiply_adds == dense + rank * n * outputs * (1 + taps)
    assert channel.folded_multiply_adds == dense + rank * n * outputs * 2


def test_channel_mixing_counts_input_pixels_with_a_stride():
    strided = plan(mixing="channel", output_pixels=64)
    per_output = 6 * (96 * 25 + 192 + 25 * 192)
    assert strided.factored_multiply_adds == 64 * (64 * per_output + 256 * 6 * 96)


def test_groups_divide_the_inputs_of_every_output():
    grouped = plan(groups=2)
    assert grouped.dense_multiply_adds == plan().dense_multiply_adds / 2
    # Each group sketches its own half: rank * (n/2 + d1/2) twice.
    assert grouped.factored_multiply_adds == 64 * 256 * 6 * (2 * 1200 + 192) * 26


def test_blocks_multiply_the_products_with_signs_alone():
    pixels, rank, taps = 64 * 256, 6, 25
    numbers, signs = rank * (96 * taps + taps * 192), rank * (96 + 192)
    assert plan(mixing="channel", blocks=4).factored_multiply_adds == pixels * (numbers + 4 * signs)
    spatial = rank * (96 * taps + 192 * taps) + 4 * rank * (taps * 96 * taps + 192)
    assert plan(blocks=4).factored_multiply_adds == pixels * spatial
    assert plan(blocks=4).folded_multiply_adds == plan().folded_multiply_adds
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        plan(blocks=0)


@pytest.mark.parametrize("training", [False, True])
def test_a_wide_layer_is_factored_and_a_spatial_one_with_many_pixels_folded(training):
    one = {"kernel": (1, 1), "input_pixels": 1, "output_pixels": 1}
    wide = plan(in_channels=4096, out_channels=4096, sketch_rank=64, training=training, **one)
    assert wide.path == "factored"
    # Of nearly full rank, its features cost five times the dense layer.
    assert plan(sketch_rank=48, training=training).path == "folded"


def test_a_weight_that_is_there_need_not_be_formed():
    formed, ready = plan(batch=1, sketch_rank=12), plan(batch=1, sketch_rank=12, weight_ready=True)
    assert ready.folded_multiply_adds == ready.dense_multiply_adds < formed.folded_multiply_adds
    assert ready.folded_seconds < formed.folded_seconds
    assert ready.factored_seconds == formed.factored_seconds


@pytest.fixture
def own_costs():
    yield _C.load_plan_costs
    _C.reset_plan_costs()


def test_measured_constants_change_the_choice(own_costs):
    assert plan(mixing="channel").path == "factored"
    own_costs("# slow\ncpu float32 factored channel 100 0 0 0  # seconds\n\n")
    changed = plan(mixing="channel")
    assert (changed.path, changed.factored_seconds) == ("folded", 100)
    own_costs("cpu float32 factored all training 1e-9 1 1 1")
    assert plan(mixing="channel", training=True).factored_seconds == pytest.approx(1e-7)
    for processor in ("onednn", "amx"):
        assert plan(mixing="channel", dtype="bfloat16", processor=processor).factored_seconds < 1
    _C.reset_plan_costs()
    assert plan(mixing="channel").path == "factored"


def test_constants_may_be_those_of_one_memory_format(own_costs):
    own_costs("cpu float32 factored channel channels_last 100 0 0 0")
    assert plan(mixing="channel").path == "factored"
    changed = plan(mixing="channel", channels_last=True)
    assert (changed.path, changed.factored_seconds) == ("folded", 100)
    own_costs("cpu float32 factored channel 50 0 0 0")  # of both again
    for channels_last in (False, True):
        assert plan(mixing="channel", channels_last=channels_last).factored_seconds == 50


def test_a_layer_is_planned_for_the_memory_format_that_it_meets(own_costs):
    own_costs("cpu float32 factored channel channels_last 100 0 0 0")
    layer = SKConv2d(64, 64, 3, padding=1, rate=0.1, mixing="channel")
    shape = (64, 64, 16, 16)
    assert layer.plan(shape).path == "factored"
    assert layer.plan(shape, channels_last=True).path == "folded"
    for layout in (torch.contiguous_format, torch.channels_last):
        output = layer(torch.randn(shape).contiguous(memory_format=layout))
        folded = "Convolution" in str(output.grad_fn)
        assert folded == (layout is torch.channels_last)
    assert layer.to(memory_format=torch.channels_last).plan(shape).path == "folded"


@pytest.mark.parametrize(
    "line",
    [
        "cpu float32 factored channel channels 1 2 3 4",
        "cpu float32 factored channel training channels_last 1 2 3 4",
        "cpu float32 factored channel 1 2 3",
        "cpu float32 factored channel 1 2 3 4 5",
        "cpu float32 factored channel 1 2 3 -4",
        "cpu float32 factored channel 1 2 3 nan",
        "cpu float32 factored sideways 1 2 3 4",
        "cpu float32 channel factored forward 1 2 3 4",
        "tpu float32 factored channel 1 2 3 4",
    ],
)
def test_a_wrong_line_changes_nothing(own_costs, line):
    before = plan(mixing="channel").factored_seconds
    with pytest.raises(ValueError, match="planner constants"):
        own_costs(f"cpu float32 factored channel 100 0 0 0\n{line}\n")
    assert plan(mixing="channel").factored_seconds == before


def read_samples(path):
    """What `sketchlayers bench --verify --csv FILE` has written."""
    parse = {"Kind": str, "bool": lambda text: text == "True", "int": int, "float": float}
    with path.open(newline="") as file:
        return [
            tune.Sample(**{x.name: parse[str(x.type)](row[x.name]) for x in fields(tune.Sample)})
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("name", "processor", "dtype"),
    [
        ("planner_cpu_amd_epyc", "cpu", "float32"),
        ("planner_cpu_intel_xeon", "cpu", "float32"),
        ("planner_bfloat16_cpu_intel_xeon", "amx", "bfloat16"),
    ],
)
def test_choices_for_layers_drawn_at_random(name, processor, dtype):
    """Measured times of 200 layers on each machine."""
    samples = read_samples(RESULTS / f"{name}.csv")
    assert len(samples) == 200
    _C.reset_plan_costs()
    for training in (False, True):
        chosen = tune.choices(samples, processor, dtype, training)
        assert tune.good_choices(chosen) >= 0.95


def test_panels_are_for_one_block_of_mixed_channels_on_amx():
    one = {"mixing": "channel", "dtype": "bfloat16", "processor": "amx"}
    assert plan(**one).panels and plan(**one | {"kernel": (1, 1), "mixing": "spatial"}).panels
    for changed in (
        {"mixing": "spatial"},
        {"blocks": 2},
        {"groups": 2},
        {"dtype": "float16"},
        {"processor": "onednn"},
    ):
        assert not plan(**one | changed).panels
    with pytest.raises(ValueError, match="processor must be"):
        plan(processor="tpu")


def test_without_onednn_half_types_are_factored_where_they_can_be():
    """PyTorch's own convolutions take many times as long then."""
    shape = {"mixing": "channel", "weight_ready": True, "dtype": "float16"}
    for training in (False, True):
        assert plan(processor="cpu", training=training, **shape).path == "factored"


def test_a_frame_is_folded_and_says_why():
    one = {"kernel": (1, 1), "input_pixels": 1, "output_pixels": 1, "batch": 1}
    forced = plan(needs_folded=True, in_channels=4096, out_channels=4096, **one)
    assert forced.path == "folded"
    assert "frame" in forced.reason


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_an_unknown_batch_is_planned_as_a_large_one(mixing):
    unknown, large = plan(batch=None, mixing=mixing), plan(batch=64, mixing=mixing)
    assert (unknown.path, unknown.reason) == (large.path, large.reason)


def test_an_empty_batch_has_a_plan():
    assert plan(batch=0).dense_multiply_adds == 0


def test_an_unknown_mixing_is_refused():
    with pytest.raises(ValueError, match=r"mixing must be 'spatial' or 'channel' \(got 'both'\)"):
        plan(mixing="both")
