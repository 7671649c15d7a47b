"""Averages, interpolations and casts of networks keep the seeds, or are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import sketchlayers
from sketchlayers.nn import (
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    HashedLinear,
    SKConv2d,
    SKLinear,
)

LARGE = 2**63 - 2**20 - 3  # all its bits are needed
STEPS = 50


def covariance() -> Tensor:
    return torch.eye(32) + 0.5


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "SKConv2d": lambda seed: SKConv2d(8, 8, 3, rate=0.5, seed=seed),
    "SKConv2d, frame": lambda seed: SKConv2d(8, 8, 3, rate=0.5, frame="signs", seed=seed),
    "SKLinear": lambda seed: SKLinear(32, 32, rate=0.5, seed=seed),
    "HashedConv2d": lambda seed: HashedConv2d(8, 8, 3, rate=0.5, seed=seed),
    "HashedLinear": lambda seed: HashedLinear(32, 32, rate=0.5, seed=seed),
    "FreshConv2d": lambda seed: FreshConv2d(8, 8, 3, rate=0.5, seed=seed),
    "DictionaryConv2d": lambda seed: DictionaryConv2d(8, 8, 3, rate=0.5, seed=seed),
    "DictionaryLinear": lambda seed: DictionaryLinear(32, 32, rate=0.5, seed=seed),
    "DictionaryLinear, covariance": lambda seed: DictionaryLinear(
        32, 32, rate=0.5, kernel="covariance", covariance=covariance(), seed=seed
    ),
}


def value_for(layer: nn.Module) -> Tensor:
    size = (2, 8, 6, 6) if hasattr(layer, "kernel_size") else (2, 32)
    return torch.randn(size, dtype=next(layer.parameters()).dtype)


def torch_ema(model: nn.Module) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    for _ in range(STEPS):
        average.update_parameters(model)
    return average.module


def torch_swa(model: nn.Module) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=True)
    for _ in range(STEPS):
        average.update_parameters(model)
    return average.module


def by_formula(model: nn.Module) -> nn.Module:
    """``AveragedModel`` without a formula of its own, which averages entry by entry."""

    def formula(average: Tensor, new: Tensor, count: Tensor) -> Tensor:
        return 0.99 * average + 0.01 * new

    average = AveragedModel(model, avg_fn=formula, use_buffers=True)
    for _ in range(STEPS):
        average.update_parameters(model)
    return average.module


def timm_v2(model: nn.Module) -> nn.Module:
    """As timm's first ``ModelEma`` and ``ModelEmaV2`` do it."""
    average = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(STEPS):
            pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
            for own, new in pairs:
                own.copy_(0.99 * own + 0.01 * new)
    return average


def timm_v3(model: nn.Module) -> nn.Module:
    """As timm's ``ModelEmaV3`` does it."""
    average = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(STEPS):
            own, new = list(average.state_dict().values()), list(model.state_dict().values())
            torch._foreach_mul_(own, 0.99)
            torch._foreach_add_(own, new, alpha=0.01)
    return average


def interpolated(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for own, new in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        own.lerp_(new, 0.3)
    return other


def target_network(model: nn.Module) -> nn.Module:
    """As reinforcement learning does it, past the version counters."""
    target = copy.deepcopy(model)
    for _ in range(STEPS):
        for own, new in zip(target.parameters(), model.parameters(), strict=True):
            own.data.copy_(0.005 * new.data + 0.995 * own.data)
        for own, new in zip(target.buffers(), model.buffers(), strict=True):
            own.data.copy_(0.005 * new.data + 0.995 * own.data)
    return target


def federated(model: nn.Module) -> nn.Module:
    states = [copy.deepcopy(model).state_dict() for _ in range(7)]
    mean = {name: torch.stack([s[name].float() for s in states]).mean(0) for name in states[0]}
    result = copy.deepcopy(model)
    result.load_state_dict(mean)
    return result


def weighted(model: nn.Module) -> nn.Module:
    shares = torch.softmax(torch.randn(5), 0)
    mean = {name: sum(w * x for w in shares.tolist()) for name, x in model.state_dict().items()}
    result = copy.deepcopy(model)
    result.load_state_dict(mean)
    return result


def halved(model: nn.Module) -> nn.Module:
    state = {name: x.half() for name, x in model.state_dict().items()}
    result = copy.deepcopy(model)
    result.load_state_dict(state)
    return result


def compressed_by_bytes(model: nn.Module) -> nn.Module:
    """A cast of all that a state dict has to eight bits and back, as some uploads do it."""
    state = {name: x.to(torch.float8_e5m2).float() for name, x in model.state_dict().items()}
    result = copy.deepcopy(model)
    result.load_state_dict(state)
    with torch.no_grad():
        for own, x in zip(result.parameters(), model.parameters(), strict=True):
            own.copy_(x)
    return result


WAYS = [
    torch_ema,
    torch_swa,
    by_formula,
    timm_v2,
    timm_v3,
    interpolated,
    target_network,
    federated,
    weighted,
    halved,
    compressed_by_bytes,
]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_average_of_equal_networks_is_the_network(
    kind: str, way: Callable[[nn.Module], nn.Module], dtype: torch.dtype, mode: str
) -> None:
    layer = LAYERS[kind](LARGE).to(dtype).train(mode == "train")
    value = value_for(layer)
    with torch.no_grad():
        expected = layer(value).double()
        average = way(layer)
        # Half types round at every step of an average, and once in a cast.
        tolerance = 0.2 if dtype == torch.bfloat16 else 0.02 if way is not halved else 2e-3
        for model in (average, average.eval(), sketchlayers.fold(average)):
            error = (model(value).double() - expected).norm() / expected.norm()
            assert error < tolerance, float(error)
    assert average.seed == LARGE  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_mean_of_different_seeds_is_refused_wherever_it_comes_into_use(kind: str) -> None:
    first, second = LAYERS[kind](5), LAYERS[kind](6)
    states = first.state_dict(), second.state_dict()
    mean = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    message = "only layers with the same seed can be averaged"
    with pytest.raises(RuntimeError, match=message):
        LAYERS[kind](5).load_state_dict(mean)
    value = value_for(first)
    uses: list[Callable[[nn.Module], object]] = [
        lambda layer: layer(value),
        lambda layer: layer.train(),
        lambda layer: layer.double(),
        sketchlayers.fold,
    ]
    for use in uses:
        layer = LAYERS[kind](5)
        for own, new in zip(layer.state_dict().values(), mean.values(), strict=True):
            own.data.copy_(new)
        with pytest.raises(ValueError, match=message):
            use(layer)


@pytest.mark.parametrize("kind", LAYERS)
def test_copying_all_tensors_of_another_network_makes_it_that_network(kind: str) -> None:
    """Parameters and buffers past the version counters, as reinforcement learning does it."""
    layer, other = LAYERS[kind](5).eval(), LAYERS[kind](6).eval()
    value = value_for(layer)
    with torch.no_grad():
        layer(value)
        for own, new in zip(layer.parameters(), other.parameters(), strict=True):
            own.data.copy_(new.data)
        for own, new in zip(layer.buffers(), other.buffers(), strict=True):
            own.data.copy_(new.data)
        torch.testing.assert_close(layer(value), other(value))


@pytest.mark.parametrize("kind", LAYERS)
def test_an_ensemble_has_one_seed(kind: str) -> None:
    members = [LAYERS[kind](5) for _ in range(3)]
    value = value_for(members[0])
    base = copy.deepcopy(members[0]).to("meta")

    def outputs(networks: list[nn.Module]) -> Tensor:
        parameters, buffers = stack_module_state(networks)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(base, (parameters, buffers), (value,))
            return output

        together: Tensor = vmap(one)(parameters, buffers)
        return together

    with torch.no_grad():
        torch.testing.assert_close(
            outputs(members), torch.stack([member(value) for member in members])
        )
        with pytest.raises(ValueError, match="same seed"):
            outputs([*members, LAYERS[kind](6)])
