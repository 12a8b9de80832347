"""The same recipe and seed give the same bits, whatever order plugins and hashes come in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parts import outcome

pytestmark = [pytest.mark.faults, pytest.mark.slow]

CODE = """
import importlib.metadata
import random
import sys
from pathlib import Path

real, order = importlib.metadata.entry_points, sys.argv[2]

def shuffled(**choice):
    found = real(**choice)
    if choice.get("group") != "dira":
        return found
    return importlib.metadata.EntryPoints(random.Random(order).sample(list(found), len(found)))

importlib.metadata.entry_points = shuffled
random.seed()  # of the process, not of the run

import numpy
numpy.random.seed(None)
import torch
torch.set_num_threads(1)
torch.seed()

sys.path.insert(0, sys.argv[3])
from parts import small_run
small_run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_neither_the_order_of_plugins_nor_of_hashes_nor_other_seeds_change_a_bit(
    tmp_path: Path, whole: dict[str, bytes], seed: str
) -> None:
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "run"), seed, tests],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == whole
