"""JSON lines that a killed process, a full disk or a resumed run cannot garble."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dira_core.errors import RunFolderError
from dira_core.files import sync, writing

logger = logging.getLogger("dira")

Value = float | int | str | bool | None


class NoLines:
    """Keep no lines: the first process of a run does."""

    def append(self, line: Mapping[str, Value]) -> None:
        """Do nothing."""

    def position(self) -> int:
        """Return 0."""
        return 0

    def sync(self) -> None:
        """Do nothing."""

    def truncate(self, position: int) -> None:
        """Do nothing."""


class Lines:
    """Append lines to a file, each with one write.

    Where lines cannot be written they are dropped, with one warning.

    Args:
        path: The file; made with the first line.

    Attributes:
        dropped: Lines that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._path = path

    def append(self, line: Mapping[str, Value]) -> None:
        """Write one object, with null for NaN and infinity."""
        data = json.dumps(finite(line), allow_nan=False).encode() + b"\n"
        try:
            self._write(data)
        except OSError as error:
            if not self.dropped:
                logger.warning(
                    "%s: cannot be written (%s); lines are dropped until it can",
                    self._path.name,
                    error.strerror,
                )
            self.dropped += 1

    def position(self) -> int:
        """Return the length in bytes of what was appended, to `truncate` to on resume."""
        return self._path.stat().st_size if self._path.exists() else 0

    def sync(self) -> None:
        """Wait until what was appended is on disk: before a checkpoint that knows the position.

        Raises:
            ResourceError: No space is left for it.
        """
        with writing(self._path.parent):
            if self._path.exists():
                sync(self._path)

    def truncate(self, position: int) -> None:
        """Forget what was appended after `position`, and a torn last line."""
        with writing(self._path.parent):
            kept = self._path.read_bytes()[:position] if self._path.exists() else b""
            if missing := position - len(kept):
                logger.warning("%s lacks %d bytes that it once had", self._path.name, missing)
            if self._path.exists():
                os.truncate(self._path, kept.rfind(b"\n") + 1)

    def _write(self, data: bytes) -> None:
        """Append all bytes or none."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(file).st_size
            if os.write(file, data) < len(data):
                os.ftruncate(file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a last line that is still being written is left out.

    Raises:
        RunFolderError: Another line is no JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield parsed(line, f"line {number} of {path.name}")


def finite(numbers: Mapping[str, Value]) -> dict[str, Value]:
    """Return numbers with None for NaN and infinity, for which JSON has no word."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()
    }


def parsed(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that a file or one of its lines, called `name`, holds.

    Raises:
        RunFolderError: It is damaged.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{name} is damaged, it is no JSON: remove it") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{name} is damaged, it is no JSON object: remove it")
    return content
