"""Who does the jobs: processes of this machine, or a cluster's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dira_core.errors import RecipeError
from dira_core.study.plan import require_submitit

GRACE_S = 60.0
"""Seconds that jobs have to save and leave."""

PRELOADED = (
    "dira_core.study.work",
    "dira_core.nn.resnet",
    *("sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "scipy.ndimage"),
)
"""What a job imports, loaded once for all of them: seconds each."""

POLL_S = 2.0
"""Seconds between looks at a cluster's jobs."""


class Workers(ABC):
    """Do jobs side by side; whether one succeeded is for its folder to say.

    Args:
        n: Jobs at once.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.running: dict[Path, Any] = {}

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Start the job of a folder."""

    @abstractmethod
    def wait(self) -> dict[Path, str]:
        """Wait a moment; return jobs that ended, and how as far as their processes tell."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all jobs to save and leave, and wait for them."""


class Here(Workers):
    """A process a job, forked from one that has torch loaded already."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOADED])
        self._threads = max(1, (os.cpu_count() or 1) // n) if n > 1 else None

    def start(self, folder: Path) -> None:
        """Start a process."""
        process = self._context.Process(target=_work, args=(str(folder), self._threads))
        process.start()
        self.running[folder] = process

    def wait(self) -> dict[Path, str]:
        """Wait for the first process to end, at most a second."""
        connection.wait([process.sentinel for process in self.running.values()], timeout=1.0)
        ended: dict[Path, str] = {}
        for folder, process in [*self.running.items()]:
            if not process.is_alive():
                del self.running[folder]
                ended[folder] = _ending(process.exitcode)
        return ended

    def stop(self) -> None:
        """Send SIGTERM: a pretraining saves, a transfer has saved after an epoch."""
        processes: list[BaseProcess] = [*self.running.values()]
        for process in processes:
            process.terminate()
        until = time.monotonic() + GRACE_S
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            process.kill()
        self.running.clear()


class Submitted(Workers):
    """A job of a cluster each, through submitit; this process stays and watches.

    Args:
        n: Jobs in the queue at once.
        folder: For submitit's scripts and logs.
        parameters: What is asked for, as submitit calls it.
        cluster: "slurm", or submitit's "local".

    Raises:
        RecipeError: There is no such cluster here, or it does not know a parameter.
    """

    def __init__(
        self, n: int, folder: Path, parameters: Mapping[str, Any], cluster: str = "slurm"
    ) -> None:
        super().__init__(n)
        require_submitit()
        import submitit

        asked = {"name": "dira", "timeout_min": 24 * 60, **parameters}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**asked)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise RecipeError(
                f"submitit cannot use {cluster} ({why}): run this where jobs are submitted, with "
                "keys in [slurm] that submitit knows"
            ) from error

    def start(self, folder: Path) -> None:
        """Submit a job."""
        self.running[folder] = self._executor.submit(_work, str(folder))

    def wait(self) -> dict[Path, str]:
        """Look whether jobs ended."""
        time.sleep(POLL_S)
        ended = [folder for folder, job in self.running.items() if job.done()]
        return {folder: f"ended as {self.running.pop(folder).state}" for folder in ended}

    def stop(self) -> None:
        """Cancel all jobs."""
        for job in self.running.values():
            job.cancel()
        self.running.clear()


def _work(folder: str, threads: int | None = None) -> None:
    from dira_core.study.work import work  # torch is for the process that works

    threading.Thread(
        target=_leave_with, args=[multiprocessing.parent_process()], daemon=True
    ).start()
    work(folder, threads)


def _leave_with(parent: BaseProcess | None) -> None:
    """Save and leave when whoever started this process is gone: nobody else would stop it."""
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {-code}"
    return f"left with exit code {code}"
