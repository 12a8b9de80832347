"""A tracker works beside the run: it is called in order, and may raise or hang."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from dira_core.roles import Tracker
from dira_core.trackers import Aside


class Kept(Tracker):
    """Keep what comes; wait for a permission before each line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.may = threading.Event()
        self.closed = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.may.wait()
        self.lines.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True


class Broken(Kept):
    """Raise at the second line."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise RuntimeError("no network")
        super().log(step, metrics)


def test_lines_arrive_in_order_and_before_the_end() -> None:
    kept, metrics = Kept(), {"loss": 1.0}
    aside = Aside(kept)
    for step in range(5):
        aside.log(step, metrics)
    metrics["loss"] = 2.0
    kept.may.set()
    aside.close()
    assert kept.lines == [(step, {"loss": 1.0}) for step in range(5)]
    assert kept.closed


def test_what_a_tracker_raises_is_raised_later_and_it_is_called_no_more() -> None:
    broken = Broken()
    broken.may.set()
    aside = Aside(broken)
    for step in (1, 2, 3):
        aside.log(step, {})
    with pytest.raises(RuntimeError, match="no network"):
        aside.close()
    assert [step for step, _ in broken.lines] == [1]


def test_a_tracker_that_raised_is_closed() -> None:
    broken = Broken()
    broken.may.set()
    aside = Aside(broken)
    for step in (1, 2):
        aside.log(step, {})
    with pytest.raises(RuntimeError, match="no network"):
        aside.close()
    assert broken.closed
    assert broken.lines == [(1, {})]


def test_a_tracker_that_hangs_holds_no_more_lines_than_there_is_room_for() -> None:
    hanging = Kept()
    aside = Aside(hanging, room=3)

    def lines() -> None:
        for step in range(5):  # one is being taken, three wait
            aside.log(step, {})

    with pytest.raises(TimeoutError, match="it is 3 lines behind"):
        lines()
    hanging.may.set()


def test_a_tracker_that_hangs_at_the_end_is_left_behind() -> None:
    hanging = Kept()
    aside = Aside(hanging, leaving_s=0.05)
    aside.log(1, {})
    with pytest.raises(TimeoutError, match="it did not end within 0.05 s"):
        aside.close()
    hanging.may.set()
