"""One owner at a time: a lock that dies with its process, however that dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

from dira_core.errors import RunFolderError
from dira_core.files import writing

logger = logging.getLogger("dira")

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Lock:
    """Lock a file by `flock`; its content says who has it.

    Args:
        path: The lock file; it is made, and never removed, as others may already wait at it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, or say who has it.

        Raises:
            RunFolderError: Another process has it, or this one already.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file, self._path)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _taken.add(self)
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let go, if this process has it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


_taken: WeakSet[Lock] = WeakSet()


def _let_go() -> None:
    for lock in _taken:
        lock.release()


# A forked data worker inherits the locks. It must let go at once, or one that outlives its killed
# trainer keeps the folder from the run that follows. Once, as what is registered stays for good.
os.register_at_fork(after_in_child=_let_go)


@contextmanager
def owned(folder: Path, name: str) -> Iterator[None]:
    """Lock a folder while the context lasts; it is made when it is not there.

    Args:
        folder: To be locked.
        name: Of the lock file in it.

    Raises:
        RunFolderError: Another process has it, it is a file, or it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: use another --out")
    lock = Lock(folder / name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()
    try:
        yield
    finally:
        lock.release()


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(file, 1000, 0).decode(errors="replace").strip()
        raise RunFolderError(
            f"{path.parent} is in use by {owner or 'another process'}: wait for it, stop it, "
            "or use another --out"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        logger.warning("%s: no locks on this disk, start no second process in it", path.parent)
