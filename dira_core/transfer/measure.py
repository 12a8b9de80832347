"""One transfer from weights to scores, in a folder of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_core import toml
from dira_core.build import place, repeatable
from dira_core.errors import PluginError, RecipeError, RunFolderError
from dira_core.files import write_atomic, writing
from dira_core.lock import Lock
from dira_core.plugins import make
from dira_core.precision import Precision, resolve_device, resolve_precision
from dira_core.targets import Labelled, Labels, Masks
from dira_core.transfer import extra
from dira_core.transfer.finetune import STATE, FineTuning
from dira_core.transfer.frozen import features, knn_scores, linear_scores, measured
from dira_core.transfer.images import LabelTask, MaskTask, pieces
from dira_core.transfer.leaks import Overlap, overlap
from dira_core.transfer.losses import any_of_several, one_of_several, soft_dice
from dira_core.transfer.networks import Start, classifier, segmenter, start
from dira_core.transfer.plan import Plan
from dira_core.transfer.scoring import Predicted, csv_text, score_labels, score_masks
from dira_core.transfer.splits import Split, split

RESULT, PLAN, ASKED, LOCK = "result.json", "plan.toml", "asked.json", "transfer.lock"

Said = Callable[[str], None]


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
    target: Labelled = make("target", plan.target, begun.prepare.window)
    labels = target.labels if isinstance(target, Labels) else None
    parts = split(target.split, target.patients, labels, plan.fraction, plan.split_seed)
    if plan.way != "fine-tune":  # nothing to stop early
        parts = replace(parts, train=parts.fit, validation=parts.validation[:0])
    asked: dict[str, Any] = {
        "plan": plan.model_dump(mode="json"),
        "weights": dict(begun.provenance),
        "images": target.source.fingerprint(),
    }
    with owned(folder):
        if known := finished(folder, asked):
            said(f"{folder} is done already")
            return Transferred(folder, known)
        write_atomic(folder / PLAN, toml.write(asked["plan"]).encode())
        write_atomic(folder / ASKED, json.dumps(asked, indent=1).encode())
        for name, n in sizes(target, parts).items():
            said(f"{name:12}{n}")
        if plan.deterministic:
            repeatable()
        predicted, notes = predictions(begun, target, parts, plan, folder, said)
        untrained = not begun.provenance["sha256"]
        seen = Overlap(0) if untrained else overlap(str(weights), target.source, parts.test)
        said(seen.line())
        result = {
            **asked,
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock a folder of a transfer while the context lasts; it is made when it is not there."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: use another --out")
    lock = Lock(folder / LOCK)
    with writing(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()
    try:
        yield
    finally:
        lock.release()


def finished(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of this very transfer, if the folder holds it.

    Raises:
        RunFolderError: It holds another transfer, or something else.
    """
    foreign = [p.name for p in folder.iterdir() if p.name != LOCK and p.suffix != ".tmp"]
    if not foreign:
        return None
    if not (folder / ASKED).is_file():
        raise RunFolderError(f"{folder} holds something else than a transfer: use another --out")
    before = json.loads((folder / ASKED).read_text())
    changed = [key for key in asked if before.get(key) != asked[key]]
    if changed:
        raise RunFolderError(
            f"{folder} holds another transfer (different: {', '.join(changed)}): use another --out"
        )
    path = folder / RESULT
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return result


def predictions(
    begun: Start, target: Labelled, parts: Split, plan: Plan, folder: Path, said: Said
) -> tuple[dict[str, Predicted], dict[str, Any]]:
    """Train as the plan says and score the test part, by name of what was scored."""
    device = resolve_device(plan.device)
    if plan.way != "fine-tune":
        if not isinstance(target, Labels):
            raise RecipeError(f"--way {plan.way} needs labels of whole images: use --way fine-tune")
        return frozen(begun, target, parts, plan, device, said)
    name = resolve_precision(plan.precision, device, begun.prepare.size)
    precision = Precision(name, device)
    if isinstance(target, Labels):
        labels = LabelTask(target, begun.prepare, plan)
        network = classifier(begun, len(target.classes), plan.seed)
        loss = one_of_several if target.exclusive else any_of_several
        tuning = FineTuning(network, labels, loss, parts, plan, precision)
        tuning.fit(folder, said)
        scores = np.concatenate(
            [
                probabilities(tuning, labels, piece, exclusive=target.exclusive)
                for piece in pieces(parts.test, 64)
            ]
        )
        predicted = score_labels(target, parts.test, scores)
        notes: dict[str, Any] = {}
    elif isinstance(target, Masks):
        masks = MaskTask(target, begun.prepare, plan)
        segmenting, decoder = segmenter(begun, len(target.classes), plan)
        said(f"decoder     {decoder}")
        tuning = FineTuning(segmenting, masks, soft_dice, parts, plan, precision)
        tuning.fit(folder, said)
        predicted = score_masks(masks, target, parts.test, tuning.predict)
        notes = {"decoder": decoder}
    else:
        kind = type(target).__name__
        raise PluginError(f"target {plan.target.name!r} made a {kind}, not Labels or Masks")
    course = tuning.course
    notes["training"] = {
        "epochs": course.epoch,
        "best_epoch": course.best_epoch,
        "precision": name,
        "history": course.history,
    }
    return {"fine-tune": predicted}, notes


def probabilities(
    tuning: FineTuning, task: LabelTask, piece: np.ndarray[Any, Any], *, exclusive: bool
) -> np.ndarray[Any, Any]:
    """Return the probability of each class, (B, K)."""
    logits = tuning.predict(task.batch(piece).images)
    found: np.ndarray[Any, Any] = (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()
    return found


def frozen(
    begun: Start, target: Labels, parts: Split, plan: Plan, device: torch.device, said: Said
) -> tuple[dict[str, Predicted], dict[str, Any]]:
    """Score frozen features twice: batch-norm statistics as they are, and measured anew.

    They are measured on all training images that are not held back, whatever the label fraction:
    no label goes into them.
    """
    task = LabelTask(target, begun.prepare, plan)
    place(begun.backbone, device, channels_last=plan.channels_last)
    everyone = split(target.split, target.patients, target.labels, 1.0, plan.split_seed).fit
    fit, y = parts.train, target.labels[parts.train]
    predicted, chosen = {}, {}
    for name in ("plain", "re-measured"):
        backbone = begun.backbone
        if name == "re-measured":
            backbone = measured(backbone, task, everyone, device)
        x, x_test = (features(backbone, task, each, device) for each in (fit, parts.test))
        if plan.way == "knn":
            scores = knn_scores(x, y, x_test, plan.k, plan.temperature)
        else:
            patients = [target.patients[i] for i in fit]
            scores, chosen[name] = linear_scores(
                x, y, patients, x_test, exclusive=target.exclusive, seed=plan.split_seed
            )
        predicted[name] = score_labels(target, parts.test, scores)
        said(f"{name:12}done")
    return predicted, {"chosen_c": chosen} if chosen else {}


def table_name(scored: str, plan: Plan) -> str:
    """Return the name of the file of predictions."""
    return "predictions.csv" if plan.way == "fine-tune" else f"predictions-{scored}.csv"


def sizes(target: Labelled, parts: Split) -> dict[str, str]:
    """Return the number of images and patients of each part, in words."""
    return {
        name: f"{each['images']} images of {each['patients']} patients"
        for name, each in described(target, parts).items()
        if each["images"]
    }


def described(target: Labelled, parts: Split) -> dict[str, dict[str, Any]]:
    """Return images, patients and the prevalence of each class, by part."""
    return {
        "train": _part(target, parts.train),
        "validation": _part(target, parts.validation),
        "test": _part(target, parts.test),
    }


def _part(target: Labelled, positions: np.ndarray[Any, Any]) -> dict[str, Any]:
    patients = len({target.patients[i] for i in positions})
    found: dict[str, Any] = {"images": len(positions), "patients": patients}
    if isinstance(target, Labels):
        columns = zip(target.classes, target.labels[positions].T, strict=True)
        found["prevalence"] = {
            name: float(np.nanmean(column)) if not np.isnan(column).all() else None
            for name, column in columns
        }
    return found
