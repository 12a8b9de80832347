"""A trio and a run small enough for many of them in one test."""

from __future__ import annotations

import itertools
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dira_core.api import Result, pretrain
from dira_core.build import seeded
from dira_core.checkpoint import Checkpoints
from dira_core.plugins import make
from dira_core.settings import Settings
from dira_core.testing import TinyBackbone, TinySource, choice
from dira_core.trio import Trio


def small_trio(seed: int = 0) -> Trio:
    """Build SimSiam, U-Net and PatchGAN with narrow layers on a tiny backbone."""
    with seeded(seed, "all"):
        backbone = TinyBackbone()
        return Trio(
            backbone,
            make("discriminator", choice("discriminator", "simsiam", dim=16, hidden=8), backbone),
            make("restorer", choice("restorer", "unet", widths=[8, 8, 8]), backbone),
            make("adversary", choice("adversary", "patchgan", widths=[4, 8, 8, 8]), 1, 2),
        )


def small_settings(**changes: Any) -> Settings:
    """Return three epochs of six steps, logged and saved often; tables in `changes` are merged."""
    tables: dict[str, dict[str, Any]] = {
        "views": {
            "size": 16,
            "geometry": [{"name": "flip", "p": 0.5}],
            "appearance": [{"name": "intensity-jitter", "p": 0.8}],
            "distort": [{"name": "inner-cutout", "p": 0.5}],
        },
        "train": {"epochs": 3, "batch_size": 4, "precision": "fp32"},
        "checkpoint": {"every_steps": 4},
        "log": {"every": 1},
        "health": {"every": 2},
    }
    for key, table in changes.items():
        tables[key] = tables.get(key, {}) | table
    return Settings.model_validate(tables)


def small_run(folder: Path, resume: bool = False, **changes: Any) -> Result:
    """Pretrain the small trio on 24 tiny images."""
    return pretrain(small_trio(), TinySource(24), small_settings(**changes), folder, resume)


def outcome(folder: Path) -> dict[str, bytes]:
    """Return every byte a run ended with that must not depend on how it got there."""
    newest = Checkpoints(folder / "checkpoints", 2).latest()
    assert newest is not None
    files = [newest / "model.safetensors", newest / "optimizer.safetensors"]
    files += [folder / "metrics.jsonl", *sorted((folder / "weights").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child process and return its pid; it exits with 0 unless `work` raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def until_done(work: Callable[[bool], object], kill_after: Callable[[], float], kills: int) -> int:
    """Run `work(resume)` in child processes, SIGKILL the first `kills`; return how many died."""
    for attempt in itertools.count():
        pid = forked(lambda attempt=attempt: work(attempt > 0))
        if attempt < kills:
            time.sleep(kill_after())
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return attempt
        if not os.WIFSIGNALED(status):
            raise AssertionError(
                f"attempt {attempt} failed with {os.waitstatus_to_exitcode(status)}"
            )
    raise AssertionError
