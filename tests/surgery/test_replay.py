"""Replays give what whole forward calls give, and compute hardly more than one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sketchlayers.surgery.batches import call_model
from sketchlayers.surgery.replay import Plan, Replays, plan_replays
from sketchlayers.surgery.sample import Sample


class Net(nn.Module):
    """Three layers; subclasses go through them in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.act = nn.ReLU(inplace=True)


class Chain(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


class SkipInPlace(Net):
    """The output of a layer is changed in place after the layer, and used again."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.a(x)
        kept += 1
        y = self.b(F.relu(kept))
        return self.c(self.act(y) + kept)


class OldHandle(Net):
    """What a module has changed in place is used through its old name."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.act(x)
        return self.c(x + self.b(x))


class OnSelf(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        return self.c(self.b(self.kept.relu()) + self.kept)


class StateInside(Net):
    """A module keeps its input for another one, as reversible normalisations do."""

    class Norm(nn.Module):
        def forward(self, x: Tensor, back: bool = False) -> Tensor:
            if back:
                return x + self.mean
            self.mean = x.mean()
            return x - self.mean

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.Norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.b(self.act(self.a(self.norm(x)))), back=True))


class InAList(Net):
    """Modules tell each other something that is no attribute of theirs."""

    told: list[Tensor] = []  # noqa: RUF012

    class Tells(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            InAList.told.append(x.mean())
            return x * 2

    def __init__(self) -> None:
        super().__init__()
        self.tells = self.Tells()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.tells(self.a(x)).relu())
        return self.c(y + self.told[-1])


class Hooked(Net):
    """A hook inside a block keeps a tensor for later, as U-Nets by hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), nn.ReLU())
        self.block[0].register_forward_hook(lambda module, _, y: setattr(module, "kept", y))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.block(self.a(x)))
        return self.c(y + self.block[0].kept)


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.a(x))
        return self.c(F.dropout(self.b(y)) + torch.randn(8))


class Decides(Net):
    """Another batch goes another way."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.b(y) if float(y.sum()) > 0 else y)


class Blocks(Net):
    """Residual blocks, the activation shared, with concatenation around them."""

    class Block(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.act = layer, nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.layer(x))
            y += x
            return self.act(y)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(self.Block(self.a), self.Block(self.b))
        del self.a, self.b
        self.c = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([x, self.blocks(x)], 1))


NETS: list[Callable[[], nn.Module]] = [
    Chain, SkipInPlace, OldHandle, OnSelf, StateInside, InAList, Hooked, Random, Decides, Blocks,
]  # fmt: skip


def batches(sizes: tuple[int, ...] = (6, 4, 6)) -> Sample:
    return Sample(tuple(torch.randn(size, 8) for size in sizes), call_model)


def layers_of(net: nn.Module) -> list[str]:
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return sorted(names, key=lambda name: name.rpartition(".")[2] == "c")


def inputs_in_whole_calls(net: nn.Module, layer: str, sample: Sample) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    handle = net.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: found.__setitem__(-1, args[0].clone())
    )
    with torch.no_grad():
        for call in sample.calls():
            found.append(None)
            call(net)
    handle.remove()
    return found


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_replays_give_what_whole_calls_give(make: Callable[[], nn.Module]) -> None:
    """Also while layers are replaced one after the other."""
    net, sample = make().eval(), batches()
    names = layers_of(net)
    plan = plan_replays(net, names, sample.calls())
    replays = Replays(net, names, sample.calls(), plan)
    for name in names:
        whole = inputs_in_whole_calls(net, name, sample)
        for got, want in zip(replays.inputs(name), whole, strict=True):
            assert (got is None) == (want is None)
            assert got is None or want is None or torch.equal(got, want)
        other = nn.Linear(net.get_submodule(name).in_features, 8)
        replays.replace(name, other)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, other)


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_outputs_with_another_layer(make: Callable[[], nn.Module]) -> None:
    net, sample = make().eval(), batches()
    names = layers_of(net)
    replays = Replays(net, names, sample.calls(), plan_replays(net, names, sample.calls()))
    for name in names:
        original = net.get_submodule(name)
        parent, _, child = name.rpartition(".")
        for _ in range(2):
            other = nn.Linear(original.in_features, 8)
            got = list(replays.outputs(name, other))
            setattr(net.get_submodule(parent), child, other)
            with torch.no_grad():
                want = [call(net) for call in sample.calls()]
            assert all(map(torch.equal, got, want))
        setattr(net.get_submodule(parent), child, original)


@pytest.mark.parametrize("make", [Chain, SkipInPlace, OnSelf, Random, Blocks])
def test_each_layer_is_computed_once(make: Callable[[], nn.Module]) -> None:
    net, sample = make().eval(), batches()
    names = layers_of(net)
    plan = plan_replays(net, names, sample.calls())
    assert isinstance(plan, Plan)
    computed: list[str] = []
    for name in names:
        net.get_submodule(name).forward = counting(net.get_submodule(name), name, computed)
    replays = Replays(net, names, sample.calls(), plan)
    for name in names:
        list(replays.inputs(name))
    assert all(computed.count(name) <= len(sample.batches) for name in names)


def counting(layer: nn.Module, name: str, computed: list[str]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        computed.append(name)
        return F.linear(x, layer.weight, layer.bias)

    return forward


def test_kept_activations_are_few() -> None:
    """Of a chain, what one layer gives; of what was skipped, nothing."""
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12))).eval()
    sample = batches()
    names = [str(number) for number in range(12)]
    plan = plan_replays(net, names, sample.calls())
    assert plan is not None
    assert plan.most_bytes() == 4 * 8 * 6
    assert plan.needed["7"].keys() == {("6", 0)}


def test_what_cannot_be_traced_is_not_skipped() -> None:
    class Sparse(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sparse.mm(self.a(x).to_sparse(), torch.eye(8)))

    net, sample = Sparse().eval(), batches()
    assert plan_replays(net, ["a", "b"], sample.calls()) is None
    replays = Replays(net, ["a", "b"], sample.calls(), None)
    whole = inputs_in_whole_calls(net, "b", sample)
    assert all(map(torch.equal, replays.inputs("b"), whole))  # type: ignore[arg-type]


def test_layers_must_come_in_their_order() -> None:
    net, sample = Chain().eval(), batches()
    replays = Replays(net, ["a", "b", "c"], sample.calls(), None)
    list(replays.inputs("b"))
    with pytest.raises(ValueError, match="in their order"):
        list(replays.inputs("a"))
