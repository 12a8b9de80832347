"""Times of several arms, alternated so that a machine's moods meet all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Arm = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def ms(self) -> dict[str, float]:
        """Return the least, the middle and the most, in milliseconds."""
        found = {"min": min(self.seconds), "median": self.median, "max": max(self.seconds)}
        return {name: 1000 * seconds for name, seconds in found.items()}


def alternate(
    arms: Mapping[str, Arm], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, Timing]:
    """Time arms in turn, A B C A B C, after one round that does not count.

    Args:
        arms: By name.
        rounds: Times each is measured.
        clock: Of seconds; by default those that pass, another may count a processor's.
    """
    now = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for measured in range(-1, rounds):
        for name, arm in arms.items():
            started = now()
            arm()
            if measured >= 0:
                seconds[name].append(now() - started)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> float:
    """Return the median over rounds of slow / fast, round by round: drift cancels."""
    pairs = zip(timings[slow].seconds, timings[fast].seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


class Cores:
    """How many processors this process has kept busy since the object was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def used(self) -> float:
        """Return processor seconds over seconds: far below the threads, the machine was shared."""
        wall, own = self._began
        return (time.process_time() - own) / (time.perf_counter() - wall)
