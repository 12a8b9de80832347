"""The peak of a training step's memory, measured in a process of its own.

The process is this module run as a program: `python -m dira_core.bench.peak ARM RECIPE`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dira_core.bench.bare import BareLoop
from dira_core.bench.step import advance
from dira_core.build import build_source, build_trio
from dira_core.game import Game
from dira_core.layering import file_layer
from dira_core.memory import peak_mib, restart_peak
from dira_core.recipe import Recipe
from dira_core.resolving import resolve


def ready(arm: str, recipe: Recipe) -> Callable[[], object]:
    """Return a step on one batch: dira's own ("dira step"), or hand-written ("bare loop").

    The hand-written one recomputes nothing, whatever the recipe says.
    """
    if arm == "dira step":
        return engine_step(recipe)
    plain = recipe.train.model_copy(update={"recompute": False})
    return bare_step(recipe.model_copy(update={"train": plain}))


def engine_step(recipe: Recipe) -> Callable[[], object]:
    """Return a step of dira's trainer."""
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()
    return lambda: advance(game.trainer, crops)


def bare_step(recipe: Recipe) -> Callable[[], object]:
    """Return a step of a hand-written loop, which makes its views as dira does."""
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()
    how = (game.views(crops, 0, 0), recipe, game.precision, game.trainer.progress)
    bare = BareLoop(game.trio, *how, plain=False)

    def step() -> None:
        game.views(crops, 0, 0)
        bare.step()

    return step


def main(arm: str, recipe: str) -> None:
    """Print the peak of the second step in MiB."""
    chosen = resolve([file_layer(Path(recipe))]).recipe
    build_source(chosen)
    device = torch.device("cpu")
    restart_peak(device)
    before = peak_mib(device)
    step = ready(arm, chosen)
    step()
    restart_peak(device)
    step()
    sys.stdout.write(str(peak_mib(device) - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
