"""The planner's constants: measured on this machine, fitted, kept, and its choices put to the test.

A path's time is modelled as a sum over a call, its multiply-adds, the elements of the images and
those of the weight or its factors. The constants are fitted to times of layers drawn at random, and
judged by how long the chosen path takes beside the best one on newly drawn layers.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sketchlayers import _extension, ops
from sketchlayers._extension import plan_costs
from sketchlayers.nn import SKConv2d, SKLinear

from .timing import inference, paired_times, training_step

Kind = Literal["linear", "pointwise", "spatial", "channel"]
KINDS: tuple[Kind, ...] = ("linear", "pointwise", "spatial", "channel")
WORKS = ("dense", "form", "factored")
MODES = ("forward", "training")
TOLERANCE = 1.15
"""How much longer than the best path the chosen one may take."""

BLOCKS = (1, 1, 4, 8)
"""Of the layers that are drawn."""

_MOST_MULTIPLY_ADDS = 1.5e9
_LEAST_MULTIPLY_ADDS = 1e6
_MOST_ELEMENTS = 2e7


@dataclass(frozen=True)
class Shape:
    """One call of a layer; ``size`` is the side length of the input, 1 for a linear one."""

    kind: Kind
    batch: int
    in_channels: int
    out_channels: int
    kernel: int
    size: int
    stride: int
    rate: float
    blocks: int = 1
    channels_last: bool = False

    @property
    def padding(self) -> int:
        """As usual: the output has the input's size, divided by the stride."""
        return self.kernel // 2

    @property
    def output_size(self) -> int:
        """Side length of the output."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def multiply_adds(self) -> int:
        """Of the dense layer."""
        filters = self.in_channels * self.out_channels * self.kernel**2
        return self.batch * self.output_size**2 * filters

    @property
    def elements(self) -> int:
        """Of input and output."""
        inputs = self.in_channels * self.size**2
        return self.batch * (inputs + self.out_channels * self.output_size**2)

    def input(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Random numbers."""
        if self.kind == "linear":
            return torch.randn(self.batch, self.in_channels, device=device).to(dtype)
        shape = (self.batch, self.in_channels, self.size, self.size)
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=self.format)

    @property
    def format(self) -> torch.memory_format:
        """Of images and filters."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def sketch(self) -> SKConv2d | SKLinear:
        """The sketched layer."""
        if self.kind == "linear":
            return SKLinear(self.in_channels, self.out_channels, rate=self.rate, blocks=self.blocks)
        return SKConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            rate=self.rate,
            mixing="channel" if self.kind == "channel" else "spatial",
            blocks=self.blocks,
        )

    def dense(self) -> nn.Module:
        """PyTorch's own layer."""
        if self.kind == "linear":
            return nn.Linear(self.in_channels, self.out_channels)
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
        )


def draw(generator: random.Random, kind: Kind) -> Shape:
    """A layer such as networks have: sizes evenly on a logarithmic scale."""

    def between(low: float, high: float) -> int:
        return round(math.exp(generator.uniform(math.log(low), math.log(high))))

    while True:
        linear = kind == "linear"
        widest = 4096 if linear else 512
        narrowest = 64 if linear else 16
        shape = Shape(
            kind=kind,
            batch=between(1, 512) if linear else between(1, 128),
            in_channels=between(narrowest / 8, widest / 8) * 8,
            out_channels=between(narrowest / 8, widest / 8) * 8,
            kernel=1 if kind in ("linear", "pointwise") else generator.choice([3, 3, 3, 5, 7]),
            size=1 if linear else between(4, 56),
            stride=2 if not linear and generator.random() < 0.15 else 1,
            rate=math.exp(generator.uniform(math.log(0.02), math.log(0.3))),
            blocks=generator.choice(BLOCKS),
            channels_last=not linear and generator.random() < 0.5,
        )
        if (
            _LEAST_MULTIPLY_ADDS <= shape.multiply_adds <= _MOST_MULTIPLY_ADDS
            and shape.elements <= _MOST_ELEMENTS
            and shape.size >= shape.kernel // 2 + 1
        ):
            return shape


@dataclass(frozen=True)
class Sample:
    """Seconds of a shape's parts: median of several calls each."""

    kind: Kind
    batch: int
    in_channels: int
    out_channels: int
    kernel: int
    size: int
    stride: int
    rate: float
    blocks: int
    channels_last: bool
    rank: int
    dense_forward: float
    form_forward: float
    factored_forward: float
    dense_training: float
    form_training: float
    factored_training: float

    @property
    def shape(self) -> Shape:
        """What was measured."""
        return Shape(**{field.name: getattr(self, field.name) for field in fields(Shape)})

    def plan(self, *, training: bool, device: str, dtype: str) -> Any:
        """The planner's answer; without training for a weight that is there already."""
        shape = self.shape
        return _extension.load().plan(
            batch=shape.batch,
            in_channels=shape.in_channels,
            out_channels=shape.out_channels,
            kernel=(shape.kernel, shape.kernel),
            input_pixels=shape.size**2,
            output_pixels=shape.output_size**2,
            sketch_rank=self.rank,
            mixing="channel" if shape.kind == "channel" else "spatial",
            is_linear=shape.kind == "linear",
            device=device,
            dtype=dtype,
            training=training,
            weight_ready=not training,
            blocks=shape.blocks,
            channels_last=shape.channels_last,
        )

    def seconds(self, *, training: bool) -> dict[str, float]:
        """Of either path."""
        if training:
            folded = self.dense_training + self.form_training
            return {"folded": folded, "factored": self.factored_training}
        return {"folded": self.dense_forward, "factored": self.factored_forward}


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float) -> Sample:
    """Times all parts of one shape in turn."""
    data = shape.input(device, dtype)
    times: dict[str, Any] = {}
    sketch, dense = (
        layer.to(device, dtype).to(memory_format=shape.format)
        for layer in (shape.sketch(), shape.dense())
    )
    assert isinstance(sketch, (SKConv2d, SKLinear))
    sketch.path = "factored"

    for mode in MODES:
        training = mode == "training"
        prepare = training_step if training else inference
        own = data.clone(memory_format=torch.preserve_format).requires_grad_(training)
        steps = [prepare(dense, own), _forming(sketch, training), prepare(sketch, own)]
        measured = paired_times(steps, seconds / 2, device, least=5)
        for work, taken in zip(WORKS, measured, strict=True):
            times[f"{work}_{mode}"] = statistics.median(taken)
    return Sample(**asdict(shape), rank=sketch.rank, **times)


def _forming(sketch: SKConv2d | SKLinear, training: bool) -> Callable[[], None]:
    """What the folded path does beside the dense layer."""
    arguments = (sketch.s1, sketch.s2, sketch.u1, sketch.u2)
    with torch.no_grad():
        gradient = torch.randn_like(sketch.dense_weight())

    def form() -> Tensor:
        return ops.sk_weight(*arguments, mixing=sketch.mixing)

    def step() -> None:
        weight = form()
        if training:
            weight.backward(gradient)

    return step if training else torch.no_grad()(step)


def sample(
    count: int, seed: int, device: torch.device, dtype: torch.dtype, seconds: float
) -> Iterator[Sample]:
    """Measures shapes drawn at random, one kind after the other in turn."""
    generator = random.Random(seed)
    for kind in itertools.islice(itertools.cycle(KINDS), count):
        yield measure(draw(generator, kind), device, dtype, seconds)


# ------------------------------------------------------------------------------------ the constants


def amounts(own: Sample, work: str, device: str) -> tuple[float, float, float, float]:
    """A call, multiply-adds, elements of images, elements of the weight or its factors."""
    shape = own.shape
    positions = shape.kernel**2
    weight = shape.in_channels * shape.out_channels * positions
    if work == "dense":
        return 1, shape.multiply_adds, shape.elements, weight
    if work == "form":
        rows = 1 + (positions if shape.kind != "channel" else 1)
        return 1, own.rank * rows * weight, 0, weight
    factors = own.rank * positions * (shape.in_channels + shape.out_channels)
    planned = own.plan(training=False, device=device, dtype="float32")
    return 1, planned.factored_vector_multiply_adds, shape.elements, factors


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Constants of at least 0 with the least squares of the relative errors."""
    matrix = torch.tensor(rows, dtype=torch.float64) / torch.tensor(seconds).double()[:, None]
    scale = matrix.norm(dim=0).clamp_min(1e-300)
    matrix = matrix / scale
    target = torch.ones(len(seconds), 1, dtype=torch.float64)
    best, least = torch.zeros(matrix.shape[1], dtype=torch.float64), math.inf
    # With four constants every choice of those that are not 0 can be tried.
    for size in range(1, matrix.shape[1] + 1):
        for chosen in itertools.combinations(range(matrix.shape[1]), size):
            part = matrix[:, list(chosen)]
            solution = torch.linalg.lstsq(part, target).solution
            error = float((part @ solution - target).norm())
            if bool((solution >= 0).all()) and error < least:
                least = error
                best = torch.zeros_like(best)
                best[list(chosen)] = solution[:, 0]
    return [float(constant) for constant in best / scale]


def constants(samples: Sequence[Sample], device: str, dtype: str) -> str:
    """The planner's constants as the text that it reads."""
    precision = {"float32": "float32", "float64": "float64"}.get(dtype, "half")
    lines = []
    for kind, work, mode, channels_last in itertools.product(KINDS, WORKS, MODES, (False, True)):
        if kind == "linear" and channels_last:
            continue
        own = [s for s in samples if s.kind == kind and s.channels_last == channels_last]
        if len(own) < 5:
            raise ValueError(
                f"tuning: needs at least 5 layers of a kind and memory format (got {len(own)} "
                f"{kind}{', channels_last' if channels_last else ''})"
            )
        times = [getattr(sample, f"{work}_{mode}") for sample in own]
        numbers = fit([amounts(sample, work, device) for sample in own], times)
        words = [f"{number:.4g}" for number in numbers]
        layout = ["channels_last"] if channels_last else []
        lines.append(" ".join([device, precision, kind, work, mode, *layout, *words]))
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------- the choices


@dataclass(frozen=True)
class Choice:
    """What the planner chose for a shape, and how many times the best path's time that takes."""

    sample: Sample
    path: str
    regret: float


def choices(samples: Sequence[Sample], device: str, dtype: str, training: bool) -> list[Choice]:
    """One choice for each sample."""
    result = []
    for own in samples:
        seconds = own.seconds(training=training)
        path = own.plan(training=training, device=device, dtype=dtype).path
        result.append(Choice(own, path, seconds[path] / min(seconds.values())))
    return result


def good_choices(chosen: Sequence[Choice]) -> float:
    """The part of the choices within `TOLERANCE` of the best path."""
    return sum(choice.regret <= TOLERANCE for choice in chosen) / len(chosen)


def write_samples(path: Path, samples: Sequence[Sample], hardware: str) -> None:
    """Writes the measured times, so that other constants can be judged by them."""
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(Sample)]
        writer = csv.DictWriter(file, [*names, "hardware", "torch"], lineterminator="\n")
        writer.writeheader()
        for own in samples:
            row = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(own).items()}
            writer.writerow({**row, "hardware": hardware, "torch": torch.__version__})


def read_samples(path: Path) -> list[Sample]:
    """What `write_samples` wrote."""
    with path.open(newline="") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: dict[str, str]) -> Sample:
    types: dict[str, Callable[[str], Any]] = {
        "kind": str,
        "channels_last": lambda text: text == "True",
    }
    whole = ("batch", "in_channels", "out_channels", "kernel", "size", "stride", "rank", "blocks")
    types.update(dict.fromkeys(whole, int))
    return Sample(
        **{field.name: types.get(field.name, float)(row[field.name]) for field in fields(Sample)}
    )


# ------------------------------------------------------------------------------------ the commands

LAYERS_TO_TUNE = 280
LAYERS_TO_VERIFY = 200
_SECONDS = 0.1  # for each layer and mode
_TUNING_SEED = 1
_VERIFYING_SEED = 2  # other layers than those of the tuning


def tune(device: torch.device, dtypes: Sequence[torch.dtype], hardware: str) -> Path:
    """Measures the constants and keeps them for this type of machine.

    Raises:
        ValueError: the user's environment names no directory to keep them in.
    """
    path = plan_costs.file_of(device)
    if path is None:
        raise ValueError("--tune: SKETCHLAYERS_CACHE must name a directory (got an empty one)")
    text = f"# Measured by `sketchlayers bench --tune`: {hardware}, PyTorch {torch.__version__}\n"
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        measured = []
        for own in sample(LAYERS_TO_TUNE, _TUNING_SEED, device, dtype, _SECONDS):
            measured.append(own)
            print(f"\r{name}: {len(measured)} of {LAYERS_TO_TUNE} layers", end="", flush=True)
        print()
        text += constants(measured, device.type, name)
    _extension.load().load_plan_costs(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def verify(device: torch.device, dtype: torch.dtype) -> tuple[list[Sample], str]:
    """Measures newly drawn layers and judges what the planner chooses for them, in words."""
    name = str(dtype).removeprefix("torch.")
    samples = []
    for own in sample(LAYERS_TO_VERIFY, _VERIFYING_SEED, device, dtype, _SECONDS):
        samples.append(own)
        print(f"\r{name}: {len(samples)} of {LAYERS_TO_VERIFY} layers", end="", flush=True)
    print()
    return samples, judgement(samples, device.type, name)


def judgement(samples: Sequence[Sample], device: str, dtype: str) -> str:
    """How good the choices are, and the worst of them."""
    lines = []
    for training in (False, True):
        chosen = sorted(choices(samples, device, dtype, training), key=lambda own: -own.regret)
        lines.append(
            f"{MODES[training]}: the chosen path takes at most {TOLERANCE} times the best one's "
            f"time for {100 * good_choices(chosen):.1f} % of {len(chosen)} layers"
        )
        for own in chosen[:3]:
            shape = own.sample.shape
            lines.append(f"  {own.regret:.2f} times: {own.path}, {shape}")
    return "\n".join(lines)
