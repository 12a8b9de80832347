"""From crops to views: what the recipe's distortions make of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from dira_core.buffers import Buffers
from dira_core.data.dataset import Crops
from dira_core.data.excerpts import Excerpts
from dira_core.draws import Draws, salted
from dira_core.errors import DataError, RecipeError
from dira_core.operations import (
    Drawn,
    Operation,
    Todo,
    change_images,
    distort_rows,
    drawn,
    label_of,
    mirrors,
    moved,
    plan,
)
from dira_core.settings import Settings
from dira_core.types import Batch, View, in_unit
from dira_core.view_options import SERIES, Views


class ViewMaker:
    """Apply the recipe's geometry, appearance and distortions to crops, on the device.

    A view is a function of seed, epoch, image and view number alone: not of the batch it is in.

    Args:
        settings: Of the run.
        device: Where the views are made.
        n_views: Views of an image.
        dims: Spatial axes that images must have, those of the backbone.
    """

    def __init__(
        self, settings: Settings, device: torch.device, n_views: int, dims: int | None = None
    ) -> None:
        self._dims = dims
        self._seed = settings.seed
        self._device = device
        self._channels_last = settings.train.channels_last
        self._kinds = [
            (Operations(views, device), numbers) for views, numbers in settings.views.kinds(n_views)
        ]
        self._buffers = Buffers()

    def __call__(self, crops: Crops, epoch: int, salt: int) -> Batch:
        """Make a batch of views; `salt` gives other ones to a run that went back.

        Raises:
            DataError: The images have other axes than the backbone works on.
        """
        found = crops.box.shape[2]
        if self._dims not in (None, found):
            kind, stack = ("images", f"; {SERIES}") if found == 2 else ("volumes", "")
            raise DataError(
                f"the data are {kind} ({found} axes), and the backbone works on {self._dims} axes: "
                "choose another --backbone (`dira plugins` shows the axes of each), or for one of "
                f"both give views.size {found} sides{stack}"
            )
        index = crops.index.to(self._device, non_blocking=True)
        draws = Draws(index, seed=salted(self._seed, salt), epoch=epoch, path="views")
        box = crops.box.to(self._device, non_blocking=True)
        found_views: dict[int, View] = {}
        for recipe, numbers in self._kinds:
            pixels = [self._placed(crops.pixels[number]) for number in numbers]
            boxes = box[:, numbers].transpose(0, 1).flatten(0, 1)
            made = _views(recipe, pixels, boxes, draws.of_views(numbers), self._buffers)
            found_views.update(zip(numbers, made, strict=True))
        label = None if crops.label is None else crops.label.to(self._device)
        return Batch(tuple(found_views[number] for number in sorted(found_views)), index, label)

    def _placed(self, pixels: Tensor | Excerpts) -> Tensor:
        """Return the crops of a view on the device, in the memory layout of the training."""
        if isinstance(pixels, Excerpts):
            crop = pixels.on(self._device)
        else:
            crop = pixels.to(self._device, non_blocking=True)
        if self._channels_last:
            last = torch.channels_last if crop.dim() == 4 else torch.channels_last_3d
            crop = crop.contiguous(memory_format=last)
        return crop


def _views(
    recipe: Operations, pixels: Sequence[Tensor], box: Tensor, draws: Draws, buffers: Buffers
) -> Iterator[View]:
    """Yield views that are made alike, from the crops of each."""
    groups = recipe.drawn(draws)
    every = [operation for group in groups for operation in group]
    label = label_of(every, len(box))
    boxes = moved(groups[0], box).chunk(len(pixels))
    labels = [None] * len(pixels) if label is None else label.chunk(len(pixels))
    made = _distorted(groups, pixels, buffers)
    for crop, image, make_clean, place, own in zip(*made, boxes, labels, strict=True):
        yield View(crop, image, place, own, make_clean)


def _distorted(
    groups: Sequence[Sequence[Drawn]], pixels: Sequence[Tensor], buffers: Buffers
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Callable[[], Tensor]]]:
    """Return each view's crop, its image, and what makes it clean."""
    plans = _plans(groups, pixels)
    if plans is None:
        crops, cleans, images = _in_batches(groups, pixels)
        return crops, images, [partial(_same, clean) for clean in cleans]
    geometry, appearance, distort = plans
    crops = _by_image(geometry, pixels, buffers) if any(geometry) else pixels
    every = [[*one, *other] for one, other in zip(appearance, distort, strict=True)]
    n = len(crops[0])
    of_views = (appearance[start : start + n] for start in range(0, len(every), n))
    kept = [
        partial(_clean, todo, crop, buffers) for todo, crop in zip(of_views, crops, strict=True)
    ]
    return crops, _by_image(every, crops, buffers), kept


def _plans(groups: Sequence[Sequence[Drawn]], pixels: Sequence[Tensor]) -> list[Todo] | None:
    """Return what each group does to each image, or None where batches are better."""
    if pixels[0].device.type != "cpu":
        return None
    plans = []
    for group in groups:
        todo = plan(group, sum(map(len, pixels)), pixels[0].shape[1:])
        if todo is None:  # the draws of further groups would be for nothing
            return None
        plans.append(todo)
    return plans


def _in_batches(
    groups: Sequence[Sequence[Drawn]], pixels: Sequence[Tensor]
) -> Iterator[Sequence[Tensor]]:
    """Yield the crops of each view after one group of operations after the other."""
    every = in_unit(pixels[0] if len(pixels) == 1 else torch.cat(list(pixels)))
    for group in groups:
        for operation in group:
            every = distort_rows(operation, every)
        yield every.chunk(len(pixels))


def _by_image(todo: Todo, pixels: Sequence[Tensor], buffers: Buffers) -> Sequence[Tensor]:
    """Return the crops of each view after a plan, float32 in [0, 1]; the same ones if they are."""
    if not any(todo) and pixels[0].is_floating_point():
        return pixels
    made = buffers.like(pixels[0], len(todo))
    change_images((image for crops in pixels for image in crops.numpy()), todo, made.numpy())
    return made.chunk(len(pixels))


def _clean(todo: Todo, crop: Tensor, buffers: Buffers) -> Tensor:
    return _by_image(todo, [crop], buffers)[0]


def _same(images: Tensor) -> Tensor:
    return images


class Operations:
    """What makes one view of a crop.

    Raises:
        RecipeError: More than one operation makes labels.
    """

    def __init__(self, views: Views, device: torch.device) -> None:
        self.geometry = [Operation(choice, device) for choice in views.geometry]
        self.appearance = [Operation(choice, device) for choice in views.appearance]
        self.distort = [Operation(choice, device) for choice in views.distort]
        every = (*self.geometry, *self.appearance, *self.distort)
        labelling = [operation.name for operation in every if operation.labels]
        if len(labelling) > 1:
            raise RecipeError(
                f"a view has one label: got {' and '.join(labelling)}, which make one each, leave "
                "one, or give them views of their own by views.each"
            )

    def drawn(self, draws: Draws) -> list[list[Drawn]]:
        """Pick the images of each operation: of geometry, of appearance, of distortions.

        Geometry that crops were cut by already is left out.
        """
        cut = len(mirrors(self.geometry))
        return [
            drawn(self.geometry[cut:], draws.child("geometry"), first=cut),
            drawn(self.appearance, draws.child("appearance")),
            drawn(self.distort, draws.child("distort")),
        ]
