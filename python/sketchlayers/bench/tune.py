"""The planner's constants: measured on this machine, fitted, kept, and its choices put to the test.

A path's time is modelled as a sum over a call, its multiply-adds, the elements of the images and
those of the weight or its factors; in training each of these grows by a factor that all layers
share. The constants are fitted to times of layers drawn at random, and judged by how long the
chosen path takes beside the best one on newly drawn layers.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sketchlayers import _extension, ops
from sketchlayers._extension import plan_costs
from sketchlayers._runtime.files import written_whole
from sketchlayers._runtime.progress import progress_bar
from sketchlayers._runtime.timing import paired_times
from sketchlayers.nn import SKConv2d, SKLinear

from .cases import Case, build_dense, build_sketch, placed
from .timing import inference, training_step

Kind = Literal["linear", "pointwise", "spatial", "channel"]
KINDS: tuple[Kind, ...] = ("linear", "pointwise", "spatial", "channel")
WORKS = ("dense", "form", "factored")
"""What is timed; for the planner, factored layers that take panels are another kind of work."""

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
    blocks: int
    channels_last: bool

    @property
    def case(self) -> Case:
        """The layer; padding gives the output the input's size, divided by the stride."""
        return Case(
            "",
            self.in_channels,
            self.out_channels,
            self.kernel,
            size=0 if self.kind == "linear" else self.size,
            padding=self.kernel // 2,
            stride=self.stride,
        )

    @property
    def mixing(self) -> ops.Mixing:
        """Of the sketched layer."""
        return "channel" if self.kind == "channel" else "spatial"

    @property
    def multiply_adds(self) -> int:
        """Of the dense layer."""
        return self.batch * self.case.output_pixels * self.case.weights

    @property
    def elements(self) -> int:
        """Of input and output."""
        return self.batch * self.case.elements

    def __str__(self) -> str:
        channels_last = ", channels_last" if self.channels_last else ""
        mixing = f", {self.mixing} mixing" if self.kernel > 1 else ""
        layer = f"{self.case.name}, batch {self.batch}{channels_last}"
        return f"{layer}: rate {self.rate:.3f}, {self.blocks} blocks{mixing}"


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
class Sample(Shape):
    """Seconds of a shape's parts: median of several calls each."""

    rank: int
    dense_forward: float
    form_forward: float
    factored_forward: float
    dense_training: float
    form_training: float
    factored_training: float

    def plan(self, *, training: bool, processor: str, dtype: str) -> Any:
        """The planner's answer; without training for a weight that is there already."""
        return _extension.load().plan(
            batch=self.batch,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel=(self.kernel, self.kernel),
            input_pixels=self.case.input_pixels,
            output_pixels=self.case.output_pixels,
            sketch_rank=self.rank,
            mixing=self.mixing,
            is_linear=self.kind == "linear",
            processor=processor,
            dtype=dtype,
            training=training,
            weight_ready=not training,
            blocks=self.blocks,
            channels_last=self.channels_last,
        )


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float) -> Sample:
    """Times all parts of one shape in turn."""
    case = shape.case
    times: dict[str, Any] = {}
    sketch = build_sketch(case, shape.rate, shape.mixing, "factored", shape.blocks)
    layers = [
        placed(layer, case, shape.batch, device, dtype, channels_last=shape.channels_last)
        for layer in (build_dense(case), sketch)
    ]
    for mode in MODES:
        training = mode == "training"
        prepare = training_step if training else inference
        dense, factored = (prepare(layer, data.requires_grad_(training)) for layer, data in layers)
        steps = [dense, _forming(sketch, training), factored]
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
) -> list[Sample]:
    """Measures shapes drawn at random, one kind after the other in turn."""
    generator = random.Random(seed)
    samples = []
    with progress_bar(_name(dtype), count, unit="layer") as advance:
        for kind in itertools.islice(itertools.cycle(KINDS), count):
            samples.append(measure(draw(generator, kind), device, dtype, seconds))
            advance(1)
    return samples


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------ the constants


def processor_of(device: torch.device, dtype: str) -> str:
    """The device as the planner's constants name it for a type."""
    name = _extension.load().cpu_for(dtype) if device.type == "cpu" else device.type
    return str(name)


def amounts(own: Sample, work: str, processor: str, dtype: str) -> tuple[float, ...]:
    """A call, multiply-adds, elements of images, elements of the weight or its factors."""
    case = own.case
    if work == "dense":
        return 1, own.multiply_adds, own.elements, case.weights
    if work == "form":
        rows = 1 + (case.taps if own.mixing == "spatial" else 1)
        return 1, own.rank * rows * case.weights, 0, case.weights
    factors = own.rank * case.taps * (own.in_channels + own.out_channels)
    planned = own.plan(training=False, processor=processor, dtype=dtype)
    return 1, planned.computed_multiply_adds, planned.computed_elements, factors


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


Group = tuple[str, bool]
"""Layers that share constants: a word for their kind, and whether channels lie together."""


def group_of(own: Sample, work: str) -> Group:
    """What the times of a kind of work depend on: those of panels hardly on the memory format."""
    kind = "conv" if work == "dense" and own.kind in ("spatial", "channel") else own.kind
    return kind, own.channels_last and work in ("dense", "factored")


def constants(samples: Sequence[Sample], processor: str, dtype: str) -> str:
    """The planner's constants as the text that it reads.

    Raises:
        ValueError: a group has fewer than 5 layers.
    """
    by_work: dict[str, list[Sample]] = {"dense": list(samples), "form": list(samples)}
    for own in samples:
        panels = own.plan(training=False, processor=processor, dtype=dtype).panels
        by_work.setdefault("panels" if panels else "factored", []).append(own)
    lines = []
    for work, chosen in by_work.items():
        lines += _constants_of_work(work, chosen, f"{processor} {dtype} {work}", processor, dtype)
    return "\n".join(lines) + "\n"


def _constants_of_work(
    work: str, samples: Sequence[Sample], words: str, processor: str, dtype: str
) -> list[str]:
    timed = "factored" if work == "panels" else work
    own_amounts = {own: amounts(own, timed, processor, dtype) for own in samples}
    groups: dict[Group, list[Sample]] = {}
    for own in sorted(samples, key=lambda own: (KINDS.index(own.kind), own.channels_last)):
        groups.setdefault(group_of(own, work), []).append(own)
    forward: dict[Group, list[float]] = {}
    for (kind, channels_last), members in groups.items():
        layout = " channels_last" if channels_last else ""
        if len(members) < _FEWEST_LAYERS:
            raise ValueError(
                f"--tune: needs at least {_FEWEST_LAYERS} layers of a kind and memory format (got "
                f"{len(members)} {kind}{layout})"
            )
        times = [getattr(own, f"{timed}_forward") for own in members]
        forward[kind, channels_last] = fit([own_amounts[own] for own in members], times)
    rows = [
        (f"{kind} channels_last" if channels_last else kind, numbers)
        for (kind, channels_last), numbers in forward.items()
    ]
    # Every kind of layer has panels of its own in the backward pass.
    training = {own.kind for own in samples} if work == "panels" else {"all"}
    for kind in sorted(training):
        members = [own for own in samples if kind in (own.kind, "all")]
        grown = [
            [a * c for a, c in zip(own_amounts[own], forward[group_of(own, work)], strict=True)]
            for own in members
        ]
        times = [getattr(own, f"{timed}_training") for own in members]
        rows.append((f"{kind} training", fit(grown, times)))
    return [
        " ".join([words, group, *(f"{number:.4g}" for number in numbers)])
        for group, numbers in rows
    ]


# ------------------------------------------------------------------------------------- the choices


class Choice(NamedTuple):
    """How many times the best path's time the planner's choice takes, and what it is."""

    regret: float
    path: str
    sample: Sample


def choices(samples: Sequence[Sample], processor: str, dtype: str, training: bool) -> list[Choice]:
    """One choice for each sample."""
    result = []
    for own in samples:
        if training:
            folded, factored = own.dense_training + own.form_training, own.factored_training
        else:
            folded, factored = own.dense_forward, own.factored_forward
        seconds = {"folded": folded, "factored": factored}
        path = own.plan(training=training, processor=processor, dtype=dtype).path
        result.append(Choice(seconds[path] / min(seconds.values()), path, own))
    return result


def good_choices(chosen: Sequence[Choice]) -> float:
    """The part of the choices within `TOLERANCE` of the best path."""
    return sum(choice.regret <= TOLERANCE for choice in chosen) / len(chosen)


# ------------------------------------------------------------------------------------ the commands

LAYERS_TO_TUNE = 280
LAYERS_TO_VERIFY = 200
_SECONDS = 0.1  # for each layer and mode
_TUNING_SEED = 1
_VERIFYING_SEED = 2  # other layers than those of the tuning
_FEWEST_LAYERS = 5  # that constants are fitted to


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
        measured = sample(LAYERS_TO_TUNE, _TUNING_SEED, device, dtype, _SECONDS)
        name = _name(dtype)
        text += constants(measured, processor_of(device, name), name)
    _extension.load().load_plan_costs(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(text)
    return path


def verify(device: torch.device, dtype: torch.dtype) -> tuple[list[dict[str, Any]], str]:
    """Measures newly drawn layers; their rows with the chosen paths, and a judgement in words."""
    samples = sample(LAYERS_TO_VERIFY, _VERIFYING_SEED, device, dtype, _SECONDS)
    name = _name(dtype)
    processor = processor_of(device, name)
    rows = [{**asdict(own), **paths(own, processor, name)} for own in samples]
    return rows, judgement(samples, processor, name)


def paths(own: Sample, processor: str, dtype: str) -> dict[str, str]:
    """What the planner chooses, by columns of the file of results."""
    return {
        f"path_{mode}": own.plan(training=mode == "training", processor=processor, dtype=dtype).path
        for mode in MODES
    }


def judgement(samples: Sequence[Sample], processor: str, dtype: str) -> str:
    """How good the choices are, and the worst of them."""
    lines = []
    for training in (False, True):
        chosen = sorted(choices(samples, processor, dtype, training), key=lambda own: -own.regret)
        lines.append(
            f"{MODES[training]}: the chosen path takes at most {TOLERANCE} times the best one's "
            f"time for {100 * good_choices(chosen):.1f} % of {len(chosen)} layers"
        )
        lines += [f"  {own.regret:.2f} times: {own.path}, {own.sample}" for own in chosen[:3]]
    return "\n".join(lines)
