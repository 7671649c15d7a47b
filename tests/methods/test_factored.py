"""Tucker-2, SVD and CP as methods: sizes, curves, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers.methods import Candidate, Method, Rank
from sketchlayers.nn import CPConv2d, LowRankLinear, TuckerConv2d

METHODS = [methods.Tucker2(), methods.SVD(), methods.CP(max_sweeps=60)]
_random_state = torch.random.get_rng_state()
torch.manual_seed(0)
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 9, 9)),
    (nn.Conv2d(12, 24, (3, 2), groups=3, bias=False), (2, 12, 9, 9)),
    (nn.Conv2d(12, 20, 1, stride=2), (12, 9, 9)),
    (nn.Conv2d(24, 30, (1, 5), bias=False), (2, 24, 9, 9)),
    (nn.Linear(30, 44), (2, 3, 30)),
    (nn.Linear(64, 7, bias=False), (5, 64)),
]
torch.random.set_rng_state(_random_state)
EXPLICIT: dict[str, list[Rank]] = {
    "tucker2": [(2, 3), (None, 4), (3, None), (4, 8)],
    "svd": [1, 8],
    "cp": [1, 50],
}


def ids(value: object) -> str | None:
    return value.name if isinstance(value, Method) else None


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def some(ranks: Sequence[Rank]) -> list[Rank]:
    return [ranks[0], ranks[len(ranks) // 2], ranks[-1]]


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda of: str(of) if of else None)
def test_sizes_are_those_of_the_layers_built(
    method: Method, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    assert method.refusal(layer) is None
    ranks = method.ranks(layer)
    sizes = [method.parameters(layer, rank) for rank in ranks]
    assert sizes == sorted(set(sizes)) and sizes[-1] < size(layer)
    explicit = EXPLICIT[method.name] if layer is LAYERS[0][0] else []
    for rank in [*some(ranks), *explicit]:
        built = method.build(layer, rank, init="random", seed=0)
        assert isinstance(built, method.layers)
        assert size(built) == method.parameters(layer, rank)
        assert built.multiply_adds(shape) == method.multiply_adds(layer, rank, shape)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_which_layers_become_what(method: Method) -> None:
    def built(layer: nn.Module) -> nn.Module:
        return method.build(layer, method.ranks(layer)[0], init="random", seed=0)

    expected = CPConv2d if method.name == "cp" else TuckerConv2d
    assert type(built(nn.Conv2d(8, 9, 3))) is expected
    assert type(built(nn.Linear(8, 9))) is LowRankLinear
    pixels = built(nn.Conv2d(8, 9, 1))
    assert type(pixels) is expected and len(list(pixels.children())) == 2
    assert method.refusal(nn.Conv2d(8, 16, 3, groups=8)) == "depthwise convolution"
    assert "is not a layer that" in method.refusal(nn.Bilinear(8, 8, 3))
    for dense in (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        name = expected.__name__.replace("Conv2d", dense.__name__)
        assert type(built(dense(8, 9, 3))).__name__ == name
        assert method.refusal(dense(8, 16, 3, groups=8)) == "depthwise convolution"
    assert not method.ranks(nn.Linear(3, 1)) and not method.ranks(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_wrong_ranks(method: Method) -> None:
    conv, linear = nn.Conv2d(8, 9, 3), nn.Linear(8, 9)
    other: Rank = 3 if method.name == "tucker2" else (2, 3)
    for wrong, layer in ((other, conv), ((2, 3), linear)):
        for use in (
            lambda: method.parameters(layer, wrong),  # noqa: B023
            lambda: method.build(layer, wrong, init="random", seed=0),  # noqa: B023
        ):
            with pytest.raises(TypeError, match=r"ranks? must be"):
                use()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("tucker2", {"max_sweeps": 0}, ValueError, "Tucker2: max_sweeps must be at least 1"),
        ("tucker2", {"tolerance": 0.0}, ValueError, "Tucker2: tolerance must be finite and above"),
        ("tucker2", {"tolerance": "1"}, TypeError, "Tucker2: tolerance must be a number"),
        ("cp", {"starts": 0}, ValueError, "CP: starts must be at least 1"),
        ("cp", {"max_sweeps": 2.5}, TypeError, "CP: max_sweeps must be an int"),
        ("svd", {"starts": 1}, TypeError, "method 'svd' has no option 'starts'"),
    ],
)
def test_wrong_options(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        methods.get(name, **options)


# ------------------------------------------------------------------------------------- error curves


def norms(layer: nn.Module, kind: str) -> dict[str, Tensor]:
    """Second moments with strong and weak directions, and sensitivities, as `curve` takes them."""
    if kind == "plain":
        return {}
    torch.manual_seed(1)
    groups = getattr(layer, "groups", 1)
    patch, outputs = layer.weight[0].numel(), len(layer.weight) // groups
    roots = torch.randn(groups, patch, 2 * patch, dtype=torch.float64)
    roots *= torch.logspace(0, -1.5, patch, dtype=torch.float64)[torch.randperm(patch), None]
    moments = roots @ roots.mT / (2 * patch)
    given = {"second_moment": moments if groups > 1 else moments[0]}
    if kind == "sensitive":
        given["sensitivity"] = torch.rand(groups * outputs, dtype=torch.float64) + 0.1
    return given


def squared(layer: nn.Module, built: nn.Module, given: dict[str, Tensor]) -> float:
    """Squared relative error of a replacement, written out group by group."""
    groups = getattr(layer, "groups", 1)
    before = after = 0.0
    weights = layer.weight.detach().double().flatten(1).chunk(groups)
    others = built.weight.detach().double().flatten(1).chunk(groups)
    for index, (weight, other) in enumerate(zip(weights, others, strict=True)):
        moment = given.get("second_moment", torch.eye(weight.shape[1], dtype=torch.float64))
        moment = moment[index] if moment.dim() == 3 else moment
        outputs = torch.ones(len(layer.weight), dtype=torch.float64)
        outputs = given.get("sensitivity", outputs).chunk(groups)[index].diag()
        change = weight - other
        before += torch.trace(outputs @ weight @ moment @ weight.T).item()
        after += torch.trace(outputs @ change @ moment @ change.T).item()
    return after / before


@pytest.mark.parametrize("kind", ["plain", "weighted", "sensitive"])
@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("layer", [layer for layer, _ in LAYERS[:3]] + [LAYERS[4][0]], ids=str)
def test_curves_tell_the_errors_of_the_layers_built(
    layer: nn.Module, method: Method, kind: str
) -> None:
    given = norms(layer, kind)
    curve = method.curve(layer, **given)
    assert_is_a_front(curve, size(layer))
    for candidate in [curve[0], curve[len(curve) // 3], curve[2 * len(curve) // 3]]:
        assert candidate.parameters == method.parameters(layer, candidate.rank)
        built = method.build(layer, candidate.rank, init="fit", seed=0, **given)
        error = squared(layer, built, given)
        if method.name == "svd" or isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1):
            assert candidate.squared_error == pytest.approx(error, rel=1e-3)
        else:  # estimated by few sweeps, and interpolated
            assert 0.6 < candidate.squared_error / error < 1.7


def assert_is_a_front(curve: list[Candidate], dense: int) -> None:
    sizes, errors = [one.parameters for one in curve], [one.squared_error for one in curve]
    assert sizes == sorted(set(sizes)) and sizes[-1] < dense
    assert errors == sorted(errors, reverse=True) and 0 <= errors[-1] < errors[0] <= 1


@pytest.mark.parametrize("method", [*METHODS, methods.Sketch()], ids=ids)
@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, (2, 1)), nn.Conv2d(1, 1, 3)]
)
def test_small_layers_have_short_curves(layer: nn.Module, method: Method) -> None:
    sizes = {candidate.parameters for candidate in method.curve(layer)}
    assert all(0 < parameters < size(layer) for parameters in sizes)
    assert sizes or not method.ranks(layer)


def test_tuckers_curve_is_below_its_uniform_family() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3)
    given = norms(layer, "weighted")
    method = methods.Tucker2()
    curve = method.curve(layer, **given)
    assert any(rank[1] is None for rank, *_ in curve)
    ranks = method.ranks(layer)
    for uniform in ranks[2 :: len(ranks) // 6]:
        built = method.build(layer, uniform, init="fit", seed=0, **given)
        affordable = [one for one in curve if one.parameters <= size(built)]
        assert affordable[-1].squared_error < 1.15 * squared(layer, built, given)
