"""The comparison of `dira bench losses` is fair: all arms compute the same, and errors show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dira_core import cli
from dira_core.bench import losses as bench
from dira_core.bench.contests import (
    CONTESTS,
    Contest,
    barlow_contest,
    info_nce_contest,
    mocov2_students,
    teacher_contest,
)
from dira_core.bench.losses import compare, relative_errors
from dira_core.bench.memory import extra_mib

SMALL: dict[str, Callable[[], Contest]] = {
    "gram": partial(barlow_contest, 6, 24),
    "direct": partial(barlow_contest, 7, 5),
    "info nce": partial(info_nce_contest, 3, 50, 4),
    "teacher": lambda: teacher_contest([nn.Linear(4, 3), nn.BatchNorm1d(3)]),
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("name", SMALL)
def test_every_arm_computes_what_float64_does(name: str) -> None:
    errors = relative_errors(SMALL[name]())
    assert {"dira", "published"} <= errors.keys()
    assert max(errors.values()) < 1e-5


def test_lightly_takes_part_where_it_is_installed() -> None:
    pytest.importorskip("lightly.loss")
    assert "lightly" in barlow_contest(3, 5).arms


def test_the_worst_tensor_of_an_arm_is_its_error() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    contest = Contest(
        {"dira": lambda: [ones, ones], "published": lambda: [ones, 1.5 * ones]},
        lambda: [ones, 2 * ones],
    )
    assert relative_errors(contest) == {"dira": 0.5, "published": 0.25}


def test_a_contest_is_reported_with_spread_and_ratios_to_ours() -> None:
    found = compare(SMALL["info nce"](), rounds=3)
    assert found["ms"].keys() == found["error"].keys() == {"dira", "published"}
    for ms in found["ms"].values():
        assert 0 < ms["min"] <= ms["median"] <= ms["max"]
    assert found["times dira"].keys() == {"published"}


def test_the_students_of_the_teacher_contest_are_28_million_parameters() -> None:
    with torch.device("meta"):
        students = mocov2_students()
    numbers = sum(p.numel() for module in students for p in module.parameters())
    assert round(numbers / 1e6) == 28


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("contest", "least", "most"), [(0, 16, 32), (1, 2, 16), (2, 0, 1)])
def test_our_arms_take_little_memory(contest: int, least: float, most: float) -> None:
    extra = extra_mib(list(CONTESTS)[contest], "dira")
    assert extra is not None
    assert least <= extra <= most


def test_the_command_prints_every_arm_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CONTESTS", SMALL)
    monkeypatch.setattr(bench, "extra_mib", lambda contest, arm: 1.5 if arm == "dira" else None)

    def ask(*flags: str) -> str:
        command = ["bench", "losses", "--rounds", "1", *flags]
        result = CliRunner().invoke(cli.command_line(), command)
        assert result.exit_code == 0, result.output
        return result.stdout

    found: dict[str, Any] = json.loads(ask("--json"))
    assert found.keys() == {*SMALL, "threads", "cores used", "rounds"}
    assert found["info nce"]["MiB"] == {"dira": 1.5, "published": None}
    printed = ask()
    assert all(name in printed for name in found)
    assert "1.5 MiB" in printed
