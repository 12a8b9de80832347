"""One transfer from weights to scores, in a folder of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core import toml
from dira_core.build import repeatable
from dira_core.errors import RunFolderError
from dira_core.escaping import printable
from dira_core.files import TEMPORARY, read_record, write_atomic
from dira_core.lock import owned
from dira_core.targets import Labelled, Labels, build_target
from dira_core.transfer import extra
from dira_core.transfer.finetune import STATE
from dira_core.transfer.leaks import Overlap, overlap
from dira_core.transfer.networks import Start, start
from dira_core.transfer.opening import parted
from dira_core.transfer.plan import Plan
from dira_core.transfer.scoring import csv_text
from dira_core.transfer.splits import Split, watched
from dira_core.transfer.ways import Said, predictions, table_name

RESULT, PLAN, ASKED, LOCK = "result.json", "plan.toml", "asked.json", "transfer.lock"


@dataclass(frozen=True)
class Transferred:
    """How a transfer ended.

    Attributes:
        folder: Holds result.json and the predictions.
        result: What result.json says: scores, numbers of images, prevalence, provenance.
    """

    folder: Path
    result: dict[str, Any]


def measure_transfer(
    weights: str | Path, plan: Plan, folder: Path, said: Said | None = None
) -> Transferred:
    """Measure what weights are worth on a labelled task.

    A folder that holds this very transfer is continued: what is finished is not done again, and a
    fine-tuning goes on after the last epoch it saved.

    Args:
        weights: A run folder, a file, "imagenet", "random" or "random:SEED".
        plan: From `transfer_plan`.
        folder: Where results go; made when it is not there.
        said: Takes lines for whoever watches; nobody by default.

    Raises:
        DiraError: Something a user can mend.
    """
    extra.require()
    said = said or (lambda line: None)
    began = time.monotonic()
    begun = start(str(weights), plan)
    target = build_target(plan.target, begun.prepare.window)
    [parts] = parted(target, [plan])
    tuned = plan.way == "fine-tune"  # the others have nothing to stop
    parts = watched(parts, plan.training.least_validation if tuned else len(target.source))
    asked: dict[str, Any] = {
        "plan": plan.model_dump(mode="json"),
        "weights": dict(begun.provenance),
        **target.digests(),
    }
    if folder.is_dir():
        check_folder(folder)
    with owned(folder, LOCK):
        if known := finished(folder, asked, plan, said):
            return Transferred(folder, known)
        write_atomic(folder / PLAN, toml.write(asked["plan"]).encode())
        write_atomic(folder / ASKED, json.dumps(asked, indent=1).encode())
        for line in facts(begun, target, parts, plan):
            said(line)
        untrained = not begun.provenance["sha256"]
        seen = (
            Overlap(0, untrained=True) if untrained else overlap(str(weights), target, parts.test)
        )
        said(seen.line())
        if plan.seen == "refuse":
            seen.check()
        if plan.deterministic:
            repeatable()
        predicted, notes = predictions(begun, target, parts, plan, folder, said)
        result = {
            **asked,
            "network": begun.network(),
            "classes": list(target.classes),
            "target_notes": list(target.notes),
            "parts": described(target, parts),
            "scores": {name: each.scores for name, each in predicted.items()},
            **notes,
            "pretraining": seen.record(),
            "seconds": round(time.monotonic() - began, 1),
        }
        for name, each in predicted.items():
            write_atomic(folder / table_name(name, plan), csv_text(each).encode())
        write_atomic(folder / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
        (folder / STATE).unlink(missing_ok=True)
    return Transferred(folder, result)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a transfer, before a lock is left in it.

    Raises:
        RunFolderError: It does.
    """
    names = {path.name for path in folder.iterdir()} - {LOCK}
    if ASKED not in names and not all(map(TEMPORARY.fullmatch, names)):
        first = ", ".join(map(printable, sorted(names)[:3]))
        raise RunFolderError(
            f"{folder} holds something else than a transfer ({len(names)} files or folders, such "
            f"as {first}): use a new or an empty folder as --out"
        )


def finished(folder: Path, asked: dict[str, Any], plan: Plan, said: Said) -> dict[str, Any] | None:
    """Return the result of this very transfer, if the folder holds it and its predictions.

    Raises:
        RunFolderError: It holds another transfer.
    """
    names = {path.name for path in folder.iterdir()} - {LOCK, PLAN, ASKED}
    if all(map(TEMPORARY.fullmatch, names)):  # nothing was measured yet
        return None
    before = record(folder / ASKED)
    changed = [key for key in asked if before.get(key) != asked[key]]
    if changed:
        raise RunFolderError(
            f"{folder} holds another transfer (different: {', '.join(changed)}): use another --out"
        )
    if RESULT not in names:
        return None
    known = record(folder / RESULT)
    tables = [table_name(name, plan) for name in known.get("scores", {})]
    if lost := [name for name in tables if name not in names]:
        said(f"{', '.join(lost)} of {folder} is gone: measured again")
        return None
    said(f"{folder} is done already")
    return known


def record(path: Path) -> dict[str, Any]:
    """Read what a transfer wrote of itself.

    Raises:
        RunFolderError: It is damaged.
    """
    found = read_record(path)
    if found is None:
        raise RunFolderError(f"{path} is damaged: remove its folder, or use another --out")
    return found


def facts(begun: Start, target: Labelled, parts: Split, plan: Plan) -> Iterator[str]:
    """Yield what there is to say before anything is measured."""
    yield from target.notes
    for name, each in described(target, parts).items():
        if each["images"]:
            yield f"{name:12}{each['images']} images of {each['patients']} patients"
    if begun.spacing is not None:
        mm = " x ".join(f"{side:g}" for side in begun.spacing)
        yield f"spacing     pretraining resampled to {mm} mm, these volumes are as stored"
    if plan.way == "fine-tune" and not len(parts.validation):
        yield "early stop  none, too few images could decide: all train, for a fixed time"


def described(target: Labelled, parts: Split) -> dict[str, dict[str, Any]]:
    """Return images, patients and the prevalence of each class, by part."""
    return {
        "train": _part(target, parts.train),
        "validation": _part(target, parts.validation),
        "test": _part(target, parts.test),
    }


def _part(target: Labelled, positions: np.ndarray[Any, Any]) -> dict[str, Any]:
    patients = len({target.groups[i] for i in positions})
    found: dict[str, Any] = {"images": len(positions), "patients": patients}
    if isinstance(target, Labels):
        columns = zip(target.classes, target.labels[positions].T, strict=True)
        found["prevalence"] = {
            name: float(np.nanmean(column)) if not np.isnan(column).all() else None
            for name, column in columns
        }
    return found
