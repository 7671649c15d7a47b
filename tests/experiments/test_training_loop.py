from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch._dynamo.testing import CompileCounter

import plot
import train
from common.distributed import World
from common.runs import RunFolder
from experiment import Job, NetworkSpec, build, run
from image_data import DataSet
from networks import count_parameters
from training import Recipe, Trainer, evaluate, make_batches, seed_generators

NARROW = NetworkSpec(width=0.25, dropout=0.0)
SKETCHED = replace(NARROW, method="sketch", rate=0.15, options={"frame": "signs"})


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize(("options", "expected"), [({}, 45), ({"frame": "signs"}, 90)])
def test_sketched_factors_learn(
    digits: DataSet, options: dict[str, object], expected: float
) -> None:
    """Training s1 and s2 must be what gives the accuracy, not the layers around them."""
    spec, recipe = replace(SKETCHED, options=options), Recipe(epochs=5, lr=0.1)

    def accuracy(*, frozen: bool) -> float:
        network = build(spec, 10).network
        for name, parameter in network.named_parameters():
            if frozen and name.endswith((".s1", ".s2")):
                parameter.requires_grad_(False)
        return Trainer(network, digits, recipe).fit().accuracy

    trained, fixed = accuracy(frozen=False), accuracy(frozen=True)
    assert trained >= fixed + 10
    assert trained >= expected


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = Recipe(epochs=11, warmup=1.0)
    assert recipe.factor(0) == 0
    assert recipe.factor(0.5) == 0.5
    assert recipe.factor(1) == 1
    assert recipe.factor(6) == pytest.approx(0.5)
    assert recipe.factor(11) == pytest.approx(0)


def learning_rates(few_digits: DataSet, **recipe: object) -> list[tuple[float, float]]:
    """Learning rate and momentum of every step."""
    trainer = Trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), few_digits, Recipe(**recipe))
    seen = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["momentum"]))

    trainer.optimizer.register_step_pre_hook(note)
    outcome = trainer.fit()
    assert outcome.history[-1].learning_rate < 0.01 * recipe["lr"]
    return seen


def test_one_cycle_is_that_of_pytorch(few_digits: DataSet) -> None:
    """The rate goes up from a fraction and down to nothing, and the momentum the other way."""
    seen = learning_rates(few_digits, schedule="one_cycle", epochs=10, warmup=3, lr=0.1)
    rates, momenta = zip(*seen, strict=True)
    peak = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1, rel=0.02)  # between two steps
    assert peak == pytest.approx(0.3 * len(seen), abs=1)
    assert list(rates[: peak + 1]) == sorted(rates[: peak + 1])
    assert list(rates[peak:]) == sorted(rates[peak:], reverse=True)
    assert (momenta[0], min(momenta)) == pytest.approx((0.95, 0.85), rel=0.01)
    assert momenta.index(min(momenta)) == peak


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 2.0])
def test_a_cycle_may_have_few_steps(few_digits: DataSet, warmup: float) -> None:
    recipe = {"schedule": "one_cycle", "epochs": 1, "batch_size": len(few_digits.train)}
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    assert Trainer(network, few_digits, Recipe(warmup=warmup, **recipe)).fit().status == "finished"


def test_the_cosine_is_taken_step_by_step(few_digits: DataSet) -> None:
    recipe = Recipe(epochs=4, warmup=1, lr=0.1)
    seen = learning_rates(few_digits, epochs=4, warmup=1, lr=0.1)
    steps = len(seen) // 4
    for number, (rate, momentum) in enumerate(seen):
        assert rate == pytest.approx(0.1 * recipe.factor(number / steps))
        assert momentum == 0.9


def test_label_smoothing_is_in_the_loss(few_digits: DataSet) -> None:
    losses = {
        share: Trainer(
            build(NARROW, 10).network, few_digits, Recipe(epochs=1, lr=1e-9, label_smoothing=share)
        )
        .fit()
        .history[0]
        .train_loss
        for share in (0.0, 0.5)
    }
    assert losses[0.0] != losses[0.5]


def test_the_moving_average_is_what_is_tested_and_kept(few_digits: DataSet, tmp_path: Path) -> None:
    """With batch norm's statistics averaged like weights, and its count of batches copied."""
    network, folder = build(NARROW, 10).network, RunFolder(tmp_path)
    decay, expected = 0.9, weights(network)
    trainer = Trainer(network, few_digits, Recipe(epochs=2, ema=decay), folder=folder)
    steps = 0

    def note(*_: object) -> None:
        nonlocal steps
        now = weights(network)
        for key, value in expected.items():
            if not value.is_floating_point() or steps == 0:
                expected[key] = now[key]
            else:
                expected[key] = decay * value + (1 - decay) * now[key]
        steps += 1

    trainer.optimizer.register_step_post_hook(note)
    outcome = trainer.fit()
    kept = RunFolder.read_checkpoint(folder.checkpoint)
    for key, value in expected.items():
        torch.testing.assert_close(kept["network"][key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kept["in_training"][key], network.state_dict()[key])
    _, batches = make_batches(few_digits, Recipe(), World())
    assert evaluate(trainer.trained, batches).accuracy == outcome.accuracy
    assert trainer.trained is not network


def test_images_may_stay_contiguous(few_digits: DataSet) -> None:
    seen = []
    for format_ in ("channels_last", "contiguous"):
        network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network[0].register_forward_pre_hook(
            lambda _, inputs: seen.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        trainer = Trainer(network, few_digits, Recipe(epochs=1, memory_format=format_))
        assert trainer.fit().status == "finished"
        assert set(seen) == {format_ == "channels_last"}
        seen.clear()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("lr", 0.0, "positive"),
        ("lr", math.nan, "positive"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("weight_decay", -1.0, "at least 0"),
        ("amp", "int8", "off or bf16"),
        ("test_every", 0, "at least 1"),
        ("clip", 0.0, "positive"),
        ("schedule", "step", "cosine or one_cycle"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("ema", 1.0, r"in \[0, 1\)"),
        ("memory_format", "nhwc", "channels_last or contiguous"),
    ],
)
def test_bad_recipes(field: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: must be {rule}"):
        Recipe(**{field: value})


def test_evaluation_is_the_plain_mean(few_digits: DataSet) -> None:
    network = build(NARROW, 10).network.train()
    _, batches = make_batches(few_digits, Recipe(), World())
    score = evaluate(network, batches)
    assert network.training
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = network.eval()(images)
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), 1e-5)
    assert score.accuracy == pytest.approx(
        100 * float((logits.argmax(1) == labels).double().mean())
    )


def test_one_step_is_sgd_with_weight_decay_on_weights_alone(few_digits: DataSet) -> None:
    data = replace(few_digits, train=few_digits.train.take(torch.arange(16)))
    recipe = Recipe(epochs=1, batch_size=16, warmup=0.0, lr=0.1, weight_decay=0.01)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    linear = network[1]
    trainer = Trainer(network, data, recipe)
    seed_generators(recipe.seed, 0, 0, 0)
    images, labels = next(iter(trainer.train_batches))
    loss = nn.functional.cross_entropy(network(images), labels)
    weight_grad, bias_grad = torch.autograd.grad(loss, [linear.weight, linear.bias])
    weight = linear.weight - 0.1 * (weight_grad + 0.01 * linear.weight)
    bias = linear.bias - 0.1 * bias_grad
    trainer.fit()
    assert torch.allclose(linear.weight, weight, atol=1e-6)
    assert torch.allclose(linear.bias, bias, atol=1e-6)


def test_tests_may_be_rare_and_never_change_the_training(few_digits: DataSet) -> None:
    seen = {}
    for every in (1, 2, 5):
        network = build(NARROW, 10).network
        outcome = Trainer(network, few_digits, Recipe(epochs=3, test_every=every)).fit()
        seen[every] = outcome
        tested = [epoch.epoch for epoch in outcome.history if epoch.test_accuracy is not None]
        assert tested == {1: [1, 2, 3], 2: [2, 3], 5: [3]}[every]
        assert outcome.history[-1].train_loss == seen[1].history[-1].train_loss
        assert outcome.accuracy == seen[1].accuracy


def test_mixed_precision_trains(few_digits: DataSet) -> None:
    network = build(SKETCHED, 10).network
    outcome = Trainer(network, few_digits, Recipe(epochs=2, amp="bf16")).fit()
    assert outcome.status == "finished"
    assert outcome.history[-1].train_loss < outcome.history[0].train_loss
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_diverging_run_stops_and_says_so(few_digits: DataSet, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    spec = replace(NARROW, batch_norm=False)
    job = Job(spec, Recipe(epochs=50, lr=1e9, warmup=0.0), folder)
    summary = run(job, few_digits)
    assert summary["status"] == "diverged"
    assert json.loads(folder.summary.read_text())["status"] == "diverged"


def test_a_run_leaves_log_summary_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--width", "0.1", "--subset", "100", "--size", "8", "--epochs", "2"]
    runs = {
        "dense": [],
        "sketched": ["--method", "sketch", "--rate", "0.5", "--option", "mixing=channel"],
    }
    for name, options in runs.items():
        assert train.main([*arguments, *options, "--out", str(tmp_path / name)]) == 0
    assert "sketched: finished, test accuracy" in capsys.readouterr().out

    with open(tmp_path / "sketched" / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())

    summary = json.loads((tmp_path / "sketched" / "summary.json").read_text())
    assert summary["network"]["options"] == {"mixing": "channel"}
    assert summary["recipe"]["lr"] == train.SKETCH_LR
    assert summary["data"]["train_images"] == 100
    command = summary["command"]
    assert command["subset"] == 100
    assert "--width 0.1 --subset 100" in command["line"]
    assert command["root"] is None
    assert (command["lr"], command["size"], command["stream"]) == (train.SKETCH_LR, 8, False)
    assert {"test_subset", "workers", "threads", "device"} <= command.keys()
    assert command["out"] == str(tmp_path / "sketched")
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"cpu", "cores", "threads"} <= summary["hardware"].keys()
    assert summary["rate"] == pytest.approx(0.5, rel=0.05)

    assert plot.main([str(tmp_path)]) == 0
    with open(tmp_path / "results.csv") as file:
        results = list(csv.DictReader(file))
    assert [row["name"] for row in results] == ["dense", "sketched"]
    assert float(results[1]["test_accuracy"]) == pytest.approx(float(rows[-1]["test_accuracy"]))
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


class Asked(Exception):
    """Carries what a command asked for, in place of the work."""


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--network", "googlenet_bn"], 224),
        (["--network", "ninn_fc"], 32),
        (["--network", "googlenet_bn", "--size", "64"], 64),
    ],
)
def test_images_have_the_size_that_the_network_is_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], size: int
) -> None:
    for name in ("train/cat", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")

    def ask(job: Job, data: DataSet, **_: object) -> None:
        raise Asked(data.size)

    monkeypatch.setattr(train, "run", ask)
    data = ["--data", "imagefolder", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(Asked) as asked:
        train.main([*data, *options])
    assert asked.value.args == (size,)


def test_layer_rates_pick_the_papers_layers() -> None:
    args = train.parser().parse_args(
        ["--method", "sketch", "--layer-rate", "CONV_[2-7]=0.1", "--no-batch-norm", "--out", "x"]
    )
    built = build(train.network_spec(args), 10)
    kinds = {name: type(layer).__name__ for name, layer in built.network.named_children()}
    sketched = [name for name, kind in kinds.items() if kind == "SKConv2d"]
    assert sketched == [f"CONV_{index}" for index in range(2, 8)]
    # The rate 0.150 of the paper, whole ranks and biases aside.
    assert built.rate == pytest.approx(0.15, abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "sketch"], "rate: method 'sketch' needs one"),
        (["--rate", "0.5"], "rate: a dense network has none"),
        (["--method", "sketch", "--rate", "1.5"], "rate"),
        (["--data", "cifar10"], "cifar10: the folder with the data set must be given"),
        (["--data", "svhn", "--root", "nowhere"], "svhn: the data folder must exist"),
        (["--epochs", "0"], "epochs: must be at least 1"),
    ],
)
def test_bad_commands_give_one_error_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    out = tmp_path / "run"
    assert train.main([*options, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") or message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_same_description_gives_the_same_network() -> None:
    first, second = (weights(build(SKETCHED, 10).network) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = weights(build(replace(SKETCHED, seed=1), 10).network)
    assert not torch.equal(first["CONV_4.s1"], other["CONV_4.s1"])
    assert count_parameters(build(SKETCHED, 10).network) < 0.16 * count_parameters(
        build(NARROW, 10).network
    )


def test_every_network_of_many_is_compiled(
    few_digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch compiles code that is shared, as that of ``nn.Sequential`` is, some times only."""
    compiled = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiled))
    images = torch.zeros(2, 3, 8, 8)
    for width in range(1, 13):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Linear(width, 10))
        Trainer(network, few_digits, Recipe(compile=True)).forward(images)
    assert compiled.frame_count == 12
