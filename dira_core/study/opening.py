"""Open every task of a study once, before hours of pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dira_core.errors import DataError, RecipeError, RunFolderError, StorageError
from dira_core.escaping import first_few, printable
from dira_core.study.jobs import JOBS, Job
from dira_core.targets import Labelled, build_target
from dira_core.transfer import extra
from dira_core.transfer.localize import check_classes
from dira_core.transfer.opening import parted
from dira_core.transfer.plan import Plan
from dira_core.transfer.truths import read_truths


def check_targets(jobs: Sequence[Job], study: Path) -> None:
    """See that every transfer can begin, and that those that are done were of the same images.

    Args:
        jobs: Of the study.
        study: Its folder.

    Raises:
        DataError: Images or labels of a task are not there, or cannot be parted.
        RecipeError: Its options do not fit it, or a library is missing.
        RunFolderError: Some of its jobs are done, of other images or labels.
    """
    extra.require()
    of_target: dict[str, list[Job]] = {}
    for job in jobs:
        if job.cell is not None:
            of_target.setdefault(job.cell.target, []).append(job)
    for name, several in of_target.items():
        try:
            target = opened(several)
        except (DataError, RecipeError, StorageError) as error:
            raise type(error)(f"targets.{name}: {error}") from error
        changed = [job.name for job in several if job.done(study) and not same(job, study, target)]
        if changed:
            raise RunFolderError(
                f"targets.{name}: its images or labels changed since {len(changed)} of its jobs "
                f"were done ({changed[0]}): take the change back, remove "
                f"{study / JOBS / 'transfer' / name}, or use another --out"
            )


def opened(jobs: Sequence[Job]) -> Labelled:
    """Open the target of some jobs, part it for each of them, look at where its findings are."""
    plans = [Plan.model_validate(job.asked["plan"]) for job in jobs]
    target = build_target(plans[0].target, plans[0].window or "auto")
    parted(target, {(plan.fraction, plan.label_seed): plan for plan in plans}.values())
    for job in jobs:
        if wanted := job.asked.get("localize"):
            check_findings(Path(wanted["truth"]), wanted["renamed"], target.classes)
            break  # of one target all are alike
    return target


def check_findings(truth: Path, renamed: Mapping[str, str], classes: Sequence[str]) -> None:
    """See that a file of boxes or masks has findings of a task.

    Raises:
        DataError: It cannot be read, or has none.
        RecipeError: What is renamed is not there, or a library is missing.
    """
    extra.require(extra.HEAT_MAPS)
    check_classes(renamed, classes)
    labels = sorted({each.label for each in read_truths(truth, renamed)})
    if not set(labels) & set(classes):
        raise DataError(
            f"{printable(truth.name)} has findings of {first_few(labels) or 'nothing'}, the task "
            f"tells {first_few(classes)} apart: name them alike, or rename some by `renamed`"
        )


def same(job: Job, study: Path, target: Labelled) -> bool:
    """Say whether a job that is done was of the images and labels a target has now."""
    found = job.result(study)
    return all(found.get(key, now) == now for key, now in target.digests().items())
