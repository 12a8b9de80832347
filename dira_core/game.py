"""Everything a run computes with, put together on its device."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_core.build import build_players, prepare, repeatable, rows_of_norms
from dira_core.data.dataset import Crops
from dira_core.data.loader import Loader
from dira_core.distributed import rank, world_size
from dira_core.errors import RecipeError
from dira_core.evaluate import (
    HELD_OUT_EPOCH,
    Pause,
    Sample,
    SourceFeatures,
    examine,
    held_out,
    probe,
)
from dira_core.export import write_weights
from dira_core.memory import keep_freed
from dira_core.pictures import contact_sheet
from dira_core.precision import (
    Precision,
    has_bf16,
    resolve_device,
    resolve_precision,
    smallest_bf16_side,
)
from dira_core.recipe import Recipe
from dira_core.roles import Backbone, Source
from dira_core.settings import Settings
from dira_core.trainer import Trainer
from dira_core.trio import Model, Trio
from dira_core.view_options import sides_of
from dira_core.views import ViewMaker

SHEET_ROWS = 8
"""Images on a contact sheet."""

FEW_ROWS = 4
"""Below this a run says that its batch norms see few images.

Two that are alike have next to no variance: with 2 radiographs of 32 px the gradient of SimSiam's
loss at a ResNet-18 came to 5e6, and bf16 ended at step 10.
"""


class Game:
    """Everything a run computes with, on its device: trainer, model, loader, views."""

    def __init__(self, trio: Trio, source: Source, settings: Settings) -> None:
        device = resolve_device(settings.train.device)
        dims = trio.backbone.dims
        sides = (sides_of(settings.views.of(view).size, dims) for view in range(trio.n_views))
        least = smallest_bf16_side(dims, max(trio.backbone.strides))
        name = resolve_precision(settings.train.precision, device, min(map(min, sides)), least)
        self.precision = Precision(name, device)
        self.trio = trio
        self.source = source
        self.settings = settings
        if settings.train.deterministic:
            repeatable()
        keep_freed(device)
        prepare(trio, len(source), settings.seed)
        players = build_players(trio, settings, self.precision)
        assert isinstance(players[0].module, Model)
        self.model = players[0].module
        self.strategy = players[0].strategy
        self.loader = Loader(source, settings, trio.n_views)
        self.views = ViewMaker(settings, device, trio.n_views, dims)
        optimizers = {"model": settings.optimizer, "critic": settings.critic_optimizer}
        self.trainer = Trainer(
            players, optimizers, self.loader, self.views, self.precision, settings
        )

    def first_crops(self) -> Crops:
        """Return the first batch, and end the data workers: they must not run beside a timing."""
        with closing(self.loader):
            return next(self.loader.batches(0, 0, 0))

    def manner(self) -> str:
        """Say in one line how the run computes, what `auto` stands for, and what to beware of."""
        train, n = self.settings.train, world_size()
        chosen = " (auto)" if train.precision == "auto" else ""
        order = "channels last" if train.channels_last else "contiguous"
        shared = f"{n} processes ({train.strategy})" if n > 1 else "one process"
        threads = torch.get_num_threads()
        name, device = self.precision.name, self.precision.device
        rows = rows_of_norms(self.model, train)
        said = [
            f"{name}{chosen}, {order}, on {device.type}, "
            f"{shared} of {threads} {'threads' if threads > 1 else 'thread'}"
        ]
        if name == "bf16" and not has_bf16(device):
            said.append("it has no instructions for bf16, and fp32 is many times as fast")
        if rows is not None and rows < FEW_ROWS:
            said.append(
                f"batch norms see {rows} images at once, and gradients through them may overflow: "
                "choose a larger --batch-size, or train.sync_norm with several processes"
            )
        return "; ".join(said)

    def whole(self) -> Model:
        """Return the model with the weights that all processes hold."""
        return self.strategy.whole(self.model)

    def backbone(self) -> Backbone:
        """Return the backbone of the whole model."""
        return self.whole().backbone

    def features(self, pause: Pause = lambda: None) -> SourceFeatures:
        """Return what encodes the whole source, for Discriminators that cluster."""
        device = self.precision.device
        return SourceFeatures(self.backbone, self.source, self.settings, device, pause)

    def examine(self, rows: int = 64) -> Sample:
        """Restore and embed held-out views in evaluation mode."""
        crops = held_out(self.loader, rows)
        return examine(self.whole(), self.views(crops, HELD_OUT_EPOCH, 0), self.precision)

    def probe(self, pause: Pause) -> float | None:
        """Return the kNN accuracy of the backbone's frozen features, or None without labels."""
        return probe(self.backbone(), self.source, self.settings, self.precision.device, pause)

    def write_weights(self, folder: Path) -> None:
        """Export backbone and decoder."""
        whole = self.whole()
        trio = replace(self.trio, backbone=whole.backbone, restorer=whole.restorer)
        if rank() == 0:
            write_weights(folder, trio, self.settings, self.source.reading)


def shared_out(recipe: Recipe) -> Recipe:
    """Return a recipe for as many processes as there are, with the same global batch.

    Raises:
        RecipeError: The global batch cannot be split among them.
    """
    n, train = world_size(), recipe.train
    before = train.processes or n
    batch, left = divmod(train.batch_size * before, n)
    if left:
        raise RecipeError(
            f"a batch of {train.batch_size} images on each of {before} processes cannot be split "
            f"among {n}: use a number of processes that divides {train.batch_size * before}, or "
            "another --batch-size with train.processes=none"
        )
    shared = train.model_copy(update={"processes": n, "batch_size": batch})
    return recipe.model_copy(update={"train": shared})


def sheet(sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay out crops, distorted views, restorations and their errors: (H, W, 3), a row an image."""
    view = sample.batch.views[0]
    columns = [view.crop, view.clean, view.image]
    if sample.attempt.restored is not None:
        restored = sample.attempt.restored[: len(view.crop)]
        columns += [restored, (restored - view.crop).abs()]
    return contact_sheet(columns, SHEET_ROWS)
