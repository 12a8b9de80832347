"""Three ways to use weights on a task, and the predictions each makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_core.build import place
from dira_core.errors import RecipeError
from dira_core.evaluate import pieces
from dira_core.precision import (
    Precision,
    resolve_device,
    resolve_precision,
    smallest_bf16_side,
)
from dira_core.targets import Labels, Masks
from dira_core.transfer.finetune import FineTuning
from dira_core.transfer.frozen import features, knn_scores, linear_scores, measured
from dira_core.transfer.images import LabelTask, MaskTask
from dira_core.transfer.losses import any_of_several, one_of_several, soft_dice
from dira_core.transfer.networks import Start, classifier, segmenter
from dira_core.transfer.plan import Plan
from dira_core.transfer.scoring import Predicted, score_labels, score_masks
from dira_core.transfer.splits import Split, split_of
from dira_core.view_options import sides_of

Said = Callable[[str], None]


def predictions(
    begun: Start, target: Labels | Masks, parts: Split, plan: Plan, folder: Path, said: Said
) -> tuple[dict[str, Predicted], dict[str, Any]]:
    """Train as the plan says and score the test part, by name of what was scored."""
    device = resolve_device(plan.device)
    if plan.way != "fine-tune":
        if not isinstance(target, Labels):
            raise RecipeError(f"--way {plan.way} needs labels of whole images: use --way fine-tune")
        return frozen(begun, target, parts, plan, device, said)
    dims, stride = begun.backbone.dims, max(begun.backbone.strides)
    side = min(sides_of(begun.prepare.size, dims))
    name = resolve_precision(plan.precision, device, side, smallest_bf16_side(dims, stride))
    precision = Precision(name, device)
    if isinstance(target, Labels):
        labels = LabelTask(target, begun.prepare, plan, dims)
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
    else:
        masks = MaskTask(target, begun.prepare, plan, dims)
        segmenting, decoder = segmenter(begun, len(target.classes), plan)
        said(f"decoder     {decoder}")
        tuning = FineTuning(segmenting, masks, soft_dice, parts, plan, precision)
        tuning.fit(folder, said)
        predicted = score_masks(masks, target, parts.test, tuning.predict)
        for name, images in predicted.scores["images_with"].items():
            if not images:
                said(
                    f"note        no test mask holds {name!r}: its scores are those of empty masks "
                    "(`target.classes` says which value it has)"
                )
        notes = {"decoder": decoder}
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
    logits = tuning.predict(task.batch(piece).images).double()  # near 1, float32 tells few apart
    found: np.ndarray[Any, Any] = (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()
    return found


def frozen(
    begun: Start, target: Labels, parts: Split, plan: Plan, device: torch.device, said: Said
) -> tuple[dict[str, Predicted], dict[str, Any]]:
    """Score frozen features twice: batch-norm statistics as they are, and measured anew.

    They are measured on all training images that are not held back, whatever the label fraction:
    no label goes into them.
    """
    task = LabelTask(target, begun.prepare, plan, begun.backbone.dims)
    place(begun.backbone, device, channels_last=plan.channels_last)
    everyone = split_of(target, plan.model_copy(update={"fraction": 1.0})).fit
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
            patients = [target.groups[i] for i in fit]
            scores, chosen[name] = linear_scores(
                x, y, patients, x_test, exclusive=target.exclusive, seed=plan.split_seed
            )
        predicted[name] = score_labels(target, parts.test, scores)
        said(f"{name:12}done")
    return predicted, {"chosen_c": chosen} if chosen else {}


def table_name(scored: str, plan: Plan) -> str:
    """Return the name of the file of predictions."""
    return "predictions.csv" if plan.way == "fine-tune" else f"predictions-{scored}.csv"
