"""``sketchlayers calibrate`` and ``compress`` with folders of images."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sketchlayers
from sketchlayers.checkpoint import read_description
from sketchlayers.cli.folders import ImageBatches, Preparation, find_images, spread
from sketchlayers.cli.main import main

from .command_line import assert_refused, files, without
from .photos import write_photos

models = pytest.importorskip("torchvision.models")

NAME = "squeezenet1_1"
CLASSES = ["a-red", "b-green", "c-blue"]
MODEL = [NAME, "--num-classes", "3", "--weights", "weights.pt", "--input-size", "3x40x40"]
LAYERS = ["--layers", "features.6.*", "--rate", "0.975"]
TUCKER = ["--method", "tucker2", *LAYERS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in ``photos``, others in ``held_out``, weights in ``weights.pt``."""
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"), CLASSES, 8, size=(48, 44))
    write_photos(Path("held_out"), CLASSES, 2, size=(48, 44))
    torch.save(models.get_model(NAME, weights=None, num_classes=3).state_dict(), "weights.pt")
    return tmp_path


def original() -> nn.Module:
    model = models.get_model(NAME, weights=None, num_classes=3)
    model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model.eval()


def photos(count: int) -> list[torch.Tensor]:
    """What the command line reads, in batches of 8."""
    files = spread(find_images(Path("photos")), count)
    return list(ImageBatches(files, Preparation.of(NAME, (3, 40, 40)), 8))


@pytest.mark.filterwarnings("ignore:compress")
def test_one_call_from_photos_to_a_smaller_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compress", *MODEL, *TUCKER, "--calibration", "photos", "--images", "18"]
    arguments += ["--batch-size", "8", "--seed", "1"]
    output = ["--out", "small.safetensors", "--plot", "errors.png"]
    assert main([*arguments, *output]) == 0
    out, err = capsys.readouterr()
    expected, report = sketchlayers.compress(
        original(), "tucker2", rate=0.975, layers="features.6.*", calibration=photos(18), seed=1
    )
    measured = r"(?m)^(seconds for compressing|milliseconds.*|smaller, but not).*\n(  .*\n)*"
    table, lines = re.subn(measured, "", out)
    assert lines >= 3 and table.split() == re.sub(measured, "", f"{report}\n").split()
    assert "calibrated on 18 images; the network's outputs change by " in out
    assert err.splitlines()[0] == "calibrating on 18 of 24 images, from 3 folders, as 3x40x40"
    assert "written: small.safetensors (" in err and "written: errors.png\n" in err
    assert Path("errors.png").read_bytes().startswith(b"\x89PNG")

    opening = next(line for line in err.splitlines() if line.startswith("open it in Python: "))
    opened: dict[str, Any] = {}
    exec(opening.removeprefix("open it in Python: "), opened)
    state = opened["model"].state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())

    # Again, as JSON and in PyTorch's format: the same model, and the file holds the report.
    assert main([*arguments, "--out", "again.safetensors", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert without(printed, "seconds", "latencies") == without(
        report.to_dict(), "seconds", "latencies"
    )
    assert read_description("again.safetensors").reports == (printed,)
    stored = load_file("again.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in state.items())


def test_settings_of_calibration_are_passed_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compress", *MODEL, *LAYERS[:2], "--flops-rate", "0.98", "--json"]
    arguments += ["--calibration", "photos", "--images", "12", "--seed", "1", "--method", "svd"]
    arguments += ["--no-sequential", "--sensitivity", "none", "--reestimate-batch-norm", "auto"]
    arguments += ["--memory-budget", "0.5", "--refine", "2", "--out", "small.safetensors"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["budget"] == "flops_rate" and printed["rate_asked"] == 0.98
    flops = printed["multiply_adds_after"] / printed["multiply_adds_before"]
    assert printed["budget_rate"] == pytest.approx(flops)
    assert printed["method"] == "svd" and printed["images"] == 12 and not printed["sequential"]
    stages = {"calibration", "ranks", "fit", "batch norm", "refinement", "latency"}
    assert printed["seconds"].keys() == stages
    assert any(note.startswith("refined for ") for note in printed["notes"])

    arguments = ["compress", *MODEL, *LAYERS, "--calibration", "photos", "--images", "6"]
    arguments += ["--allocation", "uniform", "--no-correct-bias", "--out", "auto.safetensors"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["method"], printed["allocation"]) == ("auto", "uniform")
    ranks = {row["name"]: row["rank"] for row in printed["layers"] if row["method"]}
    squeeze, expand = (ranks[f"features.6.{name}"] for name in ("squeeze", "expand3x3"))
    opened = sketchlayers.load("auto.safetensors").features[6]
    assert opened.squeeze.ranks == tuple(squeeze) and opened.expand3x3.ranks == tuple(expand)


def test_calibrate_once_and_compress_often(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", *MODEL, "--calibration", "photos", "--images", "9"]
    assert main([*arguments, "--out", "moments.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "26 layers calibrated on 9 images" in out and out.startswith("layer")
    assert err.splitlines()[1].startswith("written: moments.safetensors (")
    moments = sketchlayers.Calibration.load("moments.safetensors")
    assert_refused(folder, capsys, [*arguments, "--out", "moments.safetensors"], "exists; --force")

    use = ["--calibration", "moments.safetensors", "--out", "small.safetensors"]
    assert main(["compress", *MODEL, *TUCKER, *use, "--seed", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    _, report = sketchlayers.compress(
        original(),
        "tucker2",
        rate=0.975,
        layers="features.6.*",
        calibration=moments,
        example_inputs=torch.zeros(1, 3, 40, 40),
        seed=1,
    )
    assert without(printed, "seconds", "latencies") == without(
        report.to_dict(), "seconds", "latencies"
    )
    assert printed["images"] == 9 and not printed["sequential"]
    assert printed["output_change"] is None

    again = ["compress", "resnet18", "--rate", "0.5", *use[:2], "--out", "new.safetensors"]
    assert_refused(folder, capsys, again, "it must be of this very model (got another", told=1)
    again = ["compress", *MODEL, *TUCKER, *use[:2], "--out", "new.safetensors"]
    why = "--refine needs images: --calibration DIR (got moments.safetensors)"
    assert_refused(folder, capsys, [*again, "--refine"], why)
    other = [
        "compress",
        *MODEL,
        *TUCKER,
        "--calibration",
        "small.safetensors",
        "--out",
        "new.safetensors",
    ]
    assert_refused(folder, capsys, other, "must be a file of Calibration.save")
    named = ["inspect", "moments.safetensors"]
    assert_refused(folder, capsys, named, "holds no model: it is a file of sketchlayers.calibr")


@pytest.mark.filterwarnings("ignore:compress")
def test_finetuning_says_what_it_brings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", *MODEL, "--rate", "0.7", "--seed", "1", "--method", "sketch"]
    arguments += ["--out", "small.safetensors"]
    arguments += ["--val", "held_out", "--batch-size", "6"]
    assert main([*arguments, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["accuracy"].keys() == {"original", "compressed"}
    training = ["--finetune", "2", "--train", "photos", "--learning-rate", "0.003", "--force"]
    assert main([*arguments, *training, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["accuracy"].keys() == {"original", "compressed", "fine-tuned"}
    assert report["accuracy"].items() >= before["accuracy"].items()
    assert report["accuracy_images"] == 6 and report["seconds"]["fine-tuning"] > 0
    assert report["notes"][-1].startswith("fine-tuned with labels for 2 epochs on 24 images of 3 ")
    told = [line.partition(":")[0] for line in err.splitlines()]
    assert told[:5] == [
        "accuracy on 6 held-out images, original",
        "accuracy on 6 held-out images, compressed",
        "training",
        "training",
        "accuracy on 6 held-out images, fine-tuned",
    ]
    assert read_description("small.safetensors").reports == (report,)
    assert report["layers"] == before["layers"]  # the table is about the compression

    # The file can be trained on, or judged, without being compressed any further.
    again = [
        "compress",
        "small.safetensors",
        "--rate",
        "1",
        "--input-size",
        "3x40x40",
        "--init",
        "random",
    ]
    assert main([*again, "--val", "held_out", "--out", "same.safetensors", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["original"] == accuracy["compressed"] == report["accuracy"]["fine-tuned"]


def test_wrong_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    write_photos(Path("four"), [*CLASSES, "d"], 1)
    write_photos(Path("others"), [*CLASSES[:2], "x"], 1)
    write_photos(Path("broken"), CLASSES, 1, endings=[".jpg"])
    Path("broken/c-blue/000.jpg").write_bytes(b"no image")
    train = ["--finetune", "1", "--train"]
    for arguments, message, told in [
        (["--calibration", "missing"], "no such folder: missing", 0),
        (["--calibration", "empty"], "no image in empty (looked for .avif .bmp", 0),
        (["--calibration", "broken"], "cannot read broken/c-blue/000.jpg: not an image", 1),
        (["--sequential"], "--sequential needs images: --calibration DIR (got no folder)", 0),
        (["--images", "3"], "--images needs images: ", 0),
        (["--finetune", "3"], "--finetune EPOCHS goes with --train DIR", 0),
        (["--train", "photos"], "--train DIR goes with --finetune EPOCHS", 0),
        ([*train, "missing"], "no such folder: missing", 0),
        ([*train, "empty"], "empty must hold one folder of images for each class (got none)", 0),
        ([*train, "four"], "--train must hold one folder for each of the model's 3 outputs", 0),
        (["--val", "four"], "--val must hold one folder for each of the model's 3 outputs", 0),
        (["--val", "broken"], "cannot read broken/c-blue/000.jpg: not an image", 0),
        ([*train, "photos", "--val", "others"], "must have the same classes (got 'c-blue' in", 0),
        (["--calibration", "photos", "--rate", "0.001"], "rate must be at least 0.", 1),
    ]:
        base = ["compress", *MODEL, *TUCKER, "--out", "small.safetensors", "--plot", "errors.png"]
        if "--rate" in arguments:
            base = [x for x in base if x not in ("--rate", "0.975")]
        assert_refused(folder, capsys, [*base, *arguments], message, told=told)
    wrong = ["calibrate", *MODEL, "--calibration", "empty", "--out"]
    assert_refused(folder, capsys, [*wrong, "moments.safetensors"], "no image in empty")
    assert_refused(folder, capsys, [*wrong, "moments.pt"], "--out must be a .safetensors file")


def test_wrong_requests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), "whole.pt")
    flops = ["compress", NAME, "--method", "svd", "--flops-rate", "0.5", "--out", "it.safetensors"]
    whole = ["compress", "whole.pt", "--trust-pickle", "--method", "svd", "--rate", "0.9", "--out"]
    images = ["--calibration", "photos", "--input-size"]
    for arguments, message in [
        (flops, "--flops-rate needs --calibration DIR, or --input-size such as 3x224x224"),
        ([*whole, "small.safetensors"], "--out of a pickled MODEL must not be a .safetensors file"),
        ([*whole, "small.pt", "--plot", "errors.doc"], "a picture must end in one of "),
        ([*whole, "small.png", "--plot", "small.png"], "--plot and --out must be different files"),
        ([*whole, "small.pt", "--plot", "nowhere/x.png"], "--plot must be a file in a folder that"),
        ([*whole, "small.pt", *images, "48"], "sizes such as 3x224x224 or 1x28x28 (got 48)"),
        ([*whole, "small.pt", "--val", "photos"], "the model must run on an image of 3x224x224 ("),
    ]:
        assert_refused(folder, capsys, arguments, message)
    with pytest.raises(SystemExit):
        main([*whole, "small.pt", "--flops-rate", "0.5"])
    assert "argument --flops-rate: not allowed with argument --rate" in capsys.readouterr().err


def test_random_weights_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", NAME, *LAYERS, "--method", "svd", "--out", "small.safetensors"]
    arguments += ["--calibration", "photos", "--images", "4", "--input-size", "3x40x40"]
    assert main(arguments) == 0
    assert f"warning: {NAME} has random weights; --weights FILE" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["matplotlib", "torchvision"])
def test_missing_packages(
    package: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), "whole.pt")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["compress", "whole.pt", "--trust-pickle", "--rate", "0.9", "--out", "small.pt"]
    arguments += ["--calibration", "photos", "--input-size", "3x4x4"]
    if package == "matplotlib":
        arguments += ["--plot", "errors.png"]
    extra = {"matplotlib": "plot", "torchvision": "cli"}[package]
    message = f'needs {package}, which is not installed: pip install "sketchlayers[{extra}]"'
    assert_refused(folder, capsys, arguments, message)
    assert "errors.png" not in files(folder)
