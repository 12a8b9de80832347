"""A checkpoint while it is written: aside, by one process or by many, complete before it counts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from torch import Tensor

import dira_core
from dira_core import checkpoint_manifest as manifest
from dira_core.checkpoint_manifest import Entry, FileName
from dira_core.errors import CheckpointError, PeerError
from dira_core.files import write_atomic, write_synced
from dira_core.shards import Places, Shard
from dira_core.tensorfiles import holds, pieces, stream

POLL_S = 0.02
"""Seconds between looks for what the other processes hand in."""


@dataclass(frozen=True)
class Job:
    """What one process has to write of a checkpoint, besides its tensors.

    Attributes:
        step: Optimizer steps done.
        token: Tells drafts apart; the same on every process, another one for every save.
        state: JSON, written by the first process.
        places: Where the pieces in this process's files belong.
        rank: Of this process.
        ranks: How many processes write.
    """

    step: int
    token: str
    state: bytes
    places: Places = field(default_factory=dict)
    rank: int = 0
    ranks: int = 1

    @property
    def draft(self) -> str:
        """What the folder is called until the checkpoint is complete."""
        return f".tmp-{manifest.folder_name(self.step)}-{self.token}"


class Part(BaseModel):
    """What one process has written: its files, and where the pieces in them belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    files: dict[FileName, Entry]
    places: dict[FileName, dict[str, Shard]]


PLACES: TypeAdapter[Places] = TypeAdapter(Places)
"""How `shards.json` is read and written."""


class Patience:
    """How long to wait for the other processes; another thread may cut it short.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._until

    def shorten(self, seconds: float) -> None:
        """Wait no longer than this, from now on."""
        self._until = min(self._until, time.monotonic() + seconds)


def write_files(draft: Path, job: Job, files: Mapping[str, Mapping[str, Tensor]]) -> Part:
    """Write the tensors of this process, wait until they are on disk, read them back.

    Args:
        draft: The folder; made where another process has not made it yet.
        job: What it is for.
        files: Plain tensors by file and name.

    Raises:
        CheckpointError: A file does not read back.
    """
    draft.mkdir(parents=True, exist_ok=True)
    entries = {name: stream(draft / name, pieces(tensors)) for name, tensors in files.items()}
    for name, tensors in files.items():
        if not holds(draft / name, pieces(tensors)):
            raise CheckpointError(
                f"{manifest.folder_name(job.step)}: {name} does not read back as it was written: "
                "check the disk; the checkpoint before is intact"
            )
    return Part(files=entries, places=job.places)


def hand_in(draft: Path, rank: int, part: Part) -> None:
    """Tell the first process what this one has written."""
    write_atomic(draft / _part_name(rank), part.model_dump_json().encode())


def collect(draft: Path, job: Job, patience: Patience) -> list[Part]:
    """Wait for what the others have written, and remove their messages.

    Raises:
        PeerError: Some did not hand in their part in time; the message says which.
    """
    names = {rank: draft / _part_name(rank) for rank in range(1, job.ranks)}
    while missing := [rank for rank, path in names.items() if not path.exists()]:
        if patience.over:
            raise PeerError(
                f"rank {', '.join(map(str, missing))} did not hand in its part of "
                f"{manifest.folder_name(job.step)} in time: see what it said, and whether all "
                f"machines see {draft.parent}; the checkpoint before is intact"
            )
        time.sleep(POLL_S)
    parts = [Part.model_validate_json(path.read_bytes()) for path in names.values()]
    for path in names.values():
        path.unlink()
    return parts


def complete(draft: Path, job: Job, parts: Sequence[Part]) -> None:
    """Write the index of all pieces, where there are any, and the manifest."""
    files = {name: entry for part in parts for name, entry in part.files.items()}
    files[manifest.STATE] = Entry.of(job.state)
    if job.ranks > 1:
        places = {name: shards for part in parts for name, shards in part.places.items()}
        index = PLACES.dump_json(places)
        write_synced(draft / manifest.SHARDS, index)
        files[manifest.SHARDS] = Entry.of(index)
    versions = {"dira": dira_core.__version__, "torch": str(torch.__version__)}
    manifest.write(draft, manifest.Manifest(step=job.step, versions=versions, files=files))


def _part_name(rank: int) -> str:
    return f"part.rank-{rank:05d}.json"
