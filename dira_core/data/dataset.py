"""Whole batches of random crops, so that their random numbers are drawn at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dira_core.buffers import Buffers
from dira_core.data.crops import crop_boxes, reduce_channels
from dira_core.data.cutting import cut_best
from dira_core.data.excerpts import Excerpts, collected
from dira_core.data.images import Images
from dira_core.data.pyramid import directions, excerpt, full_bytes, on_grid
from dira_core.draws import Draws, salted
from dira_core.errors import DataError, DiraError, RecipeError
from dira_core.operations import Operation, drawn, mirrors, moved
from dira_core.view_options import sides_of

if TYPE_CHECKING:
    from dira_core.roles import Source
    from dira_core.settings import Settings
    from dira_core.types import Image


class Making(NamedTuple):
    """Seconds that crops took: to read the images, and to cut them."""

    reading: float = 0.0
    cropping: float = 0.0

    def plus(self, other: Making) -> Making:
        """Return the sum of both."""
        return Making(self.reading + other.reading, self.cropping + other.cropping)


NOTHING = Making()


@dataclass(frozen=True)
class Crops:
    """The random crops of B images.

    Attributes:
        pixels: One tensor per view, (B, C, *S): float32 in [0, 1], or bytes, if all images are
            bytes from 0 to 255. Or what becomes a tensor on the device.
        box: First and last edge of each crop in its source image, (B, V, D, 2) float32, in px; an
            axis along which it is mirrored has them swapped.
        index: Position of each image in its source, (B,) int64.
        label: Visual word of each image, (B,) int64, or None.
        unreadable: Images of this batch that could not be read, and why. The next readable image of
            the source stands in for each, in `index` too.
        spent: What they took, where they were made.
    """

    pixels: tuple[Tensor | Excerpts, ...]
    box: Tensor
    index: Tensor
    label: Tensor | None = None
    unreadable: tuple[tuple[int, str], ...] = ()
    spent: Making = NOTHING

    def pin_memory(self) -> Crops:
        """Return these crops in page-locked memory; DataLoader calls it."""
        return replace(self, pixels=tuple(view.pin_memory() for view in self.pixels))


class Request(NamedTuple):
    """What one batch is made of: a batch depends on nothing else."""

    indices: Sequence[int]
    epoch: int
    salt: int = 0


class CropDataset(Dataset[Crops]):
    """Make whole batches of crops, so that their random numbers are drawn at once.

    Args:
        source: Where images come from.
        settings: Of the run; say how they are cropped.
        n_views: Crops of an image.

    Raises:
        RecipeError: Crops that are resized on the device are to be looked at before.
    """

    def __init__(self, source: Source, settings: Settings, n_views: int) -> None:
        views, loader = settings.views, settings.loader
        cache_bytes = loader.cache_mb * 2**20 // max(1, loader.workers)
        self._images = Images(source, views.channels, cache_bytes, loader.max_unreadable)
        self._words = None if source.words is None else torch.as_tensor(source.words).long()
        self._seed = settings.seed
        self._kinds = [
            (each, numbers, mirrors([Operation(op, torch.device("cpu")) for op in each.geometry]))
            for each, numbers in views.kinds(n_views)
        ]
        self._sizes = [views.of(view).size for view in range(n_views)]
        self._channels = views.channels
        self._lungs = views.lungs
        self._tries = views.lungs.tries if views.lungs else 1
        self._on_device = loader.resize == "device"
        if self._on_device and views.lungs:
            raise RecipeError(
                "views.lungs looks at crops of their final size, which loader.resize = device "
                "makes too late: use --set loader.resize=workers"
            )
        self._buffers = Buffers()

    def crops(self, request: Request) -> Crops:
        """Read and crop the images of a batch.

        Raises:
            DataError: Too many images are unreadable, or their numbers of axes differ.
        """
        started = time.perf_counter()
        read = [self._images.readable(index) for index in request.indices]
        reading = time.perf_counter() - started
        index = torch.tensor([at for at, _ in read])
        images = [image for _, image in read]
        reasons = ((i, self._images.why_not(i)) for i in request.indices)
        attempts = [self.boxes(index, images, request, n) for n in range(self._tries)]
        boxes = attempts[0]
        make = self._excerpts if self._on_device else self._resized
        return Crops(
            pixels=make(images, attempts),
            box=boxes.float(),
            index=index,
            label=None if self._words is None else self._words[index],
            unreadable=tuple((i, reason) for i, reason in reasons if reason is not None),
            spent=Making(reading, time.perf_counter() - started - reading),
        )

    def _resized(self, images: Sequence[Image], attempts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the crops of every view; the first attempt's boxes become those that were cut."""
        boxes = attempts[0]
        bytes_stay = self._lungs is None and all(map(full_bytes, images))
        dtype = torch.uint8 if bytes_stay else torch.float32
        shape = len(images), self._channels
        pixels = [
            self._buffers.empty(*shape, *sides_of(size, boxes.shape[2]), dtype=dtype)
            for size in self._sizes
        ]
        edges = torch.stack(list(attempts), dim=2).tolist()
        places = zip(*(view.unbind() for view in pixels), strict=True)
        for row, of_image in enumerate(places):  # all views of it while it is in the cache
            for number, place in enumerate(of_image):
                best = cut_best(images[row], edges[row][number], place, self._lungs)
                if best:
                    boxes[row, number] = attempts[best][row, number]
        return tuple(pixels)

    def _excerpts(
        self, images: Sequence[Image], attempts: Sequence[Tensor]
    ) -> tuple[Excerpts, ...]:
        """Cut out every view, for the device to resize."""
        boxes = attempts[0]
        windows = [image.window for image in images]
        made = []
        for number, size in enumerate(self._sizes):
            cuts = zip(images, boxes[:, number].tolist(), strict=True)
            mirrored = (excerpt(image, box, size)[:, *directions(box)] for image, box in cuts)
            parts = [reduce_channels(part, self._channels) for part in mirrored]
            sides = sides_of(size, boxes.shape[2])
            made.append(collected(parts, windows, self._channels, sides))
        return tuple(made)

    def __getitems__(self, request: Request) -> Crops | DiraError:
        """Return a batch, or the error: raised in a worker, one line would become a traceback."""
        try:
            return self.crops(request)
        except DiraError as error:
            return error

    def boxes(
        self, index: Tensor, images: Sequence[Image], request: Request, attempt: int = 0
    ) -> Tensor:
        """Return where every view of every image lies, or might lie, (B, V, D, 2) int64."""
        sizes = [image.pixels.shape[1:] for image in images]
        axes = {len(size) for size in sizes}
        if len(axes) > 1:
            raise DataError(
                f"images of one source have equally many axes, got {sorted(axes)}: train on 2-D "
                "images and on volumes in runs of their own"
            )
        shapes, depths = torch.tensor(sizes), torch.tensor([len(image.levels) for image in images])
        seed = salted(self._seed, request.salt)
        path = f"crop {attempt}" if attempt else "crop"
        draws = Draws(index, seed=seed, epoch=request.epoch)
        boxes = torch.empty(len(self._sizes), *shapes.shape, 2, dtype=torch.int64)
        for views, numbers, geometry in self._kinds:
            each, own = shapes.repeat(len(numbers), 1), draws.of_views(numbers)
            anywhere = crop_boxes(each, replace(own, path=path), views.scale, views.ratio)
            cut = on_grid(anywhere, each, views.size, depths.repeat(len(numbers)))
            mirrored = moved(drawn(geometry, replace(own, path="views/geometry")), cut)
            boxes[numbers] = mirrored.view(len(numbers), *shapes.shape, 2)
        return boxes.transpose(0, 1)
