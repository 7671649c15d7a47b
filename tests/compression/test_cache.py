"""Work that is kept in a folder, and work that is broken off."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Compressed, Refinement, SweepError

from .networks import assert_unchanged, network, state_of

IMAGES = [torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
SEEN = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(9))
HOW: dict[str, Any] = {"method": "tucker2", "calibration": IMAGES}


class Forward:
    """Calls a model as ever, and raises at one of the calls."""

    def __init__(self, raise_at: int | None = None) -> None:
        self.calls = 0
        self.raise_at = raise_at

    def __call__(self, model: nn.Module, batch: Tensor) -> object:
        self.calls += 1
        if self.calls == self.raise_at:
            raise KeyboardInterrupt
        return model(batch)


def taken(result: Compressed) -> dict[str, int]:
    """What the report says was taken from the cache."""
    notes = [note for note in result.report.notes if "cache" in note]
    if not notes:
        return {}
    parts = notes[0].removeprefix("taken from the cache: ").split(", ")
    return {kind: int(count) for count, kind in (part.split() for part in parts)}


def assert_same(first: Compressed, second: Compressed) -> None:
    assert_unchanged(first.model, list(first.model.modules()), state_of(second.model))
    assert first.report.layers == second.report.layers
    assert first.report.output_change == second.report.output_change


EVERYTHING = {"calibration": 1, "sensitivity": 1, "curves": 3, "fits": 3}


def test_the_same_again_takes_everything(tmp_path: Path) -> None:
    model, forwards = network(), [Forward() for _ in range(3)]
    how = {**HOW, "measure_latency": False}  # which calls the model as well
    plain = sketchlayers.compress(model, rate=0.5, forward=forwards[0], **how)
    first = sketchlayers.compress(model, rate=0.5, cache=tmp_path, forward=forwards[1], **how)
    again = sketchlayers.compress(model, rate=0.5, cache=tmp_path, forward=forwards[2], **how)
    assert taken(plain) == taken(first) == {} and taken(again) == EVERYTHING
    assert_same(first, plain)
    assert_same(again, plain)
    assert forwards[0].calls == forwards[1].calls > 2 * forwards[2].calls
    again.model.requires_grad_(True)
    again.model(SEEN).sum().backward()


def test_another_rate_takes_what_does_not_depend_on_it(tmp_path: Path) -> None:
    model = network()
    sketchlayers.compress(model, rate=0.7, cache=tmp_path, **HOW)
    second = sketchlayers.compress(model, rate=0.3, cache=str(tmp_path), **HOW)
    found = taken(second)
    assert {**found, "fits": 0} == {**EVERYTHING, "fits": 0} and found.get("fits", 0) < 3
    assert_same(second, sketchlayers.compress(model, rate=0.3, **HOW))
    sweep = sketchlayers.sweep(model, (0.7, 0.3), cache=tmp_path, **HOW)
    assert [taken(one) for one in sweep.values()] == [EVERYTHING] * 2


@pytest.mark.parametrize(
    "method",
    ["auto", "cp", "svd", "lowrank", "sketch", "hashednet", "freshnet", "dictionary"],
)
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
def test_layers_of_all_kinds(method: str, sequential: bool, tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last).train()
    model[3].weight.requires_grad_(False)
    how = {**HOW, "method": method, "rate": 0.6, "sequential": sequential}
    first, second = (sketchlayers.compress(model, cache=tmp_path, **how) for _ in range(2))
    assert taken(second)["fits"] >= 1
    assert_same(second, first)
    for one, other in zip(first.model.modules(), second.model.modules(), strict=True):
        assert type(one) is type(other) and one.training == other.training
        assert getattr(one, "fit_error", None) == getattr(other, "fit_error", None)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad and one.stride() == other.stride()
        assert one.data_ptr() != other.data_ptr()


def test_hooks_and_refinement(tmp_path: Path) -> None:
    """What happens to fitted layers later is not kept with them."""
    model, calls = network(), []
    model[5].register_forward_hook(lambda *_: calls.append(1))
    how = {**HOW, "rate": 0.5, "refine": Refinement(epochs=1), "cache": tmp_path}
    first, second = (sketchlayers.compress(model, **how) for _ in range(2))
    assert taken(second) == EVERYTHING
    assert_same(second, first)
    calls.clear()
    second.model(SEEN)
    assert calls == [1]
    del how["rate"], how["cache"]
    sweep = sketchlayers.sweep(model, (0.6, 0.5), **how)
    assert_same(sweep[0.5], first)


# ------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    "change",
    [
        lambda how: how["model"][5].weight.data.mul_(1.01),
        lambda how: how["model"][1].running_mean.add_(0.01),
        lambda how: setattr(how["model"][3], "padding", (0, 0)),
        lambda how: how.update(calibration=IMAGES[:2]),
        lambda how: how.update(calibration=[IMAGES[0], IMAGES[1], IMAGES[2] + 0.01]),
        lambda how: how.update(forward=lambda model, batch: model(batch * 2)),
        lambda how: how.update(calibration=sketchlayers.calibrate(network(), IMAGES)),
    ],
)
def test_another_model_or_other_images(change: Callable[[Any], Any], tmp_path: Path) -> None:
    sketchlayers.compress(network(), rate=0.5, cache=tmp_path, **HOW)
    how = {**HOW, "model": network(), "rate": 0.5}
    change(how)
    result = sketchlayers.compress(cache=tmp_path, **how)
    assert taken(result) == {}
    assert_same(result, sketchlayers.compress(**how))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "svd"},
        {"max_sweeps": 3},
        {"layers": ["3", "5"]},
        {"sensitivity": False},
        {"sensitivity": "fit"},
        {"sequential": False},
        {"correct_bias": False},
        {"allocation": "uniform"},
        {"seed": 1},
        {"keep_first": False},
        {"reestimate_batch_norm": True},
        {"rate": {"3": 0.4}},
    ],
)
def test_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    how = {**HOW, "rate": 0.5}
    sketchlayers.compress(network(), cache=tmp_path, **how)
    result = sketchlayers.compress(network(), cache=tmp_path, **{**how, **options})
    assert_same(result, sketchlayers.compress(network(), **{**how, **options}))


# -------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ],
)
@pytest.mark.parametrize("kind", ["sensitivity", "curve", "fit", "order", "calibration"])
def test_damaged_files_are_made_again(
    kind: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    model, how = network(), {**HOW, "rate": 0.5, "cache": tmp_path}
    first = sketchlayers.compress(model, **how)
    files = sorted(tmp_path.glob(f"*/{kind}-*"))
    assert files
    sizes = [file.stat().st_size for file in files]
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged and will be made again"):
        assert_same(sketchlayers.compress(model, **how), first)
    assert [file.stat().st_size for file in files] == sizes
    assert taken(sketchlayers.compress(model, **how)) == EVERYTHING


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    expected = sketchlayers.compress(model, rate=0.5, **HOW)
    fsync, count = os.fsync, iter(range(100))

    def full(file: int) -> None:
        if next(count) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patched, pytest.warns(UserWarning, match="nothing more is kept"):
        patched.setattr(os, "fsync", full)
        assert_same(sketchlayers.compress(model, rate=0.5, cache=tmp_path, **HOW), expected)
    assert next(count) == 5  # it was tried once
    assert len([path for path in tmp_path.glob("*/*")]) == 4
    again = sketchlayers.compress(model, rate=0.5, cache=tmp_path, **HOW)
    assert sum(taken(again).values()) == 3  # the order and the calibration count as one
    assert_same(again, expected)


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cache must be a folder"):
        sketchlayers.compress(network(), rate=0.5, cache=tmp_path / "file", **HOW)
    with pytest.raises(TypeError, match="cache must be a folder"):
        sketchlayers.compress(network(), rate=0.5, cache=3, **HOW)
    with pytest.warns(UserWarning, match="nothing more is kept"):
        sketchlayers.compress(network(), rate=0.5, cache=tmp_path / "file" / "inside", **HOW)


# --------------------------------------------------------------------------- broken off


def traces(model: nn.Module) -> list[object]:
    """All that a broken call might leave behind, but for the tensors."""
    numpy: Any = np.random.get_state()
    hooks = [
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    return [
        hooks,
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy[1].tolist(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision,  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_broken_off_in_a_forward_call(share: float, inplace: bool, tmp_path: Path) -> None:
    how = {**HOW, "rate": 0.5, "refine": Refinement(epochs=1, batch_size=36)}
    counting = Forward()
    expected = sketchlayers.compress(network(), forward=counting, **how)
    model = network()
    model.train()
    model[3].weight.requires_grad_(False)
    modules, state, before = list(model.modules()), state_of(model), traces(model)
    broken = Forward(max(1, round(share * counting.calls)))
    with pytest.raises(KeyboardInterrupt):
        sketchlayers.compress(model, forward=broken, cache=tmp_path, inplace=inplace, **how)
    assert_unchanged(model, modules, state)
    assert traces(model) == before
    assert not list(tmp_path.glob("*/.*"))
    model[3].weight.requires_grad_(True)
    model.eval()
    after = Forward()
    result = sketchlayers.compress(model, forward=after, cache=tmp_path, inplace=inplace, **how)
    assert_same(result, expected)
    if share > 0.3:
        assert taken(result)["calibration"] == 1 and after.calls < counting.calls


def test_a_layer_is_lost_at_most(tmp_path: Path) -> None:
    """Broken off where the last layer is fitted, the next call takes all before it."""
    model, calls = network(), [0, 0]

    class Breaks(sketchlayers.methods.Tucker2):
        name = "breaks"

        def build(self, layer: nn.Module, rank: Any, **how: Any) -> nn.Module:
            calls[0] += how["init"] == "fit"
            if calls[0] == calls[1]:
                raise KeyboardInterrupt
            return super().build(layer, rank, **how)

    how: dict[str, Any] = {"method": Breaks(), "rate": 0.3, "calibration": IMAGES}
    sketchlayers.compress(model, **how)
    calls[:] = [0, calls[0]]
    with pytest.raises(KeyboardInterrupt):
        sketchlayers.compress(model, cache=tmp_path, **how)
    calls[:] = [0, 0]
    calls[1] = -1
    result = sketchlayers.compress(model, cache=tmp_path, **how)
    assert calls[0] == 1 and taken(result) == {**EVERYTHING, "fits": 2}


def test_a_sweep_goes_on(tmp_path: Path) -> None:
    model, results = network(), iter([1.0, 0.9, None])

    def evaluate(_: nn.Module) -> float:
        result = next(results)
        if result is None:
            raise KeyboardInterrupt
        return result

    def evaluate_all(_: nn.Module) -> float:
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        sketchlayers.sweep(model, (0.7, 0.5), evaluate=evaluate, cache=tmp_path, **HOW)
    sweep = sketchlayers.sweep(model, (0.7, 0.5), evaluate=evaluate_all, cache=tmp_path, **HOW)
    assert [taken(one) for one in sweep.values()] == [EVERYTHING] * 2
    with pytest.raises(SweepError):
        sketchlayers.sweep(model, (0.7,), evaluate=lambda _: None, cache=tmp_path, **HOW)
