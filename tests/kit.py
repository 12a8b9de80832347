"""A fake distribution with parts small enough to run the whole command line many times."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from distributions import offered

CODE = """
import os
import signal
import time
from pathlib import Path

from pydantic import Field
from dira_core import Component, DataError, Options, hookimpl

class SmallOptions(Options):
    n: int = 16
    path: str = ""

def backbone(options, channels, dims):
    from dira_core.testing import TinyBackbone
    return TinyBackbone(channels, dims)

def small(options):
    from dira_core.testing import TinySource
    return TinySource(options.n)

def poisoned(options):
    import numpy as np
    from dira_core import Image
    from dira_core.testing import TinySource

    class Poisoned(TinySource):
        def read(self, index):
            image = super().read(index)
            if index == 3:
                return Image(np.full(image.pixels.shape, np.nan, np.float32), (0.0, 1.0))
            return image
    return Poisoned(options.n)

def hanging(options):
    from dira_core.testing import TinySource

    class Hanging(TinySource):
        reads = 0
        def read(self, index):
            self.reads += 1
            if self.reads > 100:
                Path(os.environ["KIT_HANGS"]).touch()
                for _ in range(6000):
                    time.sleep(0.1)
            return super().read(index)
    return Hanging(options.n)

def lame(options):
    if os.environ.get("RANK") == "1":
        raise DataError("no such folder on this machine")
    return small(options)

def broken(*parts):
    raise KeyError("half written")

@hookimpl
def dira_backbones():
    yield Component("small-net", Options, backbone, summary="three convolutions")

@hookimpl
def dira_restorers():
    yield Component("broken", Options, broken, summary="raises")

@hookimpl
def dira_sources():
    yield Component("small-set", SmallOptions, small, summary="images in memory", dims=(2,))
    yield Component("poisoned", SmallOptions, poisoned, summary="one is NaN", dims=(2,))
    yield Component("lame", SmallOptions, lame, summary="lacks a rank", dims=(2,))
    yield Component("hanging", SmallOptions, hanging, summary="stops to answer", dims=(2,))

@hookimpl
def dira_run_started(progress):
    if os.environ.get("KIT_FAIL_AT") == "start":
        raise RuntimeError("by request")

@hookimpl
def dira_step_ended(progress):
    if os.environ.get("KIT_STOP_AT") == str(progress.step):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(os.environ.get("KIT_STEP_S", "0")))
"""

Dira = Callable[..., tuple[int, str, str]]
"""The command line: arguments -> exit code, output and error output."""

SMALL = [
    *("--preset", "none", "--data", "small-set", "--backbone", "small-net"),
    *("--disc", "simsiam", "--set", "discriminator.dim=16", "--set", "discriminator.hidden=8"),
    *("--res", "unet", "--set", "restorer.widths=[8, 8, 8]"),
    *("--adv", "patchgan", "--set", "adversary.widths=[4, 8, 8, 8]"),
    *("--size", "16", "--epochs", "2", "--batch-size", "4", "--precision", "fp32"),
    *("--set", "log.every=1", "--set", "health.every=2", "--set", "checkpoint.every_steps=3"),
]
"""Flags of a run of eight steps."""


def kit(folder: Path) -> AbstractContextManager[str]:
    """Put the distribution on the path, beside all that is installed."""
    return offered(folder, "kit", CODE)


@contextmanager
def attended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill a process on the way out, however that is, and leave nothing of it open."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def command(parts: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the real `dira run` in a process of its own; `parts` is the folder of the kit."""
    path = os.pathsep.join([str(parts), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "dira_core", "run", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
