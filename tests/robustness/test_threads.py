"""Many threads that call one module, and operators: the same results as one after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sketchlayers
from sketchlayers import HashedConv2d, SKConv2d, SKLinear, ops

WORKERS = 8


@pytest.fixture(autouse=True)
def two_threads_each():
    """So that kernels share out their work inside of every call too."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def at_once(work: Callable[[int], list[Tensor]], count: int = 4 * WORKERS) -> list[list[Tensor]]:
    """All calls, on threads that begin together."""
    barrier = Barrier(WORKERS)
    with ThreadPoolExecutor(WORKERS, initializer=lambda: barrier.wait() and None) as pool:
        return list(pool.map(work, range(count)))


def assert_same_bits(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for found, right in zip(actual, expected, strict=True):
        for a, b in zip(found, right, strict=True):
            assert torch.equal(a, b)


def network() -> nn.Sequential:
    """Layers of every kind of kernel; takes (N, 4, 9, 9)."""
    torch.manual_seed(0)
    return nn.Sequential(
        SKConv2d(4, 16, 3, padding=1, rank=2, seed=1),
        SKConv2d(16, 32, 3, stride=2, padding=1, rank=2, mixing="channel", groups=2, seed=2),
        SKConv2d(32, 32, 3, padding=1, rank=1, frame="signs", seed=3),
        HashedConv2d(32, 8, 1, rate=0.3, seed=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        SKLinear(8, 64, rank=3, blocks=2, seed=5),
        SKLinear(64, 5, rank=2, seed=6),
    )


@pytest.mark.parametrize("path", ["auto", "factored", "folded"])
def test_training_steps_of_one_module(path):
    """Forward and backward; every thread takes the gradients for itself."""
    model = network()
    for layer in model:
        if isinstance(layer, SKConv2d | SKLinear) and not getattr(layer, "frame", None):
            layer.path = path
    parameters = list(model.parameters())
    batches = [torch.randn(3, 4, 9, 9) for _ in range(4 * WORKERS)]

    def step(i: int) -> list[Tensor]:
        output = model(batches[i])
        return [output.detach(), *torch.autograd.grad(output.square().sum(), parameters)]

    assert_same_bits(at_once(step), [step(i) for i in range(4 * WORKERS)])


def test_inference_with_a_kept_weight_that_changes_hands():
    """All threads form, keep and drop the weight of one layer."""
    model = network().eval()
    batches = [torch.randn(1 + i % 3, 4, 9, 9) for i in range(8 * WORKERS)]

    def infer(i: int) -> list[Tensor]:
        with torch.no_grad():
            output = model(batches[i])
            if i % 5 == 0:
                sketchlayers.clear_cache(model)
        return [output]

    expected = [infer(i) for i in range(len(batches))]
    assert_same_bits(at_once(infer, len(batches)), expected)


def test_weights_that_change_while_others_infer():
    """A call sees a factor before or after it was replaced, and nothing in between."""
    torch.manual_seed(0)
    layer = SKLinear(32, 32, rank=2, seed=1, bias=False).eval()
    layer.path = "folded"
    x = torch.eye(32)
    right, factors = [], [nn.Parameter(torch.randn_like(layer.s1)) for _ in range(2)]
    for factor in factors:
        layer.s1 = factor
        with torch.no_grad():
            right.append(layer(x))

    def work(i: int) -> list[Tensor]:
        if i % 4 == 0:
            layer.s1 = factors[i // 4 % 2]
            return []
        with torch.no_grad():
            return [layer(x)]

    for found in at_once(work, 16 * WORKERS):
        assert all(any(torch.equal(output, one) for one in right) for output in found)


def test_conversions_of_one_model():
    """Without images nothing in the model is touched."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))

    def convert(i: int) -> list[Tensor]:
        small, _ = sketchlayers.compress(model, rate={"2": 0.5}, init="random", seed=i)
        return list(small.state_dict().values())

    # Weights at random come from PyTorch's generator, which threads share; signs and sizes do not.
    def comparable(results: list[list[Tensor]]) -> list[list[Tensor]]:
        return [[x for x in result if not x.is_floating_point()] for result in results]

    actual = comparable(at_once(convert, WORKERS))
    assert_same_bits(actual, comparable([convert(i) for i in range(WORKERS)]))


def test_conversions_at_once_leave_the_compiler_on():
    """PyTorch's switch is one for all threads, and the first to come may be the first to leave."""
    compiled = CompileCounterWithBackend("eager")
    run = torch.compile(nn.Linear(3, 3), backend=compiled)
    model = nn.Sequential(nn.Conv2d(4, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))
    entered, may_leave = [Event(), Event()], [Event(), Event()]

    def convert(i: int) -> None:
        def wait(layer: nn.Module, name: str) -> bool:
            entered[i].set()
            return may_leave[i].wait(60)

        sketchlayers.compress(model, rate=0.5, init="random", filter_fn=wait)

    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for i in range(2):
            jobs.append(pool.submit(convert, i))
            assert entered[i].wait(60)
        for i in range(2):
            may_leave[i].set()
            jobs[i].result()
    run(torch.randn(2, 3))
    assert compiled.frame_count == 1


def test_signs_and_hashes():
    seed = torch.tensor(3)

    def draw(i: int) -> list[Tensor]:
        signs = ops.sign_matrix(i % 3, 0, 500, 300)
        return [
            signs,
            ops.unpack_signs(signs, 300),
            ops.hadamard_signs(i % 3, 0, 50, 70),
            torch.ops.sketchlayers.hash_entries(seed, 300, 200, 50 + i % 2),
        ]

    assert_same_bits(at_once(draw), [draw(i) for i in range(4 * WORKERS)])
