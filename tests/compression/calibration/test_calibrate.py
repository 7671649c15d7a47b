"""Calibration of whole models: loaders, memory, files, processes, failures."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sketchlayers
from sketchlayers import Calibration, calibrate
from sketchlayers.compression.calibration.moments import MomentSums
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.calibration.products import working_bytes
from sketchlayers.surgery import batches as batches_module

from .. import gloo_worker
from ..networks import OutOfOrder, Small, assert_unchanged, images, state_of


def assert_equal(got: Calibration, expected: Calibration, *, tolerance: float = 0.0) -> None:
    """The same layers in the same order, with equal or nearly equal moments."""
    assert list(got) == list(expected)
    assert got.images == expected.images
    assert got.missing == expected.missing
    for name, moments in got.items():
        wanted = expected[name]
        assert (moments.count, moments.geometry) == (wanted.count, wanted.geometry)
        for a, b in ((moments.second_moment, wanted.second_moment), (moments.mean, wanted.mean)):
            assert a.dtype == torch.float64 and a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def texts(calibration: Calibration) -> dict[str, str]:
    return {name: reason.text for name, reason in calibration.missing.items()}


def batches(count: int = 3, size: int = 2) -> list[Tensor]:
    return [images(size) for _ in range(count)]


def watched(model: nn.Module, layer: nn.Module, loader: Iterable[Tensor]) -> Tensor:
    """All inputs of one layer."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    for batch in loader:
        model(batch)
    handle.remove()
    return torch.cat(seen)


# --------------------------------------------------------------------------------------- moments


def test_moments_of_a_network() -> None:
    model, loader = Small().eval(), batches()
    calibration = calibrate(model, loader)
    assert list(calibration) == ["first", "body.0", "body.2", "head", "classifier"]
    assert texts(calibration) == {"body.4": "depthwise convolution"}
    assert calibration.images == 6
    shapes = {name: tuple(m.second_moment.shape) for name, m in calibration.items()}
    assert shapes["first"] == (1, 27, 27) and shapes["body.2"] == (2, 144, 144)
    assert calibration["body.0"].count == 6 * 144 and calibration["body.2"].count == 6 * 36
    rows = watched(model, model.head, loader).double()
    torch.testing.assert_close(calibration["head"].second_moment[0], rows.T @ rows / 6)
    torch.testing.assert_close(calibration["head"].mean[0], rows.mean(0))


@pytest.mark.parametrize("name", ["body.0", "body.2", "head"])
def test_error_in_the_norm_is_the_change_of_the_output(name: str) -> None:
    model, loader = Small().eval().double(), [batch.double() for batch in batches()]
    moments = calibrate(model, loader)[name]
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.bias = None
    inputs = watched(model, layer, loader)
    weight, outputs = layer.weight.detach().clone(), layer(inputs).detach()
    with torch.no_grad():
        layer.weight.add_(0.1 * torch.randn_like(weight))
    measured = (layer(inputs).detach() - outputs).norm() / outputs.norm()

    def norm(matrix: Tensor) -> Tensor:
        rows = matrix.reshape(moments.mean.shape[0], -1, moments.inputs)
        return torch.einsum("gtn,gnm,gtm->", rows, moments.second_moment, rows).sqrt()

    torch.testing.assert_close(norm(layer.weight.detach() - weight) / norm(weight), measured)


def test_calls_of_one_layer_go_together_and_uncalled_layers_are_named() -> None:
    model = OutOfOrder()
    rows = torch.randn(5, 24)
    calibration = calibrate(model, [rows])
    assert texts(calibration) == {"unused": "never called on the calibration data"}
    inputs = torch.cat([model.early(rows).relu(), rows]).detach().double()
    assert calibration["last"].count == 10
    torch.testing.assert_close(calibration["last"].second_moment[0], inputs.T @ inputs / 10)


def test_choice_of_layers() -> None:
    model, loader = Small(), batches(1)
    chosen = calibrate(model, loader, layers=["body.*", "head"])
    assert list(chosen) == ["body.0", "body.2", "head"]
    assert texts(chosen)["first"] == "not among the chosen layers"
    chosen = calibrate(
        model, loader, layers="body.*", filter_fn=lambda layer, name: layer.bias is None
    )
    assert list(chosen) == ["body.0"]
    with pytest.raises(ValueError, match=r"match a layer .got 'bodi\.0'.*'body\.0'"):
        calibrate(model, loader, layers="bodi.0")
    with pytest.raises(ValueError, match=r"can be calibrated .got body\.4: depthwise"):
        calibrate(model, loader, layers="body.4")


def test_layers_that_no_method_takes_have_a_reason() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.inner.weight)

    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    model = nn.Sequential(nn.Linear(6, 6), Own(6, 6), normed, Reads())
    calibration = calibrate(model, [torch.randn(3, 6)])
    assert list(calibration) == ["0"]
    assert texts(calibration)["1"].startswith("Own has a forward of its own")
    assert texts(calibration)["2"].startswith("parametrised")
    assert texts(calibration)["3.inner"].startswith("never called")


def test_compressed_layers_are_not_looked_into() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 32))
    small = sketchlayers.compress(model, "tucker2", rate={"0": 0.5}, init="random").model
    assert list(calibrate(small, [torch.randn(2, 8, 4, 4)])) == ["2"]


def test_model_that_is_one_layer() -> None:
    calibration = calibrate(nn.Linear(4, 3), [torch.randn(9, 4)])
    assert list(calibration) == [""]
    assert "(the model)" in str(calibration)


# --------------------------------------------------------------------------------------- loaders


def test_kinds_of_batches_give_the_same() -> None:
    model, loader = Small(), batches()
    labels = torch.zeros(2, dtype=torch.int64)
    expected = calibrate(model, loader)

    class Named(Small):
        def forward(self, pixels: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
            return super().forward(pixels * scale)

    named = Named()
    named.load_state_dict(model.state_dict())
    for kind in (
        [(batch, labels) for batch in loader],
        [[batch, labels, "names"] for batch in loader],
        [{"image": batch, "label": labels} for batch in loader],
        [({"img": batch}, labels) for batch in loader],
        tuple(loader),
        (batch for batch in loader),
        DataLoader(TensorDataset(torch.cat(loader)), batch_size=2),
    ):
        assert_equal(calibrate(model, kind), expected)
    arguments = [{"pixels": batch / 2, "scale": 2.0, "labels": labels} for batch in loader]
    assert_equal(calibrate(named, arguments), expected)
    unusual = [{"a": {"b": batch}} for batch in loader]
    assert_equal(calibrate(model, unusual, forward=lambda m, x: m(x["a"]["b"])), expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", r"tensor, a tuple or list.*got str\); say with forward="),
        ((), "got empty tuple"),
        ((1, 2), r"got tuple of \(int, int\)"),
        ({"picture": torch.zeros(1, 3, 12, 12)}, r"got dict of \(picture: float32 tensor"),
    ],
)
def test_batches_of_another_kind(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        calibrate(Small(), [batch])


def test_empty_loaders_and_things_that_are_none() -> None:
    used = (batch for batch in batches())
    calibrate(Small(), used)
    for loader in ([], used):
        with pytest.raises(ValueError, match=r"must yield batches.*generator"):
            calibrate(Small(), loader)
    for wrong in (images(), None, {"x": images()}):
        with pytest.raises(TypeError, match="iterable of batches"):
            calibrate(Small(), wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"nn\.Module \(got list"):
        calibrate([], batches())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must call a layer that is calibrated"):
        calibrate(Small(), batches(), forward=lambda model, batch: None)


def test_as_many_images_as_asked() -> None:
    model, loader = Small(), batches(4)
    assert_equal(calibrate(model, iter(loader), max_images=3), calibrate(model, loader[:2]))
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        calibrate(model, loader, max_images=0)
    with pytest.raises(TypeError, match="memory_budget must be an int"):
        calibrate(model, loader, memory_budget=1e9)  # type: ignore[arg-type]


def test_a_part_of_the_images_is_enough() -> None:
    """Layers with more patches than asked for take some images of every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    loader = list(torch.randn(512, 2, 8, 8).split(64))
    whole, part = calibrate(model, loader), calibrate(model, loader, patches_per_input=2)
    seen: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    again = calibrate(model, DataLoader(TensorDataset(torch.cat(loader)), 64), patches_per_input=2)
    handle.remove()
    assert len(seen) == len(loader)
    assert_equal(again, part)
    assert part.images == 512 and part.advised_images == whole.advised_images
    for name in ("0", "3"):
        assert part[name].count == whole[name].count
    # 36 patches an image for 18 inputs: the fewest images are enough, an eighth of all.
    moments, all_moments = part["0"], whole["0"]
    difference = (moments.second_moment - all_moments.second_moment).norm()
    assert 0 < difference < 0.1 * all_moments.second_moment.norm()
    covariance = moments.second_moment[0] - torch.outer(moments.mean[0], moments.mean[0])
    assert torch.linalg.eigvalsh(covariance)[0] > 0  # of the same images
    assert torch.equal(part["3"].second_moment, whole["3"].second_moment)  # 2 x 288 > 512


def test_all_images_are_taken_where_their_number_is_unknown() -> None:
    model, loader = nn.Conv2d(2, 4, 3), list(torch.randn(256, 2, 8, 8).split(32))
    some = calibrate(model, iter(loader), patches_per_input=1)
    assert_equal(some, calibrate(model, loader))
    some = calibrate(model, iter(loader), patches_per_input=1, max_images=256)
    assert_equal(some, calibrate(model, loader, patches_per_input=1))
    with pytest.raises(ValueError, match="patches_per_input must be at least 1"):
        calibrate(model, loader, patches_per_input=0)


def test_images_that_are_not_taken_are_checked_too() -> None:
    loader = list(torch.randn(256, 2, 8, 8).split(32))
    model = nn.Conv2d(2, 4, 3)
    for image in range(32):
        batches = [batch.clone() for batch in loader]
        batches[5][image, 1, 3, 3] = float("nan")
        with pytest.raises(ValueError, match="NaN 1 times in batch 6"):
            calibrate(model, batches, patches_per_input=1)


# ---------------------------------------------------------------------------------------- memory


def sizes_of(calibration: Calibration) -> dict[str, int]:
    return {name: working_bytes(moments.geometry) for name, moments in calibration.items()}


def test_several_passes_give_what_one_gives() -> None:
    model = Small()
    # Shuffled: each pass must see the same images, although their order and choice is random.
    loader = DataLoader(TensorDataset(images(12)), batch_size=2, shuffle=True)
    torch.manual_seed(3)
    once = calibrate(model, loader, max_images=8)
    sizes = sizes_of(once)
    passes = 0

    def forward(model: nn.Module, batch: list[Tensor]) -> None:
        nonlocal passes
        passes += 1
        model(batch[0])

    often = calibrate(
        model, loader, memory_budget=max(sizes.values()), max_images=8, forward=forward
    )
    assert_equal(often, once)
    assert passes / 4 >= sum(sizes.values()) / max(sizes.values()) > 1.2
    largest = max(sizes, key=lambda name: sizes[name])
    small = calibrate(model, loader, memory_budget=sizes[largest] - 1)
    assert list(small) == [name for name in once if name != largest]
    assert re.fullmatch(r"its second moment needs [\d.]+ .?B, .*", small.missing[largest].text)


def test_working_memory_is_bounded_as_planned() -> None:
    """What the sums hold of a layer is at most what the passes are planned with."""
    for layer, shape in (
        (nn.Conv2d(16, 4, 3, padding=1), (2, 16, 9, 9)),
        (nn.Conv2d(8, 4, 5), (2, 8, 12, 30)),
        (nn.Conv2d(8, 4, 5, padding=3, dilation=2), (2, 8, 40, 40)),
        (nn.Conv2d(16, 4, 3, stride=2, groups=2), (2, 16, 9, 9)),
        (nn.Linear(64, 3), (5, 64)),
    ):
        geometry = PatchGeometry.of(layer)
        sums = MomentSums(geometry)
        sums.add(torch.randn(shape))
        held = vars(sums._products)
        tensors = [value for value in held.values() if isinstance(value, Tensor)]
        size = 8 * geometry.groups * geometry.inputs**2
        assert 0 < sum(tensor.nbytes for tensor in tensors) <= working_bytes(geometry) <= 3 * size


def test_loader_for_one_pass_is_refused_before_any_work() -> None:
    model = Small()
    budget = max(sizes_of(calibrate(model, batches())).values())

    def generator() -> Iterator[Tensor]:
        raise AssertionError("must not be started")
        yield

    with pytest.raises(ValueError, match=r"run through \d times.*got generator.*DataLoader") as e:
        calibrate(model, generator(), memory_budget=budget)
    enough = re.search(r"memory_budget=(\d+),", str(e.value))
    assert enough is not None
    calibrate(model, iter(batches()), memory_budget=int(enough[1]))


def test_loader_that_changes_between_passes() -> None:
    class Shrinking:
        left = 3

        def __iter__(self) -> Iterator[Tensor]:
            yield from batches(self.left)
            self.left -= 1

    model = Small()
    budget = max(sizes_of(calibrate(model, batches())).values())
    with pytest.raises(ValueError, match=r"same images in each pass \(got 6 and then 4\)"):
        calibrate(model, Shrinking(), memory_budget=budget)


# ------------------------------------------------------------------------------- left as it was


class Counting(nn.Module):
    """Changes its buffers in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean(0)
        return self.layer(x + torch.rand_like(x)) + random.random() + np.random.rand()


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_buffers_modes_and_random_numbers_stay() -> None:
    model = Counting()
    buffers = dict(model.named_buffers())
    state, generator, data = state_of(model), torch.Generator(), TensorDataset(torch.randn(8, 4))
    before = [*random_state(), generator.get_state().tolist()]
    for loader in (
        DataLoader(data, batch_size=2, shuffle=True),
        DataLoader(data, batch_size=2, shuffle=True, generator=generator),
    ):
        assert calibrate(model, loader, forward=lambda m, x: m(x[0]))["layer"].count == 8
    assert [*random_state(), generator.get_state().tolist()] == before
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert_unchanged(model, list(model.modules()), state)


class Unplugged(BaseException):
    """As KeyboardInterrupt, which the test runner would take for its own."""


@pytest.mark.parametrize("error", [OSError, Unplugged])
@pytest.mark.parametrize("where", ["loader", "model"])
def test_model_is_as_it_was_after_a_failure(where: str, error: type[BaseException]) -> None:
    model = Small().train()
    model.head.eval()
    modules, state = list(model.modules()), state_of(model)
    modes = [module.training for module in modules]
    before = random_state()
    seen: list[bool] = []

    def loader() -> Iterator[Tensor]:
        for index in range(3):
            if index == 2 and where == "loader":
                raise error("unplugged")
            yield torch.rand(2, 3, 12, 12)

    def fail(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(module.training)
        if len(seen) == 2 and where == "model":
            raise error("unplugged")

    handle = model.classifier.register_forward_pre_hook(fail)
    with pytest.raises(error, match="unplugged") as raised:
        calibrate(model, loader())
    handle.remove()
    assert seen == [False, False]
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert_unchanged(model, modules, state)
    assert random_state() == before
    if where == "model" and error is OSError:
        assert raised.value.__notes__ == ["(calibrate: in batch 2 of the loader)"]


def test_batch_norm_of_a_model_in_training_stays() -> None:
    model = Small().train()
    state = state_of(model)
    loader = batches()
    calibration = calibrate(model, loader)
    assert model.training and model.norm.training
    assert_unchanged(model, list(model.modules()), state)
    assert_equal(calibration, calibrate(model.eval(), loader))


def test_modules_with_a_train_method_of_their_own_are_asked() -> None:
    """Such as those that fold something into their weight for evaluation."""

    class Folding(nn.Linear):
        folded = False

        def train(self, mode: bool = True) -> Folding:
            self.folded = not mode
            return super().train(mode)

    folding = Folding(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), folding)
    calibrate(model, [torch.randn(2, 4)])
    assert folding.training and not folding.folded


def test_under_inference_mode_and_autocast() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8))  # changes the batch itself
    x = torch.randn(6, 8)
    expected = calibrate(model, [x])
    with torch.inference_mode():
        assert_equal(calibrate(model, [x.clone()]), expected)
        assert list(calibrate(first, [x.clone()])) == ["1"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = calibrate(model, [x])
        rows = model[1](model[0](x)).detach()
    assert rows.dtype == torch.bfloat16
    assert not mixed["0"].second_moment.is_inference()
    torch.testing.assert_close(mixed["0"].second_moment, expected["0"].second_moment)
    wide = rows.double()
    torch.testing.assert_close(mixed["2"].second_moment[0], wide.T @ wide / 6)


def test_compiled_model_is_seen_into() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(6, 8)
    expected = calibrate(model, [x])
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    got = calibrate(compiled, [x])  # type: ignore[arg-type]
    for name in ("0", "2"):
        assert torch.equal(got[f"_orig_mod.{name}"].second_moment, expected[name].second_moment)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_layer_and_batch_that_are_not_finite_are_named(bad: float) -> None:
    model, loader = Small(), batches()
    loader[1][0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"layer 'first' must be finite \(got .* in batch 2\)"):
        calibrate(model, loader)
    model = Small()
    with torch.no_grad():
        model.body[0].weight[0] = bad
    with pytest.raises(ValueError, match=r"layer 'body.2' must be finite .* in batch 1"):
        calibrate(model, batches())


def test_values_too_large_are_named() -> None:
    with pytest.raises(ValueError, match=r"layer '1' must be finite \(got values whose squares"):
        calibrate(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), [torch.full((2, 4, 1), 1e25)])


def test_layers_without_shape_or_values_are_refused() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"know its shape.*lazy layer '0'"):
        calibrate(lazy, [torch.randn(2, 3)])
    assert isinstance(lazy[0], nn.LazyLinear)
    with pytest.raises(ValueError, match="'0' on the meta device"):
        calibrate(nn.Sequential(nn.Linear(4, 4, device="meta")), [torch.randn(2, 4)])


def test_few_patches_are_allowed_and_noted() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    calibration = calibrate(model, [torch.randn(20, 16)])
    assert calibration.advised_images == {"0": 80, "1": 80}
    assert calibration.notes == tuple(
        f"{name}: use at least 80 images (got 20): 20 patches for 16 inputs" for name in "01"
    )
    assert "singular" in calibrate(model, [torch.randn(15, 16)]).notes[0]
    assert not calibrate(model, [torch.randn(80, 16)]).notes


def test_table() -> None:
    calibration = calibrate(Small(), batches(1))
    lines = str(calibration).splitlines()
    assert lines[0].split() == ["layer", "inputs", "patches", "patches/input"]
    assert lines[4].split() == ["body.2", "2", "x", "144", "72", "0.5", "(1)"]
    images = max(calibration.advised_images.values())
    advice = f"use at least {images} images (got {calibration.images}) (4 layers)"
    assert lines[-2] == f"(1) fewer than 5 patches for each input: {advice}"
    assert lines[-1] == "(2) depthwise convolution"
    assert repr(calibration) == str(calibration)


@pytest.mark.parametrize("installed", [True, False])
def test_progress(
    installed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loader = Small(), batches()
    expected = calibrate(model, loader)
    assert capsys.readouterr().err == ""  # no terminal
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    assert_equal(calibrate(model, iter(loader), progress=True), expected)
    assert_equal(calibrate(model, loader, progress=True), expected)
    assert ("calibrating" in capsys.readouterr().err) == installed


# ----------------------------------------------------------------------------- more data, files


def test_continuing_is_one_run_over_all_images() -> None:
    model, loader = OutOfOrder(), [torch.randn(n, 24) for n in (3, 8, 5)]
    whole = calibrate(model, loader)
    part = calibrate(model, loader[:1])
    assert_equal(calibrate(model, loader[1:], into=part), whole, tolerance=1e-14)
    assert_equal(part.merge(calibrate(model, loader[1:])), whole, tolerance=1e-14)
    assert_equal(part, calibrate(model, loader[:1]))  # itself unchanged
    chosen = calibrate(model, loader[:1], layers="last")
    assert list(calibrate(model, loader[1:], into=chosen)) == ["last"]
    with pytest.raises(ValueError, match="with into= the layers are those"):
        calibrate(model, loader, into=part, layers="last")


def test_layers_called_in_one_part_only_are_kept() -> None:
    model = OutOfOrder()
    x, y = torch.randn(4, 24), torch.randn(3, 24)

    def only_unused(model: OutOfOrder, batch: Tensor) -> Tensor:
        return model.unused(batch)

    first = calibrate(model, [x])
    second = calibrate(model, [y], into=first, forward=only_unused)  # type: ignore[arg-type]
    assert list(second) == ["last", "unused", "early"] and not second.missing
    assert (second["last"].count, second["unused"].count) == (8, 3)


def test_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    calibration = calibrate(Small(), batches())
    path = tmp_path / "moments.safetensors"
    path.write_text("something older")
    calibration.save(path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = Calibration.load(path)
    assert_equal(loaded, calibration)
    loaded.check(Small())
    loaded.save(path)  # over the file that its tensors lie in
    assert_equal(Calibration.load(path), calibration)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing"):
        Calibration.load(tmp_path / "nothing")


def test_files_are_called_what_they_are(tmp_path: Path) -> None:
    calibration = calibrate(Small(), batches(1))
    for name in ("moments.pt", "moments"):
        with pytest.raises(
            ValueError, match=r"path must end in \.safetensors.*'moments\.safetensors'"
        ):
            calibration.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_saving_fails_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "moments.safetensors"
    path.write_text("something older")

    def half(*args: object) -> None:
        Path(str(args[1])).write_text("half of it")
        raise OSError("no space left")

    monkeypatch.setattr("sketchlayers.compression.calibration.file.save_file", half)
    with pytest.raises(OSError, match="no space left"):
        calibrate(Small(), batches(1)).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "something older"


def test_moments_that_waited_in_a_file_are_ordinary_tensors(tmp_path: Path) -> None:
    model, loader = Small(), batches()
    once = calibrate(model, loader)
    budget = max(sizes_of(once).values())
    often = calibrate(model, loader, memory_budget=budget)
    often.save(tmp_path / "moments.safetensors")
    assert_equal(Calibration.load(tmp_path / "moments.safetensors"), once)
    matrix = often["head"].second_moment
    matrix.mul_(2)
    assert torch.equal(matrix, 2 * once["head"].second_moment)


def metadata_of(path: Path) -> dict[str, str]:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]


def damage(path: Path, **metadata: str) -> None:
    """Writes the file again with other metadata."""
    save_file(load_file(path), path, {**metadata_of(path), **metadata})


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    calibration = calibrate(Small(), batches())

    def assert_refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as raised:
            Calibration.load(path)
        assert str(path) in str(raised.value)

    path.write_bytes(b"no such thing")
    assert_refused("no safetensors file, or damaged")
    save_file({"weight": torch.zeros(2)}, path)
    assert_refused("safetensors file of another kind")
    save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
    assert_refused("in the format 'pt'")
    calibration.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused("no safetensors file, or damaged")
    calibration.save(path)
    damage(path, format_version="2", sketchlayers="9.9")
    assert_refused(r"written by sketchlayers 9\.9 in version 2 of the format .*; update")
    for metadata in ({"layers": "{"}, {"layers": '{"head": 3}'}, {"images": "many"}):
        calibration.save(path)
        damage(path, **metadata)
        assert_refused("is damaged: its metadata are wrong")
    calibration.save(path)
    tensors = load_file(path)
    beside_the_diagonal = tensors["head.second_moment"].clone()
    beside_the_diagonal[0, 0, 1] = float("nan")
    unchanged = metadata_of(path)
    for key, value, message in (
        ("head.mean", None, "the mean of layer 'head' is missing"),
        ("head.mean", torch.zeros(1, 31, dtype=torch.float64), r"\(1, 32\) float64 .got \(1, 31\)"),
        ("head.mean", torch.zeros(1, 32), "got .1, 32. float32"),
        ("head.second_moment", -tensors["head.second_moment"], "'head' are no moments"),
        ("head.mean", tensors["head.mean"] * float("nan"), "'head' are no moments"),
        ("head.second_moment", beside_the_diagonal, "'head' are no moments"),
    ):
        wrong = {k: v for k, v in {**tensors, key: value}.items() if v is not None}
        save_file(wrong, path, unchanged)
        assert_refused(message)


def changed(**layers: nn.Module) -> nn.Module:
    model = Small()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


def test_calibration_of_another_model_names_the_first_difference() -> None:
    calibration = calibrate(Small(), batches(1))
    calibration.check(Small())
    wider = changed(classifier=nn.Linear(41, 10), head=nn.Linear(32, 41))
    strided = changed(first=nn.Conv2d(3, 16, 3, padding=1, stride=2))
    more = changed(extra=nn.Linear(3, 3))
    for model, message in (
        (wider, "layer 'classifier' has channels 40 in it and 41 in the model"),
        (strided, r"layer 'first' has stride \(1, 1\) in it and \(2, 2\) in the model"),
        (more, "layer 'extra' of the model was not calibrated"),
        (changed(head=nn.Identity()), "the model has no layer 'head', which was calibrated"),
        (changed(head=nn.Conv2d(32, 40, 1)), "'head' has kind linear in it and conv2d"),
    ):
        with pytest.raises(ValueError, match=message):
            calibration.check(model)
        with pytest.raises(ValueError, match=message):
            calibrate(model, batches(1), into=calibration)
    with pytest.raises(ValueError, match="only one of two calibrations knows layer"):
        calibration.merge(calibrate(OutOfOrder(), [torch.randn(3, 24)]))
    with pytest.raises(ValueError, match=r"'first' has stride .*\(2, 2\) in the other"):
        calibration.merge(calibrate(strided, batches(1)))


# ------------------------------------------------------------------------------------- processes


def test_two_processes_give_what_one_gives(two_processes: Path) -> None:
    model = gloo_worker.network()
    parts = [gloo_worker.batches(rank) for rank in range(2)]
    whole = calibrate(model, [*parts[0], *parts[1]])
    assert whole.images == 7
    assert sum(sizes_of(whole).values()) > gloo_worker.BUDGET
    for rank in range(2):
        for name, expected in (
            ("whole", whole),
            ("passes", whole),
            ("more", calibrate(model, parts[1], into=whole)),  # the other one's part was empty
            ("alone", calibrate(model, parts[rank])),
        ):
            got = Calibration.load(two_processes / "gloo_worker" / f"{name}-{rank}.safetensors")
            assert_equal(got, expected, tolerance=1e-6)


def test_failure_in_one_process_is_an_error_in_all(two_processes: Path) -> None:
    first, second = (
        (two_processes / "gloo_worker" / f"failures-{rank}.txt").read_text().splitlines()
        for rank in range(2)
    )
    assert len(first) == len(second) == 4
    assert re.match("RuntimeError: calibrate: .* must succeed in all .* rank 1;", first[0])
    assert second[0] == "OSError: the disk is gone"
    assert first[1] == second[1]
    assert first[1].startswith("ValueError: calibrate: the loader must yield batches")
    assert re.match("RuntimeError: calibrate: the preparation must succeed .* rank 1;", first[2])
    assert re.match("ValueError: calibrate: .*the loader must be run through", second[2])
    assert first[3] == second[3]
    assert "all processes must calibrate the same layers" in first[3]


# ------------------------------------------------------------------------------------------ GPUs


@pytest.mark.gpu
def test_model_on_a_gpu_gives_the_same() -> None:
    model, loader = Small(), batches()
    expected = calibrate(model, loader)
    assert_equal(calibrate(model.cuda(), loader), expected, tolerance=1e-3)


def test_batches_go_to_the_device_of_the_model() -> None:
    other = object()
    batch = {"x": torch.zeros(2), "y": [torch.zeros(3), ("text", torch.zeros(4))], "z": other}
    moved = batches_module.to_device(batch, torch.device("meta"))
    assert isinstance(moved, dict)
    assert [x.device.type for x in (moved["x"], moved["y"][0], moved["y"][1][1])] == ["meta"] * 3
    assert moved["y"][1][0] == "text" and moved["z"] is other
    assert batches_module.device_of(nn.Linear(2, 2)) == torch.device("cpu")
    assert (
        batches_module.device_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))
        is None
    )
    assert batches_module.count_images({"x": [torch.zeros(5, 2)]}) == 5
