"""What can be done to a compressed network afterwards: the table in ``docs/robustness.md``.

    python -m tests.robustness.afterwards

writes the table. Every cell is tried for each type of numbers, with and without calibration images,
on one small network: it passes, with the right values, or it is an error that the page states.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before the group: its defaults would keep the group to the very end
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune as pruning
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import sketchlayers
from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.nn._layer import CompressedLayer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
BEGIN, END = "<!-- made by tests/robustness/afterwards.py -->\n", "<!-- end -->\n"

METHODS = (
    *("auto", "tucker2", "cp", "svd", "lowrank"),
    *("sketch", "hashednet", "freshnet", "dictionary"),
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
IMAGES = (True, False)

# Of sums in another order; averages and pruned weights are rounded at every step.
_TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 0.05,
    torch.float16: 0.01,
}


class Network(nn.Module):
    """Convolutions of several geometries, a batch norm, fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 24, 1)
        self.hidden = nn.Linear(24, 48)
        self.head = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.point(self.body(x).relu()).relu()
        return self.head(self.hidden(x.mean((-2, -1))).relu())


@dataclass(frozen=True)
class Case:
    """One network that was compressed."""

    method: str
    dtype: torch.dtype
    images: bool

    @property
    def exists(self) -> bool:
        """Whether there is such a network: ``auto`` needs images."""
        return self.images or self.method != "auto"

    @property
    def tolerance(self) -> float:
        """Of outputs, relative to their norm."""
        return _TOLERANCE[self.dtype]

    def dense(self) -> nn.Module:
        """The network before."""
        torch.manual_seed(0)
        return Network().eval().to(self.dtype)

    def network(self) -> nn.Module:
        """The network afterwards, a new one each time."""
        return copy.deepcopy(_compressed(self))

    def inputs(self) -> Tensor:
        """What the network is called with."""
        generator = torch.Generator().manual_seed(5)
        return torch.randn(4, 3, 8, 8, generator=generator).to(self.dtype)

    def check(self, outputs: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
        """Raises unless the outputs are these."""
        assert outputs.dtype == expected.dtype
        error = (outputs.double() - expected.double()).norm() / expected.double().norm()
        most = self.tolerance if tolerance is None else tolerance
        assert float(error) <= most, f"off by {float(error):.3g}"


@functools.cache
def _compressed(case: Case) -> nn.Module:
    images = [torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    data = [x.to(case.dtype) for x in images] if case.images else None
    options = {"keep_first": False, "calibration": data}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sketchlayers.compress(case.dense(), case.method, rate=0.7, **options).model.eval()


def save_and_load(case: Case) -> None:
    """``sketchlayers.save`` and ``load``."""
    small = case.network()
    with tempfile.TemporaryDirectory() as folder:
        path = sketchlayers.save(small, Path(folder, "small.safetensors"))
        loaded = sketchlayers.load(path, into=case.dense())
    case.check(loaded(case.inputs()), small(case.inputs()), 0)


def pickled(case: Case) -> None:
    """``pickle``, and ``torch.save`` of the whole network."""
    small, file = case.network(), io.BytesIO()
    expected = small(case.inputs())
    case.check(pickle.loads(pickle.dumps(small))(case.inputs()), expected, 0)
    torch.save(small, file)
    file.seek(0)
    case.check(torch.load(file, weights_only=False)(case.inputs()), expected, 0)


def deep_copied(case: Case) -> None:
    """``copy.deepcopy``."""
    small = case.network()
    with torch.no_grad():
        small(case.inputs())  # what is kept in inference is no part of the copy
    case.check(copy.deepcopy(small)(case.inputs()), small(case.inputs()), 0)


def folded(case: Case) -> None:
    """``sketchlayers.fold``."""
    small = case.network()
    plain = sketchlayers.fold(small)
    assert not any(isinstance(module, CompressedLayer) for module in plain.modules())
    case.check(plain(case.inputs()), small(case.inputs()))


def _averaged(case: Case, **formula: Callable[..., object]) -> None:
    small = case.network()
    model = AveragedModel(small, use_buffers=True, **formula)
    for _ in range(20):
        model.update_parameters(small)
    # Each of the averages rounds once more.
    case.check(model.module(case.inputs()), small(case.inputs()), 4 * case.tolerance)


def ema(case: Case) -> None:
    """``AveragedModel`` with an exponential average, buffers included."""
    _averaged(case, multi_avg_fn=get_ema_multi_avg_fn(0.99))


def swa(case: Case) -> None:
    """``AveragedModel`` with the mean, buffers included."""
    # Not `multi_avg_fn`, which takes no integers, as a batch norm has one.
    _averaged(case, avg_fn=get_swa_avg_fn())


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules with the parameters that weights of compressed layers are made from."""
    for layer in model.modules():
        if isinstance(layer, CompressedLayer):
            for module in layer.modules():
                for name in module._parameters:
                    if name != "bias":
                        yield module, name


def pruned(case: Case) -> None:
    """``torch.nn.utils.prune``; then ``fold``, and ``remove``."""
    small, by_hand = case.network(), case.network()
    for module, name in list(_parameters(small)):
        pruning.l1_unstructured(module, name, 0.3)
    for (module, name), (own, _) in zip(_parameters(by_hand), _masked(small), strict=True):
        module.get_parameter(name).data *= own.get_buffer(f"{name}_mask")
    repr(small)
    expected = by_hand(case.inputs())
    case.check(small(case.inputs()), expected)
    case.check(sketchlayers.fold(small)(case.inputs()), expected)
    for module, name in list(_masked(small)):
        pruning.remove(module, name)
    case.check(small(case.inputs()), expected)


def _masked(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for key in list(module._parameters):
            if key.endswith("_orig"):
                yield module, key.removesuffix("_orig")


def quantized(case: Case) -> None:
    """``torch.ao.quantization.quantize_dynamic`` of fully connected layers."""
    small = case.network()
    plain = torch.ao.quantization.quantize_dynamic(case.network(), {nn.Linear})
    repr(plain)
    case.check(plain(case.inputs()), small(case.inputs()), 0.1)


def fx(case: Case) -> None:
    """``torch.fx.symbolic_trace``."""
    small = case.network()
    case.check(torch.fx.symbolic_trace(small)(case.inputs()), small(case.inputs()))


def exported(case: Case) -> None:
    """``torch.export``."""
    small = case.network()
    program = torch.export.export(small, (case.inputs(),), strict=False)
    case.check(program.module()(case.inputs()), small(case.inputs()))


def ddp(case: Case) -> None:
    """A step with ``DistributedDataParallel``."""
    alone, small = case.network(), case.network()
    with _one_process():
        together = DistributedDataParallel(small)
        for model in (alone, together):
            model(case.inputs()).float().square().sum().backward()
    case.check(small(case.inputs()), alone(case.inputs()), 0)
    for (name, own), expected in zip(small.named_parameters(), alone.parameters(), strict=True):
        assert own.grad is not None and expected.grad is not None, name
        case.check(own.grad, expected.grad)


@contextmanager
def _one_process() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def flops(case: Case) -> None:
    """``FlopCounterMode``: 2 for each multiply-add that the layers tell."""
    small = case.network().train()
    expected = 0

    def note(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal expected
        if isinstance(layer, SKConv2d | SKLinear):
            expected += round(2 * layer.plan(args[0].shape).multiply_adds)
        elif isinstance(layer, CompressedLayer):
            expected += 2 * layer.multiply_adds(args[0].shape)  # type: ignore[operator]
        elif isinstance(layer, nn.Conv2d):
            expected += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            expected += 2 * output.numel() * layer.in_features

    inside = [m for c in small.modules() if isinstance(c, CompressedLayer) for m in c.children()]
    for module in small.modules():
        if module not in inside:
            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter:
        small(case.inputs())
    # What is summed over one term, at rank 1, PyTorch computes and counts as no matrix product.
    assert 0.99 * expected <= counter.get_total_flops() <= expected
    assert expected > 0


def functional(case: Case) -> None:
    """``torch.func``: gradients by ``grad`` of ``functional_call``."""
    small = case.network()
    parameters = {name: value.detach() for name, value in small.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(small, parameters, (x,))
        return outputs.float().square().sum()

    gradients = grad(loss)(parameters, case.inputs())
    small(case.inputs()).float().square().sum().backward()
    for name, value in small.named_parameters():
        assert value.grad is not None
        # Autograd may take another path, whose roundings add up.
        case.check(gradients[name], value.grad, 2 * case.tolerance)


OPERATIONS: dict[str, Callable[[Case], None]] = {
    "save, load": save_and_load,
    "pickle": pickled,
    "deepcopy": deep_copied,
    "fold": folded,
    "EMA": ema,
    "SWA": swa,
    "prune": pruned,
    "quantize_dynamic": quantized,
    "fx": fx,
    "export": exported,
    "DDP": ddp,
    "FlopCounterMode": flops,
    "torch.func": functional,
}


@dataclass(frozen=True)
class Refusal:
    """An error that the page states.

    Attributes:
        operation: by its name in the table.
        where: tells the cases.
        error: what the message contains.
        text: for the page.
    """

    operation: str
    where: Callable[[Case], bool]
    error: str
    text: str


def _has_plain_linear(case: Case) -> bool:
    return any(isinstance(module, nn.Linear) for module in _compressed(case).modules())


REFUSALS = (
    Refusal(
        "quantize_dynamic",
        lambda case: case.dtype != torch.float32 and _has_plain_linear(case),
        r"(?i)float",
        "PyTorch quantises float32 alone, compressed or not: it raises an error for other types",
    ),
)


def refusal_of(operation: str, case: Case) -> Refusal | None:
    """The error that the page states for a cell; None where it must pass."""
    found = (one for one in REFUSALS if one.operation == operation and one.where(case))
    return next(found, None)


def table() -> str:
    """The table, in Markdown."""
    columns = ["method", *(f"`{name}`" if "_" in name else name for name in OPERATIONS)]
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    notes: list[Refusal] = []
    for method in METHODS:
        cells = [f"`{method}`"]
        for operation in OPERATIONS:
            cases = [Case(method, dtype, images) for dtype in DTYPES for images in IMAGES]
            refused = {refusal_of(operation, case) for case in cases if case.exists} - {None}
            for one in refused:
                assert one is not None
                if one not in notes:
                    notes.append(one)
            marks = sorted(str(notes.index(one) + 1) for one in refused if one is not None)
            cells.append(f"yes ({', '.join(marks)})" if marks else "yes")
        lines.append(" | ".join(cells))
    listed = [f"({number}) {one.text}." for number, one in enumerate(notes, 1)]
    rows = "\n".join(f"| {line} |" for line in lines)
    return "\n\n".join([rows, *listed]) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    pattern = re.compile(f"({re.escape(BEGIN)}).*?({re.escape(END)})", re.DOTALL)
    assert pattern.search(text)
    return pattern.sub(lambda found: found[1] + "\n" + table() + "\n" + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
