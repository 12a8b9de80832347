"""The peak of memory counts what was freed again, and starts anew when asked."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from dira_core.memory import peak_mib, restart_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_counts_what_was_freed_again_and_starts_anew() -> None:
    restart_peak(CPU)
    before = peak_mib(CPU)
    with mmap.mmap(-1, 64 * 2**20) as held:  # of its own: the process may have memory to spare
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    assert 60 < peak_mib(CPU) - before < 80
    restart_peak(CPU)
    assert peak_mib(CPU) < before + 16
