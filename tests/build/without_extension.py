"""Uses a package that was built without its extension: what works, and what the rest says.

    python without_extension.py [FOLDER]

FOLDER has sketched.safetensors and sketched.pt, made from `network()` where there was an extension.
`test_without_extension.py` runs it on a copy of the package; in an environment with such a package
it needs neither torchvision nor pytest.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import methods, ops
from sketchlayers.cli import main as cli

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SKConv2d": lambda: sketchlayers.SKConv2d(4, 8, 3, rate=0.5),
    "SKLinear": lambda: sketchlayers.SKLinear(8, 8, rate=0.5),
    "HashedConv2d": lambda: sketchlayers.HashedConv2d(4, 8, 3, rate=0.5),
    "HashedLinear": lambda: sketchlayers.HashedLinear.from_linear(nn.Linear(8, 8), rate=0.5),
    "FreshConv2d": lambda: sketchlayers.FreshConv2d.from_conv(nn.Conv2d(4, 8, 3), rate=0.5),
}
"""Layers that need the extension, by name."""
METHODS = ("sketch", "hashednet", "freshnet")
"""Methods that make such layers."""
REASON = "sketchlayers was built without its compiled extension"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 10),
    ).eval()  # fmt: skip


def images(count: int = 3) -> list[Tensor]:
    return [torch.randn(16, 3, 6, 6) for _ in range(count)]


def check_message(who: str, call: Callable[[], object]) -> None:
    """The call ends with one sentence: who cannot be used, why, and what to type."""
    try:
        call()
    except ImportError as error:
        message = str(error)
    else:
        raise AssertionError(f"{who} works without the extension")
    for part in (f"{who} cannot be used: ", REASON, "type pip install"):
        assert part in message, f"{part!r} is not in: {message}"
    assert "\n" not in message, message


def check_what_needs_the_extension() -> None:
    for name in sketchlayers.__all__:
        assert getattr(sketchlayers, name) is not None  # every class can be imported
    for name, make in LAYERS.items():
        check_message(name, make)
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    for name in METHODS:
        check_message(
            f"compress: method {name!r}",
            lambda name=name: sketchlayers.compress(model, name, rate=0.5, calibration=images()),
        )
    candidates = ("svd", "sketch")
    check_message(
        "compress: method 'sketch'",
        lambda: sketchlayers.compress(model, "auto", candidates=candidates, rate=0.5),
    )
    assert not calls, "the network has run before the error"
    factors = torch.zeros(1, 4), torch.zeros(4, 1), *torch.zeros(2, 1, 1, 4, dtype=torch.int32)
    check_message("operator sk_weight", lambda: ops.sk_weight(*factors))
    check_message("operator sign_matrix", lambda: ops.sign_matrix(0, 0, 1, 1))


def check_files_of_sketched_networks(folder: Path) -> None:
    path = folder / "sketched.safetensors"
    check_message(
        "load: the file's layer '2' (SKConv2d)",
        lambda: sketchlayers.load(path, into=network()),
    )
    pickled = torch.load(folder / "sketched.pt", weights_only=False)
    check_message("operator sk_conv2d", lambda: pickled(images(1)[0]))
    check_message("operator sk_weight", lambda: sketchlayers.fold(pickled))


def check_compression(folder: Path) -> None:
    model, batches = network(), images()
    calibration = sketchlayers.calibrate(model, batches)
    for name in methods.names():
        assert sketchlayers.inspect(model, batches[0], method=name).layers
        if name in METHODS:
            continue
        small, report = sketchlayers.compress(
            model, name, rate=0.6, calibration=calibration, refine=False, seed=0
        )
        assert report.rate < 0.61, (name, report.rate)
        with torch.no_grad():
            torch.testing.assert_close(
                sketchlayers.fold(small)(batches[0]), small(batches[0]), rtol=1e-3, atol=1e-4
            )
        path = sketchlayers.save(small, folder / f"{name}.safetensors", reports=report)
        again = sketchlayers.load(path, into=network())
        assert torch.equal(again(batches[0]), small(batches[0])), name
    small, report = sketchlayers.compress(
        model, rate=0.6, calibration=batches, refine=True, reestimate_batch_norm="auto", seed=0
    )
    assert report.method == "auto" and report.output_change is not None
    assert any(note.startswith("refined") for note in report.notes), report.notes
    sketchlayers.optimize_for_inference(small, batches[0], seconds=0.01)
    sketchlayers.clear_cache(small)
    assert sketchlayers.param_groups(small, lr=0.1)


def check_command_line(folder: Path) -> None:
    model = folder / "network.pt"
    torch.save(network(), model)
    moments = folder / "moments.safetensors"
    sketchlayers.calibrate(network(), images()).save(moments)
    trusted = [str(model), "--trust-pickle"]
    small = folder / "small.pt"
    arguments = [*trusted, "--rate", "0.6", "--calibration", str(moments), "--seed", "0", "--out"]
    code, printed = command("doctor")
    assert code == 0 and f"All is well, but {REASON}" in printed, printed
    assert command("inspect", *trusted, "--method", "tucker2")[0] == 0
    code, printed = command("compress", *arguments, str(small))
    assert code == 0 and "2 of 3 layers replaced" in printed, printed
    assert isinstance(torch.load(small, weights_only=False), nn.Sequential)
    for refused in (
        ("compress", *arguments, str(folder / "none.pt"), "--method", "sketch"),
        ("bench",),
    ):
        code, printed = command(*refused)
        assert code and REASON in printed and len(printed.splitlines()) == 1, printed
    assert not (folder / "none.pt").exists()


def command(*arguments: str) -> tuple[int, str]:
    """The exit code of a command, and all that it has printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = cli.main(arguments)
    return code, printed.getvalue()


if __name__ == "__main__":
    torch.manual_seed(0)
    check_what_needs_the_extension()
    for argument in sys.argv[1:]:
        check_files_of_sketched_networks(Path(argument))
    with tempfile.TemporaryDirectory() as name:
        check_compression(Path(name))
        check_command_line(Path(name))
    print(f"sketchlayers {sketchlayers.__version__} works without its compiled extension.")
