"""Networks of timm, small ones with random weights, one of each family."""

from __future__ import annotations

import pytest
import torch
from selection import slow_except

from .checks import check_model

timm = pytest.importorskip("timm")

_WINDOWS = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}

# Arguments, the size of images, and the least fraction of the parameters that is compressed.
NETWORKS = {
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32, 0.9),
    "deit3_small_patch16_224": ({"img_size": 32, "depth": 1}, 32, 0.9),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 1, "embed_dim": 96}, 32, 0.7),
    "cait_xxs24_224": ({"img_size": 32, "depth": 2}, 32, 0.9),
    "mixer_s32_224": ({"img_size": 64}, 64, 0.9),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 64, 0.8),
    "tf_efficientnet_lite0": ({}, 64, 0.8),
    "efficientnet_b0": ({}, 64, 0.8),
    "mobilenetv4_conv_small": ({}, 64, 0.8),
    "mobilenetv3_small_050": ({}, 64, 0.8),
    "ghostnet_050": ({}, 64, 0.7),
    "lcnet_050": ({}, 64, 0.8),
    "rexnet_100": ({}, 64, 0.8),
    "maxvit_rmlp_pico_rw_256": ({"img_size": 64}, 64, 0.8),
    "swin_tiny_patch4_window7_224": ({**_WINDOWS, "window_size": 4}, 64, 0.8),
    "resnet10t": ({}, 64, 0.9),
    "regnetx_002": ({}, 64, 0.8),
    "res2net50_14w_8s": ({}, 64, 0.9),
    "hrnet_w18_small": ({}, 64, 0.9),
    "repvgg_a0": ({}, 64, 0.8),
    "mobilevit_xxs": ({}, 64, 0.8),
    "edgenext_xx_small": ({}, 64, 0.6),
    "levit_128s": ({}, 224, 0.7),
    "efficientvit_b0": ({}, 64, 0.8),
    "poolformer_s12": ({"layers": (1, 1, 1, 1)}, 64, 0.8),
    "fastvit_t8": ({}, 64, 0.7),
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 1}, 64, 0.7),
    "pvt_v2_b0": ({}, 64, 0.8),
}


@pytest.mark.parametrize("name", slow_except(("vit_tiny_patch16_224",), NETWORKS))
def test_one_of_every_family(name, tmp_path):
    torch.manual_seed(0)
    options, size, share = NETWORKS[name]
    model = timm.create_model(name, pretrained=False, num_classes=10, **options).eval()
    images = [torch.randn(2, 3, size, size) for _ in range(2)]
    check_model(model, images, tmp_path=tmp_path, share=share, sequential=False, sensitivity=False)
