"""Save beside the training: a step waits for a copy in memory, a thread does the rest."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dira_core.checkpoint import Checkpoints, encoded
from dira_core.checkpoint_draft import Job, Patience
from dira_core.distributed import from_first, rank, world_size
from dira_core.hostcopies import HostCopies
from dira_core.shards import Groups, divided
from dira_core.tensorfiles import plain

logger = logging.getLogger("dira")

PATIENCE_S = 600
"""Seconds the first process waits for what the others write."""

LEAVING_S = 10
"""The same, where the run ends with an error that may be theirs."""

HURRY_S = 1
"""Seconds a save may still take where the run was told to leave at once."""

Saved = Callable[[Path], None]


@dataclass(frozen=True)
class Pending:
    """A save that is going on, who waits for its copies, its patience with others, whom to tell."""

    outcome: Future[Path | None]
    hooks: Sequence[RemovableHandle]
    patience: Patience
    saved: Saved


class Saver:
    """Save the checkpoints of a run, one at a time.

    What goes wrong in the thread is raised by the next `poll`, `wait` or `save`. Every process of a
    run has a saver and calls it at the same steps; where tensors lie in pieces (FSDP2) each writes
    its own, else the first one alone. They must see one folder.

    Args:
        checkpoints: Of the run.
        background: Whether a thread writes while training goes on.
        patience_s: Seconds to wait for what other processes write.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, background: bool, patience_s: float = PATIENCE_S
    ) -> None:
        self._checkpoints = checkpoints
        self._background = background
        self._patience_s = patience_s
        self._token = from_first(uuid.uuid4().hex)
        self._saves = 0
        self._copies = HostCopies()
        self._pending: Pending | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        before: Sequence[Callable[[], None]] = (),
        saved: Saved = lambda path: None,
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        """Save the state of this instant; in the background, return when it is copied.

        Args:
            step: Optimizer steps done.
            tensors: By file stem and name; see `Checkpoints.save`.
            state: JSON, of the first process.
            before: Called before the checkpoint counts: what must be on disk by then.
            saved: Called with the checkpoint, by whoever notices that it is complete.
            optimizers: Whose steps alone change the tensors under "optimizer". Those are then
                copied in the background, and the next step waits until they are.

        Raises:
            DiraError: See `Checkpoints.commit`; also that of the save before.
        """
        self.wait()
        files, places, sharded = divided(tensors, rank())
        ranks = world_size() if sharded else 1
        if rank() >= ranks or not self._wanted(step, ranks):
            return
        self._saves += 1
        token = f"{self._token}-{self._saves}"
        job = Job(step, token, encoded(state), places, rank(), ranks)
        patience = Patience(self._patience_s)

        def commit(still: Groups) -> Path | None:
            for wait in before:
                wait()
            return self._checkpoints.commit(job, still, patience)

        if self._background:
            self._pending = Pending(*self._started(files, optimizers, commit), patience, saved)
        elif (path := commit(_plain(files))) is not None:
            saved(path)

    def poll(self) -> None:
        """Tell of a save that has ended, without waiting.

        Raises:
            DiraError: It failed; see `Checkpoints.commit`.
        """
        if self._pending is not None and self._pending.outcome.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is going on, if there is one, and tell of it.

        Raises:
            DiraError: It failed; see `Checkpoints.commit`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        wait_for([pending.outcome])
        for hook in pending.hooks:
            hook.remove()
        path = pending.outcome.result()
        if path is not None:
            pending.saved(path)

    def close(self, error: BaseException | None) -> None:
        """Let a save end before the run does; after an error, its own is no more than a warning.

        Args:
            error: What ends the run. One that is no Exception (KeyboardInterrupt) is in a hurry.
        """
        if error is None or self._pending is None:
            self.wait()
            return
        hurry = not isinstance(error, Exception)
        self._pending.patience.shorten(0 if hurry else LEAVING_S)
        wait_for([self._pending.outcome], timeout=HURRY_S if hurry else None)
        try:
            self.poll()
        except Exception as failure:
            logger.warning("the last checkpoint was not completed: %s", failure)

    def _started(
        self,
        files: Groups,
        optimizers: Sequence[Optimizer],
        commit: Callable[[Groups], Path | None],
    ) -> tuple[Future[Path | None], list[RemovableHandle]]:
        """Copy tensors; in a thread, those of the optimizers too, and do the rest of a save."""
        later = [file for file in files if optimizers and file.startswith("optimizer.")]
        copy_rest, copied = self._copies.take(files, later), threading.Event()

        def work() -> Path | None:
            try:
                copy_rest()
            finally:
                copied.set()
            return commit(self._copies.plain())

        def wait_for_copies(*step: object) -> None:
            copied.wait()

        outcome = _started(work)
        return outcome, [o.register_step_pre_hook(wait_for_copies) for o in optimizers]

    def _wanted(self, step: int, ranks: int) -> bool:
        wanted = rank() == 0 and self._checkpoints.wants(step)
        return from_first(wanted) if ranks > 1 else wanted


def _plain(files: Groups) -> Groups:
    return {name: {key: plain(t) for key, t in group.items()} for name, group in files.items()}


def _started(work: Callable[[], Path | None]) -> Future[Path | None]:
    """Do some work in a thread that does not keep the process alive."""
    outcome: Future[Path | None] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="dira-save", daemon=True).start()
    return outcome
