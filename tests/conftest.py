"""What every test shares: one thread (bits depend on it), and where real images lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images; skip where it is absent."""
    beside = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("DIRA_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real images: set DIRA_TEST_DATA to their folder")
    return folder.resolve()
