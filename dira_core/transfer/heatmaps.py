"""Where a classifier looks: Grad-CAM of its deepest map, by captum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core.encodings import pool
from dira_core.transfer.networks import Classifier

SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Watched(nn.Module):
    """A classifier whose deepest map passes through a module, which captum can listen to."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.deepest = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        deepest = self.deepest(self.classifier.backbone(images)[-1])
        logits: Tensor = self.classifier.head(pool(deepest))
        return logits.float()


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> np.ndarray[Any, Any]:
    """Return how much each pixel speaks for a class.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391, eq. 1 and 2.

    Args:
        classifier: In evaluation mode.
        images: (B, C, *S).
        classes: (B,) int64, whose logit is explained.

    Returns:
        (B, *S) float32 in [0, 255]: the map at the image's size, its least value at 0 and its
        largest at 255; 0 everywhere where it is flat, so nothing speaks for the class.
    """
    from captum.attr import LayerGradCam

    watched = Watched(classifier)
    found = LayerGradCam(watched, watched.deepest).attribute(
        images, target=classes, relu_attributions=True
    )
    sides = images.shape[2:]
    map_ = F.interpolate(found.detach().float(), sides, mode=SMOOTH[len(sides)])[:, 0]
    return scaled(map_).cpu().numpy()


def scaled(maps: Tensor) -> Tensor:
    """Stretch maps (B, *S) to [0, 255] each; flat ones become 0."""
    axes = tuple(range(1, maps.dim()))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    stretched = (maps - low) / (high - low) * 255
    return torch.where(high > low, stretched, torch.zeros_like(maps))
