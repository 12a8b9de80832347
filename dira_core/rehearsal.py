"""A run rehearsed in seconds: two steps, a contact sheet, and what the real one would need."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dira_core.blame import blamed, out_of_memory, part_of_batch
from dira_core.build import build_source, build_trio
from dira_core.errors import DivergedError, ResourceError
from dira_core.game import Game, sheet
from dira_core.memory import peak_mib, restart_peak
from dira_core.pictures import write_png
from dira_core.recipe import Recipe
from dira_core.resume import capture
from dira_core.trainer import Setback

STEPS = 2
"""Steps taken: the first warms up, the last is timed."""


@dataclass(frozen=True)
class Rehearsal:
    """What a run would need.

    Attributes:
        losses: Of the last rehearsed step, by name.
        steps: Of the whole run.
        seconds: The whole run would take, loading included.
        images_per_s: Source images a second.
        peak_mib: Memory of this process, or of the GPU, at the peak of a step.
        disk_mib: Size of the checkpoints that are kept and of the weights.
        images: In the source.
        looked_at: Images that were read.
        unreadable: Of those, by name, with the reason.
        sheet: A picture of crops, views and restorations.
    """

    losses: Mapping[str, float]
    steps: int
    seconds: float
    images_per_s: float
    peak_mib: float
    disk_mib: float
    images: int
    looked_at: int
    unreadable: Mapping[str, str]
    sheet: Path


def rehearse(recipe: Recipe, folder: Path) -> Rehearsal:
    """Build everything, take two steps of every player, and measure.

    Raises:
        ResourceError: Memory ran out; the message says which batch fits, found by trying.
        DiraError: What the real run would stumble over in its first seconds.
    """
    found = attempt(recipe, folder)
    if found is not None:
        return found
    asked = fits = recipe.train.batch_size
    while found is None and fits > 1:
        fits //= 2
        train = recipe.train.model_copy(update={"batch_size": fits})
        found = attempt(recipe.model_copy(update={"train": train}), folder)
    if found is None:
        raise ResourceError(
            "not even one image at a time fits into memory: choose smaller views (views.size), a "
            "smaller backbone, or --set train.recompute=true"
        )
    raise ResourceError(
        f"a batch of {asked} images does not fit into memory, {fits} do (found by halving): use "
        f"{part_of_batch(recipe.train, fits)}"
    )


def attempt(recipe: Recipe, folder: Path) -> Rehearsal | None:
    """Rehearse one batch size; return None where memory ran out, with all of it given back."""
    try:
        with blamed(lambda: "a rehearsal", lambda: recipe.train):
            return measured(recipe, folder)
    except ResourceError as error:
        if error.__cause__ is None or not out_of_memory(error.__cause__):
            raise
    gc.collect()
    torch.cuda.empty_cache()
    return None


def measured(recipe: Recipe, folder: Path) -> Rehearsal:
    """Take two steps and measure them."""
    every_step = {"every": 1}
    recipe = recipe.model_copy(update={"log": recipe.log.model_copy(update=every_step)})
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    trainer, metrics = game.trainer, {}
    steps, seconds = trainer.steps(), 0.0
    restart_peak(game.precision.device)
    with closing(game.loader):
        for _ in range(min(STEPS, trainer.steps_per_epoch)):
            started = time.perf_counter()
            try:
                metrics = trainer.train_step(next(steps))
            except Setback as setback:
                raise DivergedError(f"{setback}: try a smaller optimizer.lr") from setback
            seconds = time.perf_counter() - started
            trainer.step += 1
    peak = peak_mib(game.precision.device)
    tensors, _ = capture(trainer)
    size = sum(t.nbytes for group in tensors.values() for t in group.values())
    weights = sum(t.nbytes for t in game.model.state_dict().values())
    picture = folder / "views.png"
    write_png(picture, sheet(game.examine(8)), enlarge=2)
    return Rehearsal(
        losses={k: v for k, v in metrics.items() if k.startswith("losses/")},
        steps=trainer.total_steps,
        seconds=seconds * trainer.total_steps,
        images_per_s=trainer.images_per_step / seconds,
        peak_mib=peak,
        disk_mib=(size * recipe.checkpoint.keep + weights) / 2**20,
        images=len(game.source),
        looked_at=min(len(game.source), trainer.step * trainer.images_per_step),
        unreadable={game.source.name(i): why for i, why in game.loader.unreadable.items()},
        sheet=picture,
    )
