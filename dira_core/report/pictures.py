"""Pictures of what a run learned, made anew from its newest checkpoint and its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dira_core.data.cutting import whole_images
from dira_core.evaluate import Sample, evaluating
from dira_core.game import Game
from dira_core.metrics import features
from dira_core.players import Turn, condition, first_rows
from dira_core.report.page import Pictures, tile
from dira_core.revival import revived

ROWS = 6
"""Images shown of each kind."""

NEAREST = 5
"""Neighbours shown."""

SEARCHED = 400
"""Images in which neighbours are looked for."""


def pictures(folder: Path) -> list[Pictures]:
    """Return restorations, critic maps and nearest neighbours of a run.

    Raises:
        DiraError: There is no checkpoint to be trusted, or the images are not where they were.
    """
    game = revived(folder)
    with closing(game.loader):
        sample = game.examine(ROWS)
        found = [*restorations(sample), *critic_maps(game, sample), *neighbours(game)]
    return found


def restorations(sample: Sample) -> Iterator[Pictures]:
    """Yield what the Restorer makes of held-out views."""
    restored = sample.attempt.restored
    if restored is None:
        return
    view = sample.batch.views[0]
    restored = restored[: len(view.crop)].float()
    error = (restored - view.crop).abs()
    columns = [*map(grey, (view.image, restored, view.crop)), heat(error, float(error.max()))]
    named = ("input", "restored", "target", "error")
    rows = [[tile(column[row]) for column in columns] for row in range(len(restored[:ROWS]))]
    largest = f"error from 0 (dark) to {float(error.max()):.2f} (bright)"
    yield Pictures(f"Restorations of views it never trained on; {largest}", named, rows)


def critic_maps(game: Game, sample: Sample) -> Iterator[Pictures]:
    """Yield where the critic takes images for real: bright is real."""
    adversary, restored = game.trio.adversary, sample.attempt.restored
    if adversary is None or restored is None:
        return
    crops = first_rows(sample.batch, "crop", len(restored))
    given = condition(adversary, Turn(sample.batch, game.trainer.progress), restored)
    with evaluating(adversary), game.precision.autocast():
        scores = [adversary(images, given).float() for images in (crops, restored)]
    low = min(float(each.min()) for each in scores)
    span = max(float(each.max()) for each in scores) - low
    maps = [heat(resized((each - low), crops.shape[2:]), span) for each in scores]
    columns = [grey(crops), maps[0], grey(restored.float()), maps[1]]
    rows = [[tile(column[row]) for column in columns] for row in range(min(ROWS, len(crops)))]
    title = f"Critic: score of each patch, from {low:.2f} (dark) to {low + span:.2f} (bright)"
    yield Pictures(title, ("real", "its score", "restored", "its score"), rows)


def neighbours(game: Game) -> Iterator[Pictures]:
    """Yield the images whose frozen features are most like those of some."""
    source, views = game.source, game.settings.views
    chosen = np.unique(np.linspace(0, len(source) - 1, SEARCHED).astype(int)).tolist()
    if len(chosen) <= NEAREST:
        return
    found = features(
        game.backbone(), source, views.size, views.channels, chosen, game.precision.device
    )
    unit = F.normalize(found - found.mean(0), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    asked = np.linspace(0, len(chosen) - 1, ROWS).astype(int)
    rows = []
    for row in asked:
        values, places = cosine[row].topk(NEAREST)
        line = [chosen[row], *(chosen[int(place)] for place in places)]
        labels = ["", *(f"{float(value):.2f} " for value in values)]
        images = grey(whole_images(source, line, views.size, views.channels))
        rows.append(
            [
                tile(image, f"{label}{source.name(index)}"[:60])
                for image, label, index in zip(images, labels, line, strict=True)
            ]
        )
    title = f"Nearest neighbours among {len(chosen)} images: cosine of centred features"
    yield Pictures(title, ["image", *map(str, range(1, NEAREST + 1))], rows)


def grey(images: Tensor) -> np.ndarray[Any, Any]:
    """Return images (B, C, *S) in [0, 1] as (B, H, W) uint8; a volume shows its middle slice."""
    plane = flat(images)
    pixels: np.ndarray[Any, Any] = (plane.clamp(0, 1) * 255).round().byte().numpy()
    return pixels


def heat(values: Tensor, highest: float) -> np.ndarray[Any, Any]:
    """Return maps (B, C, *S) from 0 to `highest` as (B, H, W, 3) uint8, dark to bright."""
    part = (flat(values) / max(highest, 1e-12)).clamp(0, 1)
    colour = torch.stack([part * 1.6, part**1.5, 0.35 * part + 0.25 * (1 - part)], dim=-1)
    pixels: np.ndarray[Any, Any] = (colour.clamp(0, 1) * 255).round().byte().numpy()
    return pixels


def flat(images: Tensor) -> Tensor:
    """Return (B, H, W): the mean of channels, the middle slice of volumes."""
    plane = images.detach().float().cpu().mean(1)
    while plane.dim() > 3:
        plane = plane[:, plane.shape[1] // 2]
    return plane


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge maps (B, C, *S') to the size of the images they judge."""
    return F.interpolate(maps, size=tuple(size), mode="nearest")
