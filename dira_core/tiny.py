"""For plugin authors: tiny parts to test with. Behind `dira_core.testing`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dira_core.nn.layers import batch_norm, conv
from dira_core.roles import Backbone, Source
from dira_core.types import Batch, Image, View


class TinyBackbone(Backbone):
    """Three strided convolutions: a pyramid of maps at /2, /4 and /8, for any number of axes."""

    channels = (8, 12, 16)
    strides = (2, 4, 8)

    def __init__(self, in_channels: int = 1, dims: int = 2) -> None:
        super().__init__()
        self.in_channels, self.dims = in_channels, dims
        widths = (in_channels, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(dims, a, b, stride=2), batch_norm(dims, b), nn.ReLU())
            for a, b in pairwise(widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images into three maps."""
        pyramid = [images]
        for stage in self.stages:
            pyramid.append(stage(pyramid[-1]))
        return pyramid[1:]


class TinySource(Source):
    """Smooth random images in memory, with two classes that differ in brightness."""

    def __init__(self, n: int = 16, size: int = 24, dims: int = 2) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(n) % 2
        coarse = rng.random((n, 1, *[size // 4] * dims))
        for axis in range(2, 2 + dims):
            coarse = coarse.repeat(4, axis)
        light = self.labels.reshape(-1, *[1] * (dims + 1))
        self._pixels = (coarse * 155 + light * 100).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> Image:
        """Return image `index`."""
        return Image(self._pixels[index], (0.0, 255.0))

    def name(self, index: int) -> str:
        """Return its number."""
        return f"tiny-{index}"

    def fingerprint(self) -> str:
        """Return the number and shape of the images."""
        return f"tiny-{self._pixels.shape}"


def tiny_batch(
    batch: int = 4, n_views: int = 2, channels: int = 1, size: Sequence[int] = (32, 32)
) -> Batch:
    """Return random views: the image is the crop with a black corner."""
    generator = torch.Generator().manual_seed(0)
    views = []
    corner: tuple[Any, ...] = (..., *(slice(0, side // 4) for side in size))
    for _ in range(n_views):
        crop = torch.rand((batch, channels, *size), generator=generator)
        image = crop.clone()
        image[corner] = 0
        box = torch.tensor([[0.0, float(s)] for s in size]).expand(batch, -1, -1)
        views.append(View(crop, image, box, torch.zeros(batch, dtype=torch.int64)))
    return Batch(tuple(views), torch.arange(batch), torch.arange(batch) % 2)
