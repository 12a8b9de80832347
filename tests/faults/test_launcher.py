"""`dira run --nproc 2` as a whole: killed, stopped, asked to leave, orphaned, never answered."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import SMALL, command, kit
from parts import outcome

from dira_core.launch import conclude

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = int(os.environ.get("DIRA_TEST_KILLS", "2"))
"""Instants at which one of two processes is killed."""

PAIR = [*SMALL, "--nproc", "2", "--name", "r", "--set", "data.n=40", "--epochs", "6"]
"""Thirty steps of two processes."""

LOG_LINE = re.compile(r"^\[?[WEI]\d{4} |Traceback|\[rank\d\]", re.MULTILINE)
"""What torch writes, and no user should see."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the kit and return the folder it is in."""
    folder = tmp_path_factory.mktemp("kit")
    with kit(folder):
        yield folder


@pytest.fixture(scope="module")
def pair(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the outcome of a run of two processes nobody disturbed."""
    folder = tmp_path_factory.mktemp("pair")
    left, said = ended(command(parts, *PAIR, "--out", str(folder)))
    assert left == 0, said
    assert LOG_LINE.search(said) is None, said
    return outcome(folder / "r")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it said on stderr."""
    try:
        _, said = process.communicate(timeout=240)
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()
    return process.returncode, said


def children(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if state[0] != "Z":
                parents[int(entry.name)] = int(state[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return [*found, *(deeper for child in found for deeper in children(child))]


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a run, by their ranks."""
    ranks = {}
    for pid in children(launcher.pid):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        given = [item for item in environment if item.startswith(b"RANK=")]
        if given:
            ranks[int(given[0][5:])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def steps(folder: Path) -> int:
    """Return how many lines a run has logged."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_step(folder: Path, step: int, launcher: subprocess.Popen[str]) -> None:
    while steps(folder) < step:
        assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
        time.sleep(0.002)


def status(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "status.json").read_text())
    return found


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_process_is_started_again_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, parts: Path, pair: dict[str, bytes], seed: int
) -> None:
    chance, folder = random.Random(seed), tmp_path / "r"
    launcher = command(parts, *PAIR, "--out", str(tmp_path))
    wait_for_step(folder, chance.randrange(1, 25), launcher)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(workers(launcher)[chance.randrange(2)], signal.SIGKILL)
    code, said = ended(launcher)
    assert code == 0, said
    assert "resumed from step-" in said
    assert LOG_LINE.search(said) is None, said
    assert outcome(folder) == pair


def test_without_restarts_a_killed_process_ends_the_run_with_7(tmp_path: Path, parts: Path) -> None:
    launcher = command(parts, *PAIR, "--out", str(tmp_path), "--restarts", "0")
    wait_for_step(tmp_path / "r", 2, launcher)
    os.kill(workers(launcher)[1], signal.SIGKILL)
    code, said = ended(launcher)
    assert code == 7
    last = said.splitlines()[-1]
    assert last.startswith("error: rank 1 ")
    assert "--resume" in last
    assert LOG_LINE.search(said) is None, said
    assert status(tmp_path / "r")["status"] == "failed"
    assert status(tmp_path / "r")["reason"].startswith("rank 1 died or hangs at step ")


def test_a_job_that_is_asked_to_leave_and_queued_again_goes_on_to_the_same_bits(
    tmp_path: Path, parts: Path, pair: dict[str, bytes]
) -> None:
    job = [*PAIR, "--out", str(tmp_path), "--job", "4711"]
    launcher = command(parts, *job)
    wait_for_step(tmp_path / "r", 2, launcher)
    asked = time.monotonic()
    launcher.send_signal(signal.SIGUSR1)
    code, said = ended(launcher)
    assert code == 75, said
    assert LOG_LINE.search(said) is None, said
    assert said.splitlines()[-1] == f"saved; continue with: dira run --resume {tmp_path}/r"
    assert time.monotonic() - asked < 60
    assert "SIGUSR1: saved at step" in status(tmp_path / "r")["reason"]
    code, said = ended(command(parts, *job))
    assert code == 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert outcome(tmp_path / "r") == pair


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_job_that_is_asked_to_leave_before_it_began_may_be_queued_again(
    tmp_path: Path, parts: Path, name: str
) -> None:
    launcher = command(parts, *PAIR, "--out", str(tmp_path), "--job", "4711")
    while len(workers(launcher)) < 2:  # they are about to import torch
        time.sleep(0.005)
    time.sleep(0.5)
    launcher.send_signal(signal.Signals[name])
    code, said = ended(launcher)
    assert code == 75, said
    assert LOG_LINE.search(said) is None, said
    assert not [*tmp_path.glob("*/metrics.jsonl")]


@pytest.mark.parametrize(("asked", "code"), [("SIGUSR1", 75), ("SIGTERM", 75), ("SIGINT", 130)])
def test_a_launcher_whose_processes_left_no_word_says_whether_to_start_again(
    asked: str, code: int
) -> None:
    with pytest.raises(SystemExit) as left:
        conclude([], signal.Signals[asked], "")
    assert left.value.code == code


def test_a_killed_launcher_leaves_no_orphan_and_no_lock(
    tmp_path: Path, parts: Path, pair: dict[str, bytes]
) -> None:
    readers = [*PAIR, "--set", "loader.workers=1", "--set", "checkpoint.every_steps=1"]
    launcher = command(parts, *readers, "--out", str(tmp_path))
    wait_for_step(tmp_path / "r", 4, launcher)
    everyone = children(launcher.pid)
    assert len(everyone) >= 4  # two processes, and a data worker of each
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 5
    while alive := [pid for pid in everyone if running(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    code, said = ended(command(parts, "--nproc", "2", "--resume", str(tmp_path / "r")))
    assert code == 0, said
    weights = {name: data for name, data in pair.items() if name.endswith(".safetensors")}
    found = outcome(tmp_path / "r")
    assert {name: found[name] for name in weights} == weights


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_hangs_is_killed_and_started_again(
    tmp_path: Path, parts: Path, pair: dict[str, bytes]
) -> None:
    patience = ["--set", "train.timeout_s=5"]
    grace = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
    launcher = command(parts, *PAIR, *patience, "--out", str(tmp_path), **grace)
    wait_for_step(tmp_path / "r", 2, launcher)
    os.kill(workers(launcher)[1], signal.SIGSTOP)
    code, said = ended(launcher)
    assert code == 0, said
    assert LOG_LINE.search(said) is None, said
    assert outcome(tmp_path / "r") == pair


def test_data_that_one_process_cannot_read_are_one_line_and_exit_code_3(
    tmp_path: Path, parts: Path
) -> None:
    code, said = ended(command(parts, *PAIR, "--data", "lame", "--out", str(tmp_path)))
    assert code == 3, said
    assert said.splitlines()[-1] in (
        "error: no such folder on this machine",
        "error: rank 1: no such folder on this machine",
    )
    assert LOG_LINE.search(said) is None, said


def test_machines_that_never_meet_end_with_what_to_do(tmp_path: Path, parts: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    meeting = ["--machines", "2", "--rendezvous", f"localhost:{port}", "--wait", "3"]
    code, said = ended(command(parts, *PAIR, *meeting, "--out", str(tmp_path)))
    assert code == 7
    assert said.startswith(f"error: 2 machines did not meet at localhost:{port} within 3 s: start")
    assert len(said.splitlines()) == 1, said


def test_a_meeting_point_that_never_answers_ends_with_what_to_do(
    tmp_path: Path, parts: Path
) -> None:
    with socket.create_server(("localhost", 0)) as foreign:
        port = foreign.getsockname()[1]
        meeting = ["--machines", "2", "--rendezvous", f"localhost:{port}", "--wait", "1"]
        code, said = ended(command(parts, *PAIR, *meeting, "--out", str(tmp_path)))
    assert code == 7, said
    assert said.startswith(f"error: something listens at localhost:{port} and gave no answer")
    assert len(said.splitlines()) == 1, said


def test_a_mistake_is_found_before_anything_is_started(tmp_path: Path, parts: Path) -> None:
    code, said = ended(command(parts, *PAIR, "--set", "train.epoch=3", "--out", str(tmp_path)))
    assert code == 2
    assert said.startswith("error: train.epoch: ")
    assert list(tmp_path.iterdir()) == []
