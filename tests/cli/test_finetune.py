"""Training on with labels: it learns, is repeatable, and says when it cannot."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.cli.finetune import finetune, hits, scores_of
from sketchlayers.cli.folders import LabelledImages, Preparation

from .photos import write_photos

pytest.importorskip("torchvision")


class Classifier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 3),
        )


PREPARE = Preparation.of(None, (3, 16, 16))
RECIPE = {"epochs": 3, "learning_rate": 0.1, "batch_size": 8}


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return LabelledImages.find(write_photos(tmp_path, ["red", "s-green", "t-blue"], 15))


@pytest.mark.parametrize("method", ["tucker2", "sketch"])
def test_it_learns_and_is_repeatable(
    method: str, images: LabelledImages, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = sketchlayers.compress(
        Classifier(), method, rate=0.9, layers="3", init="random", seed=3
    )
    again = copy.deepcopy(model)
    statistics = model[1].running_mean.clone()
    finetune(model, images, PREPARE, **RECIPE, seed=5)
    lines = capsys.readouterr().err.splitlines()
    assert hits(model, images, PREPARE, 7).double().mean() > 0.9
    assert not any(module.training for module in model.modules())
    assert not torch.equal(model[1].running_mean, statistics)
    assert [line.partition(":")[2].split(":")[0] for line in lines] == [
        f" epoch {epoch} of 3" for epoch in (1, 2, 3)
    ]
    torch.manual_seed(99)  # nothing hangs on the generator of everybody
    before = torch.random.get_rng_state()
    finetune(again, images, PREPARE, **RECIPE, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_accuracy_counts(images: LabelledImages) -> None:
    class Red(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return torch.tensor([1.0, 0.0, 0.5]).expand(len(x), 3), None

    assert hits(Red(), images, PREPARE, 4).double().mean() == pytest.approx(1 / 3)


def test_a_loss_that_is_not_finite_is_told(images: LabelledImages) -> None:
    recipe = {**RECIPE, "learning_rate": 1e30}
    with pytest.raises(ValueError, match=r"the loss must be finite; a lower learning rate"):
        finetune(Classifier(), images, PREPARE, **recipe, seed=0)
    with pytest.raises(
        ValueError, match=r"returns scores, \(images, classes\) \(got \(2, 3, 4\)\)"
    ):
        scores_of(torch.zeros(2, 3, 4))
