"""A run on a terminal: a progress bar with the losses, or plain lines without one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from dira_core.study.jobs import Job
from dira_core.types import Progress as RunProgress

SECONDS_BETWEEN_LINES = 5.0
"""Where there is no terminal, a line is printed at most this often."""

BAR_WIDTH = 24

WIDE = 120
"""Columns from which on there is room for a bar."""


def described(metrics: Mapping[str, float]) -> str:
    """Return the losses in one short text: "dis -0.61 res 0.0182"."""
    losses = {k.removeprefix("losses/"): v for k, v in metrics.items() if k.startswith("losses/")}
    return "  ".join(f"{name} {value:.4g}" for name, value in losses.items())


class Bar:
    """A progress bar on stderr, and lines above it; without a terminal, lines alone.

    On a narrow terminal there is no bar, and text that wraps, but every number is there.

    Args:
        after: Text after what was done and how long it took and takes.
        before: Text before it.
    """

    def __init__(self, after: str, *, before: str = "") -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        whole = Column(no_wrap=True)
        bar = [BarColumn(BAR_WIDTH)] if self._console.width >= WIDE else []
        self._bar = Progress(
            TextColumn(before, markup=False),
            *bar,
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("eta"),
            TimeRemainingColumn(table_column=whole),
            TextColumn(after, markup=False, table_column=Column()),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def said(self, message: str) -> None:
        """Print one line above the bar."""
        self._console.print(message)


class Terminal(Bar):
    """Show a run's progress, losses and messages; a context manager."""

    def __init__(self) -> None:
        super().__init__("{task.fields[losses]}", before="{task.description}")
        self._task = self._bar.add_task("starting", total=None, losses="")
        self._printed = 0.0

    def stepped(
        self, progress: RunProgress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Move the bar; print a line now and then where there is none."""
        epoch = f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
        losses = f"{speed['images_per_s']:.0f} images/s  {described(metrics)}"
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total_steps,
            description=epoch,
            losses=losses,
        )
        last = progress.step == progress.total_steps
        now = time.monotonic()
        if self._bar.disable and (last or now - self._printed >= SECONDS_BETWEEN_LINES):
            self._printed = now
            self.said(f"{epoch}  step {progress.step}/{progress.total_steps}  {losses}")


class Jobs(Bar):
    """Show how the jobs of a study get on; a context manager.

    Args:
        total: Jobs of the study.
        done: Of those, finished before.
    """

    def __init__(self, total: int, done: int) -> None:
        super().__init__("{task.description}")
        self._task = self._bar.add_task("", total=total, completed=done)
        self._began: dict[str, float] = {}
        if done:
            self.said(f"{done} of {total} jobs are done already")

    def began(self, job: Job) -> None:
        """Name the jobs at work."""
        self._began[job.name] = time.monotonic()
        self._bar.update(self._task, description=", ".join(self._began))

    def ended(self, job: Job, failure: str) -> None:
        """Print how a job ended, and move the bar."""
        seconds = time.monotonic() - self._began.pop(job.name)
        self.said(f"{job.name}  {failure or 'done'}  {seconds:.0f} s")
        self._bar.update(self._task, advance=1, description=", ".join(self._began))
