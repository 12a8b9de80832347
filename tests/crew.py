"""Several processes joined by gloo, forked from the test: 0.2 s instead of a launcher's 5 s."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from dira_core.errors import DiraError

WITHOUT_REAPING = os.WEXITED | os.WNOHANG | os.WNOWAIT

Work = Callable[[int], object]


@dataclass(frozen=True)
class Left:
    """How a process ended: its exit code (negative: the signal), and what it said."""

    code: int
    said: str


@dataclass
class Crew:
    """Processes that were started together."""

    folder: Path
    pids: list[int]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send one of them a signal."""
        os.kill(self.pids[rank], number)

    def alive(self) -> bool:
        """Say whether all of them are still there."""
        return not any(os.waitid(os.P_PID, pid, WITHOUT_REAPING) for pid in self.pids)

    def left(self, timeout: float = 60) -> list[Left]:
        """Wait until all have ended, and return how."""
        deadline = time.monotonic() + timeout
        codes: dict[int, int] = {}
        while len(codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(found[1])
            assert time.monotonic() < deadline, f"only {sorted(codes)} ended"
            time.sleep(0.005)
        self.pids, ranks = [], range(len(codes))
        files = [self.folder / f"{rank}.said" for rank in ranks]
        said = [file.read_text() if file.exists() else "" for file in files]
        return [Left(codes[rank], said[rank]) for rank in ranks]


@contextmanager
def crew(folder: Path, work: Work, processes: int = 2, timeout_s: float = 20) -> Iterator[Crew]:
    """Run `work(rank)` in several processes; whoever is left at the end is killed.

    A process that raises a DiraError ends with its exit code.
    """
    folder.mkdir(parents=True)
    started = Crew(folder, [])
    try:
        for rank in range(processes):
            started.pids.append(_fork(work, rank, processes, folder, timeout_s))
        yield started
    finally:
        for pid in started.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(folder: Path, work: Work, processes: int = 2, timeout_s: float = 20) -> list[Left]:
    """Run `work(rank)` in several processes and return how they ended."""
    with crew(folder, work, processes, timeout_s) as started:
        return started.left()


def wait_for(path: Path, timeout: float = 60) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.003)


def _fork(work: Work, rank: int, processes: int, folder: Path, timeout_s: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=timeout_s),
        )
        work(rank)
        code = 0
    except DiraError as error:
        code = error.exit_code
        (folder / f"{rank}.said").write_text(str(error))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
