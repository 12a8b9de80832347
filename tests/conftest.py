"""What tests share: one thread (bits depend on it), where real images lie, the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from kit import Dira

from dira_core import cli

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images; skip where it is absent."""
    beside = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("DIRA_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real images: set DIRA_TEST_DATA to their folder")
    return folder.resolve()


@pytest.fixture
def dira(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dira:
    """Return the command: its exit code, output and error output, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dira", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run
