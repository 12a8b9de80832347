"""Everything a run needs to continue, on disk whole or not at all. Tensors and JSON only."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from dira_core import checkpoint_manifest as manifest
from dira_core.checkpoint_draft import (
    PLACES,
    Job,
    Patience,
    collect,
    complete,
    hand_in,
    write_files,
)
from dira_core.errors import CheckpointError
from dira_core.files import failpoint, sync, unused, write_synced, writing
from dira_core.shards import joined
from dira_core.tensorfiles import plain, read_tensors

logger = logging.getLogger("dira")

State = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""Tensors by file ("model", "optimizer") and name, and a JSON object."""

_JSON_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Checkpoints:
    """The checkpoints of one run: `step-00001200/` and so on in one folder.

    Args:
        folder: Where they are; made when needed. Only one process may write there.
        keep: How many to keep, at least 2: the newest may turn out to be damaged.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 2:
            raise ValueError(f"keep at least 2 checkpoints, got {keep}")
        self.folder = folder
        self._keep = keep
        self._saved = False

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> Path:
        """Commit a checkpoint of whole tensors now, from this process alone; see `commit`.

        Args:
            step: Optimizer steps done.
            tensors: By file stem, for example "model"; each becomes a safetensors file. Tensors may
                share memory and have any layout; they come back contiguous.
            state: JSON: string keys, no tuples. NaN and infinity come back as they are.

        Raises:
            ResourceError: No space is left; the checkpoints before are intact.
            RunFolderError: The folder cannot be written to.
            CheckpointError: What was written does not read back.
        """
        job = Job(step, uuid.uuid4().hex, encoded(state))
        if self.wants(step):
            files = {
                f"{stem}.safetensors": {name: plain(tensor) for name, tensor in group.items()}
                for stem, group in tensors.items()
            }
            self.commit(job, files, Patience(0))
        return self.folder / manifest.folder_name(step)

    def wants(self, step: int) -> bool:
        """Say whether the checkpoint of a step is yet to be written; a damaged one makes room."""
        path = self.folder / manifest.folder_name(step)
        if not os.path.lexists(path):
            return True
        reason = _trouble(path)
        if reason:
            self._quarantine(path, reason)
        return bool(reason)

    def commit(
        self, job: Job, files: Mapping[str, Mapping[str, Tensor]], patience: Patience
    ) -> Path | None:
        """Write this process's part of a checkpoint; the first process then commits the whole.

        Killed at any instant, either this checkpoint or the one before is complete. Those no longer
        kept are deleted once this one is known to read back.

        Args:
            job: What it is about.
            files: Plain tensors by file and name, which nobody changes meanwhile.
            patience: With the other processes, where there are any.

        Returns:
            The checkpoint; None on other processes than the first.

        Raises:
            ResourceError: No space is left; the checkpoints before are intact.
            RunFolderError: The folder cannot be written to.
            CheckpointError: What was written does not read back.
            PeerError: Another process did not write its part in time.
        """
        need = len(job.state) + sum(t.nbytes for group in files.values() for t in group.values())
        draft = self.folder / job.draft
        with writing(self.folder, need, "the checkpoint before is intact"):
            self._prepare()
            if job.rank > 0:
                part = write_files(draft, job, files)
                failpoint("ckpt.after_data")
                hand_in(draft, job.rank, part)
                return None
            path = self.folder / manifest.folder_name(job.step)
            try:
                part = write_files(draft, job, files)
                write_synced(draft / manifest.STATE, job.state)
                failpoint("ckpt.after_data")
                complete(draft, job, [part, *collect(draft, job, patience)])
                sync(draft)
                failpoint("ckpt.after_manifest")
                draft.rename(path)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)  # `sweep` tries again
                raise
            sync(self.folder)
        failpoint("ckpt.after_rename")
        manifest.verify_sizes(path)
        self._saved = True
        failpoint("ckpt.before_prune")
        self._prune(job.step)
        return path

    def latest(self) -> Path | None:
        """Return the newest checkpoint that verifies, or None if there never was one.

        A damaged one is renamed to `damaged-step-...`, with a warning, and the one before is tried.

        Raises:
            CheckpointError: There are checkpoints, and none of them can be trusted.
        """
        damaged_before = self._listed("damaged-step-")
        reasons: list[str] = []
        for path in reversed(self._listed("step-")):
            reason = _trouble(path)
            if not reason:
                return path
            self._quarantine(path, reason)
            reasons.append(reason)
        reasons += [_trouble(path) for path in damaged_before]
        if reasons:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be trusted ({'; '.join(reasons)}): "
                "put one back from a backup, or start anew under another --out"
            )
        return None

    def load(self, path: Path, device: str = "cpu") -> State:
        """Read a checkpoint after verifying every byte of it; tensors written in pieces are whole.

        Raises:
            CheckpointError: It is damaged, incomplete, or of another schema.
        """
        names = manifest.verify(path).files
        try:
            files = {
                name: read_tensors(path / name, device)
                for name in names
                if name.endswith(".safetensors")
            }
            index = (path / manifest.SHARDS).read_bytes() if manifest.SHARDS in names else b"{}"
            tensors = joined(files, PLACES.validate_json(index))
            return tensors, manifest.parse_json((path / manifest.STATE).read_bytes())
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path.name} cannot be read ({error}): remove it to use the one before"
            ) from error

    def sweep(self) -> None:
        """Remove what a killed process left half written or half deleted."""
        for path in [*self._listed(".tmp-"), *self._listed(".trash-")]:
            _delete(path)

    def _prepare(self) -> None:
        if self._saved and not self.folder.is_dir():
            logger.warning("%s vanished while the run was going; made again", self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _prune(self, newest: int) -> None:
        older = [path for path in self._listed("step-") if _step(path) < newest]
        for path in older[: max(0, len(older) - self._keep + 1)]:
            trash = self.folder / f".trash-{path.name}-{uuid.uuid4().hex}"
            try:
                path.rename(trash)
            except OSError as error:
                logger.warning("cannot remove %s (%s)", path, error.strerror)
            else:
                _delete(trash)

    def _quarantine(self, path: Path, reason: str) -> None:
        """Rename a damaged checkpoint, or pass over it where the folder is read-only."""
        aside = unused(path.with_name(f"damaged-{path.name}"))
        try:
            path.rename(aside)
        except OSError as error:
            logger.warning("%s; passed over, it cannot be renamed (%s)", reason, error.strerror)
        else:
            logger.warning("%s; put aside as %s", reason, aside.name)

    def by_step(self) -> dict[int, Path]:
        """Return the checkpoints there are, whole or not, by step and in its order."""
        return {_step(path): path for path in self._listed("step-")}

    def _listed(self, prefix: str) -> list[Path]:
        """Return what is named so, by step; a folder that cannot be listed is an error."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"cannot look for checkpoints in {self.folder} ({error.strerror}): mend its rights"
            ) from error
        pattern = re.compile(re.escape(prefix) + (r"\d{8,}" if prefix == "step-" else r".+"))
        return sorted((self.folder / n for n in names if pattern.fullmatch(n)), key=_step)


def encoded(state: Mapping[str, Any]) -> bytes:
    """Return a state as JSON.

    Raises:
        ValueError: JSON would change it.
    """
    return json.dumps(_JSON_OBJECT.validate_python(dict(state), strict=True)).encode()


def _step(path: Path) -> int:
    """Return the step in a checkpoint's name, 0 where there is none."""
    number = re.search(r"step-(\d+)", path.name)
    return int(number[1]) if number else 0


def _trouble(path: Path) -> str:
    """Return why a checkpoint cannot be trusted, or an empty string."""
    try:
        manifest.verify(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("cannot remove %s (%s)", path, error.strerror)
