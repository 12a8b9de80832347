"""What tests of faults share."""

from __future__ import annotations

import pytest
from parts import outcome, small_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the outcome of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    small_run(folder)
    return outcome(folder)
