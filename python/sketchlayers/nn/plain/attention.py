"""Attention of several heads whose projections are linear layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from sketchlayers.nn._weight import computed_weight
from sketchlayers.nn.plain.form import PlainForm, dense_refusal, sharing

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class PlainAttention(PlainForm):
    """The plain form of ``nn.MultiheadAttention``: takes and returns the same.

    ``nn.TransformerEncoderLayer`` calls it, where it would compute an attention layer of PyTorch
    from the dense weights of all layers in it.

    Attributes:
        q_proj: linear layer for the queries; k_proj and v_proj for keys and values.
        out_proj: linear layer after the heads.
    """

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__(layer)
        self.embed_dim, self.kdim, self.vdim = layer.embed_dim, layer.kdim, layer.vdim
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.dropout, self.batch_first = layer.dropout, layer.batch_first
        self.add_zero_attn = layer.add_zero_attn
        self._qkv_same_embed_dim = False  # what keeps PyTorch's layers from the dense weights
        if layer.in_proj_weight is not None:
            weights = layer.in_proj_weight.chunk(3)
        else:
            weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        bias = layer.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        for name, weight, part in zip(_PROJECTIONS, weights, biases, strict=True):
            self.add_module(name, sharing(weight, part))
        self.out_proj = sharing(layer.out_proj.weight, layer.out_proj.bias)
        self.bias_k, self.bias_v = layer.bias_k, layer.bias_v
        self.train(layer.training)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See `PlainForm.refusal`."""
        out: Any = layer.out_proj
        if type(out) is not NonDynamicallyQuantizableLinear or is_parametrized(layer):
            return "its projections are no plain parameters"
        return dense_refusal(layer) or dense_refusal(out, ("weight", "bias"))

    def restore(self, layer: Any) -> None:
        """See `PlainForm.restore`."""
        parts = [self.plain(name) for name in _PROJECTIONS]
        if layer._qkv_same_embed_dim:
            layer.in_proj_weight = _joined([part.weight for part in parts])
        else:
            for name, part in zip(_PROJECTIONS, parts, strict=True):
                setattr(layer, f"{name}_weight", part.weight)
        if parts[0].bias is not None:
            layer.in_proj_bias = _joined([part.bias for part in parts])
        out, sizes = self.plain("out_proj"), (self.embed_dim, self.embed_dim)
        layer.out_proj = NonDynamicallyQuantizableLinear(*sizes, out.bias is not None, "meta")
        layer.out_proj.weight, layer.out_proj.bias = out.weight, out.bias
        layer.bias_k, layer.bias_v = self.bias_k, self.bias_v

    @property
    def in_proj_weight(self) -> Tensor | None:
        """Of the dense layer, computed; None where keys or values have sizes of their own."""
        if not self.embed_dim == self.kdim == self.vdim:
            return None
        weight = torch.cat([self._part(name).weight for name in _PROJECTIONS])
        return computed_weight(type(self).__name__, weight, torch.contiguous_format)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Of the dense layer, computed."""
        if self._part("q_proj").bias is None:
            return None
        return torch.cat([self._part(name).bias for name in _PROJECTIONS])

    def _part(self, name: str) -> Any:
        return self._modules[name]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``.

        Raises:
            ValueError: ``is_causal`` without ``attn_mask``, or nested tensors with a mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError(f"{type(self).__name__}: is_causal needs attn_mask (got None)")
        if query.is_nested:
            return self._nested(
                query,
                key,
                value,
                attn_mask=attn_mask if key_padding_mask is None else key_padding_mask,
                need_weights=need_weights,
                average_attn_weights=average_attn_weights,
            )
        projected = [
            self._part(name)(x) for name, x in zip(_PROJECTIONS, (query, key, value), strict=True)
        ]
        batched = query.dim() == 3
        if not batched:
            projected = [x.unsqueeze(0) for x in projected]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            projected = [x.transpose(0, 1) for x in projected]
        q, k, v = projected
        only_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if only_causal else self._mask(q, k, attn_mask, key_padding_mask)
        k, v, mask = self._extended(k, v, mask)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        heads, weights = self._attended(q, k, v, mask, only_causal, need_weights)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of the heads, (B, heads, L, head_dim), and the weights where they are needed."""
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal), None
        scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-1, -2)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        return weights @ v, weights

    def _mask(
        self, q: Tensor, k: Tensor, mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores, of a shape that broadcasts to (B, heads, L, S)."""
        if mask is not None:
            size = q.shape[1], k.shape[1]
            if tuple(mask.shape) not in (size, (len(q) * self.num_heads, *size)):
                raise RuntimeError(
                    f"{type(self).__name__}: attn_mask must have shape {size} or "
                    f"{(len(q) * self.num_heads, *size)} (got {tuple(mask.shape)})"
                )
            mask = added(mask, q.dtype)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if key_padding_mask is None:
            return mask
        keys = added(key_padding_mask, q.dtype)[:, None, None, :]
        return keys if mask is None else mask + keys

    def _extended(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with those that are appended, which no mask hides."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
            mask = None if mask is None else F.pad(mask, (0, 1))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
            mask = None if mask is None else F.pad(mask, (0, 1))
        return k, v, mask

    def _nested(self, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> tuple[Tensor, Any]:
        """Of sequences of several lengths, which ``nn.TransformerEncoder`` makes of padded ones."""
        if query is not key or key is not value or how["attn_mask"] is not None:
            raise ValueError(
                f"{type(self).__name__}: nested tensors must attend to themselves, without a mask"
            )
        padded = query.to_padded_tensor(0.0)
        lengths = query._nested_tensor_size()[:, :1].to(padded.device)
        hidden = torch.arange(padded.shape[1], device=padded.device) >= lengths
        output, weights = self(padded, padded, padded, key_padding_mask=hidden, **how)
        return torch._nested_tensor_from_mask(output, ~hidden, mask_check=False), weights


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to scores: minus infinity where a bool is True."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _joined(parts: list[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([x.detach() for x in parts]), any(x.requires_grad for x in parts))
