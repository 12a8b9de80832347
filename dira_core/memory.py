"""A process's memory: its peak, what is kept of it, and how rarely garbage is looked for."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def restart_peak(device: torch.device) -> None:
    """Let the peak start from what is in use now; on a CPU only Linux can."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float:
    """Return the peak of a GPU's allocated memory, or of this process's resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep_freed(device: torch.device) -> None:
    """Let glibc keep large blocks that are freed, for the next step, not return them at once.

    What is handed back has to be cleared page by page when it is asked for again: of a step on a
    CPU that takes up to a fifth. Nothing is done for a GPU, where the environment says how to
    allocate (`MALLOC_...`, `GLIBC_TUNABLES`), or by another C library.
    """
    if device.type != "cpu":
        return
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    trim_threshold, mmap_max = -1, -4  # names of malloc.h
    with suppress(AttributeError, TypeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep what is there now out of garbage collections while the context lasts.

    After torch is imported these are some 400,000 objects. To look through them takes a tenth of a
    second, which some step would have to wait.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
