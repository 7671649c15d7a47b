"""Parameter groups."""

import math

import pytest
import torch
from torch import nn

from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.optim import param_groups


def group_of(groups, parameter):
    found = [g for g in groups if any(parameter is other for other in g["params"])]
    assert len(found) == 1
    return found[0]


def test_every_trained_parameter_has_one_group():
    shared = SKLinear(8, 8, rank=2)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        SKConv2d(8, 8, 3, rank=1, num_sketches=3),
        SKConv2d(8, 8, 3, rank=2, scale="normalized"),
        nn.MultiheadAttention(8, 2),
        nn.LayerNorm(8),
        shared,
        shared,
        nn.Linear(8, 8),
    )
    model[-1].weight = model[0].bias = None
    model[-1].weight = nn.Parameter(torch.zeros(8, 8))
    model[2].s1.requires_grad_(False)
    groups = param_groups(model, lr=0.1, weight_decay=0.01)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in model.parameters() if p.requires_grad})

    def settings(parameter):
        group = group_of(groups, parameter)
        return group["name"], group["lr"], group["weight_decay"]

    for parameter in (
        model[1].weight, model[1].bias, model[2].bias, model[5].weight, model[4].in_proj_bias,
        shared.bias, model[8].bias,
    ):  # fmt: skip
        assert settings(parameter) == ("no_decay", 0.1, 0.0)
    for parameter in (model[0].weight, model[4].in_proj_weight, model[8].weight):
        assert settings(parameter) == ("weights", 0.1, 0.01)
    # Mean gain 2 l c^2: 1/6 for three sketches at the paper's scale, 1 normalised, 1/2 for one.
    for parameter, gain in ((model[2].s2, 1 / 6), (model[3].s1, 1.0), (shared.s2, 1 / 2)):
        name, lr, decay = settings(parameter)
        assert name == "sketch"
        assert lr == pytest.approx(0.1 / gain)
        assert decay == pytest.approx(0.01 * gain)
    plain = param_groups(model, lr=0.1, weight_decay=0.01, gain="none")
    assert {group["lr"] for group in plain} == {0.1}
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def test_recurrent_biases_do_not_decay():
    model = nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
    groups = param_groups(model, lr=0.1, weight_decay=0.01)
    for name, parameter in model.named_parameters():
        expected = "no_decay" if name.startswith("bias_") else "weights"
        assert group_of(groups, parameter)["name"] == expected
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "weights": 0.01,
        "no_decay": 0.0,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_sketches": 3},
        {"num_sketches": 2, "mixing": "channel"},
        {"scale": 0.8, "frame": "signs"},
        {"scale": "normalized", "groups": 2},
    ],
)
def test_the_mean_step_is_the_dense_one(arguments):
    """Over seeds, a step moves the weight by -lr (G + decay W), within 5 standard errors."""
    torch.manual_seed(0)
    seeds = 800
    lr, decay = 0.5, 0.25
    gradient = torch.randn(6, 4 // arguments.get("groups", 1), 2, 1, dtype=torch.float64)
    changes = []
    for seed in range(seeds):
        layer = SKConv2d(4, 6, (2, 1), rank=1, seed=seed, dtype=torch.float64, **arguments)
        optimizer = torch.optim.SGD(param_groups(layer, lr=lr, weight_decay=decay))
        before = layer.weight.detach()
        (layer.weight * gradient).sum().backward()
        optimizer.step()
        changes.append(layer.weight.detach() - before + lr * decay * before)
    changes = torch.stack(changes)
    error = changes.std(0) / math.sqrt(seeds)
    assert ((changes.mean(0) + lr * gradient).abs() < 5 * error).all()
    assert error.max() < 0.1


def test_errors():
    with pytest.raises(TypeError, match=r"param_groups: model must be an nn.Module \(got list\)"):
        param_groups([], 0.1)
    with pytest.raises(ValueError, match=r"param_groups: lr must be at least 0 \(got lr=-0.1\)"):
        param_groups(nn.Linear(2, 2), -0.1)
    with pytest.raises(ValueError, match=r"weight_decay must be at least 0"):
        param_groups(nn.Linear(2, 2), 0.1, -1.0)
    with pytest.raises(ValueError, match=r"gain must be 'mean' or 'none' \(got gain='max'\)"):
        param_groups(nn.Linear(2, 2), 0.1, gain="max")
