"""Signals that ask a run to save and leave. They set a flag; the loop decides."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

EXIT_PREEMPTED = 75
"""Asked to leave and saved: start the same command again (EX_TEMPFAIL, a scheduler's "requeue")."""


def die_with_parent(parent: int | None) -> None:
    """Let the system kill this process as soon as the one that started it is gone (Linux).

    Args:
        parent: Its id; where it has gone already, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


HEARD = b"\nthis step ends and is saved; press Ctrl-C again to leave at once\n"
"""What the first SIGINT is answered."""


@contextmanager
def unbegun() -> Iterator[None]:
    """Leave with EXIT_PREEMPTED where a signal asks to: there is nothing yet to be saved.

    Ctrl-C interrupts, as ever. What begins within the context may watch for signals itself.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_PREEMPTED)

    before: dict[signal.Signals, Any] = {
        each: signal.signal(each, leave) for each in WATCHED if each != signal.SIGINT
    }
    try:
        yield
    finally:
        put_back(before)


def put_back(before: dict[signal.Signals, Any]) -> None:
    """Install handlers that were there before, and forget them."""
    while before:
        watched, handler = before.popitem()
        # None stands for a handler that was not installed from Python and cannot be put back.
        signal.signal(watched, signal.SIG_DFL if handler is None else handler)


class Preempted(Exception):  # noqa: N818 - a request that was granted, not an error
    """A signal asked to save and leave; everything is saved."""


class Stop:
    """Remember that a signal asked to stop; while it is active no handler does more than that.

    Only the second SIGINT interrupts at once, with KeyboardInterrupt. The handlers from before are
    back on exit. One inside another starts with what that one heard. Outside the main thread, where
    Python allows no handlers, nothing is ever requested.

    Args:
        says: Whether the first SIGINT is answered on the error output.

    Attributes:
        requested: Name of the first signal that came, for example "SIGTERM", or None.
    """

    def __init__(self, *, says: bool = False) -> None:
        self.requested: str | None = None
        self._says = says
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for watched in WATCHED:
                before = self._before[watched] = signal.signal(watched, self._note)
                around = getattr(before, "__self__", None)
                if isinstance(around, Stop):
                    self.requested = self.requested or around.requested
        return self

    def __exit__(self, *_: object) -> None:
        put_back(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number).name
        if number != signal.SIGINT:
            return
        if self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self._interrupted = True
        if self._says:
            os.write(2, HEARD)  # a stream may be in the middle of a write of its own
