"""Processes that do not do the same are told so: before the first step, and call by call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crew import Left, ended
from parts import small_settings, small_trio

from dira_core import api, distributed
from dira_core.agreement import agree
from dira_core.environment import versions
from dira_core.errors import DataError
from dira_core.testing import TinySource

pytestmark = pytest.mark.faults


def checked(folder: Path, work: Callable[[int], object], wait: str = "10") -> list[Left]:
    """Run work in two processes that check the order of collectives."""

    def member(rank: int) -> None:
        os.environ["DIRA_CHECK_ORDER"] = wait
        work(rank)

    return ended(folder, member)


def total() -> torch.Tensor:
    return distributed.sum_over_processes(torch.ones(3))


def rows(n: int = 2) -> torch.Tensor:
    return distributed.gather_rows(torch.ones(n, 4))


def swapped(rank: int) -> None:
    if rank == 0:
        total()
        distributed.highest(1)
    else:
        distributed.highest(1)
        total()


def of_one_shape_swapped(rank: int) -> None:
    if rank == 0:
        distributed.sum_over_processes(torch.ones(3))
        distributed.sum_over_processes(torch.zeros(3))
    else:
        distributed.sum_over_processes(torch.zeros(3))
        distributed.sum_over_processes(torch.ones(3))


def shapes(rank: int) -> None:
    rows(2 + rank)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (swapped, ["rank 0: sum_over_processes of (3,) torch.float32", "rank 1: highest of (1,)"]),
        (of_one_shape_swapped, ["rank 0: sum_over_processes", "rank 1: sum_over_processes"]),
        (shapes, ["rank 0: gather_rows of (2, 4)", "rank 1: gather_rows of (3, 4)"]),
    ],
)
def test_collectives_that_differ_are_named_with_rank_and_line(
    tmp_path: Path, work: Callable[[int], None], said: list[str]
) -> None:
    for left in checked(tmp_path / "crew", work):
        assert left.code == 4
        assert left.said.startswith("collective 0 differs between processes")
        for part in said:
            assert part in left.said
        assert "test_order.py:" in left.said


@pytest.mark.parametrize("stays", [0, 1])
def test_a_collective_that_one_process_leaves_out_is_named(tmp_path: Path, stays: int) -> None:
    def work(rank: int) -> None:
        total()
        if rank == stays:
            rows()

    left = checked(tmp_path / "crew", work, wait="1")[stays]
    assert left.code == 4
    assert f"rank {1 - stays} does not come to collective 1, gather_rows of (2, 4)" in left.said


def test_a_run_calls_its_collectives_in_order(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        settings = small_settings(train={"epochs": 1, "sync_norm": True})
        api.pretrain(small_trio(), TinySource(24), settings, tmp_path / "run")

    assert [left.code for left in checked(tmp_path / "crew", work)] == [0, 0]


def test_settings_versions_and_data_must_be_the_same_on_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            found = versions()
            found["plugins"]["simsiam"] = "old 0.1"
            monkeypatch.setattr("dira_core.agreement.versions", lambda: found)
        settings = small_settings().model_copy(update={"seed": rank})
        agree(settings, fingerprint=f"files-{rank}")

    for left in ended(tmp_path / "crew", work):
        assert left.code == 2
        assert "fingerprint (rank 0: files-0, rank 1: files-1)" in left.said
        assert "seed (rank 0: 0, rank 1: 1)" in left.said
        assert "versions.plugins.simsiam (rank 0: " in left.said
        assert "rank 1: old 0.1)" in left.said
        assert "views.size" not in left.said


def test_a_run_whose_data_differ_between_processes_never_starts(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        api.pretrain(small_trio(), TinySource(24 + rank), small_settings(), tmp_path / "run")

    for left in ended(tmp_path / "crew", work, processes=3):
        assert left.code == 2
        assert "fingerprint (rank 0: tiny-(24, 1, 24, 24), rank 1: tiny-(25" in left.said
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_data_that_only_one_process_cannot_read_end_all_with_its_error(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with api.joined(10):
            if rank == 1:
                raise DataError("no such folder: /data")
            distributed.barrier()

    left = ended(tmp_path / "crew", work)
    assert [each.code for each in left] == [3, 3]
    assert left[0].said == "rank 1: no such folder: /data"
