"""Memory that a way to compute something takes, measured in a process of its own.

The process is this module run as a program: `python -m dira_core.bench.memory CONTEST ARM`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from dira_core.memory import peak_mib, restart_peak

OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Large tensors get pages of their own, handed back when freed: no earlier peak hides a later."""


def extra_mib(contest: str, arm: str) -> float | None:
    """Return by how many MiB an arm's peak lies above its inputs; None where it is not known.

    Resident memory of a fresh process, results included, after a first call that loads code.
    """
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", "dira_core.bench.memory", contest, arm]
    child = subprocess.run(
        command, env=os.environ | OWN_PAGES, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(child.stdout)


def step_mib(arm: str, recipe: Path) -> float | None:
    """Return the peak of a training step in MiB, above what a process has before it builds it.

    Args:
        arm: "dira step" or "bare loop".
        recipe: A file.
    """
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", "dira_core.bench.peak", arm, str(recipe)]
    child = subprocess.run(
        command, env=os.environ | OWN_PAGES, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(child.stdout)


def main(contest: str, arm: str) -> None:
    """Print by how many MiB a second call of an arm raises this process's resident memory."""
    from dira_core.bench.contests import CONTESTS

    work = CONTESTS[contest]().arms[arm]
    work()
    cpu = torch.device("cpu")
    restart_peak(cpu)
    before = peak_mib(cpu)
    work()
    sys.stdout.write(str(peak_mib(cpu) - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
