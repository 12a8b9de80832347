"""The folder of one run: one owner, its recipe, its status, its checkpoints."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dira_core.errors import DiraError, RunFolderError
from dira_core.files import TEMPORARY, sweep, unused, write_atomic, writing
from dira_core.lines import Value, finite, parsed
from dira_core.lock import Lock

if TYPE_CHECKING:
    from dira_core.checkpoint import Checkpoints

logger = logging.getLogger("dira")

Status = Literal["running", "preempted", "failed", "diverged", "done"]

JOB = "TORCHELASTIC_RUN_ID"
"""Environment variable that torch's launcher sets: the same for all processes of a job."""

LOCK = "run.lock"
RECIPE = "recipe.toml"
STATUS = "status.json"
ENVIRONMENT = "environment.json"

LONGEST_NAME = 100
"""Bytes of the name of a run folder; file systems take 255."""


class RunFolder:
    """Own a run folder while the context lasts; reading it needs no context.

    Args:
        path: The folder; made when it is not there.
        resume: Whether it must hold a run, to be continued, or must not hold one.
        keep: Checkpoints to keep.
    """

    def __init__(self, path: Path, *, resume: bool = False, keep: int = 2) -> None:
        self.path = path
        self._resume = resume
        self._keep = keep
        self._lock = Lock(path / LOCK)

    def __enter__(self) -> RunFolder:
        """Lock the folder and sweep away what a killed process left half done.

        Raises:
            RunFolderError: Another process has it, it holds something else, or a run where there
                should be none, or none where there should be one.
        """
        with writing(self.path):
            self._check_kind()
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.take()
                self._check_unused()
                self._sweep()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this run."""
        from dira_core.checkpoint import Checkpoints  # reading a status must not need torch

        return Checkpoints(self.path / "checkpoints", self._keep)

    def write_recipe(self, toml: str) -> None:
        """Write the resolved recipe: `dira run --recipe` repeats the run with it."""
        write_atomic(self.path / RECIPE, toml.encode())

    def write_environment(self) -> None:
        """Write what the bits of a run depend on besides its recipe.

        Warn where a resumed run finds something else than it was started with.
        """
        from dira_core.environment import environment  # needs torch as well

        now, path = environment(), self.path / ENVIRONMENT
        if changed := changes_of(path, now):
            logger.warning(
                "the environment is another one, results need not be the same to the bit: %s",
                ", ".join(changed),
            )
        write_atomic(path, _encoded(now))

    def status(self, status: Status, reason: str = "", **numbers: Value) -> None:
        """Write how the run stands; with no space left that is a warning, never an error.

        Args:
            status: One word for it.
            reason: Why, in one line; empty where the word says enough.
            numbers: Anything else worth knowing, for example the step.
        """
        content: dict[str, Value] = {"status": status, "reason": reason, **finite(numbers)}
        if job := this_job():
            content["job"] = job
        if status != "done" and (self.path / RECIPE).is_file():
            content["resume"] = f"dira run --resume {shlex.quote(str(self.path))}"
        try:
            write_atomic(self.path / STATUS, _encoded(content))
        except DiraError as error:
            logger.warning("%s still holds an older status than %r: %s", STATUS, status, error)

    def read_status(self) -> str:
        """Return the word `status` wrote last, or an empty string if it never did."""
        return str(self.report().get("status", ""))

    def report(self) -> dict[str, Any]:
        """Return all of status.json: status, reason, resume command, numbers; empty without it.

        Raises:
            RunFolderError: It is damaged.
        """
        return _read_object(self.path / STATUS)

    def _check_kind(self) -> None:
        """Refuse a folder that holds something else, before anything is written into it."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"a run folder must be a folder, {self.path} is a file")
        if self._resume and not self.holds_run():
            raise RunFolderError(
                f"nothing to resume in {self.path}: check the path, or start without --resume"
            )
        names = [p.name for p in self.path.iterdir()] if self.path.exists() else []
        foreign = [n for n in names if n != LOCK and not TEMPORARY.fullmatch(n)]
        if foreign and not self.holds_run():
            raise RunFolderError(
                f"{self.path} holds {len(foreign)} files or folders that are not a run: "
                "use a new or an empty folder as --out"
            )

    def _check_unused(self) -> None:
        if self._resume or not self.holds_run():
            return
        if self.read_status() == "done":
            raise RunFolderError(f"{self.path} holds a finished run: use another --out")
        raise RunFolderError(
            f"{self.path} holds an unfinished run: continue it with "
            f"`dira run --resume {shlex.quote(str(self.path))}`, or use another --out"
        )

    def holds_run(self) -> bool:
        """Say whether a run was ever started in the folder."""
        return any((self.path / name).exists() for name in (RECIPE, STATUS))

    def _sweep(self) -> None:
        sweep(self.path)
        self.checkpoints.sweep()


def changes_of(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Return what an environment.json says otherwise than an environment: "threads 1 -> 2"."""
    before = _read_object(path)
    return [f"{k} {before[k]} -> {now.get(k)}" for k in before if before[k] != now.get(k)]


def new_run_folder(root: Path, name: str | None, recipe_name: str) -> Path:
    """Make and return the empty folder `root/name`, or `root/name-2` and so on when that is taken.

    Args:
        root: Where runs are.
        name: What the user calls the run; None takes `recipe_name`.
        recipe_name: What the recipe is about, for example "simsiam-unet-patchgan-phantom".
    """
    safe = re.sub(r"[^\w.-]+", "-", name or recipe_name)
    safe = safe.encode()[:LONGEST_NAME].decode(errors="ignore").strip("-.") or "run"
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        while True:
            path = unused(root / safe)
            try:
                path.mkdir()
            except FileExistsError:
                continue  # another run was faster
            return path


def discard_unbegun(folder: Path) -> None:
    """Remove a run folder in which nothing was begun, so that its name is free again."""
    if {path.name for path in folder.iterdir()} <= {LOCK, STATUS}:
        shutil.rmtree(folder)


def run_of_job(root: Path) -> Path | None:
    """Return the run folder in `root` that this job began before, or None."""
    job = this_job()
    found = root.glob(f"*/{STATUS}") if job and root.is_dir() else []
    own = (path for path in found if os.access(path, os.R_OK))  # others may have theirs there
    return next((path.parent for path in own if _read_object(path).get("job") == job), None)


def this_job() -> str | None:
    """Return what torch's launcher calls the job of this process, if it has a name of its own."""
    job = os.environ.get(JOB)
    return None if job == "none" else job


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _read_object(path: Path) -> dict[str, Any]:
    return parsed(path.read_bytes(), str(path)) if path.exists() else {}
