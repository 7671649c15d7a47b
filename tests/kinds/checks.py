"""What holds for every kind of layer that `compress` takes, in a network of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Report


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, in order."""
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)]


def assert_same(found: Any, expected: Any, **tolerance: Any) -> None:
    """The same outputs, whatever these are made of."""
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def check_model(
    model: nn.Module,
    batches: Sequence[Any],
    taken: Sequence[str] = (),
    *,
    tmp_path: Any,
    call: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
    look: Callable[[nn.Module, Any], Any] | None = None,
    method: str = "svd",
    rate: float | Mapping[str, float] = MappingProxyType({"*": 0.6}),
    share: float = 0.0,
    **options: Any,
) -> nn.Module:
    """Compresses a network in evaluation mode, and checks all that holds whatever it is made of.

    It is exported if the dense one can be.

    Args:
        model: the network.
        batches: of calibration.
        taken: layers that must be replaced.
        tmp_path: for files.
        call: of the network with a batch.
        look: what is compared, where this is not what ``call`` returns.
        method: of `compress`.
        rate: of `compress`; each layer by itself, unless given otherwise.
        share: least fraction of the parameters that is in replaced layers.
        options: of `compress`.
    """
    look = look or call
    batch = batches[0]
    before = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights cannot be approximated well
        small, report = sketchlayers.compress(
            model,
            method,
            rate=rate,
            keep_first=False,
            calibration=batches,
            forward=call,
            **options,
        )
    assert dict(model.named_modules()) == modules, "the model has other modules"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    _check_report(model, small, report, taken, share)
    check_afterwards(model, small, batch, look, tmp_path)
    return small


def check_afterwards(
    model: nn.Module, small: nn.Module, batch: Any, call: Callable[..., Any], tmp_path: Any
) -> None:
    """Checks what can be done with a compressed network: files, fold, export and training."""
    _check_files(model, small, batch, call, tmp_path)
    _check_fold(model, small, batch, call)
    _check_export(model, small, batch, call)
    _check_gradients(copy.deepcopy(small), batch, call)


def _check_report(
    model: nn.Module, small: nn.Module, report: Report, taken: Sequence[str], share: float
) -> None:
    replaced = {row.name: row for row in report.layers if row.method is not None}
    missing = [name for name in taken if name not in replaced]
    assert not missing, f"not replaced: {missing}; {sorted(replaced)}"
    assert all(row.reason for row in report.layers if row.name not in replaced)
    whole = sum(p.numel() for p in model.parameters())
    assert report.parameters_before == whole
    assert report.parameters_after == sum(p.numel() for p in small.parameters())
    trained = all(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in small.parameters()) == trained
    inside = sum(row.parameters_before for row in replaced.values())
    assert inside >= share * whole, f"{inside / whole:.3f} of the parameters\n{report}"


def _check_files(
    model: nn.Module, small: nn.Module, batch: Any, call: Callable[..., Any], tmp_path: Any
) -> None:
    path = sketchlayers.save(small, tmp_path / "small.safetensors")
    again = sketchlayers.load(path, into=copy.deepcopy(model))
    path = sketchlayers.save(model, tmp_path / "dense.safetensors")
    dense = sketchlayers.load(path, into=copy.deepcopy(small))
    with torch.no_grad():
        assert_same(call(again.eval(), batch), call(small, batch), rtol=0, atol=0)
        assert_same(call(dense.eval(), batch), call(model, batch), rtol=0, atol=0)
    assert [type(module) for module in dense.modules()] == [type(x) for x in model.modules()]
    other = copy.deepcopy(again)
    other.load_state_dict(small.state_dict())


def _check_fold(model: nn.Module, small: nn.Module, batch: Any, call: Callable[..., Any]) -> None:
    folded = sketchlayers.fold(small)
    assert [type(module) for module in folded.modules()] == [type(x) for x in model.modules()]
    copied = copy.deepcopy(model)
    copied.load_state_dict(folded.state_dict())
    with torch.no_grad():
        expected = call(small, batch)
        scale = max(float(x.abs().max()) for x in tensors(expected) if x.is_floating_point())
        assert_same(call(folded, batch), expected, rtol=1e-3, atol=1e-4 * max(scale, 1e-3))
        assert_same(call(copied, batch), call(folded, batch))


class Called(nn.Module):
    """A network that is called with one batch, as ``torch.export`` wants it."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, batch: Any) -> list[Tensor]:
        return tensors(self.call(self.model, batch))


def _check_export(model: nn.Module, small: nn.Module, batch: Any, call: Callable[..., Any]) -> None:
    with torch.no_grad():
        try:
            torch.export.export(Called(model, call).eval(), (batch,))
        except Exception:
            return
        program = torch.export.export(Called(small, call).eval(), (batch,)).module()
        expected = call(small, batch)
        scale = max(float(x.abs().max()) for x in tensors(expected))
        assert_same(program(batch), expected, rtol=1e-3, atol=1e-5 * max(1.0, scale))


def _check_gradients(small: nn.Module, batch: Any, call: Callable[..., Any]) -> None:
    outputs = [x for x in tensors(call(small, batch)) if x.requires_grad]
    sum(x.float().square().mean() for x in outputs).backward()  # type: ignore[union-attr]
    found = [p.grad for p in small.parameters() if p.grad is not None]
    assert found
    assert all(grad.isfinite().all() for grad in found)
