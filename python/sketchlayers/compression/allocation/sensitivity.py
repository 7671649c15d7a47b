"""How much the outputs of a network change when the output of one of its layers does.

To first order an error ``d`` of a layer's output at one position moves the network's outputs ``z``
by ``J d``. With ``F = E[sum over positions of J^T J]`` the expected square of that is
``tr(F E[d d^T])``, errors at different positions taken as independent: the norm in which errors of
a layer count for what they do to the network. No labels are needed. (With the Jacobian of a loss
in place of the outputs' this is the Fisher information, by which fits came out worse than without
any weight.)

``J^T J`` is not formed: for random signs ``v``, ``E[(J^T v)(J^T v)^T] = J^T J``, and ``J^T v`` is
one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.calibrate import MEMORY_BUDGET
from sketchlayers.nn._geometry import Geometry
from sketchlayers.surgery.batches import count_images
from sketchlayers.surgery.replace import evaluation_copy, is_out_of_memory
from sketchlayers.surgery.sample import Sample, outputs_of

PROJECTIONS = 3
"""Backward passes for each image, each with random weights for the outputs."""
_FEWEST_IMAGES, _MOST_IMAGES = 128, 512


def _random_signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """A projection in which all outputs count alike: ``E[v v^T] = I``."""
    signs = torch.randint(2, outputs.shape, generator=generator, device="cpu") * 2 - 1
    return signs.to(outputs)


def images_to_look_at(images: int) -> int:
    """Returns how many of the images to take: their backward passes cost as a pass or two."""
    return min(images, max(_FEWEST_IMAGES, min(_MOST_IMAGES, images // 4)))


def output_sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    sample: Sample,
    processes: Processes,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> dict[str, Tensor]:
    """Returns the matrices ``F`` of some layers.

    Args:
        model: unchanged; it runs in evaluation mode.
        layers: names of convolutions and linear layers.
        sample: the images (`images_to_look_at` says how many are enough).
        processes: whose images are summed up.
        memory_budget: bytes that the graph of one backward pass may keep. A batch with a larger
            one is cut.

    Returns:
        By name, ``(groups, T, T)`` float64 with ``T`` outputs of a group; of a layer that the
        images do not reach, or whose output the network's does not depend on as far as gradients
        tell (a model may run without), nothing.

    Raises:
        GradientError: the gradients cannot be taken.
    """
    model = evaluation_copy(model)
    outputs: dict[str, list[Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def keep(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs.setdefault(name, []).append(output)
            return output.clone()  # what follows may work in place

        layer.register_forward_hook(keep)

    found = {name: model.get_submodule(name) for name in layers}
    for name, layer in found.items():
        watch(name, layer)
    sums = {name: _zeros(layer) for name, layer in found.items()}
    images = 0
    try:
        first = sample.first(1)
        most = max(1, memory_budget * first.images // max(1, _graph_bytes(model, first)))
        sample = sample.in_batches_of(most)
        for call, batch in zip(sample.calls(), sample.batches, strict=True):
            outputs.clear()
            with torch.inference_mode(False), torch.enable_grad():
                results = outputs_of(call(model))
            images += count_images(batch)
            reached = [(name, output) for name, calls in outputs.items() for output in calls]
            for gradients in _drawn_back(results, [x for _, x in reached], images):
                for (name, _), gradient in zip(reached, gradients, strict=True):
                    if gradient is not None:
                        _add(sums[name], gradient, found[name])
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise GradientError(str(error).partition("\n")[0]) from error
    images = int(processes.sum(torch.tensor(float(images), dtype=torch.float64, device="cpu")))
    sums = {name: processes.sum(total) / (PROJECTIONS * images) for name, total in sums.items()}
    return {name: total for name, total in sums.items() if total.any() and total.isfinite().all()}


class GradientError(RuntimeError):
    """The gradients of a model's outputs cannot be taken."""


def _drawn_back(
    results: Sequence[Tensor], outputs: Sequence[Tensor], seed: int
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yields ``J^T v`` for some ``v``; nothing if the results do not depend on the outputs."""
    results = [result for result in results if result.requires_grad]
    if not results or not outputs:  # the model cuts its graph, or nothing of it was called
        return
    for projection in range(PROJECTIONS):
        generator = torch.Generator("cpu").manual_seed(projection * 1_000_003 + seed)
        yield torch.autograd.grad(
            results,
            outputs,
            [_random_signs(result.detach(), generator) for result in results],
            retain_graph=projection + 1 < PROJECTIONS,
            allow_unused=True,
        )


def _graph_bytes(model: nn.Module, sample: Sample) -> int:
    """What the graph of a forward call on these images keeps in addition to the parameters."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[StorageWeakRef] = []  # while they are, addresses are not used again

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
            alive.append(StorageWeakRef(storage))

    def never(_: None) -> Tensor:
        raise AssertionError("nothing goes backward here")

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(count, never),
    ):
        sample.calls()[0](model)
    return sum(kept.values())


def _zeros(layer: nn.Module) -> Tensor:
    geometry = Geometry.of(layer)
    groups, outputs = geometry.groups, geometry.group_outputs
    return torch.zeros(groups, outputs, outputs, dtype=torch.float64, device="cpu")


def _add(total: Tensor, gradient: Tensor, layer: nn.Module) -> None:
    """Adds the products of the gradients at all positions."""
    groups, outputs = total.shape[:2]
    if isinstance(layer, nn.Linear):
        rows = gradient.reshape(1, -1, outputs).mT
    else:
        batched = gradient.ndim == 2 + len(Geometry.of(layer).kernel_size)
        images = gradient if batched else gradient.unsqueeze(0)
        rows = images.transpose(0, 1).reshape(groups, outputs, -1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    total += (rows @ rows.mT).double().cpu()
