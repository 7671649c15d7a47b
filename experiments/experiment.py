"""From a description of a network to a trained one with its results on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import nn

from common.distributed import World
from common.runs import RunError, RunFolder, hardware, versions
from image_data import DataSet, stratified_indices
from networks import NETWORKS, count_parameters
from sketchlayers import Calibration, calibrate, compress, inspect
from sketchlayers.nn.generated.dictionary import DictionaryLayer
from trained.pictures import Pictures
from training import Outcome, Recipe, Trainer

_COVARIANCE_IMAGES = 1024

_SIGMAS = 3
"""Standard errors above chance that an accuracy needs for the network to have learned anything."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network and how it is compressed; together with the number of classes it fixes the start.

    Attributes:
        network: one of `networks.NETWORKS`.
        width: factor on the channels (Network-in-Network alone, as is batch_norm).
        batch_norm: normalise after convolutions; the others always do.
        dropout: probability; None keeps the network's own.
        method: ``"dense"``, or a method of `sketchlayers.compress`.
        rate: parameters after / before, of the whole model; or layer rates by name or pattern.
        options: of the method, by name; see `sketchlayers.methods`.
        seed: of the weights and the signs.

    Raises:
        ValueError: if the values do not go together.
    """

    network: str = "ninn"
    width: float = 1.0
    batch_norm: bool = True
    dropout: float | None = None
    method: str = "dense"
    rate: float | Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(
                f"network: must be one of {', '.join(NETWORKS)} (got {self.network!r})"
            )
        if self.method == "dense" and self.rate is not None:
            raise ValueError(f"rate: a dense network has none (got rate={self.rate})")
        if self.method != "dense" and self.rate is None:
            raise ValueError(f"rate: method {self.method!r} needs one (got none)")
        if self.method == "dense" and self.options:
            raise ValueError(f"options: a dense network has none (got {dict(self.options)})")


@dataclass(frozen=True)
class Built:
    """A network, the number of parameters its dense form has, and what compression did."""

    network: nn.Module
    dense_parameters: int
    report: Any = None

    @property
    def rate(self) -> float:
        """Parameters after / before, everything counted."""
        return count_parameters(self.network) / self.dense_parameters


def build(spec: NetworkSpec, num_classes: int, data: DataSet | None = None) -> Built:
    """Makes the network of a description; the same description gives the same network.

    Args:
        spec: the description.
        num_classes: number of outputs.
        data: where a dictionary sees how the inputs of 1x1 layers vary together in the network as
            it starts; without, each input is alone.

    Raises:
        ValueError: if the method refuses the rate or an option.
    """
    torch.manual_seed(spec.seed)
    network = NETWORKS[spec.network](num_classes, **_network_options(spec))
    dense_parameters = count_parameters(network)
    if spec.method == "dense":
        return Built(network, dense_parameters)
    moments = None
    if data is not None and spec.method == "dictionary":
        moments = calibrate(network, _images_of_all_classes(data), filter_fn=_is_one_pixel)
    compressed, report = compress(
        network,
        spec.method,
        rate=spec.rate,
        init="random",
        inplace=True,
        seed=spec.seed,
        **spec.options,
    )
    if moments is not None:
        set_covariances(compressed, moments, spec.seed)
    return Built(compressed, dense_parameters, report)


def set_covariances(network: nn.Module, moments: Calibration, seed: int) -> None:
    """Gives dictionaries the covariances of their inputs, and draws their coefficients again."""
    torch.manual_seed(seed)
    for name, layer in network.named_modules():
        if isinstance(layer, DictionaryLayer) and layer.kernel == "covariance":
            layer.set_covariance(moments[name].second_moment)
            layer.reset_parameters()


def _is_one_pixel(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Linear) or getattr(layer, "kernel_size", None) == (1, 1)


def _images_of_all_classes(data: DataSet) -> Pictures:
    """Training images, as many as show how a layer's inputs vary; folders are sorted by class."""
    count = min(_COVARIANCE_IMAGES, len(data.train))
    source = data.train.take(stratified_indices(data.train.labels, count))
    return Pictures(source, size=data.size, normalisation=data.normalisation, batch_size=64)


@dataclass(frozen=True)
class Job:
    """A network to train, how, and what is kept of it.

    Attributes:
        spec: the network.
        recipe: how to train.
        folder: where results go; None keeps them in memory alone.
        name: shown in front of progress, and the run's name in plots.
        label: what figures call the data set; None means its name.
        command: resolved arguments of the command, for the summary.
        part_of: what the run is within a figure or a study, for the summary; it has failed there,
            with the status "chance", if the network has learned nothing.
        workers: processes that decode streamed images.
    """

    spec: NetworkSpec
    recipe: Recipe
    folder: RunFolder | None = None
    name: str = ""
    label: str | None = None
    command: Mapping[str, object] = field(default_factory=dict)
    part_of: Mapping[str, object] | None = None
    workers: int = 0


def run(
    job: Job, data: DataSet, *, world: World | None = None, resume: bool = False
) -> dict[str, Any]:
    """Builds and trains one network and returns what ``summary.json`` holds.

    Args:
        job: the network and how it is trained.
        data: the images.
        world: processes of this run.
        resume: go on from the folder's checkpoint if there is one.

    Raises:
        RunError: if the folder or its checkpoint cannot be used.
        ValueError: if arguments are out of range.
    """
    world, folder = world or World(), job.folder
    built = build(job.spec, len(data.classes), data)
    summary: dict[str, Any] = {
        "name": job.name,
        "status": "started",
        "command": dict(job.command),
        "data": {**data.describe(), "label": job.label or data.name},
        "network": asdict(job.spec),
        "recipe": asdict(job.recipe),
        "processes": world.size,
        "parameters": count_parameters(built.network),
        "rate": built.rate,
        "stored_bytes": inspect(built.network).bytes,
        "compression": built.report.to_dict() if built.report is not None else None,
        "versions": versions(),
        "hardware": hardware(world.device),
    }
    trainer = Trainer(
        built.network,
        data,
        job.recipe,
        world=world,
        folder=folder,
        arguments={f"network.{key}": value for key, value in asdict(job.spec).items()},
        name=job.name,
        workers=job.workers,
    )
    if job.part_of is not None:
        summary["part_of"] = dict(job.part_of)
    with only_here(folder, world, resume):
        if folder is not None and world.is_main:
            folder.write_summary(summary)
        outcome = trainer.fit(resume=resume)
        last = asdict(outcome.history[-1]) if outcome.history else {}
        summary |= {"status": outcome.status, "seconds": outcome.seconds, "last_epoch": last}
        if "part_of" in summary and outcome.status == "finished" and not _learned(outcome, data):
            summary["status"] = "chance"
        if folder is not None and world.is_main:
            folder.write_summary(summary)
    return summary


@contextmanager
def only_here(folder: RunFolder | None, world: World, resume: bool) -> Iterator[None]:
    """The folder is there and this run's alone; all processes hear of it when it cannot be."""
    with ExitStack() as stack:
        trouble = None
        if folder is not None and world.is_main:
            try:
                folder.prepare(resume=resume)
                stack.enter_context(folder.taken())
            except RunError as error:
                trouble = error
        trouble = world.shared(trouble)
        if trouble is not None:
            raise trouble
        yield


def last_words(summary: Mapping[str, Any]) -> str:
    """One line on a run that has ended."""
    tested = summary["last_epoch"].get("test_accuracy")
    accuracy = "" if tested is None else f"test accuracy {tested:.2f} %, "
    return (
        f"{summary['name']}: {summary['status']}, {accuracy}{summary['parameters']:,} parameters "
        f"(rate {summary['rate']:.3f})"
    )


def _learned(outcome: Outcome, data: DataSet) -> bool:
    """Whether it does better than one answer to all could, by more than chance."""
    labels = data.test.labels
    share = float(labels.bincount().max()) / len(labels)
    error = math.sqrt(share * (1 - share) / len(labels))
    return outcome.accuracy > 100 * (share + _SIGMAS * error)


def _network_options(spec: NetworkSpec) -> dict[str, object]:
    """The options that are not the network's own."""
    options: dict[str, object] = {
        name: value
        for name, value in (("width", spec.width), ("batch_norm", spec.batch_norm))
        if value != getattr(NetworkSpec, name)
    }
    if spec.dropout is not None:
        options["dropout"] = spec.dropout
    taken = signature(NETWORKS[spec.network]).parameters
    for name, value in options.items():
        if name not in taken:
            raise ValueError(f"network: {spec.network} takes no {name} (got {name}={value})")
    return options
