"""Replay steps of a run from a checkpoint, and compare bit for bit with what it left on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dira_core.build import build_source, build_trio
from dira_core.checkpoint import Checkpoints
from dira_core.differences import Found, compare_metrics, compare_states, compare_tensors
from dira_core.distributed import from_first, gathered, world_size
from dira_core.environment import environment
from dira_core.errors import CheckpointError, DifferenceError, DivergedError, RecipeError
from dira_core.game import Game, shared_out
from dira_core.layering import file_layer
from dira_core.lines import read_lines
from dira_core.peers import peers_named
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.resume import Tensors, capture, restore
from dira_core.runfolder import ENVIRONMENT, RECIPE, changes_of
from dira_core.trainer import Setback, Trainer


@dataclass(frozen=True)
class Saved:
    """One checkpoint as it lies on disk."""

    tensors: Tensors
    state: dict[str, Any]


@dataclass
class Replay:
    """What was replayed and compared.

    Attributes:
        first: Step of the checkpoint it starts from.
        last: Step it ends with.
        lines: Lines of metrics that were compared.
        tensors: Tensors that were compared.
    """

    first: int
    last: int
    lines: int = 0
    tensors: int = 0


@dataclass(frozen=True)
class Plan:
    """From which checkpoint to which step, and what to compare with on the way."""

    recipe: Recipe
    folder: Path
    first: int
    last: int
    steps_saved: list[int]
    lines: dict[int, dict[str, Any]] = field(repr=False)

    def load(self, step: int) -> Saved:
        """Read a checkpoint, its hashes verified; nothing is renamed or repaired.

        Raises:
            CheckpointError: It is damaged.
        """
        checkpoints = checkpoints_of(self.folder)
        by_step = checkpoints.by_step()
        try:
            return Saved(*checkpoints.load(by_step[step]))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}: put it back from a backup, or choose another --checkpoint of "
                f"{', '.join(map(str, by_step))}"
            ) from error


class Enough(Exception):  # noqa: N818 - no error
    """The last step to replay is done."""


def replayed(recipe: Recipe, folder: Path, checkpoint: int | None, steps: int | None) -> Replay:
    """Replay a run from a checkpoint on; nothing is written.

    Args:
        recipe: Of the run, as `stored_recipe` returns it.
        folder: Of the run.
        checkpoint: Step of the checkpoint to start from; by default the last but one.
        steps: How many; by default up to the next checkpoint, or to the last line of metrics.

    Raises:
        DifferenceError: A metric or tensor has other bits; the message names the first one, and the
            likely cause.
        DiraError: The run cannot be replayed here.
    """
    plan = planned(recipe, folder, checkpoint, steps)
    try:
        return replay(plan)
    except Found as found:
        first = str(found)
    raise DifferenceError(f"{first}; {cause(plan, first)}")


def stored_recipe(folder: Path) -> Recipe:
    """Return the recipe in a run folder.

    Raises:
        RecipeError: There is none, or it has several stages.
    """
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{folder} is no run, it has no {RECIPE}: give the folder of a run")
    recipe = resolve([file_layer(folder / RECIPE)]).recipe
    if recipe.stages:
        raise RecipeError(
            f"{folder} has stages, each is a run: verify {folder}/stages/{recipe.stages[-1].name}"
        )
    return recipe


def planned(recipe: Recipe, folder: Path, checkpoint: int | None, steps: int | None) -> Plan:
    """Choose checkpoint and steps, see `replayed`.

    Raises:
        CheckpointError: There is no such checkpoint, or nothing after it to compare with.
    """
    saved = [*checkpoints_of(folder).by_step()]
    if not saved:
        raise CheckpointError(
            f"{folder} has no checkpoint to replay from: put one back, or let a run save more of "
            "them (checkpoint.every_steps, checkpoint.keep)"
        )
    first = saved[max(0, len(saved) - 2)] if checkpoint is None else checkpoint
    if first not in saved:
        raise CheckpointError(
            f"{folder} has no checkpoint of step {first}: --checkpoint is one of "
            f"{', '.join(map(str, saved))}"
        )
    lines = {x["step"]: x for x in read_lines(folder / "metrics.jsonl") if "alarm" not in x}
    following = [step for step in [*saved, *reversed(lines)] if step > first]
    if not following:
        raise CheckpointError(
            f"{folder} has nothing after step {first} to compare a replay with: choose an earlier "
            "--checkpoint, or let a run keep more of them (checkpoint.every_steps, checkpoint.keep)"
        )
    last = following[0] if steps is None else min(first + steps, max(following))
    return Plan(recipe, folder, first, last, [s for s in saved if first < s <= last], lines)


def checkpoints_of(folder: Path) -> Checkpoints:
    """Return the checkpoints of a run, to be read alone."""
    return Checkpoints(folder / "checkpoints", 2)


def replay(plan: Plan) -> Replay:
    """Build the run anew, load the checkpoint, and take its steps again.

    Raises:
        Found: Something has other bits.
        CheckpointError: The checkpoint is damaged, of other processes, or of other data.
    """
    start = plan.load(plan.first)
    if start.state["world_size"] != world_size():
        raise CheckpointError(
            f"the checkpoint was saved with --nproc {start.state['world_size']}, and --nproc "
            f"{world_size()} rounds sums otherwise: use --nproc {start.state['world_size']}"
        )
    recipe = shared_out(plan.recipe.model_copy(update={"init": None}))
    source = build_source(recipe)
    if start.state["source"] != source.fingerprint():
        raise CheckpointError(
            "the data changed since the checkpoint was written (files added, removed or resized): "
            "restore them, the run cannot be replayed without"
        )
    game = Game(build_trio(recipe), source, recipe)
    restore(game.trainer, start.tensors, start.state)
    if plan.steps_saved:  # a run that went back goes on with fresh draws
        game.trainer.salt = plan.load(plan.steps_saved[0]).state["salt"]
    watcher = Comparing(plan, game)
    where = peers_named(lambda: f"step {game.trainer.step}")
    with closing(game.loader), where, suppress(Enough):
        game.trainer.fit(watcher)
    return watcher.done


class Comparing:
    """Compare every step that a run logged or saved with what it left on disk."""

    def __init__(self, plan: Plan, game: Game) -> None:
        self.done = Replay(plan.first, plan.last)
        self._plan = plan
        self._skips = plan.recipe.health.nonfinite == "skip"
        self._features = game.features()

    def epoch_started(self, trainer: Trainer) -> None:
        """Let the Discriminator prepare its epoch."""
        for player in trainer.players:
            player.epoch_started(trainer.progress, self._features)

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Compare the step; end after the last one.

        Raises:
            Found: Something has other bits.
            Enough: This was the last step.
        """
        found = ""
        try:
            self._compare(trainer, metrics)
        except Found as difference:
            found = str(difference)
        if first := next(filter(None, gathered(found)), None):
            raise Found(first)
        if trainer.step >= self._plan.last:
            raise Enough

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        """Skip a step where the run did."""
        if not (self._skips and setback.indices):
            raise DivergedError(
                f"{setback}, as it may have been in the run, which then went back or ended: choose "
                "a --checkpoint after it, or fewer --steps"
            ) from setback
        trainer.step += 1

    def _compare(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        step = trainer.step
        there = self._plan.lines.get(step)
        if metrics and there is not None:
            compare_metrics(json.loads(json.dumps(dict(metrics))), there, step)
            self.done.lines += 1
        if step in self._plan.steps_saved:
            saved = self._plan.load(step)
            tensors, state = capture(trainer)
            self.done.tensors += compare_tensors(tensors, saved.tensors, step)
            compare_states(state, saved.state, step)


def cause(plan: Plan, first: str) -> str:
    """Return what most likely made a replay differ."""
    if changed := from_first(changes_of(plan.folder / ENVIRONMENT, environment())):
        return f"likely cause: the environment is another one ({', '.join(changed)})"
    try:
        replay(plan)
        again = ""
    except Found as found:
        again = str(found)
    if again != first:
        return (
            "likely cause: an operation that is not deterministic, as a second replay differs from "
            "the first one: see train.deterministic, and what plugins draw without `draws`"
        )
    return (
        "likely cause: a file of the run or the content of an image was changed since, as a second "
        "replay here gives the same bits as the first one"
    )


def said(done: Replay) -> Iterator[str]:
    """Yield what there is to say of a replay that found no difference."""
    yield f"bit-identical: steps {done.first + 1} to {done.last} replayed"
    yield f"compared       {done.lines} lines of metrics, {done.tensors} tensors of checkpoints"
