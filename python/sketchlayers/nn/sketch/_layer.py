"""What `SKConv2d` and `SKLinear` share: factors, signs, scale, initial values, the dense weight."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sketchlayers import _extension, ops
from sketchlayers._runtime.parallel import check_whole
from sketchlayers.decompose import SketchFactors, sketch_least_squares, unbiased_sketch
from sketchlayers.nn._autocast import autocast_type
from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn._checks import one_of, whole_number
from sketchlayers.nn._export import exporting
from sketchlayers.nn._geometry import Geometry, batch_and_size, output_size
from sketchlayers.nn._groups import sensitivity_by_group
from sketchlayers.nn._layer import CompressedLayer, Factory, Norm, draw_normal
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._sizes import max_rank, weights_per_rank
from sketchlayers.ops import Mixing, Path

Scale = Literal["paper", "normalized"] | float
Frame = Literal["signs"] | None
Signs = Literal["rademacher", "hadamard"]

# Number of the frame's sign matrix for group 0: part of the file format (see `ops.sign_matrix`).
_FRAME_MATRIX = 2**31 + 2**30

_KEPT_REASON = "the dense weight is kept from call to call in eval mode without gradients"


_DOCUMENTED = """\
        scale: the factor of the sum: ``"paper"`` is ``1/(2l)``; ``"normalized"`` is ``1/sqrt(2l)``,
            for which a step of SGD moves ``W_hat`` as far as it moves a dense weight; or a number.
        blocks: equal parts of the inputs and of the outputs of each group that have signs of their
            own: ``U1_i`` for each block of the inputs, ``U2_i`` for each block of the outputs. It
            has the same parameters and the same variance, but the rank of ``W_hat`` may be
            ``blocks`` times ``2 l k``, and it trains much better, for ``blocks`` times the
            operations with signs. 1 is the paper's layer.
        signs: ``"rademacher"``, independent random signs, or ``"hadamard"``, rows of a randomised
            Hadamard transform, which are orthogonal (named in the paper as a possible gain).
        frame: ``"signs"`` multiplies the sum by fixed random signs, made from the seed.
        seed: decides all signs; ``None`` draws it from PyTorch's default generator.
"""


_DOCUMENTED_FIT = """\
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
                Second moment and sensitivity go with one block and without a frame.
"""


class Plan(NamedTuple):
    """How a layer would compute one forward call. Multiply-adds count the whole call.

    Attributes:
        path: ``"factored"`` or ``"folded"`` (the dense weight is formed first).
        reason: one sentence.
        multiply_adds: of the chosen path.
        factored_multiply_adds: of the factored path.
        folded_multiply_adds: of the folded path; forming the weight is included, unless it is kept
            from call to call.
        dense_multiply_adds: of the dense layer that this one stands for.
    """

    path: str
    reason: str
    multiply_adds: float
    factored_multiply_adds: float
    folded_multiply_adds: float
    dense_multiply_adds: float


class SketchLayer(WeightCache, CompressedLayer):
    """A layer with ``W_hat = c * frame o (A S1 + S2 B)`` in place of its weight.

    With more than one block every block of the inputs has its own ``A``, and every block of the
    outputs its own ``B``.

    In eval mode without gradients the dense weight is kept where that is the faster way; see
    `WeightCache`. For averages of the state dict and writes into it see `SeededModule`.

    Attributes:
        s1: parameter, ``(groups * l * k, d2 / groups, h, w)`` or ``(l * k, d2)``.
        s2: parameter, ``(d1, l * k, h, w)`` or ``(d1, l * k)``.
        bias: parameter ``(d1,)`` or ``None``.
        seed: decides all signs; setting it makes them anew. The state dict has it as ``seed_bits``.
        u1: packed signs of ``A``, ``(groups, blocks * l * k, words)``, int32, no buffer.
        u2: packed signs of ``B``, ``(groups, blocks * l * k * h * w, words)`` or
            ``(groups, blocks * l * k, words)``.
        frame_signs: packed signs of the frame, or ``None``.
        rank: ``k``.
        num_sketches: ``l``.
        rate: parameters of this layer over those of the dense one, biases included.
        scale: ``c`` as a number.
        fit_error: relative error of the weight this layer was made from, in the norm of the fit;
            ``None`` for a layer that was not made from another. Not part of the state dict.
    """

    _needs_extension = True
    _documented, _documented_fit = _DOCUMENTED, _DOCUMENTED_FIT
    _inits = ("fit", "unbiased", "random")
    _trained = ("s1", "s2")
    _fixed = ("u1", "u2", "frame_signs")
    _weight_options = ("scale", "num_sketches", "mixing")

    s1: nn.Parameter
    s2: nn.Parameter
    bias: nn.Parameter | None
    u1: Tensor
    u2: Tensor
    frame_signs: Tensor | None
    fit_error: float | None

    def _construct(
        self,
        bias: bool,
        factory: Factory,
        *,
        rank: int | None = None,
        num_sketches: int = 1,
        rate: float | None = None,
        mixing: Mixing = "spatial",
        scale: Scale = "paper",
        blocks: int = 1,
        signs: Signs = "rademacher",
        frame: Frame = None,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        num_sketches = whole_number(owner, "num_sketches", num_sketches)
        one_of(owner, "mixing", mixing, ("spatial", "channel"))
        blocks = whole_number(owner, "blocks", blocks)
        one_of(owner, "signs", signs, ("rademacher", "hadamard"))
        one_of(owner, "frame", frame, (None, "signs"))
        inputs, outputs, groups = self._group_inputs, self._group_outputs, self._groups
        if inputs % blocks or outputs % blocks:
            raise ValueError(
                f"{owner}: blocks must divide the inputs and the outputs of a group "
                f"(got blocks={blocks}, inputs={inputs}, outputs={outputs})"
            )
        factor = scale_factor(owner, scale, num_sketches)
        rank = self._checked_rank(rank, num_sketches, rate, bias)
        WeightCache.__init__(self, seed, factory["device"])
        self.rank = rank
        self.num_sketches = num_sketches
        self.mixing: Mixing = mixing
        self.scale = factor
        self.blocks = blocks
        self.signs: Signs = signs
        self.frame: Frame = frame
        self._path: Path = "auto"
        stacked = num_sketches * rank
        s1 = torch.empty(groups * stacked, inputs, *self._kernel, **factory)
        s2 = torch.empty(groups * outputs, stacked, *self._kernel, **factory)
        self.s1, self.s2 = nn.Parameter(s1), nn.Parameter(s2)
        self._add_bias(bias, factory)
        self.reset_parameters()

    def _checked_rank(
        self, rank: int | None, num_sketches: int, rate: float | None, bias: bool
    ) -> int:
        """The rank that was given, checked, or that nearest to the rate."""
        owner, geometry = type(self).__name__, Geometry.of(self)
        rank = None if rank is None else whole_number(owner, "rank", rank)
        if num_sketches * (rank or 1) > max_rank(geometry, 1):
            raise ValueError(
                f"{owner}: num_sketches * rank must be at most min(inputs, outputs) / groups = "
                f"{max_rank(geometry, 1)} (got num_sketches={num_sketches}, rank={rank or 1})"
            )
        bounds = (1, max_rank(geometry, num_sketches))
        per_rank = weights_per_rank(geometry, num_sketches)
        return self._number_or_nearest("rank", rank, rate, bias, bounds, per_rank)

    def reset_parameters(self) -> None:
        """Draw new factors and bias from PyTorch's generator; make the signs from the seed.

        The factors are normal with the deviation that gives ``W_hat`` the Kaiming variance
        ``2 / n`` for any scale: iid factors of deviation ``s`` make it ``2 l c^2 s^2``. The bias is
        drawn as ``nn.Conv2d`` draws it.
        """
        self.reset_signs()
        self.fit_error = None
        if self.s1.is_meta:
            return
        deviation = math.sqrt(2 / self._patch) / (self.scale * math.sqrt(2 * self.num_sketches))
        for factor in (self.s1, self.s2):
            draw_normal(factor, deviation)
        self._draw_bias()

    @property
    def _group_inputs(self) -> int:
        return self._weight_shape[1]

    @property
    def _group_outputs(self) -> int:
        return self._weight_shape[0] // self._groups

    @property
    def _mixed(self) -> tuple[int, int]:
        """Rows of ``U2`` for each of ``U1``, and its columns."""
        if self.mixing == "spatial":
            return math.prod(self._kernel), self._patch
        return 1, self._group_inputs

    @property
    def path(self) -> Path:
        """Computation path; ``"auto"`` plans each call, ``"factored"``, ``"folded"`` freeze it."""
        return self._path

    @path.setter
    def path(self, path: Path) -> None:
        owner = type(self).__name__
        one_of(owner, "path", path, ("auto", "factored", "folded"))
        if path == "factored" and self._needs_folded:
            raise ValueError(
                f"{owner}: path must be 'auto' or 'folded' {self._why_folded}"
                f"(got path='factored', frame={self.frame!r})"
            )
        self._path = path
        self._decisions = None
        if path == "factored":
            self._kept = None

    # Why `_needs_folded`, for a message.
    _why_folded: ClassVar[str] = "with a frame "

    @property
    def _needs_folded(self) -> bool:
        return self.frame is not None

    def dense_weight(self) -> Tensor:
        """``W_hat`` in the shape of the dense weight, differentiable in ``s1`` and ``s2``.

        Raises:
            RuntimeError: the factors are sharded.
        """
        check_whole(type(self).__name__, self.s1)
        self._follow_seed()
        if exporting():
            return _onnx.weight(self)
        weight = ops.sk_weight(
            self._planar(self.s1),
            self._planar(self.s2),
            self.u1,
            self.u2,
            mixing=self.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
        )
        return weight.reshape(self._weight_shape)

    def _planar(self, factor: Tensor) -> Tensor:
        """A factor with two axes of the kernel, as the operators take it, or with none."""
        return factor

    def _exports_factors(self) -> bool:
        """Whether an ONNX export goes by the factors, where that is possible and less work.

        Spatial mixing does not: its signs, ``l k h w n`` of them, outweigh the factors.
        """
        if self._needs_folded or self.path == "folded":
            return False
        positions = math.prod(self._kernel)
        if self.mixing == "spatial" and positions > 1:
            return False
        channels = self._group_inputs + self._group_outputs
        per_row = (self.blocks + positions) * channels
        return self.num_sketches * self.rank * per_row < self._group_outputs * self._patch

    def sketch_matrices(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """The sketch matrices of the paper, with their ``1/sqrt`` factors.

        Args:
            dtype: of the result; ``None`` is the layer's own.

        Returns:
            ``U1 (l, k, d1)`` and ``U2 (l, k * h * w, n)``, or ``U2 (l, k, d2)`` for channel mixing;
            with more than one block both have a leading axis for the blocks, and with more than one
            group one for the groups before it, and the sizes are a group's own.
        """
        dtype = dtype or self.s1.dtype
        taps, columns = self._mixed
        u1 = ops.unpack_signs(self.u1, self._group_outputs, dtype=dtype) / math.sqrt(self.rank)
        u2 = ops.unpack_signs(self.u2, columns, dtype=dtype) / math.sqrt(self.rank * taps)
        stack = (self.blocks, self.num_sketches) if self.blocks > 1 else (self.num_sketches,)
        u1 = u1.unflatten(1, (*stack, self.rank))
        u2 = u2.unflatten(1, (*stack, self.rank * taps))
        return (u1, u2) if self._groups > 1 else (u1.squeeze(0), u2.squeeze(0))

    def _make_seeded(self) -> dict[str, Tensor]:
        present = {"u1": True, "u2": True, "frame_signs": self.frame}
        return {name: self._packed(name) for name, there in present.items() if there}

    def _packed(self, name: str) -> Tensor:
        """The packed signs of this name, made from the seed."""
        make = ops.hadamard_signs if self.signs == "hadamard" else ops.sign_matrix
        outputs, patch = self._group_outputs, self._patch
        stacked = self.blocks * self.num_sketches * self.rank
        taps, columns = self._mixed
        if name == "u1":
            return self._by_group(make, 0, 2, stacked, outputs)
        if name == "u2":
            return self._by_group(make, 1, 2, stacked * taps, columns)
        return self._by_group(ops.sign_matrix, _FRAME_MATRIX, 1, outputs, patch)

    def _by_group(
        self, make: Callable[..., Tensor], first_matrix: int, step: int, rows: int, columns: int
    ) -> Tensor:
        """Packed signs ``(groups, rows, words)``; group g's are of ``first_matrix + step * g``."""
        device = self.seed_bits.device
        first = make(self._seed, first_matrix, rows, columns, device=device)
        if first.is_meta:  # where stacking would import the whole of `torch._dynamo`
            return first.new_empty(self._groups, *first.shape)
        others = (
            make(self._seed, first_matrix + step * g, rows, columns, device=device)
            for g in range(1, self._groups)
        )
        return torch.stack([first, *others])

    def forward(self, input: Tensor) -> Tensor:
        """What the dense layer with the weight ``W_hat`` makes of an input."""
        if is_compiling():
            return self._traced(input)
        weight = self._current_weight(input)
        return self._from_factors(input) if weight is None else self._applied(input, weight)

    def _traced(self, input: Tensor) -> Tensor:
        """The output in code that is compiled or exported, where no weight is kept."""
        if not exporting():
            return self._from_factors(input)
        if self._exports_factors():
            return self._exported_factors(input)
        return self._applied(input, self.dense_weight())

    def _exported_factors(self, input: Tensor) -> Tensor:
        """The output in standard operations, without a dense weight."""
        raise NotImplementedError

    def _from_factors(self, input: Tensor) -> Tensor:
        """The output without a dense weight that is there already."""
        raise NotImplementedError

    def plan(self, input_shape: Sequence[int], *, channels_last: bool = False) -> Plan:
        """Which path would run for an input of this shape, and why.

        Gradients count if they would be recorded.

        Args:
            input_shape: ``(N, d2, H, W)`` or ``(d2, H, W)``, or ``(*, d2)`` of an `SKLinear`.
            channels_last: whether an image lies in memory with the channels innermost.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        keeps = self._path != "factored" and self._would_keep_weight()
        channels_last = channels_last and bool(self._kernel)
        planned = self._planned(input_shape, channels_last, weight_ready=keeps)
        path, reason = planned.path, planned.reason
        if keeps and path == "folded":
            reason = f"{_KEPT_REASON}: {reason}"
        if self._path != "auto":
            path, reason = self._path, f"The layer's path is set to {self._path!r}."
        factored, folded = planned.factored_multiply_adds, planned.folded_multiply_adds
        chosen = factored if path == "factored" else folded
        return Plan(path, reason, chosen, factored, folded, planned.dense_multiply_adds)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on the path that needs fewer, or is set; without bias.

        The path that `plan` names is the faster one on this machine, and may need more.
        """
        plan = self.plan(input_shape)
        counts = {"factored": plan.factored_multiply_adds, "folded": plan.folded_multiply_adds}
        if self._needs_folded:
            del counts["factored"]
        return round(counts.get(self._path, min(counts.values())))

    def _planned(self, input_shape: Sequence[int], channels_last: bool, weight_ready: bool) -> Any:
        """The planner's answer, for a dense weight that is there or has to be formed."""
        batch, size = batch_and_size(type(self).__name__, self, input_shape)
        trained = self.s1.requires_grad or self.s2.requires_grad
        planner = _extension.require(type(self).__name__)
        return planner.plan(
            batch=batch,
            in_channels=self._group_inputs * self._groups,
            out_channels=self._group_outputs * self._groups,
            groups=self._groups,
            kernel=tuple(self._planar(self.s1).shape[2:]) or (1, 1),
            input_pixels=math.prod(size),
            output_pixels=math.prod(output_size(Geometry.of(self), size)),
            sketch_rank=self.num_sketches * self.rank,
            mixing=self.mixing,
            is_linear=not self._kernel,
            device=self.s1.device.type,
            dtype=self._computed_type(),
            training=torch.is_grad_enabled() and trained,
            weight_ready=weight_ready,
            needs_folded=self._needs_folded,
            blocks=self.blocks,
            channels_last=channels_last or _is_channels_last(self.s1),
        )

    def _computed_type(self) -> str:
        dtype = self.s1.dtype
        if dtype != torch.float64:
            dtype = autocast_type(self.s1.device.type) or dtype
        return str(dtype).removeprefix("torch.")

    def _prefers_kept_weight(self, input: Tensor) -> bool:
        if self._path == "auto" and not self._needs_folded:
            if _extension.require(type(self).__name__).benchmark_enabled():
                self._from_factors(input)  # the operator times both paths
            planned = self._planned(input.shape, _is_channels_last(input), weight_ready=True)
            return bool(planned.path == "folded")
        batch_and_size(type(self).__name__, self, input.shape)  # raises where it does not fit
        return self._path != "factored"

    def _weight_parameters(self) -> list[nn.Parameter]:
        return [self.s1, self.s2]

    def _fit(self, weight: Tensor, init: str, norm: Norm, **how: Any) -> float:
        factors = self._factors(weight, init, *norm)
        self.s1.detach().copy_(factors.s1)
        self.s2.detach().copy_(factors.s2)
        return factors.relative_error

    def _factors(
        self,
        weight: Tensor,
        init: str,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
    ) -> SketchFactors:
        if sensitivity is not None:
            sensitivity = sensitivity_by_group(
                type(self).__name__, sensitivity, self._groups, self._group_outputs
            ).to(weight.device)
            sensitivity = sensitivity if self._groups > 1 else sensitivity[0]
        u1, u2 = self.sketch_matrices(dtype=torch.float64)
        frame = self._unpack(self.frame_signs)
        if init == "unbiased":
            return unbiased_sketch(
                weight, u1, u2, scale=self.scale, frame=frame, blocks=self.blocks
            )
        return sketch_least_squares(
            weight,
            u1,
            u2,
            scale=self.scale,
            frame=frame,
            blocks=self.blocks,
            second_moment=None if second_moment is None else second_moment.to(weight.device),
            sensitivity=sensitivity,
        )

    def _unpack(self, signs: Tensor | None) -> Tensor | None:
        """Signs of the weight's shape, float64."""
        if signs is None:
            return None
        shape = (self.s2.shape[0], self._group_inputs, *self._kernel)
        return ops.unpack_signs(signs, self._patch, dtype=torch.float64).reshape(shape)

    def config(self) -> dict[str, Any]:
        """As `Configured.config`, and ``path`` unless it is chosen for each call."""
        return super().config() | ({} if self._path == "auto" else {"path": self._path})

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, device: torch.device | str | int | None = None
    ) -> Self:
        """As `Configured.from_config`.

        Raises:
            ValueError: also for a configuration of an earlier version with ``base="random"``.
        """
        if "base" in config:
            raise ValueError(
                f"{cls.__name__}: base='random' was removed, since a frame is more accurate and "
                "blocks are faster, so the layer must be one without it"
            )
        arguments = {name: value for name, value in config.items() if name != "path"}
        layer = super().from_config(arguments, device=device)
        layer.path = config.get("path", "auto")
        return layer

    def _seeded_options(self) -> dict[str, object]:
        names = ("blocks", "frame", "mixing", "num_sketches", "rank", "scale", "signs")
        return {name: getattr(self, name) for name in names}

    def options(self) -> dict[str, Any]:
        """As `Configured.options`."""
        is_default = self.scale == 1 / (2 * self.num_sketches)
        return super().options() | ({"scale": "paper"} if is_default else {})


def _is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels are innermost, and not only so because other axes have one entry."""
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def scale_factor(owner: str, scale: Scale, num_sketches: int) -> float:
    """The number ``c`` that ``scale`` stands for.

    Raises:
        TypeError: neither a string nor a number.
        ValueError: another string, or a number that is not finite or not above 0.
    """
    if isinstance(scale, str):
        one_of(owner, "scale", scale, ("paper", "normalized"))
        return 1 / (2 * num_sketches) if scale == "paper" else 1 / math.sqrt(2 * num_sketches)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(
            f"{owner}: scale must be 'paper', 'normalized' or a number (got scale={scale!r})"
        )
    factor = float(scale)
    if not 0 < factor < math.inf:
        raise ValueError(f"{owner}: scale must be finite and above 0 (got scale={factor})")
    return factor
