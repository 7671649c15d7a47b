"""The one call: rates, choice of layers, seeds, warnings, wrong arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers import SKConv2d, SKLinear, methods
from sketchlayers.compression import Report, layer_seed

from .networks import OutOfOrder, Small, images, random_init


def replaced_names(report: Report) -> set[str]:
    return {row.name for row in report.replaced}


def test_replaces_layers_and_leaves_the_model_alone() -> None:
    model = Small()
    before = sum(p.numel() for p in model.parameters())
    result = random_init(model, 0.6, example_inputs=images())
    small, report = result
    assert result.model is small and result.report is report
    assert isinstance(model.head, nn.Linear) and isinstance(small.head, SKLinear)
    assert isinstance(model.body[0], nn.Conv2d) and isinstance(small.body[0], SKConv2d)
    after = sum(p.numel() for p in small.parameters())
    assert (report.parameters_before, report.parameters_after) == (before, after)
    assert abs(after / before - 0.6) <= 0.006
    out = small(images())
    out.sum().backward()
    assert out.shape == (2, 10)
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("rate", [0.35, 0.5, 0.9])
def test_whole_model_rate_counts_everything(rate: float) -> None:
    model = nn.Sequential(
        nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 96), nn.Linear(96, 80, bias=False)
    )
    small, report = random_init(model, rate)
    got = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert report.rate == got
    assert abs(got - rate) <= 0.01 * rate
    assert report.notes == ()


def test_rate_one_leaves_all_layers() -> None:
    small, report = random_init(Small(), 1)
    assert report.rate == 1 and not report.replaced
    assert isinstance(small.head, nn.Linear)


def test_report_says_why_a_rate_is_missed() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 12))
    report = random_init(model, 0.7).report
    assert abs(report.rate - 0.7) > 0.007
    assert any("whole numbers" in note and "0.7 was asked" in note for note in report.notes)
    assert "note: rate 0.7 was asked" in str(report)


def test_unreachable_rate_names_the_smallest() -> None:
    model = Small()
    smallest = sketchlayers.inspect(model, method="sketch", keep_first=False).smallest_rate
    with pytest.raises(
        ValueError, match=r"rate must be at least [\d.]+ .*\(got rate=0.01\)"
    ) as caught:
        random_init(model, 0.01, keep_first=False)
    named = float(str(caught.value).split("at least ")[1].split()[0])
    assert smallest <= named <= smallest + 1.1e-4
    assert random_init(model, named, keep_first=False).report.rate <= named * 1.01


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, math.nan, math.inf])
def test_rate_must_be_in_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\]"):
        random_init(Small(), rate)
    with pytest.raises(ValueError, match=r"rate for 'head' must be in \(0, 1\]"):
        random_init(Small(), {"head": rate})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": None}, TypeError, "rate must be given"),
        ({"rate": "0.5"}, TypeError, r"rate must be a number \(got str\)"),
        ({"rate": True}, TypeError, "rate must be a number"),
        ({"rate": {}}, ValueError, "empty dict"),
        ({"rate": 0.5, "init": "zeros"}, ValueError, "init must be 'fit' or 'random'"),
        ({"rate": 0.5, "method": "sketsch"}, ValueError, "method must be one of"),
        ({"rate": 0.5, "method": 3}, TypeError, "method must be a name or a config object"),
        ({"rate": 0.5, "mixin": "channel"}, TypeError, "did you mean 'mixing'"),
        ({"rate": 0.5, "mixing": "time"}, ValueError, "mixing must be one of"),
        ({"rate": 0.5, "seed": 1.5}, TypeError, "seed must be an int"),
        ({"rate": 0.5, "layers": "hed"}, ValueError, r"got 'hed'; close ones: 'head'"),
        ({"rate": 0.5, "layers": ["body"]}, ValueError, r"'body\.\*' matches the layers inside"),
        ({"rate": {"bodi.*": 0.5}}, ValueError, r"got 'bodi\.\*'; close ones: 'body\.\*'"),
        ({"rate": {"body": 0.5}}, ValueError, r"'body\.\*' matches the layers inside"),
        ({"rate": 0.5, "layers": "net.body.*"}, ValueError, r"close ones: 'body\.\*'"),
        ({"rate": 0.5, "layers": "0"}, ValueError, r"'\*\.0' matches 'body\.0'"),
        (
            {"rate": 0.5, "layers": "x"},
            ValueError,
            r"the layers are 'first', 'body\.0', .*, \.\.\.",
        ),
        (
            {"rate": 0.5, "layers": nn.Linear},
            TypeError,
            "got Linear.*to choose by class give filter",
        ),
        ({"rate": 0.5, "layers": ["head", 3]}, TypeError, "must be names or patterns .*got int"),
        ({"rate": 0.5, "layers": 3}, TypeError, "must be names or patterns .*got int"),
        ({"rate": {3: 0.5}}, TypeError, "must be names or patterns .*got int"),
        (
            {"rate": 50},
            ValueError,
            r"fraction of the parameters that is kept; for 50 % give rate=0\.5",
        ),
        ({"flops_rate": 30}, ValueError, r"of the multiply-adds .*for 30 % give flops_rate=0\.3"),
        ({"latency_rate": 30}, ValueError, r"of the time .*for 30 % give latency_rate=0\.3"),
        ({"rate": {"head": 25}}, ValueError, r"rate for 'head' .*for 25 % give rate=0\.25"),
        ({"rate": 300}, ValueError, r"\(got rate=300\): it is the fraction .* that is kept$"),
        (
            {"ratio": 0.5},
            TypeError,
            "no argument 'ratio': give rate, between 0 and 1: it is the frac",
        ),
        ({"pruning_ratio": 0.5}, TypeError, "no argument 'pruning_ratio': give rate"),
        ({"sparsity": 0.5}, TypeError, "no argument 'sparsity': give rate, .*that is kept"),
        ({"compression_rate": 0.5}, TypeError, "no argument 'compression_rate': give rate"),
        ({"target_flops": 0.5}, TypeError, "no argument 'target_flops': give flops_rate"),
        ({"speedup": 2}, TypeError, "no argument 'speedup': give latency_rate"),
        ({"rate": 0.5, "dataloader": []}, TypeError, "give batches of images to calibration"),
        ({"rate": 0.5, "calibraton": []}, TypeError, r"'calibraton': did you mean calibration\?"),
        ({"rate": 0.5, "colour": 1}, TypeError, "method 'sketch' has no option 'colour'"),
        ({"method": 0.5}, TypeError, r"got float; a rate is given as rate=0\.5"),
        (
            {"rate": 0.5, "method": "tucker"},
            ValueError,
            r"got 'tucker'\); did you mean 'tucker2'\?",
        ),
        ({"rate": {"body.4": 0.5}}, ValueError, "body.4: depthwise convolution"),
        ({"rate": 0.5, "example_inputs": torch.zeros(1, 5)}, ValueError, "must run on example_inp"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sketchlayers.compress(Small(), **arguments)


def test_model_must_be_a_module() -> None:
    for call in (sketchlayers.compress, sketchlayers.fold, sketchlayers.inspect):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
            call({})


def test_rates_of_layers_by_name_and_pattern() -> None:
    report = random_init(Small(), {"body.*": 0.5, "body.0": 0.25, "head": 0.3}).report
    rates = {row.name: row.rate for row in report.replaced}
    assert rates.keys() == {"body.0", "body.2", "head"}
    assert rates["body.0"] == pytest.approx(0.25, abs=0.05)  # the full name goes first
    assert rates["body.2"] == pytest.approx(0.5, abs=0.06)
    assert rates["head"] == pytest.approx(0.3, abs=0.05)
    assert report.rate_asked == {"body.*": 0.5, "body.0": 0.25, "head": 0.3}


def test_rate_of_a_layer_below_rank_one_is_noted() -> None:
    report = random_init(Small(), {"head": 0.001}).report
    (row,) = report.replaced
    assert row.rank == 1
    assert any(note.startswith("head: rate 0.001 was asked") for note in report.notes)


def test_layers_and_filter_restrict() -> None:
    seen = []

    def filter_fn(module: nn.Module, name: str) -> bool:
        seen.append((module, name))
        return name != "body.0"

    model = Small()
    report = random_init(model, 0.9, layers=["body.*", "head"], filter_fn=filter_fn).report
    assert replaced_names(report) <= {"body.2", "head"}
    assert all(model.get_submodule(name) is module for module, name in seen)
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons["body.0"] == reasons["classifier"] == "not among the chosen layers"


def test_excluded_layers_stay() -> None:
    model = Small()
    report = random_init(model, {"*": 0.5}, exclude=["body.[02]", "body.4", "first"]).report
    assert replaced_names(report) == {"head", "classifier"}
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons["body.0"] == reasons["first"] == "excluded (exclude=)"
    assert reasons["body.4"] != reasons["body.0"]  # it could not have been replaced anyway
    named = random_init(model, 0.9, layers=["body.*", "head"], exclude="body.*").report
    assert replaced_names(named) == {"head"}
    with pytest.raises(ValueError, match=r"must match a layer \(got 'body'; 'body\.\*' matches"):
        random_init(model, 0.9, exclude=["head", "body"])
    with pytest.raises(TypeError, match=r"exclude must be names or patterns .*got Conv2d"):
        random_init(model, 0.9, exclude=[nn.Conv2d])


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"rate": 0.6}, True),
        ({"rate": 0.6, "keep_first": False}, False),
        ({"rate": {"*": 0.5}}, True),
        ({"rate": {"first": 0.5}}, False),
        ({"rate": 0.98, "layers": "first"}, False),
    ],
)
def test_first_layer_is_kept_unless_named(arguments: dict, kept: bool) -> None:
    small = random_init(Small(), **arguments).model
    assert isinstance(small.first, nn.Conv2d) == kept


def test_first_layer_is_the_one_that_runs_first() -> None:
    by_registration = random_init(OutOfOrder(), {"*": 0.5}).report
    assert replaced_names(by_registration) == {"unused", "early"}
    by_execution = random_init(OutOfOrder(), {"*": 0.5}, example_inputs=torch.zeros(1, 24)).report
    assert replaced_names(by_execution) == {"last"}


def test_a_layer_alone_is_a_model() -> None:
    layer = nn.Linear(48, 48)
    small, report = random_init(layer, 0.3)
    assert isinstance(small, SKLinear) and isinstance(layer, nn.Linear)
    assert report.layers[0].name == "" and "(the model)" in str(report)
    assert isinstance(sketchlayers.fold(small), nn.Linear)
    with pytest.raises(ValueError, match="inplace must be False"):
        random_init(layer, 0.3, inplace=True)


def test_example_inputs_may_be_tensor_tuple_or_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(input=x) + self.b(y)

    x, y = torch.zeros(3, 16), torch.zeros(5, 1, 16)
    for inputs in ((x, y), [x, y], {"x": x, "y": y}):
        rows = random_init(Two(), {"b": 0.5}, example_inputs=inputs).report.layers
        assert [row.multiply_adds_before for row in rows] == [3 * 256, 5 * 256]


def test_running_on_example_inputs_changes_nothing() -> None:
    model = Small().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    sketchlayers.inspect(model, images())
    del state["norm.num_batches_tracked"]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert model.training and model.norm.num_batches_tracked == 0
    assert not torch.equal(random_state, torch.get_rng_state())  # images() drew from it
    random_state = torch.get_rng_state()
    sketchlayers.inspect(nn.Sequential(model, nn.Dropout()), torch.zeros(1, 3, 12, 12))
    assert torch.equal(random_state, torch.get_rng_state())


def test_options_by_keyword_or_config() -> None:
    by_keyword = random_init(Small(), 0.6, seed=3, mixing="channel", num_sketches=2).model
    config = methods.Sketch(mixing="channel")
    by_config = random_init(Small(), 0.6, seed=3, method=config, num_sketches=2).model
    for model in (by_keyword, by_config):
        assert model.body[0].mixing == "channel" and model.head.num_sketches == 2


def test_seed_decides_everything_and_does_not_depend_on_other_layers() -> None:
    torch.manual_seed(5)
    all_layers = random_init(Small(), {"*": 0.5}, seed=11).model
    torch.manual_seed(6)
    head_only = random_init(Small(), {"head": 0.5}, seed=11).model
    for name in ("s1", "s2", "seed_bits", "u1"):
        assert torch.equal(getattr(all_layers.head, name), getattr(head_only.head, name))
    assert all_layers.head.seed != all_layers.classifier.seed
    assert all_layers.head.seed == layer_seed(11, "head")


def test_layer_seeds_never_change() -> None:
    # As coreutils' `printf 11:head | b2sum -l 64` has it, byte order reversed, top bit cleared.
    assert layer_seed(0, "") == 8617604731985407296
    assert layer_seed(11, "head") == 8021933633302403410


def test_the_same_call_gives_the_same_model() -> None:
    model = Small()
    (first, report), (second, _) = (random_init(model, {"head": 0.5}) for _ in range(2))
    assert report.seed == 0 and first.head.seed == layer_seed(0, "head")
    assert torch.equal(first.head.s1, second.head.s1)


def test_seed_none_draws_from_the_default_generator() -> None:
    seeds = []
    for start in (1, 1, 2):
        torch.manual_seed(start)
        small, report = random_init(Small(), {"head": 0.5}, seed=None)
        assert small.head.seed == layer_seed(report.seed, "head")
        seeds.append(report.seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_fit_warns_once_of_large_errors_and_reports_them() -> None:
    with pytest.warns(
        UserWarning, match=r"of 3 fitted layers .* above 0.3 \(worst: .*training"
    ) as w:
        small, report = sketchlayers.compress(Small(), rate={"body.*": 0.4, "head": 0.4})
    assert len(w) == 1
    model = Small()
    for row in report.replaced:
        assert 0.3 < row.relative_error < 1
    # The reported error is that of the weight that the layer stands for.
    model = nn.Linear(40, 40)
    with pytest.warns(UserWarning):
        small, report = sketchlayers.compress(model, rate=0.5)
    error = (small.dense_weight() - model.weight).norm() / model.weight.norm()
    assert report.layers[0].relative_error == pytest.approx(error.item(), rel=1e-4)


def test_fit_of_a_sketchable_weight_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    exact = SKLinear(64, 64, rank=8, seed=layer_seed(4, ""))
    small, report = sketchlayers.compress(exact.fold(), rate={"": exact.rate}, seed=4)
    assert report.layers[0].relative_error < 1e-5
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    x = torch.randn(3, 64)
    torch.testing.assert_close(small(x), exact(x), rtol=1e-4, atol=1e-5)


def test_random_layers_start_with_kaiming_variance() -> None:
    small = random_init(nn.Linear(256, 512), 0.2).model
    assert small.dense_weight().var().item() == pytest.approx(2 / 256, rel=0.2)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    model = Small().cuda()
    random_state = torch.cuda.get_rng_state()
    twice = [
        random_init(model, 0.6, seed=3, example_inputs=torch.zeros(1, 3, 12, 12, device="cuda"))
        for _ in range(2)
    ]
    assert torch.equal(random_state, torch.cuda.get_rng_state())
    small, again = (result.model for result in twice)
    assert all(tensor.is_cuda for tensor in (*small.parameters(), *small.buffers()))
    assert torch.equal(small.head.s1, again.head.s1)
    on_cpu = random_init(model.cpu(), 0.6, seed=3).model
    assert torch.equal(small.head.u1.cpu(), on_cpu.head.u1)


def test_numbers_may_be_numpys() -> None:
    arguments = {"method": "sketch", "rate": {"head": 0.5}, "init": "random"}
    ours, theirs = (
        sketchlayers.compress(Small(), seed=seed, **arguments).model.state_dict()
        for seed in (5, np.int64(5))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ("head.s1", "head.seed_bits"))
