"""Killed at any instant and resumed, a run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parts import forked, outcome, small_run, until_done

from dira_core.files import FAILPOINTS, planned
from dira_core.runfolder import RunFolder

LONG = {"epochs": 12}

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the outcome of a longer run nobody disturbed."""
    folder = tmp_path_factory.mktemp("long") / "run"
    small_run(folder, train=LONG)
    return outcome(folder)


def started(folder: Path) -> bool:
    return RunFolder(folder).holds_run()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sigkill_at_random_instants_changes_nothing(
    tmp_path: Path, long: dict[str, bytes], seed: int
) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "run"
    died = until_done(
        lambda again: small_run(folder, resume=again and started(folder), train=LONG),
        lambda: chance.uniform(0.02, 0.3),
        kills=5,
    )
    assert died > 0
    assert outcome(folder) == long


@pytest.mark.parametrize("place", [n for n in FAILPOINTS if n.startswith("ckpt.")])
def test_sigkill_between_the_steps_of_a_commit_changes_nothing(
    tmp_path: Path, whole: dict[str, bytes], place: str
) -> None:
    folder = tmp_path / "run"

    def work() -> None:
        os.environ["DIRA_FAILPOINTS"] = f"{place}:kill@3"
        planned.cache_clear()
        small_run(folder)

    pid = forked(work)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert until_done(lambda again: small_run(folder, resume=True), lambda: 0.0, kills=0) == 0
    assert outcome(folder) == whole


def test_a_save_cut_short_by_the_grace_period_falls_back_to_the_one_before(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    pid = forked(lambda: small_run(folder))
    while not (folder / "checkpoints/step-00000004").exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    small_run(folder, resume=True)
    assert outcome(folder) == whole


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_at_the_next_step_and_leaves(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    folder = tmp_path / "run"
    pid = forked(lambda: small_run(folder))
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.005)
    for _ in range(1 if name == "SIGINT" else 20):
        os.kill(pid, getattr(signal, name))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    said = json.loads((folder / "status.json").read_text())
    assert said["status"] == "preempted"
    assert name in said["reason"]
    assert "dira run --resume" in said["resume"]
    small_run(folder, resume=True)
    assert outcome(folder) == whole


def test_a_second_process_in_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pid = forked(lambda: small_run(folder, train={"epochs": 50}))
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.005)
    code = "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; "
    code += "from parts import small_run; small_run(Path(sys.argv[1]), resume=True)"
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), tests], capture_output=True, text=True, timeout=60
    )
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert done.returncode != 0
    assert "RunFolderError" in done.stderr
    assert str(pid) in done.stderr
