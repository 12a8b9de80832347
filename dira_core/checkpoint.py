"""Everything a run needs to continue, on disk whole or not at all. Tensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

import dira_core
from dira_core import checkpoint_manifest as manifest
from dira_core.errors import CheckpointError
from dira_core.files import failpoint, sync, unused, write_synced, writing
from dira_core.tensorfiles import read_tensors, write_tensors

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
        self._folder = folder
        self._keep = keep
        self._saved = False

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> Path:
        """Commit a checkpoint, verify it, then delete those no longer kept.

        Killed at any instant, either this checkpoint or the one before is complete. One of the same
        step that verifies is left as it is.

        Args:
            step: Optimizer steps done.
            tensors: By file stem, for example "model"; each becomes a safetensors file. Tensors may
                share memory and have any layout; they come back contiguous.
            state: JSON: string keys, no tuples. NaN and infinity come back as they are. Its
                "recipe_digest", if any, goes into the manifest too.

        Raises:
            ResourceError: No space is left; the checkpoints before are intact.
            RunFolderError: The folder cannot be written to.
            CheckpointError: What was written does not read back.
        """
        data = json.dumps(_JSON_OBJECT.validate_python(dict(state), strict=True)).encode()
        path = self._folder / manifest.folder_name(step)
        if os.path.lexists(path):
            reason = _trouble(path)
            if not reason:
                return path
            self._quarantine(path, reason)
        need = len(data) + sum(t.nbytes for group in tensors.values() for t in group.values())
        with writing(self._folder, need):
            self._prepare()
            self._commit(path, tensors, data, state.get("recipe_digest"))
        failpoint("ckpt.after_rename")
        manifest.verify(path)
        self._saved = True
        failpoint("ckpt.before_prune")
        self._prune(step)
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
                f"no checkpoint in {self._folder} can be trusted ({'; '.join(reasons)}): "
                "put one back from a backup, or start anew under another --out"
            )
        return None

    def load(self, path: Path, device: str = "cpu") -> State:
        """Read a checkpoint after verifying every byte of it.

        Raises:
            CheckpointError: It is damaged, incomplete, or of another schema.
        """
        files = manifest.verify(path).files
        try:
            tensors = {
                Path(name).stem: read_tensors(path / name, device)
                for name in files
                if name.endswith(".safetensors")
            }
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
        if self._saved and not self._folder.is_dir():
            logger.warning("%s vanished while the run was going; made again", self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _commit(
        self,
        path: Path,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: bytes,
        recipe_digest: str | None,
    ) -> None:
        draft = self._folder / f".tmp-{path.name}-{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            for stem, group in tensors.items():
                write_tensors(draft / f"{stem}.safetensors", group)
            write_synced(draft / manifest.STATE, state)
            failpoint("ckpt.after_data")
            versions = {"dira": dira_core.__version__, "torch": str(torch.__version__)}
            manifest.write(draft, _step(path), versions, recipe_digest)
            sync(draft)
            failpoint("ckpt.after_manifest")
            draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)  # `sweep` tries again
            raise
        sync(self._folder)

    def _prune(self, newest: int) -> None:
        older = [path for path in self._listed("step-") if _step(path) < newest]
        for path in older[: max(0, len(older) - self._keep + 1)]:
            trash = self._folder / f".trash-{path.name}-{uuid.uuid4().hex}"
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

    def _listed(self, prefix: str) -> list[Path]:
        """Return what is named so, by step; a folder that cannot be listed is an error."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"cannot look for checkpoints in {self._folder} ({error.strerror}): mend its rights"
            ) from error
        pattern = re.compile(re.escape(prefix) + (r"\d{8,}" if prefix == "step-" else r".+"))
        return sorted((self._folder / n for n in names if pattern.fullmatch(n)), key=_step)


def flatten_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of a torch optimizer into tensors and JSON.

    Returns:
        The tensors by path, for example "state/0/exp_avg"; and the rest, in which each of them is
        {"tensor": path}, each dict {"dict": [[key, value], ...]} (torch keys states by integers)
        and each tuple {"tuple": [...]}.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {k: _flat(v, k, tensors) for k, v in state_dict.items()}


def unflatten_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Put together again what `flatten_optimizer` split.

    Raises:
        KeyError: A tensor is missing.
        ValueError: There are tensors that belong nowhere.
    """
    left = set(tensors)
    state_dict = {key: _deep(value, tensors, left) for key, value in rest.items()}
    if left:
        raise ValueError(f"optimizer tensors that belong nowhere: {', '.join(sorted(left))}")
    return state_dict


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors: sorted names, types, shapes and bytes, whatever the layout."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _flat(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        assert path not in tensors, f"two states are called {path}"
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[k, _flat(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        inner = [_flat(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": inner} if isinstance(value, tuple) else inner
    return value


def _deep(value: Any, tensors: Mapping[str, Tensor], left: set[str]) -> Any:
    if isinstance(value, list):
        return [_deep(v, tensors, left) for v in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        left.discard(content)
        return tensors[content]
    if kind == "tuple":
        return tuple(_deep(v, tensors, left) for v in content)
    return {k: _deep(v, tensors, left) for k, v in content}


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
