"""A run knows what its time was spent on, and says who waited for whom."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parts import small_settings, small_trio

from dira_core import pace
from dira_core.api import pretrain
from dira_core.data.dataset import Making
from dira_core.data.loader import Loader
from dira_core.lines import read_lines
from dira_core.pace import IN_TIME, Pace, in_words
from dira_core.testing import TinySource
from dira_core.types import Image

PARTS = {"waiting": 0.0, "views": 0.0, "reading_ms": 0.0, "cropping_ms": 0.0}


def trainer(step: int = 0, waited: float = 0.0, viewed: float = 0.0, *spent: float) -> Any:
    loader = SimpleNamespace(batch_size=4, spent=Making(*spent))
    settings = SimpleNamespace(train=SimpleNamespace(accumulate=2))
    seconds = {"waited": waited, "viewed": viewed}
    precision = SimpleNamespace(device=torch.device("cpu"))
    given = {"loader": loader, "settings": settings, "precision": precision}
    return SimpleNamespace(step=step, images_per_step=16, **given, **seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_each_line_is_about_the_steps_since_the_one_before(clock: SimpleNamespace) -> None:
    follow = Pace()
    clock.seconds = 110.0
    line = follow.since_last(trainer(5, 2.0, 1.0, 0.4, 0.2))
    assert line.pop("peak_mib") > 10
    # two processes: 16 images a step, 8 of them here
    assert line == pytest.approx(
        {"images_per_s": 8.0, "waiting": 0.2, "views": 0.1, "reading_ms": 10.0, "cropping_ms": 5.0}
    )
    clock.seconds = 112.0
    line = follow.since_last(trainer(7, 2.5, 1.0, 0.4, 0.36))
    assert line["images_per_s"] == pytest.approx(16.0)
    assert line["waiting"] == pytest.approx(0.25)
    assert line["views"] == 0
    assert (line["reading_ms"], line["cropping_ms"]) == pytest.approx((0.0, 10.0))
    assert follow.whole(trainer())["images_per_s"] == pytest.approx(16.0)


def test_a_resumed_run_forgets_what_was_before(clock: SimpleNamespace) -> None:
    follow = Pace()
    follow.since_last(trainer(3))
    clock.seconds = 200.0
    follow.restart(trainer(50, 9.0, 9.0, 9.0, 9.0))
    clock.seconds = 201.0
    line = follow.since_last(trainer(51, 9.5, 9.0, 9.0, 9.0))
    assert (line["images_per_s"], line["waiting"]) == pytest.approx((16.0, 0.5))
    assert follow.whole(trainer()) == {}  # the first call's steps are left out, there are no others


@pytest.mark.parametrize(
    ("parts", "workers", "cores", "said"),
    [
        ({"waiting": IN_TIME / 2}, 0, 4, "images were there in time: training waited 1.0%"),
        ({"waiting": 0.5, "reading_ms": 12.0}, 2, 4, "reading 12 ms.*`dira data cache`$"),
        ({"waiting": 0.5, "cropping_ms": 3.0}, 0, 4, "waited 50.0%.*: let others do it, --workers"),
        ({"waiting": 0.5, "cropping_ms": 3.0}, 2, 4, "use more than 2 --workers"),
        ({"waiting": 0.5, "cropping_ms": 3.0}, 4, 4, "the processors are all at work"),
    ],
)
def test_a_line_says_who_waited_for_whom_and_which_knob_to_turn(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, float], workers: int, cores: int, said: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    line = in_words(PARTS | parts, workers)
    assert re.search(said, line)
    assert "\n" not in line


class Slow(TinySource):
    def read(self, index: int) -> Image:
        time.sleep(0.02)
        return super().read(index)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_reading_is_accounted_for_wherever_it_is_done(workers: int) -> None:
    settings = small_settings(loader={"workers": workers, "cache_mb": 0})
    loader = Loader(Slow(8), settings, 2)
    try:
        list(loader.batches(0))
    finally:
        loader.close()
    assert loader.spent.reading >= 8 * 0.02
    assert loader.spent.cropping > 0


def test_a_run_logs_its_parts_and_sums_them_up(tmp_path: Path) -> None:
    source = Slow(24)
    settings = small_settings(train={"epochs": 1}, loader={"cache_mb": 0})
    result = pretrain(small_trio(), source, settings, tmp_path / "run")
    lines = list(read_lines(tmp_path / "run/speed.jsonl"))
    assert len(lines) == 6
    for line in lines:
        assert PARTS.keys() < line.keys()
        assert line["reading_ms"] >= 20
        assert 0 < line["waiting"] < 1
        assert 0 < line["views"] < 1
    assert PARTS.keys() < result.summary.keys()
    assert "`dira data cache`" in in_words(result.summary, 0)
