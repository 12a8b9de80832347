"""What exact reformulations of losses save, and that they are exact."""

from __future__ import annotations

from typing import Any

import torch

from dira_core.bench.contests import CONTESTS, Contest
from dira_core.bench.memory import extra_mib
from dira_core.bench.timing import Cores, alternate, ratio


def losses(rounds: int) -> dict[str, Any]:
    """Compare losses and the teacher's update with their published forms.

    Returns:
        For each: times in ms (least, median, most), how many times faster ours is, relative errors
        against float64 and extra memory in MiB of every arm; how busy others kept the machine.
    """
    found: dict[str, Any] = {}
    cores = Cores()
    for name, build in CONTESTS.items():
        found[name] = compare(build(), rounds)
    used = cores.used()
    for name, result in found.items():
        result["MiB"] = {arm: extra_mib(name, arm) for arm in result["ms"]}
    return found | {"threads": torch.get_num_threads(), "cores used": used, "rounds": rounds}


def compare(contest: Contest, rounds: int) -> dict[str, Any]:
    """Return times, ratios and errors of a contest's arms."""
    errors = relative_errors(contest)
    timings = alternate(contest.arms, rounds)
    return {
        "ms": {arm: timing.ms() for arm, timing in timings.items()},
        "times dira": {arm: ratio(timings, arm, "dira") for arm in timings if arm != "dira"},
        "error": errors,
    }


def relative_errors(contest: Contest) -> dict[str, float]:
    """Return every arm's largest relative error of a tensor: |x - truth| / |truth|, of norms."""
    truth = contest.truth()
    return {
        arm: max(
            float((x.detach().double() - exact).norm() / exact.norm())
            for x, exact in zip(work(), truth, strict=True)
        )
        for arm, work in contest.arms.items()
    }
