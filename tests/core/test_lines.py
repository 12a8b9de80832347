"""Logs without doubles and without torn lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dira_core.errors import RunFolderError
from dira_core.lines import Lines, read_lines


def test_lines_come_back_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1, "loss": float("nan"), "name": "ä\n"})
    lines.append({"step": 2, "loss": float("-inf"), "name": None})
    assert list(read_lines(tmp_path / "metrics.jsonl")) == [
        {"step": 1, "loss": None, "name": "ä\n"},
        {"step": 2, "loss": None, "name": None},
    ]


def test_a_missing_log_has_no_lines_and_position_zero(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_lines(path)) == []
    assert Lines(path).position() == 0
    Lines(path).truncate(0)
    assert not path.exists()


def test_truncating_to_a_position_leaves_no_doubles(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    for step in range(5):
        lines.append({"step": step})
    position = lines.position()
    unbroken = path.read_bytes()
    for step in range(5, 9):
        lines.append({"step": step})
    unbroken += b"".join(b'{"step": %d}\n' % step for step in range(5, 12))
    resumed = Lines(path)
    resumed.truncate(position)
    for step in range(5, 12):
        resumed.append({"step": step})
    assert path.read_bytes() == unbroken


def test_a_log_that_is_synced_is_on_disk_up_to_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}"))
    )
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})
    assert lines.position() == len(b'{"step": 1}\n')
    assert synced == []
    lines.sync()
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_a_torn_last_line_is_not_read_and_goes_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n'
    for n in range(1, len(b'{"step": 3}')):
        path.write_bytes(whole + b'{"step": 3}'[:n])
        assert [line["step"] for line in read_lines(path)] == [1, 2]
        Lines(path).truncate(len(whole) + n)
        assert path.read_bytes() == whole


def test_a_log_shorter_than_the_checkpoint_says_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    Lines(path).append({"step": 1})
    Lines(path).truncate(100)
    assert "lacks 88 bytes" in caplog.text
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"line 2 of metrics\.jsonl is damaged"):
        list(read_lines(path))


def test_a_full_disk_drops_lines_with_one_warning_and_tears_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    lines.append({"step": 1})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda file, data: write(file, data[:5]))
        lines.append({"step": 2})
        lines.append({"step": 3})
    lines.append({"step": 4})
    assert [line["step"] for line in read_lines(path)] == [1, 4]
    assert lines.dropped == 2
    assert caplog.text.count("cannot be written") == 1


def test_a_log_whose_folder_is_gone_drops_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(tmp_path / "gone" / "metrics.jsonl")
    lines.append({"step": 1})
    assert lines.dropped == 1
    assert "No such file" in caplog.text
