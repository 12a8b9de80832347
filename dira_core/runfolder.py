"""The folder of one run: one owner, its recipe, its status, its logs, its checkpoints."""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from dira_core.errors import DiraError, RunFolderError
from dira_core.files import TEMPORARY, sync, unused, write_atomic, writing
from dira_core.lock import Lock

if TYPE_CHECKING:
    from dira_core.checkpoint import Checkpoints

logger = logging.getLogger("dira")

Status = Literal["running", "preempted", "failed", "diverged", "done"]
Value = float | int | str | bool | None

JOB = "TORCHELASTIC_RUN_ID"
"""Environment variable that torch's launcher sets: the same for all processes of a job."""

LOCK = "run.lock"
RECIPE = "recipe.toml"
STATUS = "status.json"
ENVIRONMENT = "environment.json"


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
        with writing(self.path, 0):
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        content: dict[str, Value] = {"status": status, "reason": reason, **_finite(numbers)}
        if job := this_job():
            content["job"] = job
        if status != "done":
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
        for path in self.path.rglob(".*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink()
        self.checkpoints.sweep()


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
    """Append JSON lines that a killed process, a full disk or a resumed run cannot garble.

    Each line is one write. Where lines cannot be written they are dropped, with one warning.

    Args:
        path: The file; made with the first line.

    Attributes:
        dropped: Lines that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        self._path = path

    def append(self, line: Mapping[str, Value]) -> None:
        """Write one object; JSON has no word for NaN and infinity, they become null."""
        data = json.dumps(_finite(line), allow_nan=False).encode() + b"\n"
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
        with writing(self._path.parent, 0):
            if self._path.exists():
                sync(self._path)

    def truncate(self, position: int) -> None:
        """Forget what was appended after `position`, and a torn last line."""
        with writing(self._path.parent, 0):
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
            yield _object(line, f"line {number} of {path.name}")


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
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name or recipe_name)[:100].strip("-.") or "run"
    with writing(root, 0):
        root.mkdir(parents=True, exist_ok=True)
        while True:
            path = unused(root / safe)
            try:
                path.mkdir()
            except FileExistsError:
                continue  # another run was faster
            return path


def run_of_job(root: Path) -> Path | None:
    """Return the run folder in `root` that this job began before, or None."""
    job = this_job()
    found = root.glob(f"*/{STATUS}") if job and root.is_dir() else []
    return next((path.parent for path in found if _read_object(path).get("job") == job), None)


def this_job() -> str | None:
    """Return what torch's launcher calls the job of this process, if it has a name of its own."""
    job = os.environ.get(JOB)
    return None if job == "none" else job


def _finite(numbers: Mapping[str, Value]) -> dict[str, Value]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()
    }


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _read_object(path: Path) -> dict[str, Any]:
    return _object(path.read_bytes(), path.name) if path.exists() else {}


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{name} is damaged, it is no JSON: remove it") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{name} is damaged, it is no JSON object: remove it")
    return content
