"""A run that ended, built anew from its folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from dira_core.build import build_source, build_trio
from dira_core.errors import CheckpointError, RecipeError
from dira_core.game import Game, shared_out
from dira_core.layering import file_layer
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.resume import restore
from dira_core.runfolder import RECIPE, RunFolder
from dira_core.trio import Trio


def load_run(folder: Path | str) -> tuple[Recipe, Trio]:
    """Return the recipe of a run, and its networks as its newest checkpoint has them.

    Unlike the weights that `load` reads, a checkpoint holds the Discriminator and the Adversary as
    well. The networks are on the CPU, in evaluation mode; of a run with stages they are the last's.

    Raises:
        CheckpointError: There is no checkpoint to be trusted.
        DiraError: It is no run, or its images are not where they were.
    """
    game = revived(Path(folder))
    with closing(game.loader):
        game.whole().eval()
    recipe = game.settings
    assert isinstance(recipe, Recipe)
    return recipe, game.trio


def parts_of(folder: Path) -> list[Path]:
    """Return the folders of a run's stages that began; the run itself where it has none."""
    stages = resolve([file_layer(folder / RECIPE)]).recipe.stages
    begun = [folder / "stages" / stage.name for stage in stages]
    return [part for part in begun if part.is_dir()] or [folder]


def revived(folder: Path) -> Game:
    """Build a run's trio anew, with the weights of its newest checkpoint.

    Raises:
        CheckpointError: There is none.
        DiraError: It is no run, or its images are not where they were.
    """
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{folder} is no run, it has no {RECIPE}: give the folder of a run")
    part = parts_of(folder)[-1]
    checkpoints = RunFolder(part).checkpoints
    newest = checkpoints.latest()
    if newest is None:
        raise CheckpointError(f"no checkpoint in {part}")
    recipe = resolve([file_layer(part / RECIPE)]).recipe
    here = {"device": "cpu", "precision": "fp32", "deterministic": False}
    train = recipe.train.model_copy(update=here)
    recipe = shared_out(recipe.model_copy(update={"init": None, "train": train}))
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    restore(game.trainer, *checkpoints.load(newest))
    return game
