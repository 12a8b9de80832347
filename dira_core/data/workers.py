"""Worker processes that make batches: started once, kept over epochs, watched while waited for."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dira_core.errors import DataError, DiraError, ResourceError
from dira_core.memory import keep_freed
from dira_core.signals import die_with_parent

STARVED = (-signal.SIGKILL, -signal.SIGBUS)
"""Exit codes of workers that got no memory: of the system, of /dev/shm."""

TRAINERS = (signal.SIGINT, signal.SIGTERM)
"""Signals for the trainer alone, which needs batches until it has saved."""

POLL_SECONDS = 1.0
"""How often workers that are waited for are looked after."""


class Workers:
    """Let processes answer requests, in order; two a worker are on their way.

    Args:
        dataset: Its `__getitems__` turns a request into a batch, or returns a DiraError.
        number: Processes.
        timeout: Seconds to wait for a batch before the storage is said to hang.
        pinned: Whether batches are put into page-locked memory.
    """

    def __init__(self, dataset: Dataset[Any], number: int, *, timeout: float, pinned: bool) -> None:
        self._timeout = timeout
        self._requests: list[Any] = []
        self._processes: list[BaseProcess] = []
        self._made: Iterator[Any] = iter(())
        self._loader = DataLoader[Any](  # sets torch's threads to 1 in its workers
            dataset,
            batch_sampler=self._requests,
            num_workers=number,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            pin_memory=pinned,
            timeout=POLL_SECONDS,
            persistent_workers=True,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )

    def answers(self, requests: Sequence[Any]) -> Iterator[Any]:
        """Yield the batch of each request; what an earlier call left over is thrown away.

        Raises:
            ResourceError: A worker was killed, mostly for memory.
            DataError: One died otherwise, or no batch came in time.
            DiraError: What the dataset returned.
        """
        self._requests.clear()
        with suppress(StopIteration):  # torch, beginning anew, would not wait as long as `_next`
            while True:
                self._next(self._made)
        self._requests[:] = requests
        self._made = iter(self._loader) if self._processes else self._started()
        for _ in requests:
            batch = self._next(self._made)
            if isinstance(batch, DiraError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the workers, whatever they do."""
        _kill(self._processes)

    def _started(self) -> Iterator[Any]:
        """Start the workers and their first epoch."""
        others = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        # Held back while they fork, a signal reaches the trainer a little later, a worker never.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINERS)
        try:
            made = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():
            # When a worker dies torch's handler raises in whatever runs just then; `_next` looks.
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        self._processes = [p for p in multiprocessing.active_children() if p not in others]
        atexit.register(_kill, self._processes)
        return made

    def _next(self, made: Iterator[Any]) -> Any:
        """Wait for a batch; notice workers that died or hang."""
        waited = 0.0
        while True:
            try:
                return next(made)
            except (RuntimeError, OSError, EOFError) as error:
                waited += POLL_SECONDS
                dead = [p for p in self._processes if not p.is_alive()]
                late = "timed out" in str(error)
                if late and not dead and waited < self._timeout:
                    continue
                self.close()
                if dead:
                    starved = dead[0].exitcode in STARVED
                    raise (ResourceError if starved else DataError)(
                        f"a data worker died (process {dead[0].pid}, exit code "
                        f"{dead[0].exitcode}; -9 is mostly a lack of memory): use fewer "
                        "loader.workers or a smaller loader.cache_mb, give /dev/shm more room, "
                        "then continue with --resume"
                    ) from error
                if late:
                    raise DataError(
                        f"no batch came within {self._timeout:g} s: see whether the storage hangs, "
                        "use more loader.workers or a smaller --batch-size, then continue with "
                        "--resume"
                    ) from error
                raise


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(number: int) -> None:
    """Set a worker up: it works on a CPU, and ends with the trainer at once.

    Torch's own watchdog takes five seconds and more.
    """
    keep_freed(torch.device("cpu"))
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    die_with_parent(trainer.pid)
