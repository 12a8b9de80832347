"""`dira study`: a grid of weights, tasks, label fractions and seeds, as the paper's tables."""

from __future__ import annotations

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from dira_core.errors import DiraError
from dira_core.lock import owned
from dira_core.signals import EXIT_PREEMPTED
from dira_core.study.jobs import Job, jobs_of, lay_out
from dira_core.study.plan import Study, keep, read_study
from dira_core.study.running import LOCK, carry_out
from dira_core.study.workers import Here, Submitted

NAMED = 5
"""Failed jobs that are named; the others are counted."""


def study(
    file: Annotated[Path, typer.Argument(help="TOML or JSON file; see docs/study.md.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the study; by default studies/NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs at once.")] = 1,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit jobs to SLURM; this process stays and watches.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the jobs and how long they take.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Write the tables of what is done, and do nothing.")
    ] = False,
) -> None:
    """Pretrain, transfer and compare: all that a study file asks for, and the paper's tables of it.

    Started again, it does what is left: a finished job is never repeated, a stopped one goes on.
    Ctrl-C saves and leaves. A job that fails takes no other along, and is named at the end.
    Needs pip install "dira-ssl[eval]", and for --slurm "dira-ssl[slurm]".
    """
    plan = read_study(file)
    found, folder = jobs_of(plan), out or Path("studies") / file.stem
    if not tables:
        check(found, folder)
    if dry_run:
        show(found, folder)
        return
    with owned(folder, LOCK):
        failed: dict[str, str] = {}
        if not tables:
            lay_out(found, folder)
        keep(plan, folder)
        if not tables:
            again = shlex.join(command(file, out, jobs, slurm=slurm))
            failed = do(found, folder, plan, jobs, again, slurm=slurm)
        write(plan, found, folder)
    if failed:
        raise DiraError(named(failed))


def check(found: Sequence[Job], folder: Path) -> None:
    """Open every task, before hours of pretraining."""
    from dira_core.study.opening import check_targets

    check_targets(found, folder)


def command(file: Path, out: Path | None, jobs: int, *, slurm: bool) -> list[str]:
    """Return the words of the command that does what is left."""
    given = [] if out is None else ["--out", str(out)]
    given += [] if jobs == 1 else ["--jobs", str(jobs)]
    return ["dira", "study", str(file), *given, *(["--slurm"] if slurm else [])]


def do(
    found: Sequence[Job], folder: Path, plan: Study, n: int, again: str, *, slurm: bool
) -> dict[str, str]:
    """Do what is left, watched on the terminal; `again` is the command that goes on."""
    from dira_core.cli.live import Jobs

    workers = Submitted(n, folder / "slurm", plan.slurm) if slurm else Here(n)
    finished = sum(job.done(folder) for job in found)
    try:
        with terminable(), Jobs(len(found), finished) as watcher:
            return carry_out(found, folder, workers, watcher)
    except KeyboardInterrupt:
        typer.echo(f"stopped; what is done stays done, go on with: {again}", err=True)
        sys.exit(EXIT_PREEMPTED)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what it interrupts as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def named(failed: dict[str, str]) -> str:
    """Say in one line what failed, and why; what only waited for it is counted."""
    causes = {name: why for name, why in failed.items() if not why.startswith("needs ")}
    shown = "; ".join(f"{name}: {why}" for name, why in [*causes.items()][:NAMED])
    more = f"; and {len(causes) - NAMED} more" if len(causes) > NAMED else ""
    waiting = len(failed) - len(causes)
    also = f" ({waiting} others need them)" if waiting else ""
    return f"{len(causes)} jobs failed{also}: {shown}{more}; mend it, and start the study again"


def write(plan: Study, found: Sequence[Job], folder: Path) -> None:
    """Write results and tables, and print the tables."""
    from dira_core.study.writing import write_results

    for line in write_results(plan, found, folder):
        typer.echo(line)


def show(found: Sequence[Job], folder: Path) -> None:
    """Print the jobs and how long they take."""
    from dira_core.study.estimate import Estimate

    estimate, total = Estimate(found, folder), 0.0
    for job in found:
        seconds = 0.0 if job.done(folder) else estimate.seconds(job)
        total += seconds
        typer.echo(f"{duration(seconds) if seconds else 'done':>10}  {job.name}")
    kinds = Counter(job.asked["kind"] for job in found)
    listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    typer.echo(f"{duration(total):>10}  at most, one after the other: {listed}")


def duration(seconds: float) -> str:
    """Say how long in words."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "< 1 min"
