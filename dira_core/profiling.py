"""A few steps of a run under torch's profiler: a trace and a table, by process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from dira_core.distributed import rank
from dira_core.files import write_atomic
from dira_core.trainer import Setback, Trainer, Watcher
from dira_core.watching import Display

WARMUP = 3
"""Steps that are not looked at: they load code and fill caches."""

ROWS = 20
"""The dearest operations in the table."""


class Profiled:
    """Follow a trainer as another watcher does, and profile some steps after a warm-up.

    Args:
        watcher: Who follows the run.
        folder: `rank-0.json` (a Chrome trace) and `rank-0.txt` go there, and so on.
        steps: How many; 0 profiles nothing.
        display: Is told where they are.
    """

    def __init__(self, watcher: Watcher, folder: Path, steps: int, display: Display) -> None:
        self._watcher = watcher
        self._folder = folder
        self._steps = steps
        self._display = display
        self._seen = 0
        self._profile: profile | None = None

    def epoch_started(self, trainer: Trainer) -> None:
        """Prepare an epoch."""
        self._watcher.epoch_started(trainer)

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        """Decide about a setback."""
        self._watcher.recover(trainer, setback)

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics; start to profile after the warm-up, write when all is seen."""
        self._watcher.step_ended(trainer, metrics)
        self._seen += 1
        if self._seen == WARMUP and self._steps:
            kinds = [ProfilerActivity.CPU]
            if trainer.precision.device.type == "cuda":
                kinds.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds, acc_events=True)
            self._profile.start()
        elif self._seen == WARMUP + self._steps:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._seen > WARMUP:
            self._write()
        elif self._profile is not None:
            self._profile.stop()
        if error is None and self._steps and self._seen <= WARMUP:
            self._display.said(f"nothing is profiled: the run had no more than {WARMUP} steps")

    def _write(self) -> None:
        found, self._profile = self._profile, None
        if found is None:
            return
        found.stop()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank-{rank()}.json"
        found.export_chrome_trace(str(trace))
        table = found.key_averages().table(f"self_{device}_time_total", row_limit=ROWS)
        write_atomic(trace.with_suffix(".txt"), table.encode())
        self._display.said(
            f"profile of {self._seen - WARMUP} steps: {trace} (open it in ui.perfetto.dev), "
            f"the dearest operations in {trace.with_suffix('.txt').name}"
        )
