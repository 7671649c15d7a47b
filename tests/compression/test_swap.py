"""What carries over to a new layer, and that a failure leaves the model as it was."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import LowRankLinear, SKConv2d, SKLinear
from sketchlayers.compression import result
from sketchlayers.compression.stages import finish
from sketchlayers.methods import Sketch

from .networks import Small, assert_unchanged, images, random_init, state_of

RATES = {"body.0": 0.5, "body.2": 0.5, "head": 0.5}


class Recorder:
    """A hook with state of its own, which a copy of the model copies too."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        self.seen.append(f"forward {type(module).__name__} {module.tag} {sorted(kwargs)}")

    def before(self, module: nn.Module, args: Any) -> None:
        self.seen.append("before")

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        self.seen.append("backward")


def hooked() -> tuple[nn.Sequential, Recorder]:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    recorder = Recorder()
    model[1].tag = "mine"
    model[1].register_forward_hook(recorder.forward, with_kwargs=True, always_call=True)
    model[1].register_forward_pre_hook(recorder.before)
    model[1].register_full_backward_hook(recorder.backward)
    model[0].register_forward_pre_hook(recorder.before)
    model.recorder = recorder
    return model, recorder


EXPECTED = ["before", "before", "forward {} mine []", "backward"]


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_and_attributes_carry_over_and_back(inplace: bool) -> None:
    model, recorder = hooked()
    small = random_init(model, {"1": 0.5}, inplace=inplace).model
    assert isinstance(small[1], SKLinear) and (small is model) == inplace
    # The copy of the model has a copy of the recorder, the same for all its hooks.
    assert (small.recorder is recorder) == inplace
    small(torch.randn(2, 24)).sum().backward()
    assert small.recorder.seen == [text.format("SKLinear") for text in EXPECTED]
    small.recorder.seen.clear()
    plain = sketchlayers.fold(small, inplace=inplace)
    plain(torch.randn(2, 24)).sum().backward()
    assert plain.recorder.seen == [text.format("Linear") for text in EXPECTED]
    assert vars(plain[1]).keys() == vars(nn.Linear(1, 1)).keys() | {"tag"}
    assert inplace or recorder.seen == []


@pytest.mark.parametrize("inplace", [False, True])
def test_attributes_carry_over_with_images(inplace: bool) -> None:
    """The network is made once to be judged; layers that stay dense get other weights."""
    model, marks, calls = Small(), {}, []
    layers = {name: x for name, x in model.named_modules() if isinstance(x, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():
        marks[name] = layer.mark = [name]
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    small, report = sketchlayers.compress(
        model, "svd", rate=0.9, calibration=[images(16)], inplace=inplace
    )
    assert {row.method is None for row in report.layers} == {True, False}
    for name, mark in marks.items():
        found = small.get_submodule(name).mark
        assert found == mark and (found is mark) == inplace
    if inplace:
        handle.remove()
        calls.clear()
        small(images(2))
        assert calls == []


def test_state_dict_hooks_carry_over() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    model[1].register_state_dict_pre_hook(lambda module, prefix, keep: log.append("save"))
    model[1].register_load_state_dict_pre_hook(lambda module, *rest: log.append(module))
    model[1].register_load_state_dict_post_hook(lambda module, keys: log.append(module))
    for inplace in (False, True):
        log: list[object] = []
        small = random_init(model, {"1": 0.5}, inplace=inplace).model
        small.load_state_dict(small.state_dict())
        assert log == ["save", small[1], small[1]]


def test_handles_stay_valid_in_place() -> None:
    model, calls = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)), []
    handle = model[1].register_forward_hook(lambda *_: calls.append(1))
    random_init(model, {"1": 0.5}, inplace=True)
    model(torch.zeros(1, 24))
    handle.remove()
    model(torch.zeros(1, 24))
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_properties_of_the_layer_carry_over(dtype: torch.dtype) -> None:
    model = Small().to(dtype=dtype, memory_format=torch.channels_last).train()
    model.body[0].eval()
    model.body[2].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    bias = model.head.bias.clone()
    small, _ = random_init(model, RATES)
    assert isinstance(small.body[0], SKConv2d) and isinstance(small.body[2], SKConv2d)
    assert all(p.dtype == dtype for p in small.parameters())
    assert [m.training for m in (small, small.body[0], small.body[2])] == [True, False, True]
    trained = {name: p.requires_grad for name, p in small.body[2].named_parameters()}
    assert trained == {"s1": False, "s2": False, "bias": True}
    trained = {name: p.requires_grad for name, p in small.head.named_parameters()}
    assert trained == {"s1": True, "s2": True, "bias": False}
    assert torch.equal(small.head.bias, bias) and small.head.bias is not model.head.bias
    assert small.body[0].s1.is_contiguous(memory_format=torch.channels_last)
    out = small(images().to(dtype=dtype, memory_format=torch.channels_last))
    assert out.dtype == dtype
    folded = sketchlayers.fold(small)
    assert folded.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded.body[2].weight.requires_grad and folded.head.weight.requires_grad


def test_fold_keeps_outputs_and_sharing() -> None:
    layer = SKLinear(24, 24, rank=3)
    model = nn.Sequential(layer, nn.Tanh(), layer, SKLinear(24, 12, rank=2))
    x = torch.randn(5, 24)
    expected = model(x)
    folded = sketchlayers.fold(model)
    assert folded[0] is folded[2] and type(folded[0]) is nn.Linear
    assert isinstance(model[0], SKLinear)
    torch.testing.assert_close(folded(x), expected)
    assert sketchlayers.fold(model, inplace=True) is model
    assert model[0] is model[2] and type(model[3]) is nn.Linear
    torch.testing.assert_close(model(x), expected)


def test_references_outside_of_the_registry_are_swapped_in_the_copy() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
            self.order = [self.b, self.a]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.order:
                x = layer(x)
            return x

    small = random_init(Lists(), {"b": 0.5}, example_inputs=torch.zeros(1, 24)).model
    assert small.order == [small.b, small.a] and isinstance(small.b, SKLinear)


def test_deepcopy_of_its_own_that_ignores_the_memo() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            new = type(self)()
            new.load_state_dict(copy.deepcopy(self.state_dict()))
            return new

    small = random_init(nn.Sequential(Stubborn()), {"0.b": 0.5}).model
    assert isinstance(small[0].b, SKLinear)


def test_graph_modules() -> None:
    traced = torch.fx.symbolic_trace(Small())
    small = random_init(traced, RATES).model
    assert isinstance(small, torch.fx.GraphModule) and isinstance(small.head, SKLinear)
    x = images()
    torch.testing.assert_close(sketchlayers.fold(small)(x), small(x), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------- failures


def fails(*_: object, **__: object) -> Any:
    raise OSError("injected")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("at", ["build", "ranks", "swap", "report", "filter", "warning"])
def test_a_failure_leaves_the_model_as_it_was(
    at: str, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Small()
    modules, state = list(model.modules()), state_of(model)
    arguments: dict[str, Any] = {"rate": RATES, "init": "random", "inplace": inplace}
    expected: type[Exception] = OSError
    if at == "build":  # after a layer has been built
        built = Sketch.build
        monkeypatch.setattr(
            Sketch,
            "build",
            lambda self, layer, *a, **k: (
                fails() if isinstance(layer, nn.Linear) else built(self, layer, *a, **k)
            ),
        )
    elif at == "ranks":
        monkeypatch.setattr(Sketch, "ranks", fails)
    elif at == "swap":
        monkeypatch.setattr(finish, "replace_layers", fails)
    elif at == "report":
        monkeypatch.setattr(result, "_layer_report", fails)
    elif at == "filter":
        arguments["filter_fn"] = fails
    else:
        arguments["init"], expected = "fit", UserWarning
    with warnings.catch_warnings(), pytest.raises(expected):
        warnings.simplefilter("error", UserWarning)
        sketchlayers.compress(model, **arguments)
    assert_unchanged(model, modules, state)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(bad: float, inplace: bool) -> None:
    model = Small()
    with torch.no_grad():
        model.head.weight[3, 1] = bad
    modules, state = list(model.modules()), state_of(model)
    with pytest.raises(
        ValueError, match=r"must be finite \(got 1 NaN or infinite of 1280 in 'head'"
    ):
        sketchlayers.compress(model, rate=RATES, inplace=inplace)
    assert_unchanged(model, modules, state)
    assert isinstance(random_init(model, RATES).model.head, SKLinear)  # nothing to fit


def test_models_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    model.lock = threading.Lock()
    modules, state = list(model.modules()), state_of(model)
    with pytest.raises(
        TypeError, match=r"must allow copy\.deepcopy, or be changed with inplace=True"
    ):
        random_init(model, {"1": 0.5})
    assert_unchanged(model, modules, state)
    random_init(model, {"1": 0.5}, inplace=True)
    assert isinstance(model[1], SKLinear)
    model[1] = nn.Linear(24, 24)
    data = [torch.randn(64, 24)]
    arguments = {"method": "svd", "rate": 0.6, "inplace": True}
    with pytest.raises(TypeError, match=r"calibration=sketchlayers\.calibrate\(model, images\)"):
        sketchlayers.compress(model, **arguments, calibration=data)
    sketchlayers.compress(model, **arguments, calibration=sketchlayers.calibrate(model, data))
    assert isinstance(model[1], LowRankLinear)
