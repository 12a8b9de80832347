"""The images of a target as batches: whole ones to score, random crops to train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dira_core.data.crops import centre_box, crop_boxes
from dira_core.data.cutting import cut
from dira_core.data.images import Images
from dira_core.draws import Draws
from dira_core.errors import DataError
from dira_core.export import Preprocessing
from dira_core.targets import Labelled, Labels, Masks
from dira_core.transfer.plan import Plan, Training
from dira_core.types import Image
from dira_core.view_options import sides_of

RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop, as torchvision's RandomResizedCrop has it."""


class Batch(NamedTuple):
    """Images (B, C, *S), what is true of them, and where that is known.

    Of labels truth and known are (B, K); of masks (B, K, *S) and (B, 1, *S). All float32.
    """

    images: Tensor
    truth: Tensor
    known: Tensor


class Stored(NamedTuple):
    """An image as it is stored: its sides in px, and the size of a pixel in mm if it is known."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None


class Task(ABC):
    """A target, read for one network.

    Args:
        target: Where images come from.
        prepare: What the network is fed with.
        plan: Seed, crops, memory for decoded images.
        dims: Spatial axes that images must have, those of the backbone.
    """

    def __init__(self, target: Labelled, prepare: Preprocessing, plan: Plan, dims: int) -> None:
        self._dims = dims
        self._source = target.source
        self._images = Images(target.source, prepare.channels, plan.cache_mb * 2**20)
        self._prepare = prepare
        self._training: Training = plan.training
        self._seed = plan.seed

    def read(self, index: int) -> Image:
        """Return an image with the channels of the network.

        Raises:
            DataError: It cannot be read: its label must not go to another one. Or it has other axes
                than the backbone works on.
        """
        at, image = self._images.readable(index)
        if at != index:
            raise DataError(
                f"image {self._source.name(index)} cannot be read ({self._images.why_not(index)}): "
                "repair it, or take it out of the target"
            )
        found = image.pixels.ndim - 1
        if found != self._dims:
            raise DataError(
                f"image {self._source.name(index)} has {found} axes, and the backbone works on "
                f"{self._dims}: take other weights, or of random ones another --backbone"
            )
        return image

    def batch(self, indices: np.ndarray) -> Batch:
        """Return whole images, as the network is tested."""
        images = [self.read(int(index)) for index in indices]
        boxes = torch.stack([self.whole(image) for image in images])
        return self.cut(indices, images, boxes)

    def crops(self, indices: np.ndarray, epoch: int) -> Batch:
        """Return random crops, flipped at random; a function of seed, epoch and image alone."""
        images = [self.read(int(index)) for index in indices]
        draws = Draws(torch.from_numpy(indices), seed=self._seed, epoch=epoch, path="transfer")
        shapes = torch.tensor([image.pixels.shape[1:] for image in images])
        random = crop_boxes(shapes, draws.child("crop"), self._training.crop, RATIO)
        chosen = draws.bernoulli("crop", self._training.crop_p)
        whole = torch.stack([self.whole(image) for image in images])
        boxes = torch.where(chosen[:, None, None], random, whole)
        flipped = draws.bernoulli("flipped", self._training.flip_p)
        batch = self.cut(indices, images, boxes)
        return Batch(*(_flip(each, flipped) if each.dim() > 2 else each for each in batch))

    def cut(self, indices: np.ndarray, images: list[Image], boxes: Tensor) -> Batch:
        """Cut images and their truth to boxes (B, D, 2) and resize them."""
        channels, sides = self._prepare.channels, sides_of(self._prepare.size, boxes.shape[1])
        pixels = torch.empty(len(images), channels, *sides)
        for image, box, place_of in zip(images, boxes.tolist(), pixels, strict=True):
            cut(image, box, place_of)
        return Batch(pixels, *self.truth(indices, images, boxes))

    @abstractmethod
    def whole(self, image: Image) -> Tensor:
        """Return the box (D, 2) of what is tested of an image."""

    @abstractmethod
    def truth(
        self, indices: np.ndarray, images: list[Image], boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what is true of images within boxes, and where it is known; see `Batch`."""


@final
class LabelTask(Task):
    """Classification: the central square of an image, as in pretraining, and its labels."""

    def __init__(self, target: Labels, prepare: Preprocessing, plan: Plan, dims: int) -> None:
        super().__init__(target, prepare, plan, dims)
        labels = torch.from_numpy(target.labels).float()
        self._known = (~labels.isnan()).float()
        self._labels = labels.nan_to_num()

    def whole(self, image: Image) -> Tensor:
        """Return the central square."""
        return centre_box(image.pixels.shape[1:])

    def truth(
        self, indices: np.ndarray, images: list[Image], boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the labels, wherever the boxes lie."""
        return self._labels[indices], self._known[indices]


@final
class MaskTask(Task):
    """Segmentation: the whole image, squeezed to a square, and its masks."""

    def __init__(self, target: Masks, prepare: Preprocessing, plan: Plan, dims: int) -> None:
        super().__init__(target, prepare, plan, dims)
        self._target = target
        self._size = prepare.size
        self._seen: dict[int, Stored] = {}

    def whole(self, image: Image) -> Tensor:
        """Return the edges of the image."""
        return torch.tensor([[0, side] for side in image.pixels.shape[1:]])

    def truth(
        self, indices: np.ndarray, images: list[Image], boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the masks within boxes; of several pixels the nearest counts."""
        found = []
        for index, image, box in zip(indices.tolist(), images, boxes, strict=True):
            self._note(index, image)
            found.append(self._mask(index, image, box))
        return torch.stack([masks for masks, _ in found]), torch.stack([k for _, k in found])

    def spacing(self, index: int) -> tuple[float, ...] | None:
        """Return the size of a pixel of the stored image in mm, where the file says it."""
        return self._stored(index).spacing

    def pixels(self, index: int) -> tuple[float, ...]:
        """Return how many pixels of the stored image one of the network's covers, along axes."""
        shape = self._stored(index).shape
        sides = sides_of(self._size, len(shape))
        return tuple(side / seen for side, seen in zip(shape, sides, strict=True))

    def _note(self, index: int, image: Image) -> None:
        self._seen[index] = Stored(image.pixels.shape[1:], image.spacing)

    def _stored(self, index: int) -> Stored:
        """Return what is known of an image that was read, or read it."""
        if index not in self._seen:
            self._note(index, self.read(index))
        return self._seen[index]

    def _mask(self, index: int, image: Image, box: Tensor) -> tuple[Tensor, Tensor]:
        masks, known = self._target.mask_of(index, image)
        check_mask(self._source.name(index), known.shape, image.pixels.shape[1:])
        inside = tuple(slice(first, last) for first, last in box.tolist())
        both = torch.from_numpy(np.concatenate([masks, known[None]])[:, *inside].copy())
        sides = sides_of(self._size, len(inside))
        resized = F.interpolate(both[None].float(), sides, mode="nearest-exact")[0]
        return resized[:-1], resized[-1:]


def _flip(images: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)


def check_mask(name: str, mask: Sequence[int], image: Sequence[int]) -> None:
    """Refuse the mask of an image, by the shapes of both.

    Raises:
        DataError: They differ.
    """
    if tuple(mask) != tuple(image):
        raise DataError(
            f"the mask of {name} is {across(mask)} px, the image {across(image)}: "
            "give masks of the images' size"
        )


def across(shape: Sequence[int]) -> str:
    """Return a shape as people say it: width first."""
    return " x ".join(map(str, reversed(shape)))
