"""What must hold in several processes; run by ``torchrun``, with a folder as argument.

Every function ``check_*`` is one test: `test_processes` reads from the folder how each has ended.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel

import sketchlayers
from sketchlayers._runtime.parallel import whole
from sketchlayers.compression import pipeline

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "spatial": ("sketch", {}),
    "channel": ("sketch", {"mixing": "channel"}),
    "frame": ("sketch", {"frame": "signs"}),
    "blocks": ("sketch", {"blocks": 2, "mixing": "channel", "signs": "hadamard"}),
    "hashed": ("hashednet", {}),
    "frequencies": ("freshnet", {}),
    "tucker": ("tucker2", {}),
}


class Dense(nn.Module):
    """Every convolution is compressed by a method of its own; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.convs = nn.ModuleDict({name: nn.Conv2d(8, 8, 3, padding=1) for name in METHODS})
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        for conv in self.convs.values():
            x = x + torch.relu(conv(x))
        return self.head(x.mean((2, 3)))


def compressed(dense: nn.Module | None = None, seed: int | None = 1) -> nn.Module:
    """A network that has been converted."""
    if dense is None:
        torch.manual_seed(0)
        dense = Dense()
    init = "random" if next(dense.parameters()).is_meta else "fit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such fits are poor
        for name, (method, options) in METHODS.items():
            dense, _ = sketchlayers.compress(
                dense,
                method,
                rate={f"convs.{name}": 0.5},
                init="random" if name == "frame" else init,
                seed=seed,
                **options,
            )
    return dense


IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 5


def part(tensor: Tensor, rank: int) -> Tensor:
    """What a process gets of a batch."""
    return tensor.chunk(2)[rank]


def step(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(sketchlayers.param_groups(model, lr=0.1), momentum=0.9)


def trained_alone(model: nn.Module, steps: int = 2) -> nn.Module:
    """By one process, on all images."""
    optimizer = sgd(model)
    for _ in range(steps):
        step(model, IMAGES.to(model.head.weight.dtype), LABELS, optimizer)
    return model


def assert_same(model: nn.Module, other: nn.Module, **tolerances: float) -> None:
    """Parameters, seeds and signs."""
    for (name, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        value = value.full_tensor() if isinstance(value, DTensor) else value
        torch.testing.assert_close(value, expected, msg=lambda m, n=name: f"{n}: {m}", **tolerances)
    for (name, value), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(value, expected), name


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    for layer in (*model.convs.values(), model.head):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


@contextlib.contextmanager
def raises(kind: type[Exception], text: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"no error with {text!r}")


def contents(path: Path) -> tuple[object, bytes]:
    """Header and tensors of a safetensors file; the header's entries are in no certain order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


# ------------------------------------------------------------------------------------------- DDP


def check_ddp_trains_what_one_process_trains(rank: int, out: Path) -> None:
    model = compressed().double()
    ddp = DistributedDataParallel(model)
    optimizer = sgd(model)
    for _ in range(2):
        step(ddp, part(IMAGES, rank).double(), part(LABELS, rank), optimizer)
    assert_same(model, trained_alone(compressed().double()), rtol=1e-10, atol=1e-12)


def check_accumulated_gradients_are_those_of_the_batch(rank: int, out: Path) -> None:
    model = compressed().double()
    ddp = DistributedDataParallel(model)
    images, labels = part(IMAGES, rank).double(), part(LABELS, rank)
    with ddp.no_sync():
        (F.cross_entropy(ddp(images[:2]), labels[:2]) / 2).backward()
    (F.cross_entropy(ddp(images[2:]), labels[2:]) / 2).backward()
    alone = compressed().double()
    F.cross_entropy(alone(IMAGES.double()), LABELS).backward()
    for (name, own), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")


def check_compiled_ddp_trains_the_same(rank: int, out: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        sketchlayers.SKConv2d(3, 8, 3, rank=1, seed=1), nn.ReLU(),
        sketchlayers.SKConv2d(8, 8, 3, rank=1, frame="signs", seed=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), sketchlayers.SKLinear(8, 5, rank=2, seed=3),
    )  # fmt: skip
    alone = copy.deepcopy(model)
    # Inductor makes other code of the same graphs; tracing them is what this is about.
    compiled = torch.compile(DistributedDataParallel(model), backend="aot_eager")
    step(compiled, part(IMAGES, rank), part(LABELS, rank), sgd(model))
    step(alone, IMAGES, LABELS, sgd(alone))
    assert_same(model, alone, rtol=1e-5, atol=1e-6)


def check_ddp_gives_all_the_first_ones_signs(rank: int, out: Path) -> None:
    torch.manual_seed(rank)
    model = compressed(Dense(), seed=None)
    torch.manual_seed(0)
    first = compressed(Dense(), seed=None)
    assert (rank == 0) == torch.equal(model.convs["spatial"].u1, first.convs["spatial"].u1)
    DistributedDataParallel(model)
    model.eval()
    assert_same(model, first, rtol=0, atol=0)
    for name in ("spatial", "hashed"):  # also where a trace, or a reset, takes it from
        assert model.convs[name].seed == first.convs[name].seed
    model.convs["spatial"].reset_parameters()
    assert torch.equal(model.convs["spatial"].u1, first.convs["spatial"].u1)
    with torch.no_grad():
        model.convs["spatial"].load_state_dict(first.convs["spatial"].state_dict())
        assert torch.equal(model(IMAGES), first.eval()(IMAGES))


def check_ddp_is_saved_as_the_network_in_it(rank: int, out: Path) -> None:
    expected = compressed()
    ddp = DistributedDataParallel(compressed())
    path = sketchlayers.save(ddp, out / f"ddp-{rank}.safetensors")
    assert_same(sketchlayers.load(path, into=Dense()), expected, rtol=0, atol=0)
    with raises(TypeError, "load: into must be the network itself (got DistributedDataParallel"):
        sketchlayers.load(path, into=ddp)


def check_broadcast_model(rank: int, out: Path) -> None:
    torch.manual_seed(rank)
    model = compressed(Dense(), seed=None)
    sketchlayers.broadcast_model(model)
    torch.manual_seed(0)
    assert_same(model, compressed(Dense(), seed=None), rtol=0, atol=0)
    meta = sketchlayers.SKConv2d(4, 4, 3, rank=1, seed=5 + rank, device="meta")
    sketchlayers.broadcast_model(meta)
    expected = sketchlayers.SKConv2d(4, 4, 3, rank=1, seed=5)
    assert torch.equal(meta.to_empty(device="cpu").u1, expected.u1)
    with raises(ValueError, "all processes must have the same network"):
        sketchlayers.broadcast_model(nn.Linear(3, 4 + rank))


# ------------------------------------------------------------------------------------------ FSDP2


def check_fsdp_trains_what_one_process_trains(rank: int, out: Path) -> None:
    model = sharded(compressed().double())
    optimizer = sgd(model)
    for _ in range(2):
        step(model, part(IMAGES, rank).double(), part(LABELS, rank), optimizer)
    assert_same(model, trained_alone(compressed().double()), rtol=1e-10, atol=1e-12)


def check_meta_start_gives_the_same_network(rank: int, out: Path) -> None:
    expected = trained_alone(compressed(), steps=1)
    path, folder = out / "whole.safetensors", out / "dcp"
    if rank == 0:
        sketchlayers.save(expected, path)
    state = get_model_state_dict(sharded(copy.deepcopy(expected)))
    dcp.save(state, checkpoint_id=folder)

    def from_our_file(model: nn.Module) -> None:
        assert sketchlayers.load(path, into=model) is model

    def from_distributed_checkpoint(model: nn.Module) -> None:
        state = get_model_state_dict(model)
        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(model, state)

    def from_state_dict_of_the_first(model: nn.Module) -> None:
        model.reshard()  # PyTorch takes no parameters that are gathered
        state = expected.state_dict() if rank == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, state, options=options)

    def check(model: nn.Module, read: Callable[[nn.Module], None]) -> None:
        assert isinstance(model.convs["spatial"].s1, DTensor)
        read(model)
        assert_same(model, expected, rtol=0, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), expected(IMAGES), rtol=1e-6, atol=1e-6)

    with torch.device("meta"):
        model = compressed(Dense(), seed=None)
    model.to_empty(device="cpu")
    check(sharded(model), from_our_file)
    check(model, from_state_dict_of_the_first)
    with torch.device("meta"):
        dense = Dense()
    # Layers by the file, also where they could not be known from the network's class.
    model = sharded(sketchlayers.load(path, into=dense, device="meta"))
    assert model.convs["spatial"].u1.is_meta
    model.to_empty(device="cpu")
    check(model, from_distributed_checkpoint)
    check(model, from_our_file)


def check_a_sharded_network_is_saved_whole(rank: int, out: Path) -> None:
    expected = compressed()
    model = sharded(compressed())
    with torch.no_grad():
        model(IMAGES)  # some parameters stay gathered
    sketchlayers.save(model, out / "sharded.safetensors")
    sketchlayers.save(expected, out / f"alone-{rank}.safetensors")
    assert contents(out / "sharded.safetensors") == contents(out / f"alone-{rank}.safetensors")
    with mock.patch("sketchlayers.checkpoint._save.write", side_effect=OSError("the disk is full")):
        kind, text = (
            (OSError, "full") if rank == 0 else (RuntimeError, "it failed in those of rank 0")
        )
        with raises(kind, text):
            sketchlayers.save(model, out / "full.safetensors")


def check_the_first_process_alone_holds_the_whole(rank: int, out: Path) -> None:
    gathered: list[StorageWeakRef] = []
    held = [0]

    def gather(value: Tensor) -> Tensor:
        held.append(sum(not earlier.expired() for earlier in gathered))
        result = whole(value)
        if isinstance(value, DTensor):
            gathered.append(StorageWeakRef(result.untyped_storage()))
        return result

    model = sharded(compressed())
    with mock.patch("sketchlayers.checkpoint._save.whole", gather):
        sketchlayers.save(model, out / "one-by-one.safetensors")
    assert len(gathered) == len(list(model.parameters())) > 10
    assert rank == 0 or max(held) <= 2, held  # the backend may hold one a moment longer


def check_a_sharded_network_says_what_it_needs(rank: int, out: Path) -> None:
    model = sharded(compressed())
    for name in ("spatial", "hashed", "tucker"):
        with raises(RuntimeError, "its parameters must be here as a whole"):
            model.convs[name].fold()
    model.convs["spatial"].unshard()
    assert model.convs["spatial"].fold().weight.shape == (8, 8, 3, 3)
    path = out / f"other-{rank}.safetensors"
    other, _ = sketchlayers.compress(Dense(), "sketch", rate=0.5, init="random", seed=1)
    sketchlayers.save(other, path)
    with raises(ValueError, "the network must have the file's layers before fully_shard"):
        sketchlayers.load(path, into=model)
    with raises(ValueError, "device must be None for a sharded network"):
        sketchlayers.load(path, into=model, device="cpu")


def check_mixed_precision_of_fsdp(rank: int, out: Path) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, expected = sharded(compressed(), mp_policy=policy), compressed()
    outputs = model(IMAGES)
    assert outputs.dtype == torch.bfloat16
    reference = copy.deepcopy(expected).bfloat16()(IMAGES.bfloat16())
    torch.testing.assert_close(outputs, reference, rtol=2e-2, atol=2e-2)
    outputs.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert_same(model, expected, rtol=0, atol=0)


def check_no_weight_is_kept_of_gathered_factors(rank: int, out: Path) -> None:
    layer = sketchlayers.SKLinear(16, 16, rank=2, seed=1)
    layer.path = "folded"
    model = fully_shard(nn.Sequential(layer)).eval()
    images = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(images) - layer.bias
        model.reshard()
        for parameter in (layer.s1, layer.s2):
            parameter.mul_(2)
        torch.testing.assert_close(model(images) - layer.bias, 2 * before)
    assert layer._kept is None


# ---------------------------------------------------------------------------- compression


def check_sketches_fitted_to_the_images_of_all(rank: int, out: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU())

    def fitted(images: Tensor) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sketchlayers.compress(
                dense,
                "sketch",
                rate=0.6,
                calibration=list(images.split(2)),
                sensitivity=False,
                seed=0,
            ).model

    model = fitted(part(IMAGES, rank))
    for value in model.state_dict().values():
        values = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(values, value)
        assert torch.equal(*values)
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        alone, other = fitted(IMAGES), fitted(part(IMAGES, 0))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), alone(IMAGES), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(model(IMAGES), other(IMAGES), rtol=1e-2, atol=1e-2)


def check_a_failure_in_the_middle_is_one_in_all(rank: int, out: Path) -> None:
    torch.manual_seed(rank)
    dense = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3))
    with raises(ValueError, "all processes must have the same network"):
        sketchlayers.compress(dense, "svd", rate=0.6, calibration=[part(IMAGES, rank)])
    sketchlayers.broadcast_model(dense)
    broken = mock.patch.object(pipeline, "fit", side_effect=MemoryError("out of memory"))
    kind, text = MemoryError, "out of memory"
    if rank == 0:
        broken = contextlib.nullcontext()  # type: ignore[assignment]
        kind, text = RuntimeError, "compress: compressing must succeed in all processes (it failed"
    with broken, raises(kind, text):
        sketchlayers.compress(dense, "svd", rate=0.6, calibration=[part(IMAGES, rank)])


# --------------------------------------------------------------------------------- documentation


def check_the_page_runs(rank: int, out: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
    examples = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    with (
        contextlib.chdir(out),
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
    ):
        exec("\n".join(examples), {"__name__": "__main__"})


CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    ends = {}
    for name, check in CHECKS.items():
        try:
            check(rank, out)
            ends[name] = "passed"
        except Exception:
            ends[name] = traceback.format_exc()
        (out / f"ends-{rank}.json").write_text(json.dumps(ends))
        dist.barrier()  # none leaves while another still listens
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
