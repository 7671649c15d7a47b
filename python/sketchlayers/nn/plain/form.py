"""What a layer is seen as that is no plain ``nn.Conv2d`` or ``nn.Linear``."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers.nn._config import dense_arguments, dense_class
from sketchlayers.nn._geometry import CONVOLUTIONS, DenseConv

Plain = DenseConv | nn.Linear


class PlainForm(nn.Module):
    """A module in place of a layer of another kind, with the same outputs and the same arguments.

    Its weights are those of children that are PyTorch's convolutions and ``nn.Linear`` layers. It
    calls them, so that calibration sees their inputs and methods can replace them. A subclass makes
    the children in ``__init__``, of parameters that share the memory of the layer's (`sharing`),
    and writes their weights back in `restore`.

    Attributes of the layer can be read here too, unless the form has one of the same name.

    Attributes:
        looks_inside: whether the children are the layer's own, in which there may be other layers
            of many kinds.
    """

    looks_inside: ClassVar[bool] = False

    def __init__(self, layer: nn.Module) -> None:
        """Takes a layer that `refusal` says nothing against; it is not changed."""
        super().__init__()
        object.__setattr__(self, "_shell", _without_values(layer))  # no child: it has no values
        self.train(layer.training)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """Says in a few words why this layer cannot be seen so; None if it can."""
        return None

    @abstractmethod
    def restore(self, layer: nn.Module) -> None:
        """Gives a layer of the original kind, whose parameters are None, those of `plain` parts."""

    def original(self) -> nn.Module:
        """A layer of the original kind with the weights of the parts."""
        layer = copy.deepcopy(self._shell)
        self.restore(layer)
        return layer.train(self.training)

    def plain(self, part: str) -> Any:
        """The part as a plain layer: multiplied out, where it has been compressed."""
        found: Any = self.get_submodule(part)
        fold = getattr(found, "fold", None)
        return found if fold is None else fold()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            shell = vars(self).get("_shell")
            if shell is None or name not in vars(shell) or name.startswith("_"):
                raise
            return vars(shell)[name]

    def extra_repr(self) -> str:
        """The class of the layer."""
        return f"of {type(self._shell).__name__}"


@dataclass(frozen=True)
class Single:
    """How a layer with one weight is seen as a plain one; see `register_layer`."""

    before: Callable[[Any, Tensor], Tensor] | None
    dense: Callable[[Any], Plain] | None
    restore: Callable[[Any, Plain], None] | None
    looks_inside: ClassVar[bool] = False

    def __call__(self, layer: nn.Module) -> PlainForm:
        """The form of a layer."""
        return SingleForm(layer, self)

    def refusal(self, layer: nn.Module) -> str | None:
        """See `PlainForm.refusal`."""
        if self.dense is None and not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return f"{type(layer).__name__} was registered without dense=, and has no plain base"
        return dense_refusal(layer, ("weight", "bias"))


class SingleForm(PlainForm):
    """The form of a layer with one weight, which its only child has, after what it does before.

    Attributes:
        conv: the plain convolution, of layers that compute one.
        linear: the plain linear layer, of others.
    """

    def __init__(self, layer: nn.Module, how: Single) -> None:
        super().__init__(layer)
        self._how = how
        dense: Callable[[Any], Plain] = how.dense or same_parameters
        plain = dense(layer).train(layer.training)
        self._part = "linear" if isinstance(plain, nn.Linear) else "conv"
        self.add_module(self._part, plain)

    @property
    def weight(self) -> Tensor:
        """In the shape that the layer has it, computed anew; not differentiable."""
        return self.original().get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The part's."""
        bias: Any = self.get_submodule(self._part).bias
        return bias

    def forward(self, input: Tensor) -> Tensor:
        """As of the layer."""
        if self._how.before is not None:
            input = self._how.before(self._shell, input)
        output: Tensor = self.get_submodule(self._part)(input)
        return output

    def restore(self, layer: nn.Module) -> None:
        """See `PlainForm.restore`."""
        (self._how.restore or take_parameters)(layer, self.plain(self._part))


def sharing(weight: Tensor, bias: Tensor | None, like: nn.Module | None = None) -> Plain:
    """A plain layer whose parameters are these tensors, or share their memory if they are views.

    Args:
        weight: of a linear layer, or of a convolution; trained if the tensor is that it views.
        bias: of the layer.
        like: a convolution with the stride, padding, dilation and groups; None: a linear layer.
    """
    plain: Any
    if like is None:
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        plain = dense_class(like)(**dense_arguments(like), device="meta")
    plain.weight = _parameter(weight)
    plain.bias = None if bias is None else _parameter(bias)
    return plain


def same_parameters(layer: Any) -> Plain:
    """The plain layer with the sizes and the parameters of one of a subclass."""
    return sharing(layer.weight, layer.bias, None if isinstance(layer, nn.Linear) else layer)


def take_parameters(layer: nn.Module, plain: Any) -> None:
    """Gives a layer the parameters of a plain one."""
    layer.register_parameter("weight", plain.weight)
    layer.register_parameter("bias", plain.bias)


def dense_refusal(layer: nn.Module, names: tuple[str, ...] | None = None) -> str | None:
    """Says which of the parameters is no dense one of its own; None if all are.

    Args:
        layer: any module.
        names: of parameters that it must have, and no others; None: those that it has.
    """
    parameters = layer._parameters
    if names is not None and set(parameters) != set(names):
        return f"{type(layer).__name__} does not have the parameters {', '.join(names)} alone"
    for name, value in parameters.items():
        if value is not None and (type(value) is not nn.Parameter or value.is_sparse):
            return f"its {name} is no plain dense parameter ({type(value).__name__})"
    return None


def _parameter(tensor: Tensor) -> nn.Parameter:
    """The tensor itself, or one that shares its memory and is trained as what it is a view of."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    base = tensor._base if tensor._base is not None else tensor
    return nn.Parameter(tensor.detach(), base.requires_grad)


def _without_values(layer: nn.Module) -> nn.Module:
    """A copy of the layer itself, without parameters and hooks."""
    shell = copy.copy(layer)
    shell._parameters = dict.fromkeys(layer._parameters)
    shell._modules = {
        name: child
        for name, child in layer._modules.items()
        if child is None or next(child.parameters(), None) is None
    }
    for name, value in vars(layer).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            vars(shell)[name] = OrderedDict() if isinstance(value, dict) else value
    return shell
