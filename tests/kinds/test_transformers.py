"""Networks of transformers, tiny ones with random weights."""

from __future__ import annotations

import pytest
import torch
from selection import slow_except
from torch import nn

from .checks import check_model

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 60, 12
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_IMAGES = {"image_size": 32, "patch_size": 8}


def words():
    return torch.randint(1, WORDS, (4, LENGTH))


def images(size=32):
    return torch.randn(2, 3, size, size)


def last(model, batch):
    return model(batch).last_hidden_state


def bert():
    return (
        transformers.BertModel(transformers.BertConfig(vocab_size=WORDS, **_ENCODER)),
        words,
        last,
    )


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH
    )
    return transformers.GPT2LMHeadModel(config), words, lambda model, x: model(x).logits


def t5():
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    call = lambda model, x: model(input_ids=x, decoder_input_ids=x[:, :5]).last_hidden_state  # noqa: E731
    return transformers.T5Model(config), words, call


def vit():
    config = transformers.ViTConfig(**_ENCODER, **_IMAGES)
    return transformers.ViTModel(config), images, last


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=10,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip

    def call(model, x):
        start = torch.ones(len(x), 4, dtype=torch.long)
        return model(input_features=x, decoder_input_ids=start).last_hidden_state

    return transformers.WhisperModel(config), lambda: torch.randn(2, 8, 40), call


def clip():
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": WORDS, **_ENCODER, "max_position_embeddings": LENGTH,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={**_ENCODER, **_IMAGES},
        projection_dim=16,
    )  # fmt: skip
    text = torch.randint(2, WORDS, (3, LENGTH))

    def call(model, x):
        found = model(input_ids=text, pixel_values=x)
        return found.text_embeds, found.image_embeds

    return transformers.CLIPModel(config), images, call


def segformer():
    config = transformers.SegformerConfig(
        depths=[1, 1], hidden_sizes=[16, 32], num_encoder_blocks=2, sr_ratios=[2, 1],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2],
        decoder_hidden_size=32, num_labels=5,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config)
    return model, images, lambda model, x: model(x).logits


def detr():
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"],
        layer_type="basic",
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, num_queries=6, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_labels=4,
    )  # fmt: skip

    def call(model, x):
        found = model(x)
        return found.logits, found.pred_boxes

    return transformers.DetrForObjectDetection(config), images, call


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=WORDS, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        head_dim=8, **_ENCODER,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config), words, lambda model, x: model(x).logits


def gpt_oss():
    config = transformers.GptOssConfig(
        vocab_size=WORDS, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        head_dim=8, **_ENCODER,
    )  # fmt: skip
    return transformers.GptOssModel(config), words, last


# The least fraction of the parameters that is compressed.
NETWORKS = {
    bert: 0.7,
    gpt2: 0.8,
    t5: 0.8,
    vit: 0.8,
    whisper: 0.6,
    clip: 0.8,
    segformer: 0.7,
    detr: 0.8,
    mixtral: 0.8,
    gpt_oss: 0.8,
}


def names(builders):
    return {builder.__name__: builder for builder in builders}


@pytest.mark.parametrize("name", slow_except(("gpt2", "mixtral"), names(NETWORKS)))
def test_one_of_every_kind(name, tmp_path):
    torch.manual_seed(0)
    build = names(NETWORKS)[name]
    model, batch, call = build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    check_model(
        model.eval(),
        [batch() for _ in range(3)],
        tmp_path=tmp_path,
        call=call,
        share=NETWORKS[build],
        sequential=False,
        sensitivity=False,
    )
