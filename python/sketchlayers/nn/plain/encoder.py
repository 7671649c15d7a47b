"""``nn.TransformerEncoder`` without packed sequences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.transformer import _detect_is_causal_mask, _get_seq_len

from sketchlayers.nn.plain.attention import added
from sketchlayers.nn.plain.form import PlainForm


class PlainEncoder(PlainForm):
    """The plain form of ``nn.TransformerEncoder``: takes and returns the same.

    PyTorch packs padded sequences into nested tensors where the first layer can take its fast path,
    and the outputs of hidden positions are then zero. This one never packs, and sets them to zero
    in the same cases.

    Attributes:
        layers: the encoder's own.
        norm: the encoder's own.
    """

    looks_inside: ClassVar[bool] = True

    def __init__(self, layer: nn.TransformerEncoder) -> None:
        super().__init__(layer)
        self.layers, self.norm = layer.layers, layer.norm

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See `PlainForm.refusal`."""
        layers: Any = layer.layers
        if not all(isinstance(one, nn.TransformerEncoderLayer) for one in layers):
            return "its layers are of other kinds"
        return None

    def restore(self, layer: nn.Module) -> None:
        """See `PlainForm.restore`."""
        layer._modules.update(layers=self.layers, norm=self.norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As ``nn.TransformerEncoder``."""
        first: Any = self.layers[0]
        length = _get_seq_len(src, first.self_attn.batch_first)
        mask = None if mask is None else added(mask, src.dtype)
        is_causal = _detect_is_causal_mask(mask, is_causal, length)
        output = src
        for layer in self.layers:
            output = layer(output, mask, src_key_padding_mask, is_causal=is_causal)
        if src_key_padding_mask is not None and self._packs(src, mask, src_key_padding_mask):
            output = output.masked_fill(src_key_padding_mask.bool()[..., None], 0)
        return output if self.norm is None else self.norm(output)

    def _packs(self, src: Tensor, mask: Tensor | None, hidden: Tensor) -> bool:
        """Whether PyTorch would."""
        encoder: Any = self._shell
        if (
            not getattr(encoder, "use_nested_tensor", False)
            or not torch.backends.mha.get_fastpath_enabled()
            or self.layers[0].training
            or src.dim() != 3
            or mask is not None
            or torch.is_autocast_enabled()
        ):
            return False
        if torch.is_grad_enabled() and (
            src.requires_grad or any(p.requires_grad for p in self.layers[0].parameters())
        ):
            return False
        if not getattr(encoder, "mask_check", True):
            return True
        if torch.compiler.is_compiling():
            return False
        return bool(torch._nested_tensor_from_mask_left_aligned(src, hidden.logical_not()))
