"""Carry a study out: start what can start, never repeat what is done, lose nothing to a failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dira_core.study.jobs import ERROR, Job
from dira_core.study.workers import Workers

LOCK = "study.lock"


class Watcher(Protocol):
    """Whoever watches."""

    def began(self, job: Job) -> None:
        """A job was started."""

    def ended(self, job: Job, failure: str) -> None:
        """A job is over; `failure` is empty where it succeeded."""


def carry_out(
    jobs: Sequence[Job], study: Path, workers: Workers, watcher: Watcher
) -> dict[str, str]:
    """Do all jobs that are not done; return those that could not be, with the reason.

    A failed pretraining takes its own transfers along and nothing else. On any exception (Ctrl-C)
    the running jobs are asked to save and leave.

    Args:
        jobs: Each comes after the one it needs.
        study: Their folder.
        workers: Do them.
        watcher: Is told.
    """
    todo = [job for job in jobs if not job.done(study)]
    failed: dict[str, str] = {}
    at_work: dict[Path, Job] = {}
    try:
        while todo or at_work:
            busy = {job.name for job in at_work.values()} | {job.name for job in todo}
            for job in [*todo]:
                if job.after in failed:
                    failed[job.name] = f"needs {job.after}"
                elif job.after in busy or len(at_work) >= workers.n:
                    continue
                else:
                    workers.start(job.folder(study))
                    at_work[job.folder(study)] = job
                    watcher.began(job)
                todo.remove(job)
            for folder, ending in (workers.wait() if at_work else {}).items():
                job = at_work.pop(folder)
                why = "" if job.done(study) else _reason(folder, ending)
                if why:
                    failed[job.name] = why
                watcher.ended(job, why)
    finally:
        if at_work:
            workers.stop()
    return failed


def _reason(folder: Path, ending: str) -> str:
    path = folder / ERROR
    said = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return said[0] if said else f"{ending}, see its log.txt"
