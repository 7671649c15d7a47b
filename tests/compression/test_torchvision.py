"""torchvision's classification networks: one of each family for real, all on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds.checks import check_afterwards
from selection import slow_except
from torch import nn

import sketchlayers

from .families import FAMILIES, assert_adds_up, bring_to_life

models = pytest.importorskip("torchvision.models")

# Small enough to fit the weights of; the others start from random factors.
FITTED = {"mobilenet_v3", "shufflenet", "squeezenet", "swin", "vit"}
# The largest matrices are folded sooner at a smaller rate.
RATES = {"alexnet": 0.2, "vgg": 0.1, "wide_resnet": 0.2}
# The small ones, with every kind of block: residual, grouped, gated, shuffled, attention.
QUICK = ("convnext", "maxvit", "mobilenet_v3", "regnet_y", "resnet", "squeezenet", "swin", "vit")
# On the meta device, the smallest of every family.
QUICK_NAMES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1",
    "swin_t", "swin_v2_t", "vgg11", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
@pytest.mark.parametrize("family", slow_except(QUICK, FAMILIES))
def test_one_of_every_family(family: str) -> None:
    build, size = FAMILIES[family]
    rate = RATES.get(family, 0.5)
    # In float64, since a deep network makes rounding errors grow by any factor.
    model, x = build().double().eval(), torch.randn(2, 3, size, size, dtype=torch.float64)
    bring_to_life(model, x)
    small, report = sketchlayers.compress(
        model,
        rate=rate,
        example_inputs=x,
        init="fit" if family in FITTED else "random",
        seed=1,
    )
    assert_adds_up(report, model, small)
    assert abs(report.rate - rate) <= 0.01 * rate, report.notes
    assert report.multiply_adds_before
    assert report.replaced

    output = small(x)
    assert output.shape == model(x).shape and output.isfinite().all()
    assert not torch.equal(output[0], output[1])
    output.square().mean().backward()
    for row in report.replaced:
        layer = small.get_submodule(row.name)
        assert layer.s1.grad is not None and layer.s2.grad is not None, row.name

    folded = sketchlayers.fold(small)
    assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        again = folded(x)
    error = (again - output).norm() / output.norm()
    assert error < 1e-9


@pytest.mark.parametrize("family", slow_except(("squeezenet",), FAMILIES))
def test_one_of_every_family_in_files_folded_and_exported(family: str, tmp_path: Path) -> None:
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(2, 3, size, size, dtype=torch.float64)
    bring_to_life(model, x)
    rates = {"*": RATES.get(family, 0.5)}
    small, _ = sketchlayers.compress(model, "svd", rate=rates, example_inputs=x, init="random")
    check_afterwards(model, small, x, lambda model, x: model(x), tmp_path)


@pytest.mark.parametrize("name", slow_except(QUICK_NAMES, models.list_models(module=models)))
def test_all_on_the_meta_device(name: str) -> None:
    with parameters_on_meta():
        model = models.get_model(name, weights=None, **_QUICK.get(name, {})).eval()
    small, report = sketchlayers.compress(model, rate=0.5, init="random", seed=1)
    assert_adds_up(report, model, small)
    assert abs(report.rate - 0.5) <= 0.005, report.notes
    assert all(p.is_meta for p in small.parameters())
    for row in report.layers:
        if row.method is not None:
            assert small.get_submodule(row.name).weight.shape == row.shape
        else:
            assert row.reason
            before, after = (dict(one.named_modules()).get(row.name) for one in (model, small))
            if before is not None:  # the parts of attention layers are no modules of the model
                assert type(after) is type(before) and before.weight.shape == row.shape


# Values do not matter on the meta device, and drawing them takes long.
_QUICK: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made here have parameters without memory; all else is computed as usual."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", on_meta)
        yield
