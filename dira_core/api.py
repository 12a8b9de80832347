"""What the command line calls, one call each: run(), pretrain(), load()."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dira_core import seen
from dira_core.agreement import agree
from dira_core.blame import blamed
from dira_core.build import build_source, build_trackers, build_trio
from dira_core.continuing import changed_for_good
from dira_core.distributed import barrier, from_first, rank, world_size
from dira_core.errors import (
    CheckpointError,
    DivergedError,
    PluginError,
    RecipeError,
    RunFolderError,
)
from dira_core.evaluate import Pause
from dira_core.files import read_record, write_atomic
from dira_core.game import Game, shared_out, sheet
from dira_core.layering import file_layer
from dira_core.memory import restart_peak, uncollected
from dira_core.peers import joined, peers_named
from dira_core.pictures import write_png
from dira_core.plugins import installed
from dira_core.profiling import Profiled
from dira_core.recipe import Recipe, to_toml
from dira_core.resolving import resolve
from dira_core.resume import inherit
from dira_core.roles import Source
from dira_core.runfolder import RECIPE, STATUS, RunFolder, Status
from dira_core.session import Session, pause
from dira_core.settings import Settings
from dira_core.signals import Preempted, Stop
from dira_core.trainer import Trainer
from dira_core.trio import Trio
from dira_core.watching import Display, Silent, observe

logger = logging.getLogger("dira")


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        folder: The run folder.
        status: "done" or "preempted".
        summary: What summary.json says: losses, restoration, collapse, kNN before and after, speed.
    """

    folder: Path
    status: str
    summary: dict[str, Any]


def run(
    recipe: Recipe, folder: Path, *, resume: bool = False, display: Display | None = None
) -> Result:
    """Pretrain as a recipe says; the same recipe, seed and machine give the same bits.

    Args:
        recipe: From `dira_core.resolve`.
        folder: The run folder, created if missing.
        resume: Continue the run in that folder, which is one of this recipe.
        display: Where a person watches; nowhere by default.

    Raises:
        DiraError: Something a user can mend; status.json in the folder says it as well.
    """
    with joined(recipe.train.timeout_s):
        agree(recipe)
        shared = shared_out(recipe)
        if resume and (folder / RECIPE).is_file():
            check_same_run(shared, folder)
        display = display if display and rank() == 0 else Silent()
        if recipe.stages:
            return run_stages(recipe, folder, resume, display)
        trio = start(shared, folder)
        return pretrain(trio, build_source(shared), shared, folder, resume, display)


def check_same_run(recipe: Recipe, folder: Path) -> None:
    """Refuse to continue a run with a recipe that would make another one of it.

    Raises:
        RecipeError: It differs from that of the run in what decides about the weights.
    """
    stored = resolve([file_layer(folder / RECIPE)]).recipe
    if changed := changed_for_good(shared_out(stored), recipe):
        raise RecipeError(
            f"the run in {folder} has another recipe, {', '.join(changed)} cannot change: start a "
            "new run in another folder"
        )


def start(recipe: Recipe, folder: Path) -> Trio:
    """Build the trio of a run; its `init` is read only where nothing will go over it.

    Args:
        recipe: Of the run.
        folder: Of the run; with a checkpoint in it, the initial weights are history.
    """
    saved = any((folder / "checkpoints").glob("step-*"))
    damaged = any((folder / "checkpoints").glob("damaged-step-*"))
    history = saved or damaged
    return build_trio(recipe.model_copy(update={"init": None}) if history else recipe)


def run_stages(recipe: Recipe, folder: Path, resume: bool, display: Display) -> Result:
    """Run the stages of a recipe one after the other, each in a run folder within `folder/stages`.

    What the last one leaves (weights, pictures, summary) is copied to `folder`. The recipe there
    has batch sizes as they were given, and says for how many processes.
    """
    stages = [shared_out(recipe.at_stage(number)) for number in range(len(recipe.stages))]
    meant = {"processes": recipe.train.processes or world_size()}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=meant)})
    with owned(RunFolder(folder, resume=resume)) as home:
        if resume and from_first(home.read_status()) == "done":
            return finished(folder, display)
        if rank() == 0:
            home.write_recipe(to_toml(recipe))
            home.status("running")
        results: list[Result] = []
        summary: dict[str, Any] = {}
        with ending(home), Stop():  # for signals between two stages; each has its own within it
            for number, stage in enumerate(recipe.stages):
                display.said(f"stage {number + 1} of {len(recipe.stages)}: {stage.name}")
                chosen, place = stages[number], folder / "stages" / stage.name
                heirloom = None
                if results:  # a teacher must copy the backbone as it was handed down
                    heirloom = Heirloom(results[-1].folder, stage.inherit)
                    chosen = chosen.model_copy(update={"init": str(heirloom.folder)})
                trio = start(chosen, place)
                source = build_source(chosen)
                again = from_first(RunFolder(place).holds_run())
                results.append(pretrain(trio, source, chosen, place, again, display, heirloom))
                barrier()  # the first process has written the weights that all go on with
                if results[-1].status != "done":
                    raise Preempted(f"in stage {stage.name}")
            steps = sum(result.summary["steps"] for result in results)
            before = results[0].summary["before"]
            summary = results[-1].summary | {"before": before, "steps": steps}
            if rank() == 0:
                for name in ("weights", "images"):
                    shutil.copytree(results[-1].folder / name, folder / name, dirs_exist_ok=True)
                write_atomic(folder / "summary.json", json.dumps(summary, indent=2).encode())
    return Result(folder, "done" if summary else "preempted", summary)


def pretrain(
    trio: Trio,
    source: Source,
    settings: Settings,
    folder: Path,
    resume: bool = False,
    display: Display | None = None,
    heirloom: Heirloom | None = None,
) -> Result:
    """Pretrain a trio put together by hand on a source of one's own; like `run` otherwise.

    Args:
        trio: Backbone and roles, as they start.
        source: The images.
        settings: All else that a recipe says.
        folder: The run folder, created if missing.
        resume: Continue the run in that folder.
        display: Where a person watches; nowhere by default.
        heirloom: Weights of roles that an earlier stage ended with.

    Raises:
        DiraError: Something a user can mend; status.json in the folder says it as well.
    """
    game: Game | None = None

    def where() -> str:
        return "the start" if game is None else f"step {game.trainer.step}"

    with (
        joined(settings.train.timeout_s, where),
        owned(RunFolder(folder, resume=resume, keep=settings.checkpoint.keep)) as home,
        Stop(says=display is not None and rank() == 0) as stop,
    ):
        agree(settings, fingerprint=source.fingerprint())
        display = display if display and rank() == 0 else Silent()
        if resume and from_first(home.read_status()) == "done":
            return finished(folder, display)
        if rank() == 0:
            home.status("running")
        summary: dict[str, Any] = {}
        with ending(home), peers_named(where), blamed(where, lambda: settings.train):
            game = Game(trio, source, settings)
            display.said(game.manner())
            if trio.donor is not None:
                display.said(trio.donor.line())
                record = json.dumps(trio.donor.record(), indent=1)
                if rank() == 0:
                    write_atomic(folder / "init.json", record.encode())
            if heirloom is not None:
                heirloom.give(game.trainer)
            with (
                closing(game.loader),
                Session(
                    home,
                    source,
                    settings,
                    installed().hook,
                    build_trackers(settings, folder) if rank() == 0 else [],
                    display,
                    stop,
                    game.features(partial(pause, stop)),
                ) as session,
            ):
                summary = play(game, session, home, resume, partial(pause, stop))
    return Result(folder, "done" if summary else "preempted", summary)


@contextmanager
def owned(home: RunFolder) -> Iterator[RunFolder]:
    """Lock a run folder in the first process; the others look on."""
    with home if rank() == 0 else nullcontext():
        yield home


def finished(folder: Path, display: Display) -> Result:
    """Return how a run that is over ended.

    Raises:
        RunFolderError: Its summary is missing or damaged.
    """
    path = folder / "summary.json"
    summary = read_record(path)
    if summary is None:
        raise RunFolderError(
            f"{path} is missing or damaged: remove {STATUS} beside it and resume once more, which "
            "writes it anew"
        )
    display.said(f"{folder} is done already")
    return Result(folder, "done", summary)


@contextmanager
def ending(home: RunFolder) -> Iterator[None]:
    """Write how a run ends and tell who observes it; a run that was preempted ends in peace."""
    status: Status = "failed"
    reason = ""
    try:
        yield
        status = "done"
    except Preempted as stopped:
        status, reason = "preempted", str(stopped)
    except BaseException as error:
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        reason = str(error) or type(error).__name__
        raise
    finally:
        if rank() == 0:
            home.status(status, reason)
        try:
            observe(installed().hook.dira_run_ended, folder=home.path, status=status)
        except PluginError as error:
            logger.warning("%s", error)


@dataclass(frozen=True)
class Heirloom:
    """What a stage hands down to the next besides backbone and decoder: weights of other roles."""

    folder: Path
    roles: Sequence[str]

    def give(self, trainer: Trainer) -> None:
        """Put the weights into a trainer.

        Raises:
            CheckpointError: There are none, or they are those of other components.
        """
        checkpoints = RunFolder(self.folder).checkpoints
        newest = checkpoints.latest()
        if newest is None:
            raise CheckpointError(f"no checkpoint in {self.folder} to take weights from")
        tensors, _ = checkpoints.load(newest)
        inherit(trainer, tensors, self.roles)


def play(
    game: Game, session: Session, home: RunFolder, resume: bool, pause: Pause
) -> dict[str, Any]:
    """Train, measure before and after, write weights, pictures and summary."""
    settings, trainer, first = game.settings, game.trainer, rank() == 0
    if first:
        home.write_environment()
    began = (home.path / "metrics.jsonl").exists()
    if from_first(resume and (began or (first and home.checkpoints.latest() is not None))):
        session.resume(trainer)
        if first:
            home.write_recipe(to_toml(settings))  # with what the resume changed
    else:
        if first:
            home.write_recipe(to_toml(settings))
            home.status("running")  # from now on it can be resumed
        untrained = game.examine().metrics  # first: it notices images the backbone does not take
        session.notes["before"] = {"knn": game.probe(pause), **untrained}
        session.save(trainer)
        session.settle()  # a log without a checkpoint could not be continued
    observe(installed().hook.dira_run_started, folder=home.path, progress=trainer.progress)
    restart_peak(game.precision.device)
    profiled = Profiled(session, home.path / "profile", settings.log.profile, session.display)
    with uncollected(), profiled as watcher:
        trainer.fit(watcher)
    session.save(trainer)
    sample = game.examine()
    game.write_weights(home.path / "weights")
    summary = {
        "steps": trainer.step,
        "before": session.notes["before"],
        "after": {"knn": game.probe(pause), **sample.metrics},
        **session.pace.whole(trainer),
        "unreadable": len(game.loader.unreadable),
    }
    session.settle()
    if first:
        remember(game, home.path / "weights")
        picture = sheet(sample)
        write_png(home.path / "images/restored.png", picture, enlarge=2)
        session.show(trainer, {"restored": picture})
        write_atomic(home.path / "summary.json", json.dumps(summary, indent=2).encode())
    return summary


def remember(game: Game, weights: Path) -> None:
    """Write beside the weights which images and patients they were trained on, once."""
    place = seen.place_of(weights)
    if not place.exists():
        initial = game.settings.init if isinstance(game.settings, Recipe) else None
        seen.with_initial(game.source, initial).write(place)
