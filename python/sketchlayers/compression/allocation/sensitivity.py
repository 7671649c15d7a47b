"""How much the outputs of a network change when the output of one of its layers does.

To first order an error ``d`` of a layer's output at one position moves the network's outputs ``z``
by ``J d``. With ``F = E[sum over positions of J^T J]`` the expected square of that is
``tr(F E[d d^T])``, errors at different positions taken as independent: the norm in which errors of
a layer count for what they do to the network. No labels are needed. (With the Jacobian of a loss
in place of the outputs' this is the Fisher information, by which fits came out worse than without
any weight.)

``J^T J`` is not formed: for random signs ``v``, ``E[(J^T v)(J^T v)^T] = J^T J``, and ``J^T v`` is
one backward pass. Of a layer with more outputs than passes the sum may be singular, as if some
errors did no harm. So it is shrunk towards a multiple of the identity, by as much as images differ
(Ledoit and Wolf, Journal of Multivariate Analysis 2004).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
_FEWEST_IMAGES, _MOST_IMAGES = 128, 256
_FAST_BYTES = 1 << 29
"""Of a graph. Larger ones take up to twice as long, since the system has to find the memory."""


def _random_signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """A projection in which all outputs count alike: ``E[v v^T] = I``."""
    signs = torch.randint(2, outputs.shape, generator=generator, device="cpu") * 2 - 1
    return signs.to(outputs)


def images_to_look_at(images: int) -> int:
    """Returns how many of the images to take: their backward passes cost as a pass or two."""
    return min(images, max(_FEWEST_IMAGES, min(_MOST_IMAGES, images // 8)))


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
    size = max(1, _graph_bytes(model, sample.first(1)) // sample.first(1).images)
    allowed, fast = (max(1, most // size) for most in (memory_budget, _FAST_BYTES))
    try:
        images, found = _sums(model, layers, sample.in_batches_of(min(fast, allowed)))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        try:  # some models take batches of one size alone
            images, found = _sums(model, layers, sample.in_batches_of(allowed))
        except RuntimeError as again:
            if is_out_of_memory(again):
                raise
            raise GradientError(str(again).partition("\n")[0]) from again
    images = int(processes.sum(torch.tensor(float(images), dtype=torch.float64, device="cpu")))
    means = {name: one.shrunk(processes) / (PROJECTIONS * images) for name, one in found.items()}
    return {name: mean for name, mean in means.items() if mean.any() and mean.isfinite().all()}


class GradientError(RuntimeError):
    """The gradients of a model's outputs cannot be taken."""


def _sums(model: nn.Module, names: Sequence[str], sample: Sample) -> tuple[int, dict[str, _Sum]]:
    """The number of images, and the sums of layers of a copy of the model, by their names."""
    layers = {name: model.get_submodule(name) for name in names}
    sums = {name: _Sum(layer) for name, layer in layers.items()}
    images = 0
    with _outputs_watched(layers) as outputs:
        for call, batch in zip(sample.calls(), sample.batches, strict=True):
            outputs.clear()
            with torch.inference_mode(False), torch.enable_grad():
                results = outputs_of(call(model))
            images += count_images(batch)
            reached = [(name, output) for name, calls in outputs.items() for output in calls]
            for gradients in _drawn_back(results, [x for _, x in reached], images):
                for (name, _), gradient in zip(reached, gradients, strict=True):
                    if gradient is not None:
                        sums[name].add(gradient)
    return images, sums


@contextlib.contextmanager
def _outputs_watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Notes what the layers return, by name; gradients get to all of it."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, _: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs.setdefault(name, []).append(output)
        return output.clone()  # what follows may work in place

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(keep, name)).remove)
        yield outputs


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


class _Sum:
    """Products of the gradients of a layer's outputs, summed over positions, passes and images."""

    def __init__(self, layer: nn.Module) -> None:
        geometry = Geometry.of(layer)
        groups, outputs = geometry.groups, geometry.group_outputs
        self._layer = layer
        self._total = torch.zeros(groups, outputs, outputs, dtype=torch.float64, device="cpu")
        self._squares = self._total.new_zeros(groups)  # of the norms of each image's products
        self._count = 0

    def add(self, gradient: Tensor) -> None:
        """Adds the products of the gradients at all positions."""
        if gradient.numel() == 0:
            return
        rows = self._rows(gradient)
        images, groups, outputs, positions = rows.shape
        if positions < outputs:  # for the norm, products of positions are as good
            grams = rows.mT @ rows
            together = rows.permute(1, 2, 0, 3).reshape(groups, outputs, -1)
            total = (together @ together.mT).double()
        else:
            grams = rows @ rows.mT
            total = grams.sum(0, dtype=torch.float64)
        norms = torch.linalg.vector_norm(grams, dim=(-2, -1), dtype=torch.float64)
        self._total += total.cpu()
        self._squares += norms.square().sum(0).cpu()
        self._count += images

    def _rows(self, gradient: Tensor) -> Tensor:
        """``(images, groups, T, positions)``."""
        groups, outputs = self._total.shape[:2]
        if gradient.dtype != torch.float64:
            gradient = gradient.float()
        if isinstance(self._layer, nn.Linear):
            images = gradient.shape[0] if gradient.ndim > 1 else 1
            return gradient.reshape(images, 1, -1, outputs).mT
        batched = gradient.ndim == 2 + len(Geometry.of(self._layer).kernel_size)
        images = gradient.shape[0] if batched else 1
        return gradient.reshape(images, groups, outputs, -1)

    def shrunk(self, processes: Processes) -> Tensor:
        """The sum ``(groups, T, T)``, nearer to a multiple of the identity."""
        total, squares = processes.sum(self._total), processes.sum(self._squares)
        count = float(processes.sum(squares.new_tensor(float(self._count))))
        if count < 2:
            return total
        variance = count / (count - 1) * (squares - total.square().sum((-2, -1)) / count)
        mean = total.diagonal(dim1=-2, dim2=-1).mean(-1)
        centre = torch.diag_embed(mean[:, None].expand(total.shape[:2]))
        distance = (total - centre).square().sum((-2, -1))
        share = (variance / distance).clamp(0, 1).nan_to_num(0)  # nothing by nothing
        return total.lerp(centre, share[:, None, None])
