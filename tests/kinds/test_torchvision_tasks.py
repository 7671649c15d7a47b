"""torchvision's networks for detection and segmentation, with random weights."""

from __future__ import annotations

import pytest
import torch
from selection import slow_except

from .checks import check_model

pytest.importorskip("torchvision")
from torchvision.models import detection, segmentation

NONE = {"weights": None, "weights_backbone": None, "num_classes": 4}
DETECTION = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (64, 0.9),
    "retinanet_resnet50_fpn": (64, 0.8),
    "ssdlite320_mobilenet_v3_large": (96, 0.8),
}
SEGMENTATION = {
    "deeplabv3_mobilenet_v3_large": (64, 0.9),
    "lraspp_mobilenet_v3_large": (64, 0.8),
    "fcn_resnet50": (64, 0.9),
}


def heads(model, images):
    """What the boxes are made of; a box appears or not by rounding."""
    features = model.backbone(images)
    listed = list(features.values())
    if hasattr(model, "rpn"):
        pooled = model.roi_heads.box_head.fc6.in_features
        rows = torch.linspace(-1, 1, 2 * pooled).view(2, pooled)
        return model.rpn.head(listed), model.roi_heads.box_predictor(model.roi_heads.box_head(rows))
    return model.head(listed)


@pytest.mark.parametrize("name", slow_except(("ssdlite320_mobilenet_v3_large",), DETECTION))
def test_detection(name, tmp_path):
    torch.manual_seed(0)
    size, share = DETECTION[name]
    options = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    model = getattr(detection, name)(**NONE, **options).eval()
    images = [torch.rand(2, 3, size, size) for _ in range(2)]
    check_model(
        model,
        images,
        tmp_path=tmp_path,
        call=lambda model, batch: model(list(batch)),
        look=heads,
        share=share,
        sequential=False,
        sensitivity=False,
    )


@pytest.mark.parametrize("name", slow_except(("lraspp_mobilenet_v3_large",), SEGMENTATION))
def test_segmentation(name, tmp_path):
    torch.manual_seed(0)
    size, share = SEGMENTATION[name]
    model = getattr(segmentation, name)(**NONE).eval()
    images = [torch.rand(2, 3, size, size) for _ in range(2)]
    check_model(model, images, tmp_path=tmp_path, share=share, sequential=False, sensitivity=False)
