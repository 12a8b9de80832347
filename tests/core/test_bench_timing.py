"""Arms take turns, ratios are taken round by round, and a busy machine shows."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from dira_core.bench import timing
from dira_core.bench.timing import Cores, Timing, alternate, ratio


def test_arms_are_alternated_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    now = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(timing, "time", now)
    called: list[str] = []
    timings = alternate({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == list("abababab")
    assert timings == {"a": Timing((1, 1, 1)), "b": Timing((1, 1, 1))}


def test_ratios_are_medians_over_rounds() -> None:
    timings = {"slow": Timing((2.0, 9.0, 6.0)), "fast": Timing((1.0, 3.0, 1.0))}
    assert ratio(timings, "slow", "fast") == 3
    assert timings["slow"].median == 6


def test_cores_used_are_processor_seconds_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, own = iter([10.0, 14.0]), iter([3.0, 9.0])
    now = SimpleNamespace(perf_counter=lambda: next(wall), process_time=lambda: next(own))
    monkeypatch.setattr(timing, "time", now)
    assert Cores().used() == 1.5
