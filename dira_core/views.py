"""From crops to views: what the recipe's distortions make of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dira_core.components import Choice, DistortionOptions
from dira_core.data.loader import Crops
from dira_core.draws import Draws
from dira_core.plugins import make
from dira_core.roles import Distortion
from dira_core.settings import Settings
from dira_core.types import Batch, View
from dira_core.view_options import Views


def build_distortion(choice: Choice) -> Distortion:
    """Build a distortion a recipe chose.

    Raises:
        RecipeError: No distortion has this name.
        PluginError: The plugin that offers it is broken, or raised.
    """
    distortion: Distortion = make("distortion", choice)
    return distortion


def distort(distortion: Distortion, images: Tensor, draws: Draws, p: float) -> Tensor:
    """Apply a distortion to the images that `draws` picks, each with probability p.

    The picked rows are `draws.bernoulli("p", p)`; the others come back as they were.

    Args:
        images: (B, C, *S); never written into.
    """
    return distort_rows(distortion, images, draws, picked(draws, p))


def picked(draws: Draws, p: float) -> Tensor:
    """Return the rows of a batch that an operation of probability p is applied to, (N,) int64."""
    return draws.bernoulli("p", p).nonzero().squeeze(1)


def distort_rows(distortion: Distortion, images: Tensor, draws: Draws, rows: Tensor) -> Tensor:
    """Apply a distortion to some rows of images (B, C, *S); the others come back as they were."""
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        distorted: Tensor = distortion(images, draws)
        return distorted
    return images.index_copy(0, rows, distortion(images[rows], draws.select(rows)))


class ViewMaker:
    """Apply the recipe's geometry, appearance and distortions to crops, on the device.

    A view is a function of seed, epoch, image and view number alone: not of the batch it is in.

    Args:
        settings: Of the run.
        device: Where the views are made.
        n_views: Views of an image.
    """

    def __init__(self, settings: Settings, device: torch.device, n_views: int) -> None:
        self._seed = settings.seed
        self._device = device
        self._channels_last = settings.train.channels_last
        self._recipes = [Operations(settings.views.of(view), device) for view in range(n_views)]

    def __call__(self, crops: Crops, epoch: int, salt: int) -> Batch:
        """Make a batch of views; `salt` gives other ones to a run that went back."""
        index = crops.index.to(self._device, non_blocking=True)
        draws = Draws(index, seed=self._seed + (salt << 32), epoch=epoch, path="views")
        box = crops.box.to(self._device, non_blocking=True)
        views = [
            self._view(recipe, pixels, box[:, number], replace(draws, view=number))
            for number, (recipe, pixels) in enumerate(zip(self._recipes, crops.pixels, strict=True))
        ]
        label = None if crops.label is None else crops.label.to(self._device)
        return Batch(tuple(views), index, label)

    def _view(self, recipe: Operations, pixels: Tensor, box: Tensor, draws: Draws) -> View:
        crop = pixels.to(self._device, non_blocking=True)
        if self._channels_last:
            last = torch.channels_last if crop.dim() == 4 else torch.channels_last_3d
            crop = crop.contiguous(memory_format=last)
        labels: list[Tensor] = []
        crop, box = apply(recipe.geometry, crop, box, draws.child("geometry"), labels)
        clean, _ = apply(recipe.appearance, crop, box, draws.child("appearance"), labels)
        image, _ = apply(recipe.distort, clean, box, draws.child("distort"), labels)
        return View(crop, clean, image, box, labels[-1] if labels else None)


class Operations:
    """What makes one view of a crop."""

    def __init__(self, views: Views, device: torch.device) -> None:
        self.geometry = [Operation(choice, device) for choice in views.geometry]
        self.appearance = [Operation(choice, device) for choice in views.appearance]
        self.distort = [Operation(choice, device) for choice in views.distort]


class Operation:
    """A distortion and how often it is applied."""

    def __init__(self, choice: Choice, device: torch.device) -> None:
        assert isinstance(choice.options, DistortionOptions)
        self.p = choice.options.p
        self.distortion = build_distortion(choice).to(device)


def apply(
    operations: Sequence[Operation], images: Tensor, box: Tensor, draws: Draws, labels: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Apply distortions one after the other; append the labels some of them make.

    Args:
        images: (B, C, *S).
        box: Where the crops lie, (B, len(S), 2).

    Returns:
        The images, and where they lie after it.
    """
    for number, operation in enumerate(operations):
        own = draws.child(str(number))
        rows = picked(own, operation.p)
        images = distort_rows(operation.distortion, images, own, rows)
        chosen = own.select(rows)
        box = box.index_copy(0, rows, operation.distortion.box(box[rows], chosen))
        label = operation.distortion.label(chosen)
        if label is not None:
            none = torch.zeros(len(images), dtype=label.dtype, device=label.device)
            labels.append(none.index_copy(0, rows, label))
    return images, box
