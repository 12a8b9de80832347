"""Read, crop and batch the images of a source, in the trainer's process or in workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dira_core.buffers import Buffers
from dira_core.data.crops import (
    centre_box,
    crop_boxes,
    crop_resize,
    normalise,
    reduce_channels,
    soft_tissue,
)
from dira_core.data.excerpts import Excerpts, collected
from dira_core.data.pyramid import crop_level, excerpt, on_grid, place
from dira_core.data.workers import Workers
from dira_core.distributed import rank, world_size
from dira_core.draws import Draws, shuffled, shuffled_in_blocks
from dira_core.errors import DataError, DiraError, PluginError, RecipeError
from dira_core.view_options import Lungs, sides_of

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
        pixels: One tensor per view, (B, C, *S) float32 in [0, 1], or what becomes it on the device.
        box: First and last edge of each crop in its source image, (B, V, D, 2) float32, in px.
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


class Images:
    """Decoded images of a source, some of them kept; unreadable ones are stepped over.

    Args:
        source: Reads one image.
        channels: Channels wanted: 1 makes grey of colour, more repeat a single channel.
        cache_bytes: Memory for decoded images. Epochs visit images in random order, so the first
            ones are kept for good: throwing out others for them would gain nothing.
        max_unreadable: Part of the source that may be unreadable.
    """

    def __init__(
        self, source: Source, channels: int, cache_bytes: int = 0, max_unreadable: float = 1.0
    ) -> None:
        self._source = source
        self._channels = channels
        self._free = cache_bytes
        self._allowed = max_unreadable
        self._kept: dict[int, Image] = {}
        self._bad: dict[int, str] = {}

    def why_not(self, index: int) -> str | None:
        """Return why an image that was asked for cannot be read, or None."""
        return self._bad.get(index)

    def readable(self, index: int) -> tuple[int, Image]:
        """Return the first readable image from `index` on, after the last the first, and its index.

        Raises:
            DataError: More images in a row are unreadable than may be in the whole source.
            PluginError: The source raised something else.
        """
        n = len(self._source)
        for tried in range(n):
            at = (index + tried) % n
            try:
                return at, self._image(at)
            except DataError as error:
                self._bad[at] = str(error)
                if tried + 1 > self._allowed * n:
                    raise DataError(
                        f"at least {tried + 1} of {n} images are unreadable, more than "
                        f"loader.max_unreadable = {self._allowed:g} (last: "
                        f"{self._source.name(at)}: {error}): repair or remove them, or allow more "
                        "with --set loader.max_unreadable"
                    ) from error
        raise DataError(
            f"none of {n} images can be read (first: {self._source.name(0)}: {self._bad[0]}): "
            "see `dira data inspect`"
        )

    def _image(self, index: int) -> Image:
        if index in self._bad:
            raise DataError(self._bad[index])
        if index in self._kept:
            return self._kept[index]
        image = read_image(self._source, index)
        colour = len(image.pixels) == 3 and self._channels == 1
        if len(image.pixels) not in (1, self._channels) and not colour:
            raise DataError(
                f"it has {len(image.pixels)} channels, the recipe asks for {self._channels}: "
                "choose others with --set views.channels"
            )
        if image.levels:  # mapped files: nothing is read yet, and there is nothing to keep
            return image
        image = replace(image, pixels=reduce_channels(image.pixels, self._channels))
        if image.pixels.nbytes <= self._free:
            self._free -= image.pixels.nbytes
            self._kept[index] = image
        return image


def read_image(source: Source, index: int) -> Image:
    """Read an image of a source.

    Raises:
        DataError: It cannot be read.
        PluginError: The source raised something else.
    """
    try:
        return source.read(index)
    except DiraError:
        raise
    except Exception as error:
        raise PluginError(
            f"the source {type(source).__name__} raised {type(error).__name__}: {error} "
            f"on image {index}, where only DataError is expected: report it to its authors"
        ) from error


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
        self._views = [views.of(view) for view in range(n_views)]
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
        pixels = [
            self._buffers.empty(len(images), self._channels, *sides_of(view.size, boxes.shape[2]))
            for view in self._views
        ]
        for row, image in enumerate(images):  # all views of it while it is in the cache
            for number, view in enumerate(pixels):
                places = [attempt[row, number] for attempt in attempts]
                boxes[row, number] = cut_best(image, places, view[row], self._lungs)
        return tuple(pixels)

    def _excerpts(
        self, images: Sequence[Image], attempts: Sequence[Tensor]
    ) -> tuple[Excerpts, ...]:
        """Cut out every view, for the device to resize."""
        boxes = attempts[0]
        windows = [image.window for image in images]
        made = []
        for number, view in enumerate(self._views):
            cuts = zip(images, boxes[:, number], strict=True)
            parts = [reduce_channels(excerpt(i, box, view.size), self._channels) for i, box in cuts]
            sides = sides_of(view.size, boxes.shape[2])
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
        draws = Draws(index, seed=seed, epoch=request.epoch, path=path)
        boxes = []
        for number, view in enumerate(self._views):
            drawn = crop_boxes(shapes, replace(draws, view=number), view.scale, view.ratio)
            boxes.append(on_grid(drawn, shapes, view.size, depths))
        return torch.stack(boxes, dim=1)


class Loader:
    """Yield the batches of any epoch, from any image on; the last, incomplete batch is dropped.

    A batch is a function of the recipe and of its place in the epoch: the number of workers, what
    was read before and a resumed run change nothing. Of several processes, each makes its part of
    a batch of `batch_size` images a process.

    Args:
        source: Where images come from.
        settings: Of the run; say how they are cropped and by how many workers.
        n_views: Crops of an image.
        timeout: Seconds to wait for a batch of the workers before the storage is said to hang.

    Attributes:
        batch_size: Images of a batch in this process.
        batches_per_epoch: Complete batches of an epoch, over all processes.
        unreadable: Images met so far that cannot be read, and why.
        spent: What all crops so far took, by whoever made them.

    Raises:
        DataError: The source has fewer images than one step needs.
    """

    def __init__(
        self, source: Source, settings: Settings, n_views: int, *, timeout: float = 300.0
    ) -> None:
        self.batch_size = settings.train.batch_size
        self._all = self.batch_size * world_size()
        self.batches_per_epoch = len(source) // self._all
        needed = self._all * settings.train.accumulate
        if len(source) < needed:
            raise DataError(
                f"a step needs {needed} images, the source has {len(source)}: choose a smaller "
                "--batch-size or more data"
            )
        self.unreadable: dict[int, str] = {}
        self.spent = Making()
        self._n = len(source)
        self._blocks = source.blocks
        self._seed = settings.seed
        self._dataset = CropDataset(source, settings, n_views)
        self._workers: Workers | None = None
        if settings.loader.workers:
            pinned = settings.train.device != "cpu" and torch.cuda.is_available()
            self._workers = Workers(
                self._dataset, settings.loader.workers, timeout=timeout, pinned=pinned
            )

    def order(self, epoch: int, salt: int = 0) -> Tensor:
        """Return the order of the images in an epoch, (N,) int64; `salt` gives another one."""
        seed = salted(self._seed, salt)
        if self._blocks is None:
            return shuffled(self._n, seed=seed, epoch=epoch)
        sizes, together = self._blocks.sizes.tolist(), self._blocks.together
        return shuffled_in_blocks(sizes, together, seed=seed, epoch=epoch)

    def crops(self, indices: Sequence[int], epoch: int, salt: int = 0) -> Crops:
        """Return the crops of some images in an epoch, made in this process."""
        return self._dataset.crops(Request(indices, epoch, salt))

    def batches(self, epoch: int, start: int = 0, salt: int = 0) -> Iterator[Crops]:
        """Yield the batches of an epoch.

        Args:
            epoch: Number of the epoch.
            start: Images of this epoch that were used already.
            salt: Gives another order and other crops, after a run went back.

        Raises:
            DataError: Too many images are unreadable, or a worker died or hangs.
        """
        order = self.order(epoch, salt).tolist()
        own, size = rank() * self.batch_size, self.batch_size
        firsts = range(start + own, self._n - self._all + own + 1, self._all)
        requests = [Request(order[i : i + size], epoch, salt) for i in firsts]
        made = (
            self._workers.answers(requests) if self._workers else map(self._dataset.crops, requests)
        )
        for crops in made:
            self.unreadable.update(crops.unreadable)
            self.spent = self.spent.plus(crops.spent)
            yield crops

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers is not None:
            self._workers.close()


def salted(seed: int, salt: int) -> int:
    """Return a seed of its own for every salt; salt 0 keeps the recipe's."""
    return seed + (salt << 32)


def cut(image: Image, box: Tensor, pixels: Tensor) -> None:
    """Write the crop of an image into `pixels`, (C, *S) in [0, 1]; one channel is repeated."""
    size, channels = pixels.shape[1:], len(pixels)
    if image.levels:
        crop = reduce_channels(crop_level(image, box, size), channels)
        place(crop, image.window, pixels)
    else:
        pixels[...] = normalise(crop_resize(image.pixels, box, size), image.window)


def cut_best(image: Image, boxes: Sequence[Tensor], pixels: Tensor, lungs: Lungs | None) -> Tensor:
    """Cut as `cut` does, at the first place that is mostly air, else at that with most air.

    Returns:
        Where, one of `boxes`; the first one if air is not asked for.
    """
    shares: list[float] = []
    for box in boxes:
        cut(image, box, pixels)
        if lungs is None:
            return box
        shares.append(soft_tissue(pixels, lungs.above))
        if shares[-1] <= lungs.most:
            return box
    best = boxes[shares.index(min(shares))]
    cut(image, best, pixels)
    return best


def whole_images(
    source: Source, indices: Sequence[int], size: int | Sequence[int], channels: int
) -> Tensor:
    """Return central squares of images without any augmentation, for probes and contact sheets.

    Returns:
        (B, channels, *size) float32 in [0, 1]; the next readable image for an unreadable one.
    """
    reader = Images(source, channels)
    images = [reader.readable(int(index))[1] for index in indices]
    boxes = [centre_box(image.pixels.shape[1:]) for image in images]
    pixels = torch.empty(len(images), channels, *sides_of(size, len(boxes[0])))
    for image, box, place_of in zip(images, boxes, pixels, strict=True):
        cut(image, box, place_of)
    return pixels
