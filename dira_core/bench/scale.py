"""What several processes gain or lose against one, on one machine, at the same global batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dira_core.bench.team import Team
from dira_core.bench.timing import Timing, alternate, ratio
from dira_core.errors import RecipeError
from dira_core.recipe import Recipe, to_toml

Arms = dict[str, Team]


def scale(recipe: Recipe, rounds: int, processes: Sequence[int], cores: int) -> dict[str, Any]:
    """Compare steps of several processes, what they exchange, and a teacher's update.

    Args:
        recipe: Its batch is the global one.
        rounds: Times each is measured.
        processes: Numbers of processes; each gets its part of the cores as threads.
        cores: To be shared.

    Returns:
        Times in ms (least, median, most), ratios of medians round by round, images/s, and the
        machine's load before and after: much above `cores`, others were at work.

    Raises:
        RecipeError: The batch cannot be shared by so many processes.
    """
    counts = sorted({1, *processes})
    for count in counts:
        if recipe.train.batch_size % count:
            raise RecipeError(
                f"a batch of {recipe.train.batch_size} images cannot be shared by {count} "
                "processes: choose another --batch-size or other --processes"
            )
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(to_toml(recipe))
        steps = measured(step_arms(counts, cores, file), rounds)
        one = arm_name(1, cores, "alone")
        found: dict[str, Any] = {
            "step": spread(steps),
            "speed against one process": {
                name: ratio(steps, one, name) for name in steps if name != one
            },
            "images/s": {name: recipe.train.batch_size / t.median for name, t in steps.items()},
        }
        most = max(counts)
        if most > 1:
            two = {
                work: Team(work, 2, max(1, cores // 2), "ddp", file)
                for work in ("gather", "all-reduce")
            }
            exchange = measured(two, rounds)
            found["exchange of 2, 128 x 8192"] = spread(exchange)
            cheaper = ratio(exchange, "all-reduce", "gather")
            found["times cheaper than the all-reduce"] = {"gather": cheaper}
            arms = {
                name: Team("teacher", n, max(1, cores // n), strategy, file)
                for name, n, strategy in arrangements([1, 2], cores)
            }
            found["teacher, 28 M parameters"] = spread(measured(arms, rounds))
    return found | {"cores": cores, "load": [before, os.getloadavg()[0]], "rounds": rounds}


def step_arms(counts: Sequence[int], cores: int, recipe: Path) -> Arms:
    """Return a team for every number of processes and strategy."""
    return {
        name: Team("step", n, max(1, cores // n), strategy, recipe)
        for name, n, strategy in arrangements(counts, cores)
    }


def arrangements(counts: Sequence[int], cores: int) -> Iterator[tuple[str, int, str]]:
    """Yield name, number of processes and strategy of every arm."""
    for n in counts:
        if n == 1:
            yield arm_name(1, cores, "alone"), 1, "ddp"
            continue
        for strategy in ("ddp", "fsdp"):
            yield arm_name(n, cores, strategy), n, strategy


def arm_name(processes: int, cores: int, strategy: str) -> str:
    """Return what an arm is called: "2 x 1, ddp"."""
    return f"{processes} x {max(1, cores // processes)}, {strategy}"


def measured(arms: Mapping[str, Team], rounds: int) -> dict[str, Timing]:
    """Time teams in turn."""
    with started(arms):
        return alternate({name: team.turn for name, team in arms.items()}, rounds)


@contextmanager
def started(arms: Mapping[str, Team]) -> Iterator[None]:
    """Have all teams ready for their turns while the context lasts."""
    with ExitStack() as stack:
        for team in arms.values():
            stack.enter_context(team)
        yield


def spread(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Return least, median and most milliseconds of every arm."""
    return {
        name: {
            "min": 1000 * min(timing.seconds),
            "median": 1000 * timing.median,
            "max": 1000 * max(timing.seconds),
        }
        for name, timing in timings.items()
    }
