"""How fast a run is, and who waits for whom: the training for images, or they for the training."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from dira_core.memory import peak_mib, restart_peak

if TYPE_CHECKING:
    from dira_core.trainer import Trainer

IN_TIME = 0.02
"""Part of the time a training may wait for images before something should be done about it."""


class Spent(NamedTuple):
    """Where a run stands, and how many seconds were spent until then.

    Attributes:
        step: Optimizer steps done.
        clock: The time.
        waiting: By the training, for images.
        views: By the training, on views of crops.
        reading: By whoever reads images, on reading them.
        cropping: By the same, on crops of them.
    """

    step: int = 0
    clock: float = 0.0
    waiting: float = 0.0
    views: float = 0.0
    reading: float = 0.0
    cropping: float = 0.0


def until_now(trainer: Trainer) -> Spent:
    """Look at the clock and at a trainer."""
    made, now = trainer.loader.spent, time.perf_counter()
    return Spent(trainer.step, now, trainer.waited, trainer.viewed, made.reading, made.cropping)


class Pace:
    """Follow the speed of a trainer, from its first step in this process on."""

    def __init__(self) -> None:
        self._first: Spent | None = None
        self._last = Spent(clock=time.perf_counter())

    def restart(self, trainer: Trainer) -> None:
        """Begin anew: the trainer was resumed, or went back."""
        self._first, self._last = None, until_now(trainer)

    def since_last(self, trainer: Trainer) -> dict[str, float]:
        """Return what speed.jsonl says of the steps since the call before."""
        last, self._last = self._last, until_now(trainer)
        self._first = self._first or self._last
        device = trainer.precision.device
        peak = peak_mib(device)
        restart_peak(device)
        return {**between(last, self._last, trainer), "peak_mib": peak}

    def whole(self, trainer: Trainer) -> dict[str, float]:
        """Return the same of all steps but those of the first call; empty without others."""
        if self._first is None or self._first.step == self._last.step:
            return {}
        return between(self._first, self._last, trainer)


def between(first: Spent, last: Spent, trainer: Trainer) -> dict[str, float]:
    """Return images a second, parts of the time, and milliseconds an image that readers took."""
    steps, seconds = last.step - first.step, max(1e-9, last.clock - first.clock)
    own = max(1, steps * trainer.loader.batch_size * trainer.settings.train.accumulate)
    return {
        "images_per_s": steps * trainer.images_per_step / seconds,
        "waiting": (last.waiting - first.waiting) / seconds,
        "views": (last.views - first.views) / seconds,
        "reading_ms": 1000 * (last.reading - first.reading) / own,
        "cropping_ms": 1000 * (last.cropping - first.cropping) / own,
    }


def in_words(pace: Mapping[str, float], workers: int) -> str:
    """Say in a line who waited for whom, and what to do about it.

    Args:
        pace: From `Pace.whole`.
        workers: Processes that read images; 0: the training itself does.
    """
    waiting, reading, cropping = (pace[k] for k in ("waiting", "reading_ms", "cropping_ms"))
    share = f"{waiting:.1%} of the time"
    if waiting < IN_TIME:
        return f"images were there in time: training waited {share} for them"
    cost = f"reading {reading:.2g} ms, cropping {cropping:.2g} ms an image"
    free = len(os.sched_getaffinity(0)) > workers
    if reading > max(1.0, cropping):
        way_out = "decode them once with `dira data cache`"
    elif workers == 0 and free:
        way_out = "let others do it, --workers 1 or more"
    elif free:
        way_out = f"use more than {workers} --workers"
    else:
        way_out = "the processors are all at work: smaller or fewer views would help"
    return f"training waited {share} for images ({cost}): {way_out}"
