"""Files that appear whole or not at all, their digests, and the places where a test may strike."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dira_core.errors import DiraError, ResourceError, RunFolderError, did_you_mean

FAILPOINTS = {
    "file.after_write": "a small file is written aside, not yet renamed",
    "ckpt.after_data": "tensors and state are on disk, the manifest is not",
    "ckpt.after_manifest": "the checkpoint is complete, under its temporary name",
    "ckpt.after_rename": "the checkpoint has its name, and is not yet verified",
    "ckpt.before_prune": "the checkpoint is verified, older ones are still there",
}
"""Where DIRA_FAILPOINTS can strike, for example `ckpt.after_data:kill@3,file.after_write:raise`."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names of files that `replacing` has not finished, or never will."""


class FailpointError(RuntimeError):
    """DIRA_FAILPOINTS asked for it."""


class Failpoints:
    """Kill or raise at named places, to prove what survives.

    Args:
        plan: `name:action` or `name:action@n`, separated by commas; the action is `kill` (SIGKILL
            to this process) or `raise` (`FailpointError`), done the n-th time the place is reached.

    Raises:
        DiraError: The plan names an unknown place or action.
    """

    def __init__(self, plan: str) -> None:
        self._reached = {name: itertools.count(1) for name in FAILPOINTS}
        self._strikes: dict[str, tuple[str, int]] = {}
        for item in filter(None, plan.split(",")):
            match = re.fullmatch(r"([\w.]+):(kill|raise)(?:@([1-9]\d*))?", item.strip())
            if match is None or match[1] not in FAILPOINTS:
                name = item.strip().partition(":")[0]
                raise DiraError(
                    f"DIRA_FAILPOINTS takes name:kill@n or name:raise@n, got {item.strip()!r}"
                    f"{did_you_mean(name, FAILPOINTS)}; the names are {', '.join(FAILPOINTS)}"
                )
            self._strikes[match[1]] = (match[2], int(match[3] or 1))

    def reach(self, name: str) -> None:
        """Strike, if the plan says so for this place and time."""
        action, when = self._strikes.get(name, ("", 0))
        if next(self._reached[name]) != when:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise FailpointError(f"failpoint {name}")


@functools.cache
def planned() -> Failpoints:
    """Return the failpoints of this process; the environment is read once."""
    return Failpoints(os.environ.get("DIRA_FAILPOINTS", ""))


def failpoint(name: str) -> None:
    """Mark a place where a test may kill this process; see `FAILPOINTS`."""
    planned().reach(name)


def digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def unused(path: Path) -> Path:
    """Return `path`, or with the first of -2, -3, ... that does not exist yet."""
    names = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    return next(p for p in map(path.with_name, names) if not os.path.lexists(p))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk; interrupted, it may be torn."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, it holds either the old bytes or the new ones.

    Raises:
        ResourceError: No space is left; the old file is intact.
        RunFolderError: The folder cannot be written to.
    """
    with writing(path.parent, len(data)), replacing(path) as aside:
        aside.write_bytes(data)
        failpoint("file.after_write")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name under which to write a new file; on disk at the end, it is renamed to `path`.

    With an error nothing is left of it, and what was at `path` stays.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what `replacing` could not finish in a folder and below, as it was killed."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink()


@contextmanager
def writing(
    folder: Path, need: int = 0, intact: str = "what was there before is intact"
) -> Iterator[None]:
    """Turn a failed write into an error that a user can mend.

    Args:
        folder: Where to.
        need: Bytes, if known.
        intact: What a full disk leaves, for the message.

    Raises:
        ResourceError: No space, no inode or no quota is left.
        RunFolderError: The folder cannot be written to for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"cannot write in {folder} ({error.strerror}): mend it, or use another --out"
            ) from error
        needed = f"need {_size(need)}, " if need else ""
        raise ResourceError(
            f"no space left in {folder}: {needed}have {_left(folder, error)}; "
            f"free space or use another --out, {intact}"
        ) from error


def _left(folder: Path, error: OSError) -> str:
    if error.errno == errno.EDQUOT:
        return "a full quota"
    disk = os.statvfs(folder)
    if disk.f_files and not disk.f_favail:
        return "no free inode"
    return _size(disk.f_bavail * disk.f_frsize)


def _size(n: int) -> str:
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"
