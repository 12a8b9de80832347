"""The input pipeline of DiRA's public code, written from its description: images through Pillow.

What it does, in which order and with which probabilities is a fact; how it is written is ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageFilter
from torch import Tensor
from torchvision import transforms

SCALE = (0.2, 1.0)
"""Smallest and largest part of an image that a crop covers."""

MARGIN = 3
"""Least distance of a block to the border, in px."""


class PublicPipeline:
    """Turn image files into view 1, view 2 and the target, one after the other, in colour.

    Args:
        size: Side of a view in px; lengths of distortions are those for 224.
        seed: Of its random numbers.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._random = random.Random(seed)
        self.crop = transforms.RandomResizedCrop(size, scale=SCALE)
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.appearance = transforms.Compose(
            [
                transforms.RandomApply([jitter], p=0.8),
                transforms.RandomApply([self._blur], p=0.5),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.to_tensor = transforms.ToTensor()

    def __call__(self, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """Return view 1 and view 2, (3, size, size), and the target, (1, size, size)."""
        image = self.decode(path)
        crops = [self.crop(image) for _ in range(2)]
        first, second = (self.to_tensor(self.distort(self.appearance(crop))) for crop in crops)
        return first, second, self.to_tensor(crops[0].convert("L"))

    def decode(self, path: Path) -> Pillow.Image:
        """Decode an image in colour."""
        with Pillow.open(path) as image:
            return image.convert("RGB")

    def distort(self, image: Pillow.Image) -> Pillow.Image:
        """Cut out, keep, or swap blocks, or do nothing; returns a new image, or the same."""
        chosen = self._random.random()
        if chosen <= 0.3:
            return self._without(image)
        if chosen <= 0.35:
            return self._only(image)
        return self._swapped(image) if chosen <= 0.65 else image

    def _blur(self, image: Pillow.Image) -> Pillow.Image:
        return image.filter(ImageFilter.GaussianBlur(self._random.uniform(0.1, 2.0)))

    def _without(self, image: Pillow.Image) -> Pillow.Image:
        image = image.copy()
        for box in self._boxes(10, 70):
            image.paste((0, 0, 0), box)
        return image

    def _only(self, image: Pillow.Image) -> Pillow.Image:
        kept = Pillow.new("RGB", image.size)
        for box in self._boxes(self._size - 70, self._size - 50):
            kept.paste(image.crop(box), box)
        return kept

    def _swapped(self, image: Pillow.Image) -> Pillow.Image:
        swapped = image.copy()
        for _ in range(10):
            height, width = (self._random.randint(10, 15) for _ in range(2))
            one, two = (self._box(height, width) for _ in range(2))
            swapped.paste(image.crop(two), one)
            swapped.paste(image.crop(one), two)
        return swapped

    def _boxes(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield up to ten blocks; each is the last one with probability 0.1."""
        for _ in range(10):
            yield self._box(*(self._random.randint(low, high) for _ in range(2)))
            if self._random.random() < 0.1:
                return

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        left = self._random.randint(MARGIN, self._size - width - MARGIN)
        top = self._random.randint(MARGIN, self._size - height - MARGIN)
        return left, top, left + width, top + height
