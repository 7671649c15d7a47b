"""Label-free distillation of the factors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers._runtime.processes import Processes
from sketchlayers.compression import Refinement
from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.compression.finishing.batch_norms import measured_batch_norms, put_buffers
from sketchlayers.compression.finishing.refine import mirrored_and_shifted, refine
from sketchlayers.surgery.batches import call_model
from sketchlayers.surgery.replace import evaluation_copy
from sketchlayers.surgery.sample import Sample


def change(net: nn.Module, sample: Sample, small: nn.Module) -> float:
    outputs = OriginalOutputs(net, sample, ALONE, most_bytes=1 << 30)
    return outputs.relative_change(small)


ALONE = Processes("compress", join=False)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 8, 8)


def smaller(**arguments: Any) -> tuple[nn.Module, nn.Module, Sample]:
    net, x = network(), images()
    small, _ = sketchlayers.compress(
        net, "tucker2", rate=0.5, calibration=[x], seed=0, sequential=False, **arguments
    )
    return net.eval(), small.eval(), Sample((x,), call_model)


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
def test_outputs_come_nearer_and_nothing_else_changes() -> None:
    net, small, sample = smaller()
    held = sample.split(0.2)[1]
    before = change(net, held, small)
    others = {n: v.clone() for n, v in small.state_dict().items() if "core" not in n}
    flags = [p.requires_grad for p in small.parameters()]
    layer = small[3].core
    settings = Refinement(epochs=12, held_out=0.2, batch_size=16, patience=12)
    done = refine(net, small, [layer], sample, settings, ALONE, seed=0)
    assert done.before == pytest.approx(before)
    assert done.after < 0.95 * done.before
    assert change(net, held, small) == pytest.approx(done.after)
    state = small.state_dict()
    assert all(torch.equal(state[name], value) for name, value in others.items())
    assert [p.requires_grad for p in small.parameters()] == flags
    assert all(p.grad is None for p in small.parameters())


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
def test_it_never_ends_worse_than_it_began() -> None:
    net, small, sample = smaller()
    state = {name: value.clone() for name, value in small.state_dict().items()}
    settings = Refinement(epochs=3, learning_rate=1e3)
    done = refine(net, small, [small[3]], sample, settings, ALONE, seed=0)
    assert done.after == done.before
    assert all(torch.equal(small.state_dict()[name], value) for name, value in state.items())


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
def test_patience_and_time_end_it() -> None:
    net, small, sample = smaller()
    settings = Refinement(epochs=50, learning_rate=1e3, patience=2)
    assert refine(net, small, [small[3]], sample, settings, ALONE, seed=0).epochs == 2
    late = Refinement(epochs=50, seconds=0.0)
    assert refine(net, small, [small[3]], sample, late, ALONE, seed=0).epochs == 0


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
def test_in_one_call_and_reproducibly() -> None:
    net, x = network(), images()
    torch.manual_seed(3)

    def run() -> tuple[nn.Module, Any]:
        return sketchlayers.compress(
            net,
            "tucker2",
            rate=0.5,
            calibration=[x[:40], x[40:]],
            seed=0,
            refine=Refinement(epochs=2),
        )

    first, report = run()
    torch.rand(7)
    second, _ = run()
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert any("refined for" in note for note in report.notes)
    assert "refinement" in report.seconds


def test_images_are_mirrored_and_shifted() -> None:
    x = torch.arange(2.0 * 1 * 8 * 8).reshape(2, 1, 8, 8) + 1
    generator = torch.Generator().manual_seed(0)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    seen = set()
    for _ in range(60):
        y = mirrored_and_shifted(x, generator)
        for i in range(2):
            windows = {
                (row, column, flip): padded[i, :, row : row + 8, column : column + 8]
                for row, column, flip in itertools.product(range(3), range(3), (False, True))
            }
            found = [
                key
                for key, window in windows.items()
                if torch.equal(y[i], window.flip(-1) if key[2] else window)
            ]
            assert len(found) == 1
            seen.update(found)
    assert len(seen) == 18
    labels = torch.arange(3)
    assert mirrored_and_shifted(labels, generator) is labels


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs must be an int"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
        ({"held_out": 1.0}, ValueError, r"held_out must be in \(0, 1\)"),
        ({"augment": "flip"}, ValueError, "augment must be 'images', None or a function"),
    ],
)
def test_bad_settings(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Refinement(**arguments)


def test_batch_norms_are_measured_over_all_images() -> None:
    """Batches of different size and level count by their images; one image alone does not fail."""
    net = nn.Sequential(*network()[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8))
    net.eval()
    batches = (images(50) * 3 + 1, images(3) - 20, images(1))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = measured_batch_norms(net, Sample(batches, call_model), ALONE)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert list(found) == [f"{i}.running_{name}" for i in (1, 5) for name in ("mean", "var")]
    y = net[0](torch.cat(batches[:2]))
    torch.testing.assert_close(found["1.running_mean"], y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["1.running_var"], y.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    before = put_buffers(net, found)
    assert torch.equal(net[1].running_mean, found["1.running_mean"])
    put_buffers(net, before)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


def test_evaluation_copy_shares_parameters_only() -> None:
    net = network().train()
    copied = evaluation_copy(net)
    assert copied[0].weight is net[0].weight
    assert copied[1].running_mean is not net[1].running_mean
    assert net.training and not copied.training


# ------------------------------------------------------------------------- batches of many sizes


class Texts(nn.Module):
    """Takes texts as numbers of words, (N, L); says something of each text, or of each word."""

    def __init__(self, *, of_words: bool) -> None:
        super().__init__()
        self.of_words = of_words
        self.embed = nn.Embedding(30, 16)
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 8)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.second(self.first(self.embed(words)).relu()).relu()
        if not self.of_words:
            x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(x)


def texts(count: int, length: int) -> dict[str, Tensor]:
    words = torch.randint(30, (count, length))
    return {"words": words, "mask": torch.ones(count, length)}


def tensors(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size)


UNEVEN = {
    "texts padded to other lengths": lambda: (
        Texts(of_words=False),
        [texts(24, 5), texts(24, 7), texts(24, 5), texts(11, 9), texts(5, 5)],
    ),
    "words of such texts": lambda: (
        Texts(of_words=True),
        [texts(24, 5), texts(24, 7), texts(24, 5), texts(11, 9), texts(5, 5)],
    ),
    "as many texts as words": lambda: (Texts(of_words=True), [texts(8, n) for n in (8, 9, 8, 7)]),
    "a last smaller batch": lambda: (network(), [images(40), images(40), images(7)]),
    "single images": lambda: (network(), [images(1) for _ in range(12)]),
    "images of other sizes": lambda: (
        network(),
        [tensors(20, 8), tensors(20, 12), tensors(20, 8), tensors(9, 10)],
    ),
    "labels, and names": lambda: (
        network(),
        [(images(n), torch.arange(n), [str(i) for i in range(n)]) for n in (30, 30, 9)],
    ),
}


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_batches_of_different_sizes(case: str, batch_size: int | None) -> None:
    torch.manual_seed(0)
    model, batches = UNEVEN[case]()
    how: dict[str, Any] = {"rate": 0.6, "calibration": batches, "keep_first": False}
    before = sketchlayers.compress(model, "svd", **how).report
    refinement = Refinement(epochs=4, batch_size=batch_size)
    after = sketchlayers.compress(model, "svd", **how, refine=refinement).report
    assert before.output_change is not None and after.output_change is not None
    assert after.output_change <= before.output_change * 1.05
    assert any("refined for 4 epochs" in note for note in after.notes)
    assert not any("own outputs" in note for note in after.notes)


def test_steps_of_images_of_one_size() -> None:
    """Every image takes part in an epoch but for those that fill no step of their size."""
    sizes: list[int] = []

    def note(batch: Tensor) -> Tensor:
        assert batch.shape[2] == batch.shape[3]
        sizes.append(len(batch) * 100 + batch.shape[2])
        return batch

    model = network()
    batches = [tensors(16, 8), tensors(16, 12), tensors(16, 8), tensors(10, 10)]
    sketchlayers.compress(
        *(model, "svd"),
        rate=0.6,
        calibration=[*batches, tensors(6, 14)],
        refine=Refinement(epochs=2, batch_size=12, held_out=0.09, augment=note),
    )
    epoch = sorted(sizes[: len(sizes) // 2])
    assert epoch == sorted(sizes[len(sizes) // 2 :]) == [1010, 1208, 1208, 1212]
