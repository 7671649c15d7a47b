"""From a description of a network to a trained one with its results on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from common.distributed import World
from common.runs import RunError, RunFolder, hardware, versions
from image_data import DataSet, stratified_indices
from networks import NETWORKS, compressed_weights, count_parameters
from sketchlayers import Calibration, calibrate, compress, inspect
from sketchlayers.nn.factored._layer import FactoredLayer
from sketchlayers.nn.generated.dictionary import DictionaryLayer
from trained.pictures import Pictures
from training import Outcome, Recipe, Trainer, check_fits

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
        init: ``"random"`` to train from scratch, ``"fit"`` to approximate `start`'s weights.
        init_scale: factor on the compressed weights at a random start.
        start: checkpoint of a dense run whose network is compressed; None starts at random.
        seed: of the weights and the signs.
        sign_seed: of the signs, where they shall have another.

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
    init: Literal["random", "fit"] = "random"
    init_scale: float = 1.0
    start: str | None = None
    seed: int = 0
    sign_seed: int | None = None

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
        if self.init == "fit" and self.start is None:
            raise ValueError("init: 'fit' needs a trained network to start from (got start=None)")
        if not 0 < self.init_scale < math.inf:
            raise ValueError(f"init_scale: must be positive (got {self.init_scale})")
        if self.init_scale != 1 and (self.method == "dense" or self.init != "random"):
            raise ValueError(
                f"init_scale: must be 1 unless compressed weights start at random "
                f"(got {self.init_scale}, method={self.method!r}, init={self.init!r})"
            )


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
        RunError: if the checkpoint to start from cannot be used.
        ValueError: if the method refuses the rate or an option.
    """
    torch.manual_seed(spec.seed)
    network = NETWORKS[spec.network](num_classes, **_network_options(spec))
    dense_parameters = count_parameters(network)
    if spec.start is not None:
        load_weights(network, Path(spec.start))
    if spec.method == "dense":
        return Built(network, dense_parameters)
    moments = None
    if data is not None and spec.method == "dictionary" and spec.init == "random":
        moments = calibrate(network, _images_of_all_classes(data), filter_fn=_is_one_pixel)
    compressed, report = compress(
        network,
        spec.method,
        rate=spec.rate,
        init=spec.init,
        inplace=True,
        seed=spec.seed if spec.sign_seed is None else spec.sign_seed,
        **spec.options,
    )
    if moments is not None:
        set_covariances(compressed, moments, spec.seed)
    if spec.init_scale != 1:
        scale_weights(compressed, spec.init_scale)
    return Built(compressed, dense_parameters, report)


def set_covariances(network: nn.Module, moments: Calibration, seed: int) -> None:
    """Gives dictionaries the covariances of their inputs, and draws their coefficients again."""
    torch.manual_seed(seed)
    for name, layer in network.named_modules():
        if isinstance(layer, DictionaryLayer) and layer.kernel == "covariance":
            layer.set_covariance(moments[name].second_moment)
            layer.reset_parameters()


@torch.no_grad()
def scale_weights(network: nn.Module, factor: float) -> None:
    """Multiplies the weights of compressed layers, through what they train."""
    for layer in network.children():
        scale_weights(layer, factor)
        # The weight of separable filters is bilinear in what is trained.
        own = math.sqrt(factor) if isinstance(layer, FactoredLayer) else factor
        if type(layer).__module__.startswith("sketchlayers."):
            for parameter in compressed_weights(layer):
                parameter.mul_(own)


def _is_one_pixel(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Linear) or getattr(layer, "kernel_size", None) == (1, 1)


def _images_of_all_classes(data: DataSet) -> Pictures:
    """Training images, as many as show how a layer's inputs vary; folders are sorted by class."""
    count = min(_COVARIANCE_IMAGES, len(data.train))
    source = data.train.take(stratified_indices(data.train.labels, count))
    return Pictures(
        source, size=data.size, resize=data.size, normalisation=data.normalisation, batch_size=64
    )


def load_weights(network: nn.Module, checkpoint: Path) -> None:
    """Loads the network of a training checkpoint.

    Raises:
        RunError: if the file is missing, unreadable or of another network.
    """
    if not checkpoint.is_file():
        raise RunError(f"start: the checkpoint must exist (got {checkpoint}, no such file)")
    weights = RunFolder.read_checkpoint(checkpoint)["network"]
    check_fits(network, weights)
    network.load_state_dict(weights)


def run(
    spec: NetworkSpec,
    data: DataSet,
    recipe: Recipe,
    folder: RunFolder | None = None,
    *,
    world: World | None = None,
    name: str = "",
    label: str | None = None,
    resume: bool = False,
    command: Mapping[str, object] | None = None,
    part_of: Mapping[str, object] | None = None,
    workers: int = 0,
    tensorboard: bool = False,
) -> tuple[Built, dict[str, object]]:
    """Builds and trains one network.

    Args:
        spec: the network.
        data: the images.
        recipe: how to train.
        folder: where results go; None keeps them in memory alone.
        world: processes of this run.
        name: shown in front of progress, and the run's name in plots.
        label: what figures call the data set; None means its name.
        resume: go on from the folder's checkpoint if there is one.
        command: resolved arguments of the command, for the summary.
        part_of: what the run is within a figure or a study, for the summary; it has failed there,
            with the status "chance", if the network has learned nothing.
        workers: processes that decode streamed images.
        tensorboard: write TensorBoard events too.

    Returns:
        The trained network and the summary that ``summary.json`` holds.

    Raises:
        RunError: if the folder or its checkpoint cannot be used.
        ValueError: if arguments are out of range.
    """
    world = world or World()
    built = build(spec, len(data.classes), data)
    summary: dict[str, object] = {
        "name": name,
        "status": "started",
        "command": dict(command or {}),
        "data": {**data.describe(), "label": label or data.name},
        "network": asdict(spec),
        "recipe": asdict(recipe),
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
        recipe,
        world=world,
        folder=folder,
        arguments={f"network.{key}": value for key, value in asdict(spec).items()},
        name=name,
        workers=workers,
        tensorboard=tensorboard,
    )
    if part_of is not None:
        summary["part_of"] = dict(part_of)
    with only_here(folder, world, resume):
        if folder is not None and world.is_main:
            folder.write_summary(summary)
        outcome = trainer.fit(resume=resume)
        summary |= _results(outcome)
        if part_of is not None and outcome.status == "finished" and not _learned(outcome, data):
            summary["status"] = "chance"
        if folder is not None and world.is_main:
            folder.write_summary(summary)
    return built, summary


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


def _results(outcome: Outcome) -> dict[str, object]:
    last = asdict(outcome.history[-1]) if outcome.history else {}
    return {"status": outcome.status, "seconds": outcome.seconds, "last_epoch": last}


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
