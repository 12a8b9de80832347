"""The peak of memory counts what was freed again, and starts anew when asked."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref

import pytest
import torch

from dira_core.memory import peak_mib, restart_peak, uncollected

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


class Cycle:
    """Garbage that only a collection frees."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_there_is_collected_again_afterwards_and_what_comes_is_collected_meanwhile() -> (
    None
):
    old = Cycle()
    with uncollected():
        new = Cycle()
        gone = weakref.ref(old), weakref.ref(new)
        del old, new
        gc.collect()
        assert [ref() is None for ref in gone] == [False, True]
    gc.collect()
    assert gone[0]() is None
