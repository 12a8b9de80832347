"""A whole run under faults: a full disk, signals of every kind, a loss that is not finite."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit import SMALL, attended, command, kit
from parts import forked, outcome, small_run

from dira_core import checkpoint_draft, cli
from dira_core.checkpoint import Checkpoints
from dira_core.checkpoint_manifest import Entry
from dira_core.errors import ResourceError

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the kit and return the folder it is in."""
    folder = tmp_path_factory.mktemp("kit")
    with kit(folder):
        yield folder


def status(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "status.json").read_text())
    return found


@pytest.mark.parametrize("saves_before", [0, 1, 3])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_during_a_save_stops_with_6_and_costs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    saves_before: int,
    number: int,
) -> None:
    folder, write, written = tmp_path / "run", checkpoint_draft.stream, []

    def full(path: Path, content: Iterator[memoryview]) -> Entry:
        written.append(path)
        if len(written) > 2 * saves_before + 1:  # the second of two files
            path.write_bytes(b"torn")
            raise OSError(number, os.strerror(number))
        return write(path, content)

    monkeypatch.setattr(checkpoint_draft, "stream", full)
    with pytest.raises(ResourceError, match="no space left") as caught:
        small_run(folder)
    assert caught.value.exit_code == 6
    assert status(folder)["status"] == "failed"
    assert "no space left" in status(folder)["reason"]
    newest = Checkpoints(folder / "checkpoints", 2).latest()
    steps = [None, "step-00000000", "step-00000004", "step-00000008"]
    assert (newest.name if newest else None) == steps[saves_before]
    monkeypatch.undo()
    small_run(folder, resume=True)
    assert outcome(folder) == whole


def own_mounts() -> bool:
    """Say whether this process may have a mount namespace of its own."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.unshare(0x00020000) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.slow
def test_a_disk_full_at_any_byte_of_a_run_leaves_what_can_be_resumed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    if not own_mounts():
        pytest.skip("no right to mount a small disk")
    sizes = range(60, 460, 40)
    results = []
    for kib in sizes:
        copy, disk = tmp_path / f"copy-{kib}", tmp_path / f"disk-{kib}"
        disk.mkdir()

        def on_a_small_disk(kib: int = kib, copy: Path = copy, disk: Path = disk) -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x00020000) == 0
            private = 0x4000 | 0x40000  # of this process and its children alone
            assert libc.mount(b"none", b"/", None, private, None) == 0
            size = f"size={kib}k".encode()
            assert libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, size) == 0
            try:
                small_run(disk / "run")
            except ResourceError:
                os._exit(6)
            finally:
                if (disk / "run").exists():
                    shutil.copytree(disk / "run", copy)

        _, left = os.waitpid(forked(on_a_small_disk), 0)
        code = os.waitstatus_to_exitcode(left)
        assert code in (0, 6), f"{kib} KiB: exit code {code}"
        results.append(code)
        if code == 6 and copy.exists() and any(copy.iterdir()):
            (copy / "status.json").touch()
            if not (copy / "status.json").read_text():
                (copy / "status.json").write_text("{}")
            small_run(copy, resume=True)
            assert outcome(copy) == whole, f"{kib} KiB"
    assert results.count(6) >= 3
    assert results[-1] == 0


def test_a_loss_that_is_not_finite_ends_the_command_with_5_and_names_the_images(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dira", "run", *SMALL, "--data", "poisoned", "--out", str(tmp_path), "--name", "r"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 5
    said = capsys.readouterr().err
    assert "not finite at step" in said
    assert status(tmp_path / "r")["status"] == "diverged"
    [named] = (tmp_path / "r").glob("setback-*.txt")
    assert "tiny-3" in named.read_text()
    assert named.name in said


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_survived_steps_that_are_not_finite_leaves_finite_weights(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    health = ["--set", f"health.nonfinite={policy}", "--set", "health.max_recoveries=99"]
    steps = ["--set", "checkpoint.every_steps=1"]
    where = ["--data", "poisoned", "--out", str(tmp_path), "--name", "r"]
    monkeypatch.setattr(sys, "argv", ["dira", "run", *SMALL, *health, *steps, *where])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code in (0, None)
    newest = Checkpoints(tmp_path / "r/checkpoints", 2).latest()
    assert newest is not None
    tensors, _ = Checkpoints(tmp_path / "r/checkpoints", 2).load(newest)
    for group in tensors.values():
        broken = [name for name, value in group.items() if not torch.isfinite(value).all()]
        assert broken == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there; the process must live until then."""
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_a_storm_of_signals_saves_once_and_leaves_with_75(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    where = ["--out", str(tmp_path), "--epochs", "20", "--set", "checkpoint.every_steps=1000"]
    with attended(command(parts, *SMALL, *where, "--name", "r")) as process:
        wait_for(folder / "metrics.jsonl", process)
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"dira run --resume {folder}" in said
    assert status(folder)["status"] == "preempted"
    saved = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert len(saved) == 2
    assert saved[0] == "step-00000000"
    resumed = command(parts, "--resume", str(folder))
    _, said = resumed.communicate(timeout=110)
    assert resumed.returncode == 0, said
    monkeypatch.setattr(sys, "argv", ["dira", "run", *SMALL, *where, "--name", "whole"])
    with pytest.raises(SystemExit):
        cli.main()
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_even_where_a_read_hangs(
    tmp_path: Path, parts: Path
) -> None:
    hangs, folder = tmp_path / "hangs", tmp_path / "r"
    where = ["--data", "hanging", "--out", str(tmp_path), "--name", "r", "--epochs", "50"]
    where += ["--set", "loader.cache_mb=0"]
    with attended(command(parts, *SMALL, *where, KIT_HANGS=str(hangs))) as run:
        wait_for(hangs, run)
        run.send_signal(signal.SIGINT)
        assert run.stderr
        while "Ctrl-C again" not in run.stderr.readline():
            assert run.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(timeout=0.5)  # the first one waits for the step
        pressed = time.time()
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)  # the read would take ten minutes
    assert run.returncode == 130, said
    assert "Traceback" not in said
    assert status(folder)["status"] == "failed"
    assert (folder / "status.json").stat().st_mtime - pressed < 10
