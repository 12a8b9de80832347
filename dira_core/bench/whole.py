"""A run as the command starts it, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dira_core.bench.null import NoFeatures
from dira_core.build import build_source, build_trio
from dira_core.game import Game
from dira_core.plugins import installed
from dira_core.recipe import Recipe
from dira_core.runfolder import RunFolder
from dira_core.session import Session
from dira_core.signals import Stop
from dira_core.watching import Silent


class WholeRun:
    """A run as `dira run` does it - loading, views, logging, health - one step at a time."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._game = Game(build_trio(recipe), build_source(recipe), recipe)
        self._folder = folder / "run"

    def __enter__(self) -> WholeRun:
        game = self._game
        self._home = RunFolder(self._folder).__enter__()
        hook, nothing = installed().hook, NoFeatures()
        self._session = Session(
            self._home, game.source, game.settings, hook, [], Silent(), Stop(), nothing
        )
        self._steps = self._endless()
        return self

    def __exit__(self, *_: object) -> None:
        self._game.loader.close()
        self._home.__exit__(None, None, None)

    def step(self) -> None:
        """Load, train and log one step."""
        next(self._steps)

    def _endless(self) -> Iterator[None]:
        trainer = self._game.trainer
        while True:
            trainer.step %= trainer.total_steps
            for pieces in trainer.steps():
                metrics = trainer.train_step(pieces)
                trainer.step += 1
                self._session.step_ended(trainer, metrics)
                yield
