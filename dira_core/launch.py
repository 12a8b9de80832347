"""`dira run --nproc N`: torch's elastic launcher in this process, and its workers' last notes."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dira_core.errors import DiraError, PeerError, error_of
from dira_core.signals import EXIT_PREEMPTED, WATCHED, die_with_parent

NOTES = "DIRA_NOTES"
"""Environment variable: the folder in which a worker notes how it ended, for the launcher."""

LAUNCHER = "DIRA_LAUNCHER"
"""Environment variable: the process id of the launcher."""

GRACE_S = 120
"""Seconds workers have to save and leave after a signal; TORCH_ELASTIC_SHUTDOWN_TIMEOUT changes
it."""

ANSWER_S = 30
"""Seconds that who listens at the meeting point has to answer."""

_LAST = PeerError.exit_code
"""The one exit code after which it makes sense to start again."""


@dataclass(frozen=True)
class Launch:
    """Where and how often processes are started.

    Attributes:
        processes: On this machine.
        machines: That take part; each runs the same command.
        rendezvous: HOST:PORT of the first machine; None for one machine.
        wait_s: Seconds a machine waits for the others.
        restarts: Times all processes are started again when one is lost.
        job: Name of the job; the same on every machine.
    """

    processes: int
    machines: int = 1
    rendezvous: str | None = None
    wait_s: int = 600
    restarts: int = 3
    job: str = ""


@dataclass(frozen=True)
class Note:
    """How a worker ended: its exit code, what it said, and when."""

    code: int
    message: str
    time: float


def launch(arguments: Sequence[str], how: Launch) -> None:
    """Run `dira ARGUMENTS` in several processes until they are done.

    Raises:
        DiraError: What the first of them to fail said.
        SystemExit: They were asked to leave.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _hush("torch.distributed")  # notes say it better
    if how.rendezvous:
        answering(how.rendezvous, min(ANSWER_S, how.wait_s))
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // how.processes)))
    config = LaunchConfig(
        min_nodes=how.machines,
        max_nodes=how.machines,
        nproc_per_node=how.processes,
        run_id=how.job or os.environ.get("SLURM_JOB_ID") or uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=how.rendezvous or "localhost:0",
        rdzv_configs={"join_timeout": how.wait_s, "read_timeout": min(60, how.wait_s)},
        max_restarts=how.restarts,
        signals_to_handle=",".join(["SIGHUP", *(s.name for s in WATCHED)]),
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE_S)),
    )
    os.environ[LAUNCHER] = str(os.getpid())
    with tempfile.TemporaryDirectory() as notes:
        os.environ[NOTES] = notes
        asked, died = 0, ""
        try:
            elastic_launch(config, sys.executable)("-m", "dira_core", *arguments)
        except SignalException as stopped:
            asked = int(stopped.sigval)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            died = f"rank {rank} ended with {described(failure.exitcode)}"
        except RendezvousError as error:
            raise PeerError(
                f"{how.machines} machines did not meet at {how.rendezvous} within {how.wait_s} s: "
                "start the same command on each of them, with an address of the first one and a "
                "port that is free there and open to the others, or wait longer with --wait"
            ) from error
        conclude(read_notes(Path(notes)), asked, died)


def answering(rendezvous: str, within_s: float) -> None:
    """See that who listens at a meeting point, if anybody does yet, is a store of torch's.

    torch would wait for an answer of anything else for ever.

    Args:
        rendezvous: HOST:PORT.
        within_s: Seconds it has to answer.

    Raises:
        PeerError: It does not answer.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # documented, not declared
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

    host, port = parse_rendezvous_endpoint(rendezvous, default_port=29400)
    try:
        socket.create_connection((host, port), within_s).close()
    except OSError:
        return  # nobody is there yet

    def ask() -> None:
        with suppress(RuntimeError):  # the launcher says better what is wrong
            TCPStore(host, port, is_master=False, timeout=timedelta(seconds=within_s))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within_s)
    if asking.is_alive():
        raise PeerError(
            f"something listens at {rendezvous} and gave no answer within {within_s:g} s, so it is "
            "no launcher of this job: give --rendezvous a port that is free on the first machine"
        )


def conclude(notes: Sequence[Note], asked: int, died: str) -> None:
    """End as the workers did.

    Args:
        notes: Of this machine's workers.
        asked: Number of the signal that asked to leave, or 0.
        died: Which worker died how, where the launcher gave up; or empty.

    Raises:
        DiraError: As the first that failed for a reason of its own, or because one was lost.
        SystemExit: They were asked to leave.
    """
    told = [note for note in notes if note.code]
    own = [note for note in told if note.code != _LAST]
    first = min(own or told, key=lambda note: note.time, default=None)
    if first is not None and (own or died):
        if not first.message:
            sys.exit(first.code)
        raise error_of(first.code, first.message)
    if died:
        memory = " (mostly a lack of memory)" if signal.SIGKILL.name in died else ""
        raise PeerError(
            f"{died}{memory} and was not started again (--restarts): "
            "see what it said, then continue with --resume"
        )
    if asked:  # before any of them had begun
        sys.exit(128 + asked if asked == signal.SIGINT else EXIT_PREEMPTED)


@contextmanager
def attended() -> Iterator[None]:
    """Work for a launcher of ours, if there is one: die with it, leave it a note at the end.

    Raises:
        SystemExit: This job ended before, for a reason that starting again does not mend.
    """
    folder = os.environ.get(NOTES)
    if folder is None:
        yield
        return
    die_with_parent(int(os.environ[LAUNCHER]))
    if any(note.code not in (0, _LAST) for note in read_notes(Path(folder))):
        sys.exit(0)
    path = Path(folder) / f"{os.environ['RANK']}.json"
    try:
        yield
    except DiraError as error:
        _write(path, error.exit_code, str(error))
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        _write(path, leaving.code if isinstance(leaving.code, int) else 1, "")
        raise
    except Exception:
        _write(path, 1, "")  # the traceback says the rest
        raise
    _write(path, 0, "")


def read_notes(folder: Path) -> list[Note]:
    """Return the notes in a folder."""
    return [Note(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def described(code: int) -> str:
    """Say what an exit code means."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _write(path: Path, code: int, message: str) -> None:
    path.write_text(json.dumps({"code": code, "message": message, "time": time.time()}))


def _hush(name: str) -> None:
    """Let nothing below a logger reach a screen."""
    logger = logging.getLogger(name)
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False
