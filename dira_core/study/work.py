"""Do one job, in a process of its own: what workers import, so torch is loaded once for all."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from dira_core.api import run as pretrain
from dira_core.errors import DiraError
from dira_core.files import write_atomic
from dira_core.recipe import Recipe
from dira_core.runfolder import RunFolder
from dira_core.signals import EXIT_PREEMPTED
from dira_core.study.jobs import ASKED, ERROR, JOBS, LOCALIZED, LOG, RESULT, RUN, TRANSFER
from dira_core.transfer.localize import localize
from dira_core.transfer.measure import measure_transfer
from dira_core.transfer.plan import Plan
from dira_core.types import Progress

OVERLAYS = 6
"""Heat maps a fine-tuning draws where it is asked to localise."""


def work(folder: str, threads: int | None = None) -> None:
    """Do the job a folder describes, and leave its result.json, or why there is none.

    Args:
        folder: Of the job.
        threads: Of torch; its own choice by default.
    """
    place = Path(folder)
    if threads:
        torch.set_num_threads(threads)
    (place / ERROR).unlink(missing_ok=True)
    with logged(place / LOG):
        try:
            done(place, json.loads((place / ASKED).read_text()))
        except DiraError as error:
            print(f"error: {error}", flush=True)
            write_atomic(place / ERROR, str(error).encode())
            sys.exit(error.exit_code)
        except Exception as error:
            traceback.print_exc()
            reason = f"a bug of ours or of a plugin, {type(error).__name__}: {error}"
            write_atomic(place / ERROR, reason.encode())
            sys.exit(1)


def done(folder: Path, asked: dict[str, Any]) -> None:
    """Pretrain or transfer; go on where an earlier process was stopped."""
    began = time.monotonic()
    if asked["kind"] == "pretrain":
        place = folder / RUN
        recipe = Recipe.model_validate(asked["recipe"])
        resume = place.is_dir() and RunFolder(place).holds_run()
        ended = pretrain(recipe, place, resume=resume, display=Printing())
        if ended.status != "done":
            sys.exit(EXIT_PREEMPTED)
        result: dict[str, Any] = {"summary": ended.summary}
    else:
        after = asked["after"]
        weights = str(study_of(folder) / JOBS / after / RUN) if after else asked["weights"]
        plan = Plan.model_validate(asked["plan"])
        result = measure_transfer(weights, plan, folder / TRANSFER, said).result
        if wanted := asked.get("localize"):
            out, truth, renamed = folder / LOCALIZED, Path(wanted["truth"]), wanted["renamed"]
            found = localize(
                folder / TRANSFER, truth, out, renamed=renamed, overlays=OVERLAYS, said=said
            )
            result = {**result, "localization": found["findings"]}
    # of the process that finished it: one that was killed before took its time with it
    result = {**result, "seconds": round(time.monotonic() - began, 1)}
    write_atomic(folder / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())


def study_of(folder: Path) -> Path:
    """Return the folder of the study that a job's folder belongs to."""
    return next(each.parent for each in folder.parents if each.name == JOBS)


class Printing:
    """Let a run say its lines to the log, and leave out its steps."""

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Print nothing: metrics.jsonl has it."""

    def said(self, message: str) -> None:
        """Print one line."""
        said(message)


def said(line: str) -> None:
    """Print one line, at once."""
    print(line, flush=True)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what is printed, warnings and other libraries' lines included, to a file."""
    with path.open("a", encoding="utf-8", errors="replace") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        with redirect_stdout(file), redirect_stderr(file):
            yield
