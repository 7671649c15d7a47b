"""The first call of a shape times both paths, once benchmark(True) was said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sketchlayers
from sketchlayers import SKConv2d, SKLinear, _extension

_C = _extension.load()


@pytest.fixture(autouse=True)
def _nothing_timed() -> Iterator[None]:
    before = sketchlayers.benchmark(False)
    _C.forget_times()
    yield
    sketchlayers.benchmark(before)
    _C.forget_times()


def conv() -> SKConv2d:
    return SKConv2d(24, 40, 3, padding=1, rate=0.2, mixing="channel")


IMAGES = (4, 24, 9, 11)


def is_measured(layer: SKConv2d | SKLinear, shape: tuple[int, ...], **how: bool) -> bool:
    return "measured" in layer.plan(shape, **how).reason


def operators_of(call: Callable[[], object]) -> set[str]:
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


BOTH = {"sketchlayers::sk_conv2d_factored", "sketchlayers::sk_weight"}


def test_it_says_what_was_set_before() -> None:
    assert sketchlayers.benchmark(True) is False
    assert sketchlayers.benchmark() is True
    assert sketchlayers.benchmark(False) is True
    assert sketchlayers.benchmark(False) is False
    with pytest.raises(TypeError, match="enabled must be True or False"):
        sketchlayers.benchmark("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [False, True])
def test_the_first_call_times_both_paths_and_later_ones_take_one(training: bool) -> None:
    layer, x = conv().train(training), torch.randn(IMAGES)

    def call() -> None:
        output = layer(x) if training else torch.no_grad()(layer)(x)
        if training:
            output.sum().backward()

    def measured() -> bool:
        with torch.set_grad_enabled(training):
            return is_measured(layer, IMAGES)

    call()
    assert not measured()
    sketchlayers.benchmark(True)
    assert operators_of(call) >= BOTH and measured()
    assert not operators_of(call) >= BOTH
    sketchlayers.benchmark(False)
    assert measured()  # what was timed stays


def test_times_are_those_of_one_way_to_call_a_layer() -> None:
    sketchlayers.benchmark(True)
    layer = conv()
    layer(torch.randn(IMAGES))
    assert is_measured(layer, IMAGES)
    assert not is_measured(layer, (5, *IMAGES[1:]))
    assert not is_measured(layer, IMAGES, channels_last=True)
    with torch.no_grad():
        assert not is_measured(layer, IMAGES)
    assert is_measured(conv(), IMAGES)  # of the same sizes
    assert not is_measured(conv().double(), IMAGES)


def test_linear_layers_and_autocast() -> None:
    sketchlayers.benchmark(True)
    layer = SKLinear(64, 96, rate=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 5, 64))
        assert is_measured(layer, (3, 5, 64)) and is_measured(layer, (15, 64))
    assert not is_measured(layer, (15, 64))


def test_nothing_but_the_choice_changes() -> None:
    layer, x = conv(), torch.randn(IMAGES, requires_grad=True)
    before = torch.get_rng_state()
    expected = layer(x)
    sketchlayers.benchmark(True)
    output = layer(x)
    torch.testing.assert_close(output, expected)
    assert x.grad is None and all(own.grad is None for own in layer.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    output.sum().backward()
    assert layer.s1.grad is not None


def test_checkpoints_see_the_tensors_of_the_call_alone() -> None:
    """They count what a call saves, and compare it with what it saves when it runs again."""
    sketchlayers.benchmark(True)
    layer, x = conv(), torch.randn(IMAGES, requires_grad=True)
    output = checkpoint(layer, x, use_reentrant=False)
    assert is_measured(layer, IMAGES)
    gradients = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(gradients, expected)


def test_deterministic_programs_are_not_timed() -> None:
    sketchlayers.benchmark(True)
    layer = conv()
    torch.use_deterministic_algorithms(True)
    try:
        layer(torch.randn(IMAGES))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not is_measured(layer, IMAGES)


def test_graphs_are_planned_by_estimates() -> None:
    sketchlayers.benchmark(True)
    layer = conv().eval()
    program = torch.export.export(layer, (torch.randn(IMAGES),))
    torch.func.vmap(layer)(torch.randn(2, *IMAGES))
    with torch.no_grad():
        assert not is_measured(layer, IMAGES)
    assert not is_measured(layer, IMAGES)
    x = torch.randn(IMAGES)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


def test_shapes_that_were_decided_before_are_decided_again() -> None:
    layer = conv().eval()
    x = torch.randn(IMAGES)
    with torch.no_grad():
        layer(x)
        sketchlayers.benchmark(True)
        layer(x)
        assert is_measured(layer, IMAGES)


def test_wrong_calls_raise_as_without() -> None:
    sketchlayers.benchmark(True)
    for layer in (conv(), conv().eval(), nn.Sequential(conv()).eval()):
        with pytest.raises(RuntimeError, match="input must have shape"):
            layer(torch.randn(4, 23, 9, 9))


def test_a_kept_weight_is_the_one_of_the_faster_path() -> None:
    sketchlayers.benchmark(True)
    layer, x = conv().eval(), torch.randn(IMAGES)

    @torch.no_grad()
    def call() -> Tensor:
        return layer(x)

    call()
    with torch.no_grad():
        folded = layer.plan(IMAGES).path == "folded"
    operators = operators_of(call)
    assert ("sketchlayers::sk_conv2d_factored" in operators) is not folded
    assert "sketchlayers::sk_weight" not in operators
