"""The peak of memory counts what was freed again; large blocks are kept where asked."""

from __future__ import annotations

import gc
import mmap
import os
import platform
import subprocess
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


FAULTS = """
import resource, torch
from dira_core.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed(torch.device("cpu"))
print([faults() for _ in range(12)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("variable", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)]
)
def test_a_freed_block_is_used_again_unless_the_environment_says_how_to_allocate(
    variable: dict[str, str], kept: bool
) -> None:
    chosen = ("MALLOC_", "GLIBC_TUNABLES")
    inherited = {n: value for n, value in os.environ.items() if not n.startswith(chosen)}
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(command, env=inherited | variable, check=True, stdout=subprocess.PIPE)
    pages = 64 * 2**20 // mmap.PAGESIZE
    assert int(found.stdout) < pages / 10 if kept else int(found.stdout) >= pages / 10
