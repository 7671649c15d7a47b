"""The planner's counts against the formulas, and its choices where they are beyond doubt."""

import pytest

from sketchlayers._extension import _C


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


@pytest.mark.parametrize("training", [False, True])
def test_a_wide_layer_is_factored_and_a_spatial_one_with_many_pixels_folded(training):
    one = {"kernel": (1, 1), "input_pixels": 1, "output_pixels": 1}
    wide = plan(in_channels=4096, out_channels=4096, sketch_rank=64, training=training, **one)
    assert wide.path == "factored"
    assert plan(training=training).path == "folded"


def test_a_base_or_a_frame_is_folded_and_says_why():
    one = {"kernel": (1, 1), "input_pixels": 1, "output_pixels": 1, "batch": 1}
    forced = plan(needs_folded=True, in_channels=4096, out_channels=4096, **one)
    assert forced.path == "folded"
    assert "base" in forced.reason


@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_an_unknown_batch_is_planned_as_a_large_one(mixing):
    unknown, large = plan(batch=None, mixing=mixing), plan(batch=64, mixing=mixing)
    assert (unknown.path, unknown.reason) == (large.path, large.reason)


def test_an_empty_batch_has_a_plan():
    assert plan(batch=0).dense_multiply_adds == 0


def test_an_unknown_mixing_is_refused():
    with pytest.raises(ValueError, match=r"mixing must be 'spatial' or 'channel' \(got 'both'\)"):
        plan(mixing="both")
