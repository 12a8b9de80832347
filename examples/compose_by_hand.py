"""Own roles, own images, no recipe file: a trio put together by hand and pretrained.

python examples/compose_by_hand.py runs/by-hand
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dira_core import (
    Discriminator,
    Encodings,
    Image,
    Objective,
    Pyramid,
    ResNet,
    Restorer,
    Settings,
    Source,
    Trio,
    View,
    mean_squared,
    mlp,
    negative_cosine,
    pretrain,
)


class Agree(Discriminator):
    """Let each view predict the other's features, whose gradient is stopped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.predictor = mlp([width, 64, width])

    def forward(self, encodings: Encodings) -> Objective:
        h1, h2 = encodings[0].pooled, encodings[1].pooled
        one = negative_cosine(self.predictor(h1), h2.detach())
        two = negative_cosine(self.predictor(h2), h1.detach())
        return Objective((one + two) / 2, embedding=h1)


class Blurry(Restorer):
    """Restore from the shallowest map alone: one convolution, enlarged."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.stride = backbone.strides[0]
        self.head = nn.Conv2d(backbone.channels[0], backbone.in_channels, 3, padding=1)

    def forward(self, pyramid: Pyramid) -> Tensor:
        return torch.sigmoid(interpolate(self.head(pyramid[0]), scale_factor=self.stride))

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return mean_squared(restored, view.crop)


class Stripes(Source):
    """Sixteen striped images in memory; a source of files would read them in `read`."""

    def __len__(self) -> int:
        return 16

    def read(self, index: int) -> Image:
        row = np.arange(64) * (index + 1) % 256
        return Image(np.tile(row.astype(np.uint8), (1, 64, 1)), window=(0, 255))

    def name(self, index: int) -> str:
        return f"stripes-{index}"

    def fingerprint(self) -> str:
        return "stripes-1"


def main(folder: Path) -> None:
    """Pretrain the trio; the run folder is that of any run."""
    torch.manual_seed(0)
    backbone = ResNet(18, 1, zero_init_residual=True)
    trio = Trio(backbone, Agree(backbone.channels[-1]), Blurry(backbone))
    settings = Settings.model_validate(
        {
            "views": {"size": 32, "distort": ["inner-cutout"]},
            "train": {"epochs": 2, "batch_size": 8},
        }
    )
    result = pretrain(trio, Stripes(), settings, folder)
    print(result.status, sorted(result.summary["after"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
