"""Processes that join each other, wait for their turn, and then do one piece of work together.

A member is this module run as a program: `python -m dira_core.bench.team WORK STRATEGY RECIPE`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from dira_core.errors import DiraError

TURN, DONE, LEAVE = "turn\n", "done\n", "leave\n"


class Team:
    """Some processes on this machine with so many threads each; a context manager.

    Args:
        work: What a turn is, by its name in `dira_core.bench.works`.
        processes: How many.
        threads: Of each.
        strategy: "ddp" or "fsdp".
        recipe: A file; its batch is that of all processes.
    """

    def __init__(
        self, work: str, processes: int, threads: int, strategy: str, recipe: Path
    ) -> None:
        self._command = [sys.executable, "-m", "dira_core.bench.team", work, strategy, str(recipe)]
        self._processes = processes
        self._threads = threads
        self._members: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        from torch.distributed.elastic.utils.distributed import get_free_port

        port = get_free_port()  # type: ignore[no-untyped-call]
        for rank in range(self._processes):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self._processes),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(self._threads),
            }
            self._members.append(
                subprocess.Popen(
                    self._command,
                    env=os.environ | place,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )
            )
        try:
            self._hear()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            for member in self._members:
                member.communicate(LEAVE)
        else:
            self._end()

    def _end(self) -> None:
        for member in self._members:
            member.kill()
            member.communicate()

    def turn(self) -> None:
        """Let every member do its piece of the work; return when the last one is done."""
        for member in self._members:
            assert member.stdin is not None
            member.stdin.write(TURN)
            member.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        for member in self._members:
            assert member.stdout is not None
            if member.stdout.readline() != DONE:
                raise DiraError("a benchmarked process ended early: its error is above")


def main(work: str, strategy: str, recipe: str) -> None:
    """Join the others, get ready, and work whenever it is this team's turn."""
    from dira_core.bench.works import WORKS
    from dira_core.distributed import barrier
    from dira_core.layering import file_layer
    from dira_core.peers import joined
    from dira_core.resolving import resolve

    chosen = resolve([file_layer(Path(recipe))]).recipe
    with joined(chosen.train.timeout_s):
        do = WORKS[work](chosen, strategy)
        barrier()
        print(DONE, end="", flush=True)
        for line in sys.stdin:
            if line == LEAVE:
                break
            do()
            print(DONE, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
