"""The peak of memory counts what was freed again, and starts anew when asked."""

from __future__ import annotations

import sys

import pytest
import torch

from dira_core.memory import peak_mib, restart_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_counts_what_was_freed_again_and_starts_anew() -> None:
    restart_peak(CPU)
    before = peak_mib(CPU)
    held = torch.ones(64, 2**18)  # MiB
    del held
    assert 60 < peak_mib(CPU) - before < 80
    restart_peak(CPU)
    assert peak_mib(CPU) < before + 16
