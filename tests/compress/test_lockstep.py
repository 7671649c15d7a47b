"""Forward calls that pause at the same layer."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from sketchlayers.compression.fitting.lockstep import Lockstep, live_bytes


class Branches(nn.Module):
    """Two branches, a residual sum and an in-place activation; takes (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        x = x + self.norm(self.left(x) + self.right(x))
        return self.head(x.mean((2, 3)))


LAYERS = ["stem", "left", "right", "head"]


def calls(model: nn.Module, count: int = 3) -> tuple[list, list[Tensor]]:
    inputs = [torch.randn(2 + i, 3, 8, 8) for i in range(count)]
    return [lambda m, x=x: m(x) for x in inputs], inputs


def test_calls_pause_at_every_layer_and_see_its_inputs() -> None:
    model = Branches().eval()
    runs, inputs = calls(model)
    seen = {}
    with Lockstep(model, LAYERS, runs) as lockstep:
        while (name := lockstep.advance()) is not None:
            seen[name] = [x.clone() for x in lockstep.inputs]
    assert list(seen) == LAYERS
    recorded: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    for name in LAYERS:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: recorded[name].append(args[0].clone())
        )
    with torch.no_grad():
        for x in inputs:
            model(x)
    for name in LAYERS:
        assert all(map(torch.equal, seen[name], recorded[name])), name


def test_a_replaced_layer_works_on_in_the_paused_calls() -> None:
    model = Branches().eval()
    results: list[Tensor] = []
    x = torch.randn(2, 3, 8, 8)
    new = nn.Conv2d(8, 8, 1)
    with Lockstep(model, LAYERS, [lambda m: results.append(m(x))]) as lockstep:
        while (name := lockstep.advance()) is not None:
            if name == "left":
                lockstep.replace(name, new)
    before = model(x)
    model.left = new
    torch.testing.assert_close(results[0], model(x))
    assert not torch.allclose(results[0], before)


def test_the_model_stays_as_it_is_and_threads_end() -> None:
    model = Branches()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    threads = threading.active_count()
    runs, _ = calls(model)
    with Lockstep(model, LAYERS, runs) as lockstep:
        assert lockstep.advance() == "stem"
        assert threading.active_count() > threads
    assert threading.active_count() == threads
    assert model.training and "forward" not in vars(model.stem)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_errors_of_the_model_come_through() -> None:
    model = Branches()
    threads = threading.active_count()

    def fails(m: nn.Module) -> Tensor:
        m(torch.randn(1, 3, 8, 8))
        raise OSError("no more images")

    with pytest.raises(OSError, match="no more images"), Lockstep(model, LAYERS, [fails]) as steps:
        while steps.advance() is not None:
            pass
    assert threading.active_count() == threads


def test_another_order_is_an_error() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if len(x) > 1 else self.a(self.b(x))

    batches = [torch.randn(1, 4), torch.randn(2, 4)]
    runs = [lambda m, x=x: m(x) for x in batches]
    with (
        pytest.raises(RuntimeError, match=r"same order .*'a', 'b'.*sequential=False"),
        Lockstep(Either(), ["a", "b"], runs) as lockstep,
    ):
        lockstep.advance()


def test_grad_mode_is_off_in_the_calls() -> None:
    model = Branches()
    runs, _ = calls(model, 1)
    with Lockstep(model, LAYERS, runs) as lockstep:
        while lockstep.advance() is not None:
            assert not any(x.requires_grad for x in lockstep.inputs)


def test_live_bytes_counts_what_a_paused_call_holds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(2, 2, 1))
    x = torch.randn(1, 3, 10, 10)
    # In the second layer its input is alive: 16 maps of 100 floats.
    assert live_bytes(model, ["1", "2"], lambda m: m(x)) == 16 * 100 * 4
