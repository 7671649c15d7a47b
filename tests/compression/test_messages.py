"""What a wrong batch, output or argument causes is told before PyTorch's own words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 8)

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class TwoInputs(Network):
    def forward(self, a: Tensor, b: Tensor) -> Any:  # type: ignore[override]
        return self.head(self.features(a + b))


BATCHES = [torch.randn(96, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def compress(model: nn.Module, batches: Any, **options: Any) -> Any:
    return sketchlayers.compress(model.eval(), "svd", rate=0.8, calibration=batches, **options)


@dataclasses.dataclass
class Batch:
    x: Tensor
    y: Tensor


WRONG: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "another width": (Network, [torch.randn(4, 33)], r"float32 tensor \(4, 33\)"),
    "another type": (Network, [torch.randn(4, 32).double()], r"float64 tensor \(4, 32\)"),
    "whole numbers": (Network, [torch.zeros(4, 32).long()], r"int64 tensor \(4, 32\)"),
    "two inputs": (TwoInputs, [(BATCHES[0], BATCHES[1])], r"tuple of \(float32 .*, float32 "),
    "a later batch": (Network, [*BATCHES, torch.randn(4, 33)], r"in batch 4: float32 tensor"),
    "other keys": (Network, [{"pictures": BATCHES[0]}], r"dict of \(pictures: float32 tensor"),
    "a dataclass": (Network, [Batch(BATCHES[0], BATCHES[1])], "got Batch"),
    "an array": (Network, [BATCHES[0].numpy()], "got ndarray"),
    "text": (Network, ["text"], "got str"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("call", [compress, sketchlayers.calibrate])
def test_a_wrong_batch_is_told_with_the_way_out(call: Callable[..., Any], kind: str) -> None:
    make, batches, got = WRONG[kind]
    with pytest.raises((TypeError, ValueError), match=got) as raised:
        call(make(), batches)
    message = str(raised.value)
    assert message.startswith(("compress: ", "calibrate: "))
    assert "forward=lambda model, batch:" in message


def test_the_way_out_works() -> None:
    pairs = [(x, x) for x in BATCHES]
    expected = compress(Network(), BATCHES, seed=3).report.rate
    for make, batches, forward in (
        (TwoInputs, pairs, lambda model, batch: model(*batch)),
        (Network, [Batch(x, x) for x in BATCHES], lambda model, batch: model(batch.x)),
        (Network, [{"pictures": x} for x in BATCHES], lambda model, b: model(b["pictures"])),
        (Network, [x.double() for x in BATCHES], lambda model, batch: model(batch.float())),
    ):
        assert compress(make(), batches, forward=forward).report.rate == expected


@pytest.mark.parametrize("call", [compress, sketchlayers.calibrate])
def test_forward_must_be_a_function(call: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"forward must be a function.* \(got str\)"):
        call(Network(), BATCHES, forward="model(batch)")


@pytest.mark.parametrize("error", [OSError("unplugged"), MemoryError()])
def test_errors_that_have_nothing_to_do_with_inputs_are_left_as_they_are(error: Exception) -> None:
    class Fails(Network):
        def forward(self, x: Tensor) -> Any:
            raise error

    with pytest.raises(type(error)) as raised:
        compress(Fails(), BATCHES)
    assert raised.value is error


def test_inputs_of_other_functions() -> None:
    wrong = torch.randn(3, 33)
    with pytest.raises(ValueError, match=r"^inspect: the model must run on example_inputs .*33\)"):
        sketchlayers.inspect(Network(), wrong)
    with pytest.raises(ValueError, match=r"^compress: the model must run on example_inputs"):
        sketchlayers.compress(Network(), "svd", flops_rate=0.9, example_inputs=wrong)
    sketched = nn.Sequential(sketchlayers.SKLinear(32, 32, rate=0.5))
    with pytest.raises(ValueError, match=r"^optimize_for_inference: the model must run on exampl"):
        sketchlayers.optimize_for_inference(sketched, wrong)
    for inputs in (BATCHES[0], (BATCHES[0],), lambda model: model(BATCHES[0])):
        sketchlayers.optimize_for_inference(sketched, inputs, seconds=0.01)


# ------------------------------------------------------------------------------------- outputs


class Fields(Mapping[str, Tensor]):
    """A mapping that PyTorch's trees do not look into, as other packages return."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __getitem__(self, key: str) -> Tensor:
        return {"logits": self.logits}[key]

    def __iter__(self) -> Any:
        return iter(["logits"])

    def __len__(self) -> int:
        return 1


class Anything:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def returning(wrap: Callable[[Tensor], object]) -> nn.Module:
    class Wrapped(Network):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    torch.manual_seed(0)
    return Wrapped()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: Batch(x, torch.arange(3)),
        lambda x: [{"logits": x}, "text"],
        lambda x: (Fields(x), None),
    ],
)
def test_outputs_may_be_in_dataclasses_and_mappings(wrap: Callable[[Tensor], object]) -> None:
    expected = compress(returning(lambda x: x), BATCHES, refine=True).report.output_change
    small = compress(returning(wrap), BATCHES, refine=True)
    assert small.report.output_change == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("wrap", [Anything, lambda x: None, lambda x: x.argmax(-1)])
def test_other_outputs_are_told_with_the_way_out(wrap: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match=r"must return floating-point tensors.*forward=lambda"):
        compress(returning(wrap), BATCHES)
    if wrap is Anything:
        report = compress(
            returning(wrap), BATCHES, forward=lambda model, batch: model(batch).logits
        ).report
        assert report.output_change is not None


def test_batches_without_images_are_passed_over() -> None:
    expected = compress(Network(), BATCHES, seed=1).report
    empty = torch.empty(0, 32)
    torch.manual_seed(0)
    report = compress(Network(), [empty, *BATCHES, empty], seed=1).report
    assert report.output_change is not None and expected.output_change is not None
    assert sketchlayers.calibrate(Network(), [empty, *BATCHES]).images == 3 * 96
    with pytest.raises(ValueError, match="must yield batches"):
        compress(Network(), [empty])


def test_layers_that_are_compressed_already_say_so() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 64))
    small = compress(model, BATCHES).model
    with pytest.raises(ValueError, match="compressed already, and nothing is fitted"):
        sketchlayers.compress(small, "svd", rate=0.05, init="random")
    partly = sketchlayers.compress(model, "svd", rate={"2": 0.5}, calibration=BATCHES).model
    report = sketchlayers.compress(partly, "svd", rate={"3": 0.5}, calibration=BATCHES).report
    assert "already compressed (LowRankLinear); fold(model) makes it plain" in str(report)
