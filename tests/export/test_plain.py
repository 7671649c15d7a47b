"""Forms without this package: folded networks, TorchScript, int8 by torchao."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.nn import HashedConv2d, LowRankLinear, SKConv2d, SKLinear

from .networks import METHODS, OWN_OPERATORS, Network, compressed, images

PYTHON_WITHOUT_TORCHSCRIPT = (3, 14)
scripting = pytest.mark.skipif(
    sys.version_info >= PYTHON_WITHOUT_TORCHSCRIPT,
    reason="PyTorch does not support TorchScript on this Python",
)


@pytest.mark.parametrize("name", METHODS)
def test_a_folded_network_has_the_dense_networks_layers_and_state(name):
    network = compressed(name)
    folded = sketchlayers.fold(network)
    assert {type(part) for part in folded.modules()} == {type(part) for part in Network().modules()}
    plain = Network().eval()
    plain.load_state_dict(folded.state_dict())
    value = images()
    torch.testing.assert_close(plain(value), network(value), rtol=1e-4, atol=1e-5)


def test_a_folded_network_is_loaded_where_there_is_no_sketchlayers(tmp_path):
    """Whole, as a pickled module, in a process in which importing the package fails."""
    network = nn.Sequential(
        SKConv2d(16, 24, 3, rank=2, mixing="channel"),
        HashedConv2d(24, 32, 3, rate=0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        LowRankLinear(32, 32, rank=4),
        SKLinear(32, 10, rank=2, frame="signs"),
    )
    folded = sketchlayers.fold(network.eval())
    value = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        expected = folded(value)
    torch.save((folded, value, expected), tmp_path / "folded.pt")
    script = """
        import sys
        sys.modules["sketchlayers"] = None  # any import of it raises
        import torch
        network, value, expected = torch.load(sys.argv[1], weights_only=False)
        with torch.no_grad():
            assert torch.equal(network(value), expected)
        print(*sorted({type(part).__module__ for part in network.modules()}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "folded.pt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(module.startswith("torch.nn.modules.") for module in done.stdout.split())


@scripting
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["channel", "frame", "hashednet", "tucker2"])
def test_tracing(name):
    network = compressed(name)
    value = images(2)
    network(value)  # a kept weight must not become a constant of the graph
    traced = torch.jit.trace(network, images())
    torch.testing.assert_close(traced(value), network(value))
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.mul_(0.5)
    torch.testing.assert_close(traced(value), network(value))


@scripting
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", METHODS)
def test_scripting_takes_plain_layers_and_refuses_others_clearly(name):
    network = compressed(name)
    value = images(2)
    if name in (*OWN_OPERATORS, "dictionary"):
        before = copy.deepcopy(network)
        with pytest.raises(NotImplementedError, match=r"torch\.jit\.script .* sketchlayers\.fold"):
            torch.jit.script(network)
        assert repr(network) == repr(before)
        network = sketchlayers.fold(network)
    torch.testing.assert_close(torch.jit.script(network)(value), network(value))


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's digits: a trained network, images for calibration, test images, labels."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    values = torch.tensor(images, dtype=torch.float32) / 16
    labels = torch.tensor(labels)
    torch.manual_seed(0)
    order = torch.randperm(len(values))
    train, test = order[:1200], order[1200:]
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(train)).split(64):
            chosen = train[batch]
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(values[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network.eval(), values[train], values[test], labels[test]


def accuracy(network, values, labels):
    with torch.no_grad():
        return (network(values).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("scheme", ["weight only", "dynamic"])
@pytest.mark.parametrize("form", ["factored", "folded"])
def test_int8_by_torchao(digits, form, scheme):
    """Both forms keep their accuracy, and the fully connected layers are a quarter of the size."""
    quantization = pytest.importorskip("torchao.quantization")
    dense, train, test, labels = digits
    network, _ = sketchlayers.compress(
        dense, rate=0.5, calibration=train.split(300), progress=False, seed=0
    )
    assert any(isinstance(part, LowRankLinear) for part in network.modules())
    if form == "folded":
        network = sketchlayers.fold(network)
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    config = (
        quantization.Int8WeightOnlyConfig()
        if scheme == "weight only"
        else quantization.Int8DynamicActivationInt8WeightConfig()
    )
    small = copy.deepcopy(network)
    quantization.quantize_(small, config)
    for name in linear:
        weight = small.get_submodule(name).weight
        assert type(weight) not in (torch.Tensor, nn.Parameter)
    expected = accuracy(network, test, labels)
    assert expected > 0.9
    assert accuracy(small, test, labels) > expected - 0.01
    outputs = [model(test).detach() for model in (network, small)]
    assert (outputs[0] - outputs[1]).norm() < 0.05 * outputs[0].norm()
    assert not torch.equal(*outputs)
