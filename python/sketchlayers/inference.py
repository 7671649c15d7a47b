"""Faster inference: which form of each layer is the fastest on this machine, and what is kept."""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers._runtime.timing import paired_times
from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn._geometry import CHANNELS_LAST, memory_format
from sketchlayers.nn.sketch._layer import SketchLayer
from sketchlayers.reports.export import Exported, Printed
from sketchlayers.reports.table import Footnotes, Table, layer_name, quantity
from sketchlayers.surgery.calls import (
    ExampleCall,
    ExampleInputs,
    cannot_run_on_examples,
    watched_copy,
)
from sketchlayers.surgery.evaluation import same_random_numbers
from sketchlayers.surgery.replace import replace_layers

Form = Literal["factored", "folded", "dense", "dense channels_last"]

_FORMS: tuple[Form, ...] = ("factored", "folded", "dense", "dense channels_last")
_NEAR = 1.03  # times this near to each other are equal: measured again, either could be ahead
_SAMPLE_SECONDS = 2e-4  # a shorter sample would measure the clock
_FEWEST_SAMPLES = 5


def clear_cache(model: nn.Module) -> None:
    """Drops the dense weights that layers of ``model`` keep between inference calls.

    Sketched and hashed layers, frequency hashing and dictionaries keep them.

    They are formed again when they are needed. Call this after a few entries of the factors were
    written past their version counters (through ``.data``, NumPy or DLPack): a layer notices by
    itself what changes one of 128 places in a factor.
    """
    for module in model.modules():
        if isinstance(module, WeightCache):
            module.clear_cache()


@dataclass(frozen=True)
class LayerForm(Exported):
    """One sketched layer and the form it was given.

    Attributes:
        name: qualified name in the model; "" for the model itself.
        kind: class of the sketched layer.
        form: ``"factored"`` (sketched, the dense weight is never formed), ``"folded"`` (sketched,
            with the dense weight kept), ``"dense"`` or ``"dense channels_last"`` (a plain layer,
            with its weight in that format); None if the layer is left alone.
        calls: how often one run of the model calls it.
        seconds: median time of these calls together, by form.
        bytes_before: memory of the parameters, packed signs and seed.
        bytes_after: memory in the new form; a kept dense weight counts.
        reason: why the layer is left alone; None if it is not.
    """

    name: str
    kind: str
    form: Form | None
    calls: int
    seconds: Mapping[Form, float]
    bytes_before: int
    bytes_after: int
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class InferenceReport(Printed):
    """What `optimize_for_inference` measured and chose.

    Attributes:
        layers: every sketched layer in order of registration.
    """

    _derived = ("seconds", "bytes_before", "bytes_after")

    layers: tuple[LayerForm, ...]

    @property
    def bytes_before(self) -> int:
        """Memory of the sketched layers."""
        return sum(row.bytes_before for row in self.layers)

    @property
    def bytes_after(self) -> int:
        """Memory of the same layers in their new forms."""
        return sum(row.bytes_after for row in self.layers)

    @property
    def seconds(self) -> float:
        """Time of one run in the layers that have a form, one after the other."""
        return sum(row.seconds[row.form] for row in self.layers if row.form is not None)

    def __str__(self) -> str:
        reasons = Footnotes()
        forms = [form for form in _FORMS if any(form in row.seconds for row in self.layers)]
        times = [("milliseconds", form) for form in forms]
        sizes = [("memory", "before"), ("memory", "after")]
        table = Table("layer", "form", "calls", *times, *sizes, "", left=2)
        for row in self.layers:
            milliseconds = [
                f"{1e3 * row.seconds[form]:.4g}" if form in row.seconds else "-" for form in forms
            ]
            table.add(
                layer_name(row.name),
                row.form or "-",
                str(row.calls),
                *milliseconds,
                quantity(row.bytes_before, "B"),
                quantity(row.bytes_after, "B"),
                reasons.mark(row.reason),
            )
        chosen = Counter(row.form for row in self.layers if row.form is not None)
        counts = ", ".join(f"{chosen[form]} {form}" for form in _FORMS if chosen[form])
        summary = (
            f"{sum(chosen.values())} of {len(self.layers)} sketched layers have a form"
            f"{f' ({counts})' if counts else ''}, {1e3 * self.seconds:.4g} ms together; memory "
            f"{quantity(self.bytes_before, 'B')} -> {quantity(self.bytes_after, 'B')}"
        )
        return "\n".join([str(table), "", summary, *reasons.lines("left alone:")])


class Optimized(NamedTuple):
    """The model and what was chosen; unpacks as ``model, report = optimize_for_inference(...)``."""

    model: nn.Module
    report: InferenceReport


def optimize_for_inference(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    seconds: float = 0.2,
    inplace: bool = False,
    allow_dense: bool = True,
) -> Optimized:
    """Measures the forms of every sketched layer on this machine and freezes the fastest.

    A copy of the model runs once on the example inputs, in eval mode and without gradients. Each
    sketched layer is then timed on random inputs of the shapes, types and memory formats that it
    met, in runs that take turns, with the threads and the autocast of the moment. What is chosen
    holds for these sizes: other batches or image sizes may want another form. Of forms whose times
    are within 3 % the one that needs least memory is taken.

    A layer that is faster factored stays sketched and has ``path = "factored"`` from then on.
    Otherwise a plain convolution or ``nn.Linear`` takes its place, as `sketchlayers.fold` does
    it, and the factors and signs are gone.

    Left alone, with the reason in the report, are layers that the example does not call, whose
    parameters are computed (parametrised, pruned), with a forward of their own, or without values.
    The mode, the hooks and ``requires_grad`` stay as they are; if anything fails, so does the
    model.

    Args:
        model: any module. It is not changed, unless ``inplace``.
        example_inputs: what the model is called with: a tensor, a tuple of arguments or a dict of
            keyword arguments; of the sizes that are to be fast.
        seconds: how long to measure, for each layer and each of its input shapes. Five rounds are
            run at least.
        inplace: change ``model`` itself.
        allow_dense: give plain layers a place. False keeps every layer sketched, so that the model
            stays small in a file and can be trained: a layer that is not faster factored keeps its
            dense weight between calls (``path = "folded"``).

    Returns:
        The model and the `InferenceReport`.

    Raises:
        ValueError: the model does not run on ``example_inputs``, ``seconds`` is not above 0, or
            ``inplace`` and the model itself would be replaced.
        TypeError: the model is no module or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"optimize_for_inference: model must be an nn.Module (got {type(model).__name__})"
        )
    if not seconds > 0:
        raise ValueError(f"optimize_for_inference: seconds must be above 0 (got {seconds})")
    if inplace and allow_dense and isinstance(model, SketchLayer):
        raise ValueError(
            "optimize_for_inference: inplace must be False where the model itself is the layer to "
            f"replace (got {type(model).__name__})"
        )
    layers = {name: part for name, part in model.named_modules() if isinstance(part, SketchLayer)}
    calls = _record_calls(model, layers, example_inputs)
    chosen = [
        _choose(name, layer, calls.get(name, Counter()), seconds, allow_dense)
        for name, layer in layers.items()
    ]
    swaps: dict[nn.Module, nn.Module] = {
        layers[row.name]: dense for row, dense in chosen if dense is not None
    }
    result = replace_layers(model, swaps, inplace=inplace)
    for row, _ in chosen:
        if row.form == "factored" or row.form == "folded":
            layer = result.get_submodule(row.name)
            assert isinstance(layer, SketchLayer)
            layer.path = row.form
    return Optimized(result, InferenceReport(tuple(row for row, _ in chosen)))


class _Input(NamedTuple):
    """What distinguishes the inputs of a layer's calls."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Input:
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def empty(self, device: torch.device | str) -> Tensor:
        """A tensor of this kind; strides with gaps or overlaps become dense."""
        sizes = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return torch.empty_like(sizes, device=device)


_Calls = Counter[_Input]


def _record_calls(
    model: nn.Module, layers: Iterable[str], example_inputs: ExampleInputs
) -> dict[str, _Calls]:
    """Runs a copy of the model, which shares its parameters, and notes what its layers are given.

    Raises:
        ValueError: the model does not run on these inputs.
        TypeError: the model cannot be copied.
    """
    calls: dict[str, _Calls] = {}

    def note(name: str, value: Tensor | None, _: object) -> None:
        if value is not None:
            calls.setdefault(name, Counter())[_Input.of(value)] += 1

    try:
        probe = watched_copy(model, layers, note)
    except TypeError as error:
        raise TypeError(
            "optimize_for_inference: the model must allow copy.deepcopy "
            f"(got {error.__cause__ or error})"
        ) from error
    call = ExampleCall(example_inputs)
    try:
        with torch.no_grad(), same_random_numbers():
            call(probe)
    except Exception as error:
        raise cannot_run_on_examples("optimize_for_inference", call, error) from error
    return calls


def _choose(
    name: str, layer: SketchLayer, calls: _Calls, seconds: float, allow_dense: bool
) -> tuple[LayerForm, nn.Module | None]:
    """The fastest form of a layer, and its replacement in the dense ones; it is not touched."""
    reason = _why_not(layer, calls)
    best, dense, times = None, None, dict[Form, float]()
    if reason is None:
        forms = _forms(layer, calls, allow_dense)
        times = dict.fromkeys(forms, 0.0)
        with torch.no_grad(), same_random_numbers():
            for kind, count in calls.items():
                value = kind.empty(kind.device).normal_()
                for form, time_of_one in _measure(forms, value, seconds).items():
                    times[form] += count * time_of_one
        near = [form for form in forms if times[form] <= _NEAR * min(times.values())]
        best = min(near, key=lambda form: (_bytes(layer, form), times[form]))
        if best not in ("factored", "folded"):
            dense = forms[best].train(layer.training)
    row = LayerForm(
        name=name,
        kind=type(layer).__name__,
        form=best,
        calls=calls.total(),
        seconds=times,
        bytes_before=_bytes(layer, None),
        bytes_after=_bytes(layer, best),
        reason=reason,
    )
    return row, dense


def _why_not(layer: SketchLayer, calls: _Calls) -> str | None:
    if not calls:
        return "not called on the example inputs"
    computed = [name for name in ("s1", "s2", "bias") if name not in layer._parameters]
    if computed:
        return f"its {' and '.join(computed)} is computed (parametrised or pruned)"
    own = "forward" in vars(layer)
    if own or type(layer).forward is not SketchLayer.forward:
        return "it has a forward of its own"
    if layer.s1.is_meta:
        return "on the meta device: nothing to measure"
    return None


def _forms(layer: SketchLayer, calls: _Calls, allow_dense: bool) -> dict[Form, nn.Module]:
    """What to measure, by form, in eval mode. Only the dense ones have parameters of their own."""
    forms: dict[Form, nn.Module] = {}
    if not layer._needs_folded:
        forms["factored"] = _with_path(layer, "factored")
    if not allow_dense:
        forms["folded"] = _with_path(layer, "folded")
        return forms
    dense: nn.Module = layer.fold().eval()  # type: ignore[operator]
    forms["dense"] = dense
    formats = {memory_format(kind.empty("meta")) for kind in calls}
    weight = dense.get_parameter("weight")
    last = CHANNELS_LAST.get(weight.dim())
    if last in formats and memory_format(weight) != last:
        forms["dense channels_last"] = copy.deepcopy(dense).to(memory_format=last)
    return forms


def _with_path(layer: SketchLayer, path: Literal["factored", "folded"]) -> SketchLayer:
    """A layer with the same tensors that takes this path; not to be changed otherwise."""
    view = copy.copy(layer)
    view.training = False
    view.path = path
    return view


def _measure(forms: Mapping[Form, nn.Module], value: Tensor, seconds: float) -> dict[Form, float]:
    """Median time of a call, by form, without the user's hooks."""
    steps = [partial(module.forward, value) for module in forms.values()]
    times = paired_times(
        steps, seconds, value.device, least=_FEWEST_SAMPLES, sample=_SAMPLE_SECONDS
    )
    return {form: statistics.median(own) for form, own in zip(forms, times, strict=True)}


def _bytes(layer: SketchLayer, form: Form | None) -> int:
    """Memory of a layer in this form; as it stands for None."""
    fixed = (layer.u1, layer.u2, layer.frame_signs)
    tensors = (*layer.parameters(), *layer.buffers(), *fixed)
    sketch = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if form is None or form == "factored":
        return sketch
    weight = layer.s2.shape[0] * layer._patch * layer.s1.element_size()
    if form == "folded":
        return sketch + weight
    return weight + (0 if layer.bias is None else layer.bias.nbytes)
