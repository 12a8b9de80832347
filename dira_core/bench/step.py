"""What a training step costs, against a bare loop, plain fp32, recomputing, and a whole run."""

from __future__ import annotations

import copy
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dira_core.bench.bare import BareLoop
from dira_core.bench.memory import step_mib
from dira_core.bench.null import null_step
from dira_core.bench.timing import Cores, alternate, ratio
from dira_core.bench.whole import WholeRun
from dira_core.build import build_source, build_trio, prepare
from dira_core.data.dataset import Crops
from dira_core.errors import RecipeError
from dira_core.game import Game
from dira_core.recipe import Recipe, to_toml
from dira_core.roles import Discriminator
from dira_core.trainer import Trainer
from dira_core.trio import Trio


def step(recipe: Recipe, rounds: int) -> dict[str, Any]:
    """Compare one training step: dira's, a bare loop's, the plain fp32 one's, and a whole run's.

    The one of dira is taken as the recipe says, and with `train.recompute`.

    Returns:
        Medians in ms, ratios, memory at the peak of a step, and how busy others kept the machine.

    Raises:
        RecipeError: The recipe accumulates, or its Discriminator clusters.
    """
    null = statistics.median(null_step() for _ in range(5))  # before caches are full of images
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    check(recipe, game.trio)
    crops = game.first_crops()
    batch = game.views(crops, 0, 0)
    forgetful = forgetting(recipe)
    again = Game(build_trio(forgetful), build_source(recipe), forgetful)
    engines = {"dira step": copy.copy(game.trainer), "dira step, recompute": again.trainer}
    for engine in engines.values():
        engine.views = lambda crops, epoch, salt: batch
    how = (batch, recipe, game.precision, game.trainer.progress)
    bare, plain = (
        BareLoop(prepared(recipe, len(game.source)), *how, plain=plain) for plain in (False, True)
    )
    cores = Cores()
    with tempfile.TemporaryDirectory() as folder, WholeRun(recipe, Path(folder)) as whole:
        timings = alternate(
            {
                **{name: partial(advance, engine, crops) for name, engine in engines.items()},
                "bare loop": bare.step,
                "plain fp32 step": plain.step,
                "dira run": whole.step,
                "views": lambda: game.views(crops, 0, 0),
            },
            rounds,
        )
    used = cores.used()
    return {
        "ms": {name: 1000 * timing.median for name, timing in timings.items()},
        "bare loop / dira step": ratio(timings, "bare loop", "dira step"),
        "bare loop / dira run": ratio(timings, "bare loop", "dira run"),
        "plain fp32 step / dira step": ratio(timings, "plain fp32 step", "dira step"),
        "recompute / dira step": ratio(timings, "dira step, recompute", "dira step"),
        "views / dira step": ratio(timings, "views", "dira step"),
        "null step us": null,
        "MiB": peaks(recipe),
        "images/s": recipe.train.batch_size / timings["dira step"].median,
        "precision": game.precision.name,
        "threads": torch.get_num_threads(),
        "cores used": used,
        "rounds": rounds,
    }


def check(recipe: Recipe, trio: Trio) -> None:
    """Raise a RecipeError where the hand-written loops would not do what dira does."""
    role, restorer = trio.discriminator, trio.restorer
    if recipe.train.accumulate > 1:
        raise RecipeError(
            "bench step takes steps of one batch, got train.accumulate = "
            f"{recipe.train.accumulate}: leave it out, and give --batch-size"
        )
    if recipe.views.discriminator_sees != "image" or (restorer and restorer.n_restored > 1):
        raise RecipeError(
            "bench step encodes each view once and restores the first one: leave out "
            "views.discriminator_sees and n_restored"
        )
    if role is not None and type(role).epoch_started is not Discriminator.epoch_started:
        assert recipe.discriminator is not None
        raise RecipeError(
            f"bench step starts no epoch, as {recipe.discriminator.name!r} needs: choose another "
            "--disc, or see `dira run --profile`"
        )


def prepared(recipe: Recipe, images: int) -> Trio:
    """Build the trio of a recipe for so many images."""
    trio = build_trio(recipe)
    prepare(trio, images, recipe.seed)
    return trio


def peaks(recipe: Recipe) -> dict[str, float | None]:
    """Return the peak of dira's step and of the bare loop's, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        kept, forgotten = Path(folder) / "kept.toml", Path(folder) / "forgotten.toml"
        kept.write_text(to_toml(recipe))
        forgotten.write_text(to_toml(forgetting(recipe)))
        return {
            "dira step": step_mib("dira step", kept),
            "dira step, recompute": step_mib("dira step", forgotten),
            "bare loop": step_mib("bare loop", kept),
        }


def forgetting(recipe: Recipe) -> Recipe:
    """Return a recipe whose networks forget activations, and compute them again."""
    train = recipe.train.model_copy(update={"recompute": True})
    return recipe.model_copy(update={"train": train})


def advance(trainer: Trainer, crops: Crops) -> None:
    """Take one step of a trainer; what is done now and then is done in its share."""
    trainer.train_step([crops])
    trainer.step = (trainer.step + 1) % max(1, trainer.total_steps - 1)
