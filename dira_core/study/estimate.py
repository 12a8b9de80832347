"""How long jobs will take: as others of their kind took, else from two timed steps."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dira_core.recipe import Recipe
from dira_core.rehearsal import rehearse
from dira_core.study.jobs import Job
from dira_core.targets import Labels, build_target
from dira_core.transfer.networks import classifier, start
from dira_core.transfer.plan import Plan
from dira_core.transfer.splits import split_of, training_on, watched
from dira_core.view_options import sides_of

BATCH = 32


class Estimate:
    """Estimate jobs of a study; each kind of job is timed once.

    Args:
        jobs: Of the study.
        study: Its folder; what is done there says how long its like takes.
    """

    def __init__(self, jobs: Sequence[Job], study: Path) -> None:
        took = defaultdict[str, list[float]](list)
        for job in jobs:
            if job.done(study):
                took[kind(job)].append(job.result(study)["seconds"])
        self._known = {of: sum(several) / len(several) for of, several in took.items()}

    def seconds(self, job: Job) -> float:
        """Return how long a job takes; of a fine-tuning, if it never stopped early."""
        of = kind(job)
        if of not in self._known:
            timed = _pretraining if job.cell is None else _transfer
            self._known[of] = timed(job.asked)
        return self._known[of]


def kind(job: Job) -> str:
    """Return what jobs that take alike have in common."""
    if job.cell is None:
        return job.name.rpartition("-seed")[0]
    return f"{job.cell.target} {job.cell.way} {job.cell.fraction}"


def _pretraining(asked: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return rehearse(Recipe.model_validate(asked["recipe"]), Path(folder)).seconds


def _transfer(asked: dict[str, Any]) -> float:
    """Count how often an image goes through the network, and time that for one batch.

    Reading images and fitting the logistic regression are left out: small beside it.
    """
    plan = Plan.model_validate(asked["plan"])
    begun = start("random", plan)
    target = build_target(plan.target, begun.prepare.window)
    labels = target.labels if isinstance(target, Labels) else None
    parts = split_of(target, plan)
    network = classifier(begun, 2, 0)
    sides = sides_of(begun.prepare.size, begun.backbone.dims)
    images = torch.zeros(BATCH, begun.prepare.channels, *sides)
    forward = timed(lambda: network(images)) / BATCH
    if plan.way != "fine-tune":
        everyone = len(parts.fit) / plan.fraction
        return forward * (everyone + 2 * (len(parts.fit) + len(parts.test)))
    step = timed(lambda: network(images).sum().backward()) / BATCH
    if labels is None:
        step, forward = 3 * step, 3 * forward  # a decoder costs about twice its encoder
    parts = watched(parts, plan.training.least_validation)
    training, n = training_on(parts, plan.training), len(parts.train)
    epoch = step * n * training.passes(n) + forward * len(parts.validation)
    return training.epochs * epoch + forward * len(parts.test)


def timed(function: Callable[[], object]) -> float:
    """Return the seconds a second call takes."""
    function()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
