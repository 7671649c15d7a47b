"""Memory that runs out anywhere in a conversion leaves the model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression.allocation import damage
from sketchlayers.compression.calibration import moments
from sketchlayers.compression.fitting import sequence
from sketchlayers.compression.stages import finish
from sketchlayers.methods import SVD, Sketch
from sketchlayers.surgery import replace

from .networks import Small, assert_unchanged, images, state_of

HOOKS = ("_forward_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def failing_at(call: int, function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function, but for one call of it."""
    counter = itertools.count()

    def attempt(*args: Any, **kwargs: Any) -> Any:
        if next(counter) == call:
            raise error
        return function(*args, **kwargs)

    return attempt


def network() -> Small:
    """In a mixture of modes, with hooks that a swap moves."""
    model = Small().train()
    model.norm.eval()
    model.body[0].register_forward_hook(lambda module, args, output: None)
    model.head.register_load_state_dict_pre_hook(lambda module, *rest: None)
    model.head.register_load_state_dict_post_hook(lambda module, keys: None)
    return model


def facts(model: nn.Module) -> list[Any]:
    """Modes, hooks, attributes and tensors of all modules, as objects and by their values."""
    return [
        (
            module.training,
            [dict(getattr(module, kind)) for kind in HOOKS],
            sorted(vars(module)),
            [id(x) for x in (*module._parameters.values(), *module._buffers.values())],
        )
        for module in model.modules()
    ]


def refuse(model: nn.Module, error: Exception, **arguments: Any) -> None:
    modules, state, before = list(model.modules()), state_of(model), facts(model)
    random = torch.get_rng_state()
    with pytest.raises(type(error), match=str(error)):
        sketchlayers.compress(model, **arguments)
    assert_unchanged(model, modules, state)
    assert facts(model) == before
    assert arguments.get("seed") is None or torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


ERRORS = (MemoryError("no more"), torch.OutOfMemoryError("no more"))


@pytest.mark.parametrize(
    ("owner", "name", "call", "inplace"),
    [
        (moments.MomentSums, "add", 3, True),  # second moments have been taken of some layers
        (damage.DamageMeter, "measure", 2, True),  # other layers stand in the network's copy
        (torch.linalg, "eigh", 3, False),  # factorisations are under way
        (sequence, "approximate", 2, True),  # some layers have been replaced
        (SVD, "build", 2, False),
        (finish, "put_buffers", 1, True),  # the network has been made, and is judged
        (replace, "_carry_over", 1, False),  # of a copy
        (replace, "_carry_over", 5, True),  # hooks of one layer have moved
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_with_images(
    owner: Any, name: str, call: int, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ERRORS[call % 2]
    monkeypatch.setattr(owner, name, failing_at(call, getattr(owner, name), error))
    batches = [images(4), images(4)]
    options = {"reestimate_batch_norm": True} if name in ("put_buffers", "_carry_over") else {}
    arguments = {"rate": 0.5, "method": "svd", "calibration": batches, "seed": 1}
    refuse(network(), error, inplace=inplace, **arguments, **options)


class Failing(dict[str, Any]):
    """Children of a module, of which none can be put in another's place."""

    error: Exception | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        if self.error is not None and key in self and self[key] is not value:
            error, self.error = self.error, None
            raise error
        super().__setitem__(key, value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_between_two_swaps(error: Exception) -> None:
    """The last layer has been replaced already, and all hooks have moved."""
    model = network()
    model.body._modules = Failing(model.body._modules)
    model.body._modules.error = error
    arguments = {"rate": {"body.0": 0.5, "body.2": 0.5, "head": 0.5}, "init": "random"}
    refuse(model, error, **arguments, inplace=True)
    small, _ = sketchlayers.compress(model, **arguments, inplace=True)
    assert isinstance(small.head, sketchlayers.SKLinear)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_of_the_copy(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the model's, and not called one."""
    model = network()
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", failing_at(3, copied, error))
    refuse(model, error, rate={"head": 0.5}, init="random")


def copied(parameter: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


@pytest.mark.parametrize("inplace", [False, True])
def test_of_a_layer_without_images(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MemoryError("no more")
    monkeypatch.setattr(Sketch, "build", failing_at(2, Sketch.build, error))
    refuse(network(), error, rate=0.5, init="random", inplace=inplace, seed=3)


def test_of_folding_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MemoryError("no more")
    model, _ = sketchlayers.compress(network(), rate=0.5, init="random")
    modules, state, before = list(model.modules()), state_of(model), facts(model)
    folded = sketchlayers.SKConv2d.fold
    monkeypatch.setattr(sketchlayers.SKConv2d, "fold", failing_at(1, folded, error))
    with pytest.raises(MemoryError):
        sketchlayers.fold(model, inplace=True)
    assert_unchanged(model, modules, state)
    assert facts(model) == before


def test_the_allocator_itself() -> None:
    """What PyTorch raises where a copy of the weights does not fit."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    class Huge(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
            return torch.empty(2**50)

    model.append(Huge())
    with pytest.raises(RuntimeError):
        sketchlayers.compress(model, rate={"1": 0.9}, init="random")
