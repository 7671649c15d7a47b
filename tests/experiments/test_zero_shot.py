"""The zero-shot table on small networks and data sets of the standard formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.datasets import imagenet

import headline
import zero_shot
from networks import CifarResNet, count_parameters
from sketchlayers._runtime.files import write_csv
from trained import variants
from zero_shot import Experiment, main, outputs_of_classes, parser

from . import standard_downloads as downloads
from .trained_networks import on_digits, read, write_weights

pytestmark = pytest.mark.usefixtures("resnet8")


def test_steps_become_rows_tables_and_a_plot_and_are_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--variant", "refined quickly", "refine.epochs=1", "refine.batch_size=20"]
    command = on_digits(tmp_path, "--rates=0.5", "--methods=svd", *quick)
    steps = [step.name for step in variants.STEPS if step.name != "refined"]
    assert main([*command, "--variants", *steps, f"--png={tmp_path / 'plot.png'}"]) == 0
    rows = read(tmp_path / "results.csv")
    assert [row["variant"] for row in rows] == ["dense", *steps, "refined quickly"]
    dense = rows[0]
    for row in rows[1:]:
        assert float(row["kept"]) == pytest.approx(0.5, abs=0.01)
        assert int(row["parameters"]) == round(float(row["kept"]) * int(dense["parameters"]))
        gained = float(row["accuracy"]) - float(dense["accuracy"])
        assert float(row["difference"]) == pytest.approx(gained, abs=1e-3)
        stages = [float(value) for key, value in row.items() if "seconds_" in key and value]
        assert 0 < sum(stages) <= float(row["seconds"])
    assert [bool(row["seconds_refinement"]) for row in rows] == [False] * 6 + [True]
    assert {row["calibration_images"] for row in rows[2:]} == {"40"}
    assert (tmp_path / "plot.png").stat().st_size > 0
    printed = capsys.readouterr().out
    for row in rows[1:]:
        assert f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}" in printed

    monkeypatch.setattr(Experiment, "measure", lambda *_: pytest.fail("measured again"))
    assert main([*command, "--variants", *steps]) == 0
    assert main([f"--csv={tmp_path / 'results.csv'}", "--show", "--markdown"]) == 0
    assert "| same 40 | svd | 0.50 |" in capsys.readouterr().out


def test_headline_has_a_row_for_each_saved_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headline, "onnx_steps", lambda *_: None)
    files = [f"--files={tmp_path}", "--seconds=0.01", "--epochs=1"]
    command = [*on_digits(tmp_path, "--rates=0.5", "--methods=svd"), *files]
    forms = ["fitted", "refined", "fine-tuned"]
    assert headline.main([*command, "--forms", *forms, "--bytes-rates=0.3"]) == 0
    *first, few_bits = sorted(
        read(tmp_path / "results.csv"), key=lambda row: row["form"] == "few bits"
    )
    assert (few_bits["method"], few_bits["form"]) == ("auto", "few bits")
    assert int(few_bits["file_bytes"]) < 0.5 * int(first[0]["file_bytes"])
    assert [(row["method"], row["form"]) for row in first] == [
        ("dense", "dense"),
        *(("svd", form) for form in forms),
    ]
    dense, *small = first
    names = ["dense_1", "svd_0.5", "svd_0.5_refined", "svd_0.5_fine-tuned"]
    for row, name in zip(first, names, strict=True):
        file = tmp_path / f"resnet8_{name}.safetensors"
        assert int(row["file_bytes"]) == file.stat().st_size > 4 * int(row["parameters"])
        assert float(row["pytorch_ms_1"]) > 0 and float(row["pytorch_ms_2"]) > 0
    for row in small:
        assert int(row["parameters"]) == pytest.approx(0.5 * int(dense["parameters"]), rel=0.03)
        assert 0 < int(row["multiply_adds"]) < int(dense["multiply_adds"])
        gained = float(row["accuracy"]) - float(dense["accuracy"])
        assert float(row["difference"]) == pytest.approx(gained, abs=1e-3)
    seconds = [float(row["seconds"]) for row in small]
    assert not dense["seconds"] and 0 < seconds[0] < min(seconds[1:])

    # Saved networks are tested and timed again, and not made again; other rows stay.
    def again(*_: object, **__: object) -> None:
        pytest.fail("made again")

    monkeypatch.setattr(headline, "quietly_compressed", again)
    monkeypatch.setattr(headline, "Trainer", again)
    assert headline.main(command) == 0
    rows = read(tmp_path / "results.csv")
    assert [row["form"] for row in rows] == ["dense", "few bits", *forms]
    same = [key for key in dense if not key.startswith("pytorch_")]
    for row in (one for one in rows if one["form"] != "few bits"):
        (before,) = (one for one in first if one["form"] == row["form"])
        assert [row[key] for key in same] == [before[key] for key in same]
    capsys.readouterr()
    other = {"network": "resnet8", "accuracy": 9.0, "standard_error": 1.0, "milliseconds": 2.0}
    names = ("dense", "ours, auto", "another")
    write_csv(tmp_path / "peers.csv", [other | {"peer": name, "bytes": 900} for name in names])
    shown = [f"--csv={tmp_path / 'results.csv'}", f"--png={tmp_path / 'plot.png'}"]
    shown.append(f"--peers={tmp_path / 'peers.csv'}")
    assert headline.main([*shown, "--show", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| resnet8 | 0.5, svd |" in printed and "| resnet8 | 0.5, svd, refined |" in printed
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_accuracy_is_that_of_the_network_on_the_images(tmp_path: Path) -> None:
    args = parser().parse_args(on_digits(tmp_path))
    experiment = Experiment(args)
    row = experiment.measure(zero_shot.DENSE_RUN)
    images = torch.cat(list(experiment.measured))
    assert images.shape == (60, 3, 16, 16)
    with torch.no_grad():
        right = experiment.trained.network(images).argmax(1) == experiment.measured.labels
    assert row["accuracy"] == pytest.approx(100 * float(right.double().mean()))
    assert (row["difference"], row["standard_error"]) == (0, 0)


def test_validation_images_are_training_images_that_calibration_has_not_seen(
    tmp_path: Path,
) -> None:
    args = parser().parse_args(on_digits(tmp_path, "--split=validation"))
    args.images = None
    experiment = Experiment(args)
    calibration, measured = (
        {image.numpy().tobytes() for image in torch.cat(list(pictures))}
        for pictures in (experiment.calibration, experiment.measured)
    )
    assert len(experiment.calibration.labels) == 40
    assert len(experiment.measured.labels) == 1442 - 40
    assert not calibration & measured


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "aircraft", "imagenet", "imagenette"])
def test_standard_downloads_are_compressed_on(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, root = 3, tmp_path / "data"
    if data == "cifar10":
        downloads.write_cifar10(root, 20)
        classes = 10
    elif data == "cifar100":
        downloads.write_cifar100(root, 100)
        classes = 100
    elif data == "aircraft":
        downloads.write_aircraft(root, 8)
    elif data == "imagenet":
        without = {key: (name, None) for key, (name, _) in imagenet.ARCHIVE_META.items()}
        monkeypatch.setattr(imagenet, "ARCHIVE_META", without)
        downloads.write_imagenet(root, 8)
    else:
        downloads.write_image_folders(root, classes=10, images=2)
        classes = 1000
    weights = write_weights(tmp_path / "weights.pt", CifarResNet(8, classes))
    command = ["--network=resnet8", f"--weights={weights}", f"--data={data}", f"--root={root}"]
    command += ["--methods=svd", "--rates=0.7", "--calibration-images=16", "--images=20"]
    path = tmp_path / "results.csv"
    assert main([*command, f"--csv={path}", "--variants", "data"]) == 0
    dense, row = read(path)
    assert (row["data"], row["images"]) == (data, "20")
    assert float(row["kept"]) == pytest.approx(0.7, abs=0.01)
    assert dense["accuracy"] and row["accuracy"]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", "layer1.0.*"), ("resnet50", "layer1.0.*"), ("googlenet", "inception3a.*")],
)
def test_the_papers_networks_are_compressed(tmp_path: Path, name: str, layers: str) -> None:
    downloads.write_aircraft(tmp_path, 4)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = models.get_model(name, weights=None, num_classes=3, **options)
    weights = write_weights(tmp_path / "weights.pt", network)
    command = [f"--network={name}", f"--weights={weights}", "--data=aircraft", "--size=32"]
    command += [f"--root={tmp_path}", "--calibration-images=8", "--methods=svd"]
    # A few layers, so that it is quick; what remains of them is what all of the network keeps.
    few = ["--variant", "few", f"layers={layers}", "allocation=uniform", "sequential=False"]
    few += ["sensitivity=False"]
    path = tmp_path / "results.csv"
    kept = 1 - 0.3 * _share(network, layers)
    code = main([*command, "--variants", *few, f"--rates={kept:.5f}", f"--csv={path}"])
    assert code == 0
    dense, row = read(path)
    assert int(row["replaced"]) >= 2
    assert int(row["parameters"]) < int(dense["parameters"])
    assert float(row["kept"]) == pytest.approx(kept, abs=1e-3)


def _share(network: nn.Module, layers: str) -> float:
    part = network.get_submodule(layers.removesuffix(".*"))
    return count_parameters(part) / count_parameters(network)


def test_moments_of_other_images_are_used_and_named(tmp_path: Path) -> None:
    downloads.write_image_folders(tmp_path / "other", classes=2, images=10)
    other = ["--calibration-data=imagenette", f"--calibration-root={tmp_path / 'other'}"]
    command = on_digits(tmp_path, "--methods=svd", "--rates=0.4", "--variants")
    assert main([*command, "frobenius", "data"]) == 0
    assert main([*command, "frobenius", "data", *other, "--calibration-images=20"]) == 0
    rows = read(tmp_path / "results.csv")
    names = [(row["variant"], row["calibration_data"]) for row in rows]
    assert names == [
        *(("dense", "none"), ("frobenius", "none")),
        *(("data", "same"), ("data", "imagenette")),
    ]
    assert rows[2]["output_change"] != rows[3]["output_change"]


def test_a_rate_that_cannot_be_met_leaves_a_note_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = on_digits(tmp_path, "--methods=tucker2", "--variants", "frobenius", "--rates=0.001")
    for _ in range(2):
        assert main(command) == 0
        assert len(read(tmp_path / "results.csv")) == 2
        assert "[1/" in capsys.readouterr().out
    assert "rate" in read(tmp_path / "results.csv")[1]["note"]


def test_rows_of_another_process_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = on_digits(tmp_path, "--variants")
    assert main(command) == 0
    results = tmp_path / "results.csv"
    (first,) = read(results)
    measure = Experiment.measure

    def meanwhile(experiment: Experiment, run: zero_shot.Run) -> dict[str, object]:
        write_csv(results, [first, {**first, "network": "another"}])
        return measure(experiment, run)

    monkeypatch.setattr(Experiment, "measure", meanwhile)
    assert main([*command, "--images=50"]) == 0
    found = [(row["network"], row["images"]) for row in read(results)]
    assert found == [("resnet8", "60"), ("another", "60"), ("resnet8", "50")]


def test_a_file_of_other_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.csv").write_text("network,accuracy\nresnet8,50\n")
    assert main(on_digits(tmp_path)) == 2
    assert "must have the columns of this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "nothing"], "--variants: must be steps"),
        (["--variant", "own", "refine"], "--variant: must be NAME=VALUE (got 'refine')"),
        (["--png=nowhere/at/all.png"], "--png: its folder must exist"),
        (["--data=cifar10"], "cifar10: the folder with the data set must be given"),
        (["--weights=nowhere.pt"], "weights: no such file: nowhere.pt"),
        (["--split=validation", "--calibration-images=5000"], "--calibration-images: must leave"),
        (["--resize=8"], "images: size must be at least 1 and at most resize (got 16 and 8)"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Experiment, "measure", lambda *_: pytest.fail("measured"))
    assert main([*on_digits(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_classes_stand_for_outputs() -> None:
    assert outputs_of_classes("cifar10", 10, 10) == tuple(range(10))
    assert outputs_of_classes("imagenette", 10, 10) == tuple(range(10))
    assert outputs_of_classes("imagenette", 10, 1000)[:3] == (0, 217, 482)
    with pytest.raises(ValueError, match=r"output for each of the 10 classes .*\(got 1000 outputs"):
        outputs_of_classes("cifar10", 10, 1000)
