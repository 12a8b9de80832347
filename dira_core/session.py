"""One run in its folder: what it logs, when it saves, what it does when something is wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pluggy

from dira_core.distributed import from_first, gathered, highest, rank, world_size
from dira_core.errors import CheckpointError, DataError, DivergedError
from dira_core.files import write_atomic
from dira_core.health import Health
from dira_core.lines import Lines, NoLines
from dira_core.pace import Pace
from dira_core.resume import capture, restore
from dira_core.roles import FeaturePass, Source, Tracker
from dira_core.runfolder import RunFolder
from dira_core.saving import Saver
from dira_core.settings import Settings
from dira_core.signals import Preempted, Stop
from dira_core.trackers import Trackers
from dira_core.trainer import Setback, Trainer
from dira_core.types import Progress
from dira_core.watching import Display, observe


class Session:
    """Follow a trainer: log, watch its health, save, recover, leave when asked.

    Args:
        folder: The run folder, locked.
        source: What is trained on.
        settings: Of the run.
        hook: Calls the observing hooks of all plugins.
        trackers: Where metrics go besides metrics.jsonl.
        display: Where a person watches.
        stop: Knows whether a signal came.
        features: Encodes the whole source, for Discriminators that cluster.

    Attributes:
        notes: JSON values that travel with every checkpoint (what was measured before training).
        display: Where a person watches.
        pace: The speed of the run.
    """

    def __init__(
        self,
        folder: RunFolder,
        source: Source,
        settings: Settings,
        hook: pluggy.HookRelay,
        trackers: Iterable[Tracker],
        display: Display,
        stop: Stop,
        features: FeaturePass,
    ) -> None:
        self.notes: dict[str, Any] = {}
        self.pace = Pace()
        self._folder = folder
        self._source = source
        self._settings = settings
        self._hook = hook
        self._trackers = Trackers(trackers, display.said)
        self.display = display
        self._stop = stop
        self._features = features
        self._health = Health()
        self._recoveries = 0
        first = rank() == 0
        self._saver = Saver(folder.checkpoints, background=settings.checkpoint.background)
        self._metrics = Lines(folder.path / "metrics.jsonl") if first else NoLines()
        self._speed = Lines(folder.path / "speed.jsonl") if first else NoLines()
        self._unreadable = 0

    def epoch_started(self, trainer: Trainer) -> None:
        """Let the Discriminator prepare its epoch.

        Raises:
            Preempted: A signal came during its pass over the source; the run is saved.
        """
        try:
            for player in trainer.players:
                player.epoch_started(trainer.progress, self._features)
        except Preempted:
            self.save(trainer)
            self.settle()
            raise

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Log, check health, save when due, leave when asked.

        Raises:
            Preempted: A signal came; the run is saved.
            Setback: A health alarm under the policy "rollback".
            DivergedError: A health alarm under the policy "stop".
            DataError: Too many images are unreadable.
        """
        progress = trainer.progress
        self._saver.poll()
        if metrics:
            self._log(progress, metrics, self.pace.since_last(trainer))
            self._check_health(progress, metrics)
        if progress.step % trainer.steps_per_epoch == 0:
            observe(self._hook.dira_epoch_ended, progress=progress)
        stopping = self._heard(trainer)
        if progress.step % self._settings.checkpoint.every_steps == 0 or stopping:
            self.save(trainer)
        if stopping:
            self.settle()
            raise Preempted(f"{stopping}: saved at step {progress.step}")

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        """Skip the step or go back to the last checkpoint, as the policy says.

        Raises:
            DivergedError: The policy is "stop", or the run recovered too often.
        """
        policy = self._settings.health.nonfinite if setback.indices else "rollback"
        advice = ""
        if setback.indices:
            names = "\n".join(self._source.name(i) for i in setback.indices)
            if rank() == 0:
                write_atomic(self._folder.path / f"setback-{trainer.step}.txt", names.encode())
            advice = (
                f"; the images of the step are in setback-{trainer.step}.txt; try a smaller "
                "optimizer.lr or train.precision=fp32, or --set health.nonfinite=skip"
            )
        self._recoveries += 1
        if policy == "stop" or self._recoveries > self._settings.health.max_recoveries:
            raise DivergedError(
                f"{setback}; recovered {self._recoveries - 1} times{advice}"
            ) from setback
        self.display.said(f"{setback}: {policy}")
        if policy == "skip":
            trainer.step += 1
            return
        recoveries = self._recoveries
        self.resume(trainer)
        self._recoveries = recoveries
        trainer.salt += recoveries

    def save(self, trainer: Trainer) -> None:
        """Save all the run needs to continue; it may be on disk later, see `settle`."""
        tensors, state = capture(trainer)
        state |= {
            "health": self._health.state_dict(),
            "recoveries": self._recoveries,
            "metrics": self._metrics.position(),
            "speed": self._speed.position(),
            "source": self._source.fingerprint(),
            "world_size": world_size(),
            "next": trainer.next_images(),
            "notes": self.notes,
            "unreadable": [[i, reason] for i, reason in sorted(trainer.loader.unreadable.items())],
        }
        progress, call = trainer.progress, self._hook.dira_checkpoint_saved
        self._saver.save(
            trainer.step,
            tensors,
            state,
            before=[self._metrics.sync, self._speed.sync],
            saved=lambda path: observe(call, path=path, progress=progress),
            optimizers=[player.optimizer for player in trainer.players],
        )

    def show(self, trainer: Trainer, pictures: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Hand pictures to the trackers, (H, W, 3) uint8 by name."""
        self._trackers.images(trainer.step, pictures)

    def settle(self) -> None:
        """Wait for the save that is going on, if there is one.

        Raises:
            DiraError: It failed.
        """
        self._saver.wait()

    def resume(self, trainer: Trainer) -> None:
        """Continue from the newest checkpoint that can be trusted.

        Raises:
            CheckpointError: There is none, or the data are not those it was trained on.
        """
        self.settle()
        newest = self._folder.checkpoints.latest() if rank() == 0 else None
        name = from_first(str(newest or ""))
        if not name:
            raise CheckpointError(
                f"no checkpoint in {self._folder.path} to go back to: start it anew without "
                "--resume, under another --out"
            )
        path = Path(name)
        tensors, state = self._folder.checkpoints.load(path)
        if state["source"] != self._source.fingerprint():
            raise CheckpointError(
                "the data changed since the checkpoint was written (files added, removed or "
                "resized): restore them, or start a new run"
            )
        restore(trainer, tensors, state)
        if state["next"] != trainer.next_images():
            raise CheckpointError("the order of images differs from the one the checkpoint expects")
        self._health.load_state_dict(state["health"])
        self._recoveries = state["recoveries"]
        self._metrics.truncate(state["metrics"])
        self._speed.truncate(state["speed"])
        self.notes = state["notes"]
        trainer.loader.unreadable.update(state.get("unreadable", []))
        if state["world_size"] != world_size():
            self.display.said(
                f"saved with --nproc {state['world_size']}, continued with --nproc {world_size()}: "
                "the order of images is the same, sums are rounded in another one, and batch norms "
                "that are not synchronised see batches of another size"
            )
        self.pace.restart(trainer)
        here = trainer.progress
        self.display.said(
            f"resumed from {path.name}: epoch {min(here.epoch + 1, here.epochs)} of {here.epochs}, "
            f"step {here.step} of {here.total_steps}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._trackers.close()
        self._saver.close(error)

    def _log(
        self, progress: Progress, metrics: Mapping[str, float], speed: dict[str, float]
    ) -> None:
        self._metrics.append({"step": progress.step, "epoch": progress.epoch, **metrics})
        self._speed.append({"step": progress.step, **speed})
        self._trackers.log(progress.step, {**metrics, **speed})
        observe(self._hook.dira_step_ended, progress=progress, metrics=dict(metrics))
        self.display.stepped(progress, metrics, speed)

    def _check_health(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        for alarm in self._health.check(progress.step, progress.total_steps, metrics):
            self._metrics.append({"step": progress.step, "alarm": alarm.name, "since": alarm.since})
            self.display.said(f"health: {alarm.message}")
            if self._settings.health.policy == "stop":
                raise DivergedError(alarm.message)
            if self._settings.health.policy == "rollback":
                raise Setback(alarm.message)

    def _heard(self, trainer: Trainer) -> str | None:
        """Return the signal that asks all processes to stop; let them know of unreadable images."""
        found = len(trainer.loader.unreadable) != self._unreadable
        heard, news = highest(number(self._stop), found)
        if news:
            for bad in gathered(list(trainer.loader.unreadable.items())):
                trainer.loader.unreadable.update(bad)
            self._check_readable(trainer.loader.unreadable)
        return signal.Signals(int(heard)).name if heard else None

    def _check_readable(self, bad: Mapping[int, str]) -> None:
        n = len(self._source)
        self._unreadable = len(bad)
        lines = [f"{self._source.name(i)}: {reason}\n" for i, reason in sorted(bad.items())]
        if rank() == 0:
            write_atomic(self._folder.path / "unreadable.txt", "".join(lines).encode())
        allowed = self._settings.loader.max_unreadable
        if len(bad) > allowed * n:
            raise DataError(
                f"{len(bad)} of {n} images are unreadable, more than loader.max_unreadable = "
                f"{allowed:g} (for example {lines[0].strip()}): see unreadable.txt in "
                f"{self._folder.path}, repair or remove them, or allow more with "
                "--set loader.max_unreadable"
            )


def pause(stop: Stop) -> None:
    """Leave long work where a signal asks any of the processes to.

    Raises:
        Preempted: It does.
    """
    if heard := int(highest(number(stop))[0]):
        raise Preempted(f"{signal.Signals(heard).name}: between two steps")


def number(stop: Stop) -> int:
    """Return the number of the signal that asked to stop, or 0."""
    return signal.Signals[stop.requested].value if stop.requested else 0
