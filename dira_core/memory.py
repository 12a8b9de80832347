"""A process's memory: its peak since that was last reset, and how rarely garbage is looked for."""

from __future__ import annotations

import gc
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
