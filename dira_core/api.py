"""What the command line calls, one call each: run(), pretrain(), load()."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dira_core.build import build_players, build_source, build_trackers, build_trio
from dira_core.data.loader import Loader
from dira_core.errors import DivergedError, PluginError
from dira_core.evaluate import Sample, SourceFeatures, examine, held_out, probe
from dira_core.export import write_weights
from dira_core.files import write_atomic
from dira_core.pictures import contact_sheet, write_png
from dira_core.plugins import installed
from dira_core.precision import Precision, resolve_device, resolve_precision
from dira_core.recipe import Recipe, Settings, to_toml
from dira_core.roles import Source
from dira_core.runfolder import RunFolder, Status
from dira_core.session import Display, Preempted, Session, Silent, observe
from dira_core.signals import Stop
from dira_core.trainer import Trainer
from dira_core.trio import Model, Trio
from dira_core.views import ViewMaker

logger = logging.getLogger("dira")

SHEET_ROWS = 8
"""Images on a contact sheet."""


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
        resume: Continue the run in that folder.
        display: Where a person watches; nowhere by default.

    Raises:
        DiraError: Something a user can mend; status.json in the folder says it as well.
    """
    return pretrain(build_trio(recipe), build_source(recipe), recipe, folder, resume, display)


def pretrain(
    trio: Trio,
    source: Source,
    settings: Settings,
    folder: Path,
    resume: bool = False,
    display: Display | None = None,
) -> Result:
    """Pretrain a trio put together by hand on a source of one's own; like `run` otherwise."""
    display = display or Silent()
    with RunFolder(folder, resume=resume, keep=settings.checkpoint.keep) as home, Stop() as stop:
        if resume and home.read_status() == "done":
            display.said(f"{folder} is done already")
            return Result(folder, "done", json.loads((folder / "summary.json").read_text()))
        home.status("running")
        try:
            game = Game(trio, source, settings)
            with (
                closing(game.loader),
                Session(
                    home,
                    source,
                    settings,
                    installed().hook,
                    build_trackers(settings, folder),
                    display,
                    stop,
                    SourceFeatures(trio.backbone, source, settings, game.precision.device),
                ) as session,
            ):
                summary = play(game, session, home, resume)
            end(home, "done")
            return Result(folder, "done", summary)
        except Preempted as stopped:
            end(home, "preempted", str(stopped))
            return Result(folder, "preempted", {})
        except DivergedError as error:
            end(home, "diverged", str(error))
            raise
        except BaseException as error:
            end(home, "failed", str(error) or type(error).__name__)
            raise


def end(home: RunFolder, status: Status, reason: str = "") -> None:
    """Write how a run ended and tell who observes it; what they raise then changes nothing."""
    home.status(status, reason)
    try:
        observe(installed().hook.dira_run_ended, folder=home.path, status=status)
    except PluginError as error:
        logger.warning("%s", error)


class Game:
    """Everything a run computes with, on its device: trainer, model, loader, views."""

    def __init__(self, trio: Trio, source: Source, settings: Settings) -> None:
        device = resolve_device(settings.train.device)
        self.precision = Precision(resolve_precision(settings.train.precision, device), device)
        self.trio = trio
        self.source = source
        self.settings = settings
        if settings.train.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # filling what is about to be written anyway costs a tenth of a step
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False
        players = build_players(trio, settings, self.precision)
        assert isinstance(players[0].module, Model)
        self.model = players[0].module
        self.loader = Loader(source, settings, trio.n_views)
        self.views = ViewMaker(settings, device)
        optimizers = {"model": settings.optimizer, "critic": settings.critic_optimizer}
        self.trainer = Trainer(
            players, optimizers, self.loader, self.views, self.precision, settings
        )

    def examine(self, rows: int = 64) -> Sample:
        """Restore and embed held-out views in evaluation mode."""
        crops = held_out(self.loader, rows)
        return examine(self.model, self.views(crops, 0, 0), self.precision)

    def probe(self) -> float | None:
        """Return the kNN accuracy of the backbone's frozen features, or None without labels."""
        return probe(self.trio.backbone, self.source, self.settings, self.precision.device)


def play(game: Game, session: Session, home: RunFolder, resume: bool) -> dict[str, Any]:
    """Train, measure before and after, write weights, pictures and summary."""
    settings, trainer = game.settings, game.trainer
    home.write_environment()
    began = (home.path / "metrics.jsonl").exists()
    if resume and (began or home.checkpoints.latest() is not None):
        session.resume(trainer)
    else:
        home.write_recipe(to_toml(settings))
        session.notes["before"] = {"knn": game.probe(), **game.examine().metrics}
        session.save(trainer)
    observe(installed().hook.dira_run_started, folder=home.path, progress=trainer.progress)
    trainer.fit(session)
    session.save(trainer)
    sample = game.examine()
    write_png(home.path / "images/restored.png", sheet(sample), enlarge=2)
    write_weights(home.path / "weights", game.trio, settings)
    summary = {
        "steps": trainer.step,
        "before": session.notes["before"],
        "after": {"knn": game.probe(), **sample.metrics},
        "images_per_s": session.images_per_s,
        "unreadable": len(game.loader.unreadable),
    }
    write_atomic(home.path / "summary.json", json.dumps(summary, indent=2).encode())
    return summary


def sheet(sample: Sample) -> Any:
    """Lay out crops, distorted views, restorations and their errors, one row for each image."""
    view = sample.batch.views[0]
    columns = [view.crop, view.clean, view.image]
    if sample.attempt.restored is not None:
        restored = sample.attempt.restored[: len(view.crop)]
        columns += [restored, (restored - view.crop).abs()]
    return contact_sheet(columns, SHEET_ROWS)
