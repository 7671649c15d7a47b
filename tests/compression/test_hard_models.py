"""Models, data and modes that are out of the ordinary, through the whole of `compress`."""

from __future__ import annotations

import collections
import copy
import threading
from typing import Any

import pytest
import torch
from selection import slow_except
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Refinement

pytestmark = pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")


class Net(nn.Module):
    """Takes (N, 3, 10, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, stride=2)
        self.head = nn.Linear(16, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.third(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 10, 10)


def smaller(
    model: nn.Module, calibration: Any, method: str = "tucker2", **arguments: Any
) -> nn.Module:
    model, report = sketchlayers.compress(
        model, method, rate=0.6, calibration=calibration, seed=0, **arguments
    )
    assert report.rate < 0.61  # less where nothing is lost
    return model


ALIKE = {
    "one image": lambda: images(1).expand(100, -1, -1, -1),
    "colours": lambda: torch.rand(16, 3, 1, 1).expand(-1, -1, 10, 10),
    "zeros": lambda: torch.zeros(4, 3, 10, 10),
}


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("inputs", ALIKE)
def test_images_without_variety(method: str, sequential: bool, inputs: str) -> None:
    """Inputs that hardly vary have a covariance of rounding errors."""
    few = {"starts": 2, "max_sweeps": 20} if method == "cp" else {}
    batches = [ALIKE[inputs]()]
    small = smaller(Net().eval(), batches, method, sequential=sequential, **few)
    assert small(images(2)).isfinite().all()


def test_a_dead_layer() -> None:
    net = Net().eval()
    nn.init.zeros_(net.second.weight)
    nn.init.constant_(net.second.bias, -1.0)
    assert smaller(net, [images()])(images(2)).isfinite().all()


def test_outputs_must_be_finite() -> None:
    class Masked(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x).clone()
            y[:, 0] = -torch.inf
            return y

    with pytest.raises(ValueError, match="outputs on the calibration images must be finite"):
        smaller(Masked(), [images()])


class Constant(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), torch.ones(len(x), 2)


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class ByKeyword(Net):
    def features(self, x: Tensor) -> Tensor:
        x = self.second(input=self.norm(self.first(x)).relu()).relu()
        return self.third(input=x).relu().mean((2, 3))


@pytest.mark.parametrize("kind", [Constant, WithoutGradients, ByKeyword])
def test_unusual_forwards(kind: type[nn.Module]) -> None:
    small = smaller(kind().eval(), [images()])
    assert isinstance(small.second, sketchlayers.nn.TuckerConv2d)
    if kind is WithoutGradients:
        with pytest.raises(ValueError, match="refine needs a model whose outputs have gradients"):
            smaller(kind(), [images()], refine=True)


def test_a_compiled_model() -> None:
    net = Net().eval()
    compiled = torch.compile(net, backend="eager")
    x = images()
    expected = smaller(net, [x])
    result = smaller(compiled, [x], refine=Refinement(epochs=1))
    assert isinstance(expected.second, sketchlayers.nn.TuckerConv2d)
    assert result(x).shape == (24, 10)


def test_the_caller_is_in_inference_mode() -> None:
    net = Net()
    with torch.inference_mode():
        x = images()
        results = [
            smaller(net, [x], refine=Refinement(epochs=1)),
            smaller(net, None, "svd"),
            sketchlayers.fold(smaller(net, [x])),
        ]
    for result in results:
        result(images()).sum().backward()
        assert all(p.grad is not None for p in result.parameters())
    with torch.inference_mode():
        made_inside = Net()
    with pytest.raises(ValueError, match="must be able to have gradients"):
        smaller(made_inside, [images()])


@pytest.mark.parametrize("dtype", slow_except([torch.bfloat16], [torch.float16, torch.bfloat16]))
def test_half_types_are_refined(dtype: torch.dtype) -> None:
    """Steps that are smaller than the type's precision add up."""
    torch.manual_seed(0)
    net, x = Net().eval(), images(256)
    settings = Refinement(epochs=20, learning_rate=5e-4)
    changes = [
        sketchlayers.compress(
            copy.deepcopy(net).to(kind),
            "tucker2",
            rate=0.5,
            calibration=[x.to(kind)],
            seed=0,
            refine=refine,
            sequential=False,
        )[1].output_change
        for kind, refine in ((dtype, False), (torch.float32, settings), (dtype, settings))
    ]
    before, expected, after = changes
    assert expected < 0.8 * before
    assert after < 0.9 * before


def test_autocast_is_the_callers() -> None:
    net, x = Net().eval(), images().bfloat16()
    with torch.autocast("cpu"):
        small = smaller(net, [x])
        assert small(x).isfinite().all()
    assert small.second.core.weight.dtype == torch.float32


def test_own_buffers_do_not_change() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    arguments: dict[str, Any] = {"refine": Refinement(epochs=1), "reestimate_batch_norm": True}
    for inplace in (False, True):
        net = Counting().train()
        small = smaller(net, [images()], inplace=inplace, **arguments)
        assert small.calls == 0 == net.calls
        assert small.norm.running_mean.abs().max() > 0  # taken anew
        assert small.norm.num_batches_tracked == 0
        assert (small is net) == inplace


class Record(collections.UserDict):
    """A batch whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


def test_batches_of_other_mappings() -> None:
    batches = [Record(pixels=images(), number=torch.zeros(24)) for _ in range(2)]
    small = smaller(
        Net().eval(),
        batches,
        forward=lambda model, batch: model(batch.pixels),
        refine=Refinement(epochs=1),
    )
    assert small(images()).shape == (24, 10)


def test_many_small_batches_take_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net().eval(), images(60)
    most = 0
    original = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: Tensor) -> Tensor:
        nonlocal most
        most = max(most, threading.active_count())
        return original(self, x)

    before = threading.active_count()
    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    parts = smaller(net, list(x.split(1)), sensitivity=False)
    assert most - before <= 24
    monkeypatch.undo()
    whole = smaller(net, [x], sensitivity=False)
    torch.testing.assert_close(parts(x), whole(x), rtol=1e-3, atol=1e-4)


def test_ways_that_depend_on_values() -> None:
    class Routing(Net):
        """The same for all batches of the original network, another in the smaller one."""

        def features(self, x: Tensor) -> Tensor:
            x = self.second(self.norm(self.first(x)).relu())
            # Fitted weights differ from the original ones in their last bits at least.
            if abs(float(x.detach().double().sum()) - self.expected) < 1e-9:
                x = self.third(x.relu())
            return x.relu().mean((2, 3))

    net, x = Routing().eval(), images()
    net.expected = 0.0
    with torch.no_grad():
        net.expected = float(net.second(net.norm(net.first(x)).relu()).double().sum())
    arguments: dict[str, Any] = {
        "rate": {"second": 0.5, "third": 0.5},
        "calibration": [x],
        "example_inputs": x,
        "sensitivity": False,
    }
    with pytest.raises(RuntimeError, match=r"as the original one does.*use sequential=False"):
        sketchlayers.compress(net, "tucker2", sequential=True, **arguments)
    _, report = sketchlayers.compress(net, "tucker2", **arguments)
    assert [row.name for row in report.replaced] == ["second", "third"]
    assert any("third: fitted alone" in note for note in report.notes)


@pytest.mark.parametrize("calibration", [images(4), "folder", {"x": images(4)}])
def test_what_is_no_loader(calibration: Any) -> None:
    with pytest.raises(TypeError, match="calibration must be a Calibration or an iterable of"):
        smaller(Net(), calibration)


@pytest.mark.parametrize("argument", ["sequential", "correct_bias"])
def test_flags_must_be_flags(argument: str) -> None:
    with pytest.raises(TypeError, match=f"{argument} must be True or False"):
        smaller(Net(), [images()], **{argument: "no"})


def test_large_outputs_are_kept_of_few_images() -> None:
    class Large(Net):
        """As a network for segmentation, with many outputs for each image."""

        def forward(self, x: Tensor) -> Tensor:
            counts.append(len(x))
            return super().forward(x).repeat(1, 20_000)

    counts: list[int] = []
    net = Large().eval()
    options = {"sequential": False, "memory_budget": 8_000_000, "measure_latency": False}
    smaller(net, [images(10) for _ in range(10)], **options)
    assert set(counts) == {10}
    # Each batch once for second moments and some for sensitivities; one is compared.
    assert 20 < len(counts) < 70
