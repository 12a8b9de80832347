"""Build a folder part by part, so that a build that was killed goes on where it was."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch.utils.data import Dataset

from dira_core import lock
from dira_core.data.workers import Workers
from dira_core.errors import DataError, DiraError, RunFolderError
from dira_core.files import replacing, sweep, write_atomic, writing

PLAN = "building.json"
"""What a folder that is not complete yet is made from."""

LOCK = "building.lock"

HANGS = 3600.0
"""Seconds after which a part is said to hang."""


class Parts(Dataset[None], ABC):
    """What can be written part by part, here or in processes."""

    @abstractmethod
    def write(self, number: int) -> None:
        """Write a part, so that it is there whole or not at all."""

    @abstractmethod
    def images(self, number: int) -> int:
        """Return how many images of the source make up a part."""

    def __getitems__(self, number: int) -> DiraError | None:
        """Write a part; return the error, if there is one."""
        try:
            self.write(number)
        except DiraError as error:
            return error
        return None


def write_parts(
    parts: Parts, numbers: Sequence[int], workers: int, tick: Callable[[int], object]
) -> None:
    """Write some parts, here or in processes.

    Args:
        parts: Can write them.
        numbers: Of the parts.
        workers: Processes; 0 writes here.
        tick: Called with the number of images of each part that is done.
    """
    if workers == 0 or len(numbers) < 2:
        for number in numbers:
            parts.write(number)
            tick(parts.images(number))
        return
    processes = Workers(parts, min(workers, len(numbers)), timeout=HANGS, pinned=False)
    with closing(processes):
        for number, _ in zip(numbers, processes.answers(numbers), strict=True):
            tick(parts.images(number))


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock a folder, make it if need be, and sweep away what a killed process left half done.

    Raises:
        RunFolderError: Another process has it, or it cannot be written to.
    """
    with lock.owned(folder, LOCK):
        sweep(folder)
        yield


def begin(folder: Path, wanted: Mapping[str, Any], complete: Mapping[str, Any] | None) -> None:
    """Check that a folder is empty, or holds what is wanted or parts of it; write the plan of it.

    Args:
        folder: Owned.
        wanted: What it is to be made from.
        complete: What it was made from, if it is complete.

    Raises:
        RunFolderError: It holds something else.
    """
    plan = folder / PLAN
    held = _read(plan) if complete is None and plan.is_file() else complete
    if held is not None:
        differing = sorted(k for k in wanted.keys() | held.keys() if wanted.get(k) != held.get(k))
        if differing:
            said = ", ".join(f"{k} is {held.get(k)}, not {wanted.get(k)}" for k in differing)
            raise RunFolderError(
                f"{folder} was made from other images or settings ({said}): use another --out, or "
                "remove it"
            )
        return
    if {path.name for path in folder.iterdir()} - {LOCK}:
        raise RunFolderError(f"{folder} holds something else: use another --out")
    write_atomic(plan, json.dumps(wanted, indent=1).encode())


def refuse_unfinished(folder: Path) -> None:
    """Raise a DataError where a folder holds a part of a cache or of shards: images would lack."""
    if (folder / PLAN).is_file() and (folder / LOCK).is_file():
        raise DataError(
            f"{folder} is a cache, or shards, of which a part is still to be written: give the "
            "command that makes it again"
        )


def _read(plan: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(plan.read_bytes()))
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{plan} is damaged: remove its folder, or use another --out"
        ) from error


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """Write a part's file; it has its name once it is on disk."""
    intact = "what is built stays: give the same command again"
    with writing(path.parent, intact=intact), replacing(path) as aside, aside.open("xb") as file:
        yield file
