"""The command: what it measures, prints and writes, and which arguments it refuses."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bench.rows import row
from torch import nn

from sketchlayers.bench import cases, factors, plot, table
from sketchlayers.bench.bound import Mode, Peaks
from sketchlayers.bench.cases import Case
from sketchlayers.bench.figures import CPU_GOALS
from sketchlayers.bench.memory import inference_memory, step_memory
from sketchlayers.cli import bench as command
from sketchlayers.cli import main as cli

SMALL = (
    Case("small", 16, 16, kernel=3, size=6, padding=1),
    Case("small", 16, 16, size=6),
    Case("small", 32, 32),
)
SETTINGS = table.Settings(
    rate=0.25,
    path="auto",
    seconds=0.001,
    device=torch.device("cpu"),
    dtype=torch.float32,
    formats=("nchw", "nhwc"),
    peaks=Peaks(1e11, 1e10),
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers, and peaks that take no time to measure."""
    monkeypatch.setattr(command, "TABLE", SMALL)
    monkeypatch.setattr(command, "measure_peaks", lambda device, dtype: Peaks(1e11, 1e10))


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_a_layer_has_a_row_for_each_mixing_and_format(mode: Mode) -> None:
    rows = table.run_case(SMALL[0], 2, mode, ("spatial", "channel"), SETTINGS)
    assert [(r.method, r.format) for r in rows] == [
        ("spatial", "nchw"),
        ("spatial", "nhwc"),
        ("channel", "nchw"),
        ("channel", "nhwc"),
    ]
    for r in rows:
        assert r.path in ("factored", "folded")
        assert r.speed_low <= r.speed <= r.speed_high
        assert r.rounds >= 7
        assert r.memory > 0
        assert r.bound > 0


def test_layers_with_blocks() -> None:
    settings = table.Settings(**{**vars(SETTINGS), "blocks": 3, "formats": ("nchw",)})
    (row,) = table.run_case(SMALL[1], 2, "training", ("channel",), settings)
    assert row.bound > 0
    assert cases.build_sketch(SMALL[1], 0.25, "channel", "auto", 3).blocks == 2  # of 16 channels


@pytest.mark.parametrize("case", SMALL[1:], ids=lambda case: case.name)
def test_without_taps_both_mixings_are_one_row(case: Case) -> None:
    settings = table.Settings(**{**vars(SETTINGS), "formats": ("nchw",)})
    (own,) = table.run_case(case, 2, "forward", ("spatial", "channel"), settings)
    assert own.method == "any"


def test_the_table_goes_to_the_terminal_a_csv_and_a_picture(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "bench.csv", tmp_path / "bench.png"]
    measured = ["--seconds=0.001", "--threads=1", "--device=cpu", "--rate=0.25"]
    written = [f"--csv={files[0]}", f"--png={files[1]}"]
    code = cli.main(["bench", "--batch", "2", "1", *measured, *written])
    printed = capsys.readouterr().out
    assert code == 0
    assert "1 threads" in printed
    for expected in ("inference", "forward + backward", "lowest speed"):
        assert expected in printed
    with files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]][-4:] == ["dtype", "hardware", "torch", "sketchlayers"]
    assert {r["batch"] for r in rows} == {"1", "2"}
    assert {r["hardware"] for r in rows} == {table.machine(torch.device("cpu"))}
    assert files[1].stat().st_size > 0


def test_figures_are_measured_and_judged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure_peaks", lambda device, dtype: Peaks(1e11, 1e10))
    monkeypatch.setattr(
        table,
        "run_case",
        lambda case, batch, mode, mixings, settings: [
            row(
                layer=case.name,
                method=mixing if case.taps > 1 else "any",
                batch=batch,
                mode=mode,
                speed=100.0,
            )
            for mixing in mixings
        ],
    )
    assert cli.main(["bench", "--figures", "--device", "cpu", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    count = len(CPU_GOALS)
    assert f"{count} of {count} reached" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "nan"], "--seconds: must be positive (got nan)"),
        (["--threads", "0"], "--threads: must be at least 1 (got 0)"),
        (["--layers", "9x9*"], "--layers: '9x9*' matches no layer"),
        (["--csv", "nowhere/at/all.csv"], "--csv: its folder must exist"),
        (["--device", "warp"], "--device must be one of this machine (got warp: "),
        (["--device", "meta"], "--device: must be one of cpu, cuda (got meta)"),
        (["--graphs", "--device", "cpu"], "--graphs: needs a GPU"),
        (["--figures", "--rate", "0.2"], "--figures: fixes --rate"),
        (["--factors", "--rate", "0.2"], "--factors: fixes --rate"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "measure_peaks", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", "--device", "cpu", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"sketchlayers bench: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [["--batch", "4", "0"], ["--rate", "1.5"], ["--rate", "nan"], ["--blocks", "0"]],
)
def test_numbers_out_of_range_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *wrong])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {wrong[0]}: must be " in message and f"(got '{wrong[-1]}')" in message


def test_a_picture_without_matplotlib_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [name for name in sys.modules if name.startswith("matplotlib.")]
    for name in ["matplotlib", *known]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(command, "measure_peaks", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", "--device", "cpu", "--png", "bench.png"]) == 2
    assert (
        'needs matplotlib, which is not installed: pip install "sketch' in capsys.readouterr().err
    )


def test_the_picture_shows_something(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "bench.png"
    rows = [
        row(),
        row(method="spatial", speed=1.0, speed_low=0.9, speed_high=1.1),
        row(method="channel", format="nhwc"),
        row(
            mode="training", method="optimized channel", speed=0.03, speed_low=0.02, speed_high=0.05
        ),
    ]
    plot.write_png(path, rows, "a test")
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.02


def test_noise_is_told() -> None:
    calm, noisy = row(), row(speed_low=3.0, speed_high=4.5)
    assert not any("busy" in line for line in table.notes([calm]))
    assert any("1 of 2 rows" in line for line in table.notes([calm, noisy]))
    assert "~" in table.format_row(noisy) and "~" not in table.format_row(calm)


def test_layers_are_chosen_by_name_or_network() -> None:
    assert [c.name for c in cases.select(cases.TABLE, ["5x5*"])] == ["5x5 96->192 @16"]
    assert {c.label for c in cases.select(cases.TABLE, ["ResNet"])} == {
        c.label for c in cases.RESNET
    }
    names = [c.name for c in cases.TABLE]
    assert len(names) == len(set(names))


def test_memory_counts_parameters_input_and_what_a_call_allocates() -> None:
    layer, data = nn.Linear(64, 32), torch.randn(16, 64)
    held = 4 * (64 * 32 + 32 + 16 * 64)
    assert inference_memory(layer, data) == held + 4 * 16 * 32
    trained = step_memory(layer, data.clone().requires_grad_())
    assert trained >= held + 4 * (64 * 32 + 32 + 16 * 64)


def test_layers_of_factors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = factors.Chain(SMALL[0], 2, {"cp": (1e-9, 1e9), "tucker2": (1e-9, 1e9)})
    monkeypatch.setattr(factors, "CHAINS", (small,))
    file = tmp_path / "factors.csv"
    assert cli.main(["bench", "--factors", "--seconds", "0.001", "--csv", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "4 of 8 reached" in printed and all(title in printed for title in plot.TITLES.values())
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 2 * 2 * 2 * 2  # methods, rates, formats, modes
    assert {row["path"] for row in rows if row["mode"] == "training"} == {"plain"}
    assert {row["path"] for row in rows if row["mode"] == "forward"} == {"fused"}
