"""Trackers beside the training: a slow network holds no step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from dira_core.roles import Tracker

if TYPE_CHECKING:
    import numpy as np

ROOM = 1000
"""Lines a tracker may be behind."""

LEAVING_S = 10.0
"""Seconds a tracker may still take when the run has ended."""


class Trackers(Tracker):
    """Call every tracker of a run; go on without one that raises, or that is too slow.

    Args:
        trackers: Called beside the training.
        said: Is told of a tracker that is left out.
    """

    def __init__(self, trackers: Iterable[Tracker], said: Callable[[str], None]) -> None:
        self._all = [Aside(tracker) for tracker in trackers]
        self._said = said

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on the metrics of one step."""
        self._tell(lambda tracker: tracker.log(step, metrics))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Hand on pictures."""
        self._tell(lambda tracker: tracker.images(step, images))

    def close(self) -> None:
        """Let all of them end."""
        self._tell(Aside.close)

    def _tell(self, call: Callable[[Aside], None]) -> None:
        for tracker in list(self._all):
            try:
                call(tracker)
            except Exception as error:
                self._all.remove(tracker)
                self._said(f"tracker {tracker.name} failed and is left out: {error}")


class Aside(Tracker):
    """Hand metrics to a tracker in a thread, and raise what it raised at the next call.

    Args:
        tracker: Is called by one thread alone.
        room: Lines it may be behind.
        leaving_s: Seconds it may take to close.
    """

    def __init__(self, tracker: Tracker, room: int = ROOM, leaving_s: float = LEAVING_S) -> None:
        self.name = type(tracker).__name__
        self._tracker = tracker
        self._leaving_s = leaving_s
        self._todo: queue.Queue[Callable[[], None] | None] = queue.Queue(room)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step.

        Raises:
            Exception: What the tracker raised before.
            TimeoutError: It is too far behind.
        """
        self._do(partial(self._tracker.log, step, dict(metrics)))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Take pictures; raises as `log` does."""
        self._do(partial(self._tracker.images, step, dict(images)))

    def close(self) -> None:
        """Let the tracker end; raises as `log` does."""
        self._do(self._tracker.close)
        self._do(None)
        if self._thread is not None:
            self._thread.join(self._leaving_s)
            if self._thread.is_alive():
                raise TimeoutError(f"it did not end within {self._leaving_s:g} s")
        self._check()

    def _do(self, work: Callable[[], None] | None) -> None:
        self._check()
        if self._thread is None:  # not earlier: data workers are forked before the first line
            self._thread = threading.Thread(target=self._work, name="dira-tracker", daemon=True)
            self._thread.start()
        try:
            self._todo.put_nowait(work)
        except queue.Full as error:
            raise TimeoutError(f"it is {self._todo.maxsize} lines behind") from error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (work := self._todo.get()) is not None:
                work()
        except Exception as error:
            self._error = error
            with suppress(Exception):  # what it took before is not lost
                self._tracker.close()
