"""CUDA graphs of whole compressed networks."""

import copy

import pytest
import torch

from sketchlayers.bench.timing import captured

from .networks import METHODS, compressed, images

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_float32():
    """No TensorFloat-32, so that captured and eager kernels round alike."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", METHODS)
def test_inference(name):
    network = compressed(name).cuda()
    static = images(4).cuda()

    outputs = {}

    @torch.no_grad()
    def step():
        outputs["captured"] = network(static)

    replay = captured(step)
    static.copy_(images(4))
    replay()
    with torch.no_grad():
        torch.testing.assert_close(outputs["captured"], network(static), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step(name):
    """Replayed steps leave the parameters where eager ones do."""
    network = compressed(name).cuda().train()
    eager = copy.deepcopy(network)
    batches = [images(4).cuda() for _ in range(3)]

    def trainer(network, static):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

        def step():
            optimizer.zero_grad(set_to_none=True)
            network(static).square().mean().backward()
            optimizer.step()

        return step

    static = batches[0].clone()
    state = copy.deepcopy(network.state_dict())
    replay = captured(trainer(network, static))
    network.load_state_dict(state)
    own = trainer(eager, eager_static := batches[0].clone())
    for batch in batches:
        static.copy_(batch)
        eager_static.copy_(batch)
        replay()
        own()
    for actual, expected in zip(network.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["channel", "frame", "hashednet", "tucker2"])
def test_compiled_with_reduced_overhead(name):
    network = compressed(name).cuda()
    torch._dynamo.reset()
    run = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):  # records, then replays
            value = images(4).cuda()
            torch.testing.assert_close(run(value).clone(), network(value), rtol=1e-4, atol=1e-5)
