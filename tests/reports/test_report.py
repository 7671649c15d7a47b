"""Reports: numbers that add up, tables that fit, JSON that says the same."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
import torch
from compression.networks import Small, images, random_init
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.compression import Inspection, Report
from sketchlayers.reports.rows import Latency
from sketchlayers.reports.table import percent, quantity


@pytest.fixture
def converted() -> tuple[nn.Module, nn.Module, Report]:
    model = Small()
    small, report = random_init(model, 0.6, example_inputs=images(4), seed=2)
    return model, small, report


def saved_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a state dict, as they come back from a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    return sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())


def test_numbers_add_up(converted: tuple[nn.Module, nn.Module, Report]) -> None:
    model, small, report = converted
    for which, module in (("before", model), ("after", small)):
        parameters = getattr(report, f"parameters_{which}")
        assert parameters == sum(p.numel() for p in module.parameters())
        rows = sum(getattr(row, f"parameters_{which}") for row in report.layers)
        assert parameters == report.other_parameters + rows
        assert getattr(report, f"bytes_{which}") == saved_bytes(module)
    assert report.other_parameters == 32
    for row in report.layers:
        before, after = model.get_submodule(row.name), small.get_submodule(row.name)
        assert row.parameters_before == sum(p.numel() for p in before.parameters())
        assert row.parameters_after == sum(p.numel() for p in after.parameters())
        assert row.shape == tuple(before.weight.shape)
        assert (row.method is None) == (row.reason is not None)
        if row.method:
            assert row.rank == after.rank
            assert row.bytes_after == 4 * (row.parameters_after + 96)  # and the seed


def test_multiply_adds_are_those_of_the_run(
    converted: tuple[nn.Module, nn.Module, Report],
) -> None:
    _, small, report = converted
    rows = {row.name: row for row in report.layers}
    expected = {
        "first": 4 * 144 * 16 * 27,
        "body.0": 4 * 144 * 32 * 16 * 9,
        "body.2": 4 * 36 * 32 * 16 * 9,
        "body.4": 4 * 36 * 32 * 9,
        "head": 4 * 32 * 40,
        "classifier": 4 * 40 * 10,
    }
    assert {name: row.multiply_adds_before for name, row in rows.items()} == expected
    assert report.multiply_adds_before == sum(expected.values())
    assert rows["first"].multiply_adds_after == expected["first"]
    with torch.no_grad():
        assert rows["head"].multiply_adds_after == small.head.multiply_adds((4, 32))
        assert rows["body.2"].multiply_adds_after == small.body[2].multiply_adds((4, 32, 12, 12))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(6, 8, 3, groups=2), (2, 6, 10), 2 * 8 * 8 * 9),
        (nn.Conv3d(2, 4, 2), (1, 2, 3, 4, 5), 2 * 3 * 4 * 4 * 16),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 7), 35 * 4 * 6 * 9),
        (nn.Linear(5, 7), (2, 3, 5), 6 * 35),
        (nn.Conv2d(3, 8, 3), (3, 6, 6), 16 * 8 * 27),  # without a batch
    ],
)
def test_multiply_adds_of_other_layers(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    assert sketchlayers.inspect(layer, torch.zeros(shape)).multiply_adds == expected


def test_without_example_inputs_there_are_no_multiply_adds() -> None:
    report = random_init(Small(), 0.6).report
    assert report.multiply_adds_before is None and report.multiply_adds_after is None
    assert "multiply-adds" not in str(report)


def test_json_round_trip(converted: tuple[nn.Module, nn.Module, Report]) -> None:
    _, _, report = converted
    data = report.to_dict()
    assert json.loads(report.to_json()) == data
    assert json.loads(report.to_json(indent=None)) == data
    assert data["rate"] == report.rate and data["seed"] == 2 and data["rate_asked"] == 0.6
    assert data["options"]["mixing"] == "spatial"
    assert {row["name"] for row in data["layers"]} == {row.name for row in report.layers}
    by_layer = random_init(Small(), {"head": 0.5}).report.to_dict()
    assert json.loads(json.dumps(by_layer))["rate_asked"] == {"head": 0.5}


def test_table(converted: tuple[nn.Module, nn.Module, Report]) -> None:
    _, _, report = converted
    lines = str(report).splitlines()
    table = lines[: lines.index("")]
    assert repr(report) == str(report)
    (first,) = [line for line in table if line.startswith("first")]
    (head,) = [line for line in table if line.startswith("head")]
    assert head.split()[:3] == ["head", "sketch", "40x32"]
    row = next(row for row in report.layers if row.name == "head")
    assert f"{row.parameters_before:,}" in head and f"{row.parameters_after:,}" in head
    mark = first.split()[-1]
    share = f"{100 * 448 / report.parameters_before:.1f} %"
    assert f"{mark}  {share}  the first layer is kept (keep_first=False takes it too)" in lines
    assert table[-1].split() == ["everything", "else", "32", "32"]
    whole = {line.split()[0]: line.split()[1:] for line in lines[len(table) + 1 :] if line}
    before, after = report.parameters_before, report.parameters_after
    rates = [f"{report.rate:.4g}", "asked:", "0.6"]
    assert whole["parameters"] == [f"{before:,}", f"{after:,}", *rates]
    size = [f"{report.bytes_before / 1e6:.3g}", "MB", f"{report.bytes_after / 1e6:.3g}", "MB"]
    assert whole["file"][1:] == [*size, f"{report.bytes_after / report.bytes_before:.4g}"]
    counts = [report.multiply_adds_before, report.multiply_adds_after]
    assert whole["multiply-adds"][:4] == [word for n in counts for word in quantity(n).split()]
    assert '"-": an unchanged layer (method), a layer or side without factors (rank)' in lines
    ends = {len(line) for line in table if set(line) == {"-"}}
    assert len(ends) == 1 and max(map(len, table)) == ends.pop() <= 120
    # Columns are aligned: the first of two header lines ends where its columns do.
    at = table[1].index("before")
    assert table[0].index("parameters") < at + len("before")


def test_long_names_are_never_shortened() -> None:
    layer = nn.Linear(4096, 16384, device="meta")
    model: nn.Module = nn.Sequential(layer, nn.Linear(16384, 16384, device="meta"))
    for name in ("encoder_with_a_rather_long_name", "transformer_blocks", "feed_forward_network"):
        model = nn.ModuleDict({name: model})
    name = "feed_forward_network.transformer_blocks.encoder_with_a_rather_long_name.1"
    for printed in (sketchlayers.inspect(model), random_init(model, 0.5).report):
        lines = str(printed).splitlines()
        (row,) = [line for line in lines if line.startswith(name + " ")]
        assert " 16384x16384 " in row
        running_text = lines[lines.index("") :]
        assert max(map(len, running_text)) <= 120


def test_inspection_adds_up() -> None:
    model = Small()
    inspection = sketchlayers.inspect(model, images(), method="sketch")
    assert isinstance(inspection, Inspection)
    assert inspection.parameters == sum(p.numel() for p in model.parameters())
    assert inspection.bytes == saved_bytes(model)
    assert json.loads(inspection.to_json()) == inspection.to_dict()
    assert repr(inspection) == str(inspection)
    free = [row for row in inspection.layers if row.reason is None]
    assert inspection.compressible_parameters == sum(row.parameters for row in free)
    for row in free:
        full = random_init(model, {row.name: 1e-9}).report
        assert full.replaced[0].parameters_after == row.smallest_parameters
        largest = sketchlayers.methods.Sketch().parameters(
            model.get_submodule(row.name), row.largest_rank
        )
        assert row.smallest_parameters <= largest < row.parameters


def test_ranks_of_two_sides() -> None:
    model = Small()
    model.pixels = nn.Conv2d(16, 16, 1)
    report = random_init(
        model, {"body.0": 0.5, "pixels": 0.5, "head": 0.5}, method="tucker2"
    ).report
    rows = {row.name: row for row in report.replaced}
    first, second = rows["body.0"].rank
    assert rows["pixels"].rank == (None, 4) and isinstance(rows["head"].rank, int)
    lines = {line.split()[0]: line.split() for line in str(report).splitlines() if line}
    assert lines["body.0"][3] == f"{first}x{second}" and lines["pixels"][3] == "-x4"
    data = json.loads(report.to_json())
    assert data == report.to_dict()
    assert {row["name"]: row["rank"] for row in data["layers"]}["pixels"] == [None, 4]
    inspection = sketchlayers.inspect(model, method="tucker2")
    lines = {line.split()[0]: line for line in str(inspection).splitlines() if line}
    assert " 1x1 to 1" in lines["body.0"] and " -x1 to -x7 " in lines["pixels"]
    assert " 1-17 " in lines["head"]
    assert json.loads(inspection.to_json()) == inspection.to_dict()


def test_quantities() -> None:
    written = [quantity(n, "B") for n in (0, 7, 999, 1000, 1234, 999_499, 999_500, 1_234_567_890)]
    assert written == [
        "0 B", "7 B", "999 B", "1 kB", "1.23 kB", "999 kB", "1 MB", "1.23 GB"
    ]  # fmt: skip
    assert quantity(None) == "-" and quantity(12_300) == "12.3 k"


@pytest.fixture(scope="module")
def fitted() -> Report:
    """With data, layers one after the other."""
    torch.manual_seed(0)
    loader = [images(16) for _ in range(2)]
    return sketchlayers.compress(
        Small().eval(), "tucker2", rate=0.9, calibration=loader, seed=1
    ).report


def test_what_the_data_say(fitted: Report) -> None:
    lines = str(fitted).splitlines()
    table = lines[: lines.index("")]
    assert fitted.images == 32 and fitted.sequential and fitted.error_of == "output"
    assert fitted.output_change is not None
    change = percent(fitted.output_change)
    assert f"calibrated on 32 images; the network's outputs change by {change}" in lines
    explained = "output error: |change| / |output| of each layer, with its inputs as the layers "
    assert explained + "before it leave them" in lines
    assert table[0].endswith("output") and table[1].endswith("error")
    total = sum(fitted.seconds.values())
    (seconds,) = [x for x in lines if x.startswith("seconds for compressing: calibration ")]
    assert ", ranks " in seconds and seconds.endswith(f"; {total:.3g} in all")
    assert max(map(len, lines)) <= 120

    # A layer that stays dense has its new weight's error, and the reason.
    dense = [row for row in fitted.layers if row.becomes == "dense"]
    assert dense and all(row.method is None and row.reason for row in dense)
    marks = {line.split()[-1] for line in lines if line.startswith(tuple(r.name for r in dense))}
    (mark,) = marks
    assert any(line.startswith(mark) and "  stays dense at this rate" in line for line in lines)
    row = next(line for line in table if line.startswith(f"{dense[0].name} ")).split()
    assert row[1] == "dense" and row[3] == "-" and row[-2] == f"{dense[0].relative_error:.3f}"
    assert f"{len(dense)} dense with new weights; seed 1" in str(fitted)
    untouched = next(row for row in fitted.layers if row.becomes is None)
    assert next(line for line in table if line.startswith(untouched.name)).split()[1] == "-"
    assert json.loads(fitted.to_json()) == fitted.to_dict()


def test_errors_of_weights_and_of_layers_by_themselves() -> None:
    model, x = Small().eval(), images(64)
    calibration = sketchlayers.calibrate(model, [x])
    report = sketchlayers.compress(model, "svd", rate=0.7, calibration=calibration).report
    assert "calibrated on 64 images\n" in str(report)  # nothing is known of the outputs
    assert "|change| / |output| of each layer, with its original inputs\n" in str(report)
    assert report.error_of == "output" and not report.sequential
    with pytest.warns(UserWarning, match="needs training"):
        report = sketchlayers.compress(model, "svd", rate=0.7).report
    assert "weight error: |change| / |weight| of each layer\n" in str(report)
    assert report.images is None and "calibrated" not in str(report)
    assert random_init(model, 0.7).report.error_of is None


def test_inspection_of_several_methods_is_what_compress_can_reach() -> None:
    model = Small()
    inspection = sketchlayers.inspect(model, images())
    assert inspection.method == "auto" and "method auto can replace 4 of 6 layers" in str(
        inspection
    )
    rows = {row.name: row for row in inspection.layers}
    assert rows["first"].reason == "the first layer is kept (keep_first=False takes it too)"
    assert rows["first"].methods == () and rows["first"].smallest_parameters == 448
    assert rows["body.0"].methods == ("tucker2", "svd", "cp")
    smallest = [m.parameters(model.body[0], m.ranks(model.body[0])[0]) for m in (
        methods.Tucker2(), methods.SVD(), methods.CP()
    )]  # fmt: skip
    assert rows["body.0"].smallest_parameters == min(smallest)
    text = f"rate must be at least {math.ceil(inspection.smallest_rate * 1e4) / 1e4:g} "
    with pytest.raises(ValueError, match=text):
        sketchlayers.compress(model, rate=0.001, calibration=[images(8)])
    free = sketchlayers.inspect(model, images(), keep_first=False)
    assert free.layers[0].reason is None and free.smallest_rate < inspection.smallest_rate
    alone = sketchlayers.inspect(nn.Linear(8, 8))  # the model itself, which compress does replace
    assert alone.layers[0].reason is None


def test_the_budget_stands_beside_what_it_is_of(fitted: Report) -> None:
    def lines(report: Report) -> dict[str, str]:
        return {line.split()[0]: line for line in str(report).splitlines() if line}

    report = dataclasses.replace(fitted, budget="flops_rate", rate_asked=0.5, budget_rate=0.4987)
    assert lines(report)["multiply-adds"].endswith("asked: 0.5")
    assert "asked" not in lines(report)["parameters"]
    assert report.to_dict()["budget"] == "flops_rate" and report.to_dict()["budget_rate"] == 0.4987
    timed = Latency(1, 0.01234, 0.0061, calls=11, threads=2, device="cpu")
    report = dataclasses.replace(report, budget="latency_rate", latencies=(timed,))
    words = lines(report)["milliseconds,"].split()
    assert words == ["milliseconds,", "1", "image", "12.3", "6.1", "0.4943", "asked:", "0.5"]
    assert "expected from the times of single layers: 0.4987 of the milliseconds" in str(report)
    assert report.advice is None and "not faster" not in str(report)
    assert report.to_dict()["latencies"] == [
        {"images": 1, "before": 0.01234, "after": 0.0061, "calls": 11, "threads": 2}
        | {"device": "cpu", "rate": 0.0061 / 0.01234}
    ]


def test_signs_in_the_table_are_explained() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    x = torch.zeros(1, 4, dtype=torch.int64)
    report = random_init(model, {"1": 0.5, "2": 0.5}, method="svd", example_inputs=x).report
    (line,) = [line for line in str(report).splitlines() if line.startswith('"-": ')]
    assert line.removeprefix('"-": ').split(", ") == [
        "an unchanged layer (method)",
        "a layer or side without factors (rank)",
        "a count that is not known (multiply-adds)",
    ]
    convs = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1))
    both = {"0": 0.5, "1": 0.5}
    lines = str(random_init(convs, both, method="tucker2").report).splitlines()
    assert '"-": a layer or side without factors (rank)' in lines
    assert "rank AxB: the h x w convolution has A input and B output channels" in lines
    lines = str(random_init(convs, both, method="cp").report).splitlines()
    assert not any(line.startswith(('"-"', "rank")) for line in lines)


def test_a_network_that_is_not_faster(fitted: Report) -> None:
    times = [Latency(n, 0.1, after, 3, 1, "cpu") for n, after in ((1, 0.121), (32, 0.05))]
    report = dataclasses.replace(fitted, latencies=tuple(times))
    advice = "smaller, but not faster (times the original's: 1.21 for 1 image): flops_rate="
    assert report.advice is not None and report.advice.startswith(advice)
    text = " ".join(str(report).split())
    assert report.advice in text
    assert "in PyTorch on 1 thread, uncompiled; medians of 3 calls of each network" in text
    asked = dataclasses.replace(report, budget="latency_rate")
    assert asked.advice is not None and "flops_rate" not in asked.advice
    assert dataclasses.replace(report, latencies=times[1:]).advice is None
    assert dataclasses.replace(report, latencies=()).advice is None


def test_parameters_outside_of_layers_are_named() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.Parameter(torch.zeros(1024))
            self.position = nn.Parameter(torch.zeros(7))

    model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16), Scales(), nn.LayerNorm(16))
    report = random_init(model, {"1": 0.5}).report
    assert report.other_parameters == 4 * 256 + 7 + 32
    assert [one.name for one in report.others] == [
        *("2.scales", "2.position", "3.weight", "3.bias")
    ]
    assert report.others[0].kind == "Scales" and report.others[0].shape == (1024,)
    share = f"{100 * 1024 / report.parameters_before:.1f} %"
    for printed in (report, sketchlayers.inspect(model)):
        lines = str(printed).splitlines()
        at = lines.index("parameters in no layer that can be replaced:")
        assert lines[at + 1].split("  ")[-2:] == [share, "2.scales (Scales, 1024)"]
        assert lines[at + 2].endswith("  3 more")
    assert json.loads(report.to_json())["others"][1]["parameters"] == 7


def test_reasons_come_by_their_share() -> None:
    model = nn.Sequential(
        nn.Linear(16, 16), nn.Embedding(10, 16), nn.Linear(16, 32), nn.Embedding(90, 16)
    )
    report = random_init(model, {"2": 0.5}).report
    kept = report.kept
    assert kept[0].names == ("3", "1") and kept[1].names == ("0",)
    assert kept[0].share == 1600 / report.parameters_before
    lines = str(report).splitlines()
    at = lines.index("not replaced, with the share of all parameters:")
    assert lines[at + 1].startswith("(1) ") and lines[at + 1].endswith("(2 layers, the largest: 3)")
    assert lines[at + 2].startswith("(2) ") and "not among the chosen layers" in lines[at + 2]


def test_accuracies_and_outputs_that_are_not_finite(fitted: Report) -> None:
    report = dataclasses.replace(
        fitted,
        accuracy={"original": 0.9163, "compressed": 0.5},
        accuracy_images=1017,
        output_change=math.inf,
    )
    text = "accuracy on 1,017 held-out images: original 91.6 %, compressed 50.0 %"
    assert text in str(report).splitlines()
    assert "the network's outputs change by inf %" in str(report)
    data = json.loads(report.to_json())
    assert data["output_change"] is None and data["accuracy"] == report.accuracy
