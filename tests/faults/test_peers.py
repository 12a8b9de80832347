"""One of several processes is killed, stopped, asked to leave, or fails: all end, and say why."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crew import Left, crew, ended, wait_for
from parts import outcome, small_run, small_settings, small_trio
from torch import Tensor

from dira_core import Discriminator, Encodings, Objective, Progress
from dira_core.api import pretrain
from dira_core.roles import FeaturePass
from dira_core.testing import TinySource
from dira_core.trio import Trio

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the outcome of a run of two processes nobody disturbed."""
    folder = tmp_path_factory.mktemp("pair")
    assert ended(folder / "crew", lambda rank: small_run(folder / "run"))[0].code == 0
    return outcome(folder / "run")


def status(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "status.json").read_text())
    return found


def codes(left: list[Left]) -> list[int]:
    return [each.code for each in left]


def finish(folder: Path, crew_folder: Path, **changes: Any) -> dict[str, bytes]:
    """Resume a run in two processes to its end."""
    left = ended(crew_folder, lambda rank: small_run(folder, resume=True, **changes))
    assert codes(left) == [0, 0]
    return outcome(folder)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_one_which_names_it_and_a_resume_is_exact(
    tmp_path: Path, pair: dict[str, bytes]
) -> None:
    chance, folder, codes_seen = random.Random(0), tmp_path / "run", []
    for attempt in range(4):
        again = attempt > 0
        with crew(
            tmp_path / f"crew{attempt}", lambda rank, again=again: small_run(folder, resume=again)
        ) as both:
            wait_for(folder / "metrics.jsonl")
            before = (folder / "metrics.jsonl").stat().st_size
            while (folder / "metrics.jsonl").stat().st_size == before and both.alive():
                time.sleep(0.003)
            time.sleep(chance.uniform(0, 0.1))
            victim = chance.randrange(2)
            both.kill(victim)
            left = both.left()
        codes_seen.append([left[victim].code, left[1 - victim].code])
        if codes_seen[-1] == [-9, 7]:
            assert f"rank {victim} died or hangs at" in left[1 - victim].said
        if codes_seen[-1] == [0, 0]:
            break
    assert [-9, 7] in codes_seen
    assert finish(folder, tmp_path / "last") == pair


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_at_one_step_and_a_resume_is_exact(
    tmp_path: Path, pair: dict[str, bytes], rank: int
) -> None:
    folder = tmp_path / "run"
    with crew(tmp_path / "crew", lambda rank: small_run(folder)) as both:
        wait_for(folder / "metrics.jsonl")
        both.kill(rank, signal.SIGTERM)
        assert codes(both.left()) == [0, 0]
    assert status(folder)["status"] == "preempted"
    assert "SIGTERM: saved at step" in status(folder)["reason"]
    assert finish(folder, tmp_path / "again") == pair


def test_a_process_that_hangs_is_named_with_its_step(
    tmp_path: Path, pair: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    with crew(tmp_path / "crew", lambda rank: small_run(folder), timeout_s=2) as both:
        wait_for(folder / "metrics.jsonl")
        both.kill(1, signal.SIGSTOP)
        stopped = time.monotonic()
        pid, left = os.waitpid(both.pids[0], 0)
        assert time.monotonic() - stopped < 2 + 3 + 5  # time-out, roll call, leaving
        assert os.waitstatus_to_exitcode(left) == 7
        both.pids.remove(pid)
    reason = status(folder)["reason"]
    assert "rank 1 died or hangs at step" in (tmp_path / "crew/0.said").read_text()
    assert status(folder)["status"] == "failed", reason
    assert finish(folder, tmp_path / "again") == pair


class Failing(Discriminator):
    """Fail on one rank, after some steps."""

    def __init__(self, rank: int, fail: Callable[[], object], after: int = 4) -> None:
        super().__init__()
        self._mine = torch.distributed.get_rank() == rank
        self._fail = fail
        self._left = after

    def forward(self, encodings: Encodings) -> Objective:
        self._left -= 1
        if self._left < 0 and self._mine:
            self._fail()
        return Objective(encodings[0].pooled.square().mean())


def failing(folder: Path, rank: int, fail: Callable[[], object], **train: int) -> None:
    trio = Trio(small_trio().backbone, Failing(rank, fail))
    pretrain(trio, TinySource(24), small_settings(train=train), folder)


def allocate() -> object:
    return torch.empty(2**60)


def no_memory() -> None:
    raise MemoryError


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("fail", [allocate, no_memory, no_gpu_memory])
def test_without_memory_on_one_rank_all_end_with_6_and_say_what_may_fit(
    tmp_path: Path, fail: Callable[[], object]
) -> None:
    folder = tmp_path / "run"
    left = ended(tmp_path / "crew", lambda rank: failing(folder, 1, fail))
    assert codes(left) == [6, 6]
    for said in (left[0].said, left[1].said, status(folder)["reason"]):
        assert said.startswith(
            "no memory left at step 3 on rank 1: --batch-size 2 --set train.accumulate=2 "
        )
        assert "dry-run" in said
    assert status(folder)["status"] == "failed"


def test_what_is_no_lack_of_memory_is_not_called_one(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("by hand")

    left = ended(tmp_path / "crew", lambda rank: failing(tmp_path / "run", 1, fail))
    assert codes(left) == [7, 1]
    assert left[0].said == "rank 1: failed at step 3 (RuntimeError: by hand): see its traceback"


class Slow(FeaturePass):
    """Say so when a pass over the source has begun."""

    def __init__(self, inner: FeaturePass, sign: Path) -> None:
        self._inner = inner
        self._sign = sign

    def __call__(self) -> Tensor:
        self._sign.touch()
        time.sleep(0.3)
        return self._inner()


class Clustering(Discriminator):
    """Depend on features of the whole source, and tell when it asks for them."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        self._sign = sign
        self.register_buffer("seen", torch.zeros(()))

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        found = Slow(features, self._sign)() if progress.epoch == 1 else features()
        self.seen.add_(found.mean())

    def forward(self, encodings: Encodings) -> Objective:
        return Objective((encodings[0].pooled - self.seen).square().mean())


def clustered(folder: Path, sign: Path, resume: bool = False) -> None:
    trio = Trio(small_trio().backbone, Clustering(sign))
    pretrain(trio, TinySource(24), small_settings(), folder, resume)


def test_a_signal_during_a_feature_pass_leaves_from_within_and_a_resume_is_exact(
    tmp_path: Path,
) -> None:
    whole, folder, sign = (tmp_path / name for name in ("whole", "run", "sign"))
    assert codes(ended(tmp_path / "a", lambda rank: clustered(whole, tmp_path / "x"))) == [0, 0]
    with crew(tmp_path / "b", lambda rank: clustered(folder, sign)) as both:
        wait_for(sign)
        both.kill(1, signal.SIGTERM)
        assert codes(both.left()) == [0, 0]
    assert status(folder)["reason"] == "SIGTERM: between two steps"
    assert (folder / "checkpoints/step-00000003").exists()  # an epoch has three steps
    again = ended(tmp_path / "c", lambda rank: clustered(folder, tmp_path / "x", resume=True))
    assert codes(again) == [0, 0]
    assert outcome(folder) == outcome(whole)


class Labelled(TinySource):
    """Enough labels for a probe, and a sign when its images are read."""

    def __init__(self, sign: Path, after: int) -> None:
        super().__init__(48)
        self._sign = sign
        self._reads = after

    def read(self, index: int) -> Any:
        self._reads -= 1
        if self._reads == 0:
            self._sign.touch()
            time.sleep(0.3)
        return super().read(index)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_during_a_probe_leaves_from_within_and_a_resume_is_exact(
    tmp_path: Path, when: str
) -> None:
    def work(folder: Path, sign: Path, reads: int, resume: bool = False) -> None:
        settings = small_settings(train={"epochs": 1}, loader={"cache_mb": 0})
        pretrain(small_trio(), Labelled(sign, reads), settings, folder, resume)

    # probes read all images twice; between them are 24 images of training and 48 to look at
    reads = {"before": 10, "after": 2 * 48 + 48 + 24 + 48 + 10}[when]
    whole, folder, sign = (tmp_path / name for name in ("whole", "run", "sign"))
    assert codes(ended(tmp_path / "a", lambda rank: work(whole, tmp_path / "x", 0))) == [0, 0]
    with crew(tmp_path / "b", lambda rank: work(folder, sign, reads)) as both:
        wait_for(sign)
        both.kill(0, signal.SIGTERM)
        assert codes(both.left()) == [0, 0]
    assert status(folder)["reason"] == "SIGTERM: between two steps"
    assert not (folder / "summary.json").exists()
    again = ended(tmp_path / "c", lambda rank: work(folder, tmp_path / "x", 0, resume=True))
    assert codes(again) == [0, 0]
    assert outcome(folder) == outcome(whole)
