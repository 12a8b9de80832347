"""What tests of several plugins share."""

from __future__ import annotations

import pytest
import torch

from dira_core.testing import TinyBackbone


@pytest.fixture
def backbone() -> TinyBackbone:
    """Return a small backbone, the same in every test."""
    torch.manual_seed(0)
    return TinyBackbone()
