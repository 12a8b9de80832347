"""A classifier as a finished fine-tuning left it, and the images it learned from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from dira_core.build import place
from dira_core.errors import CheckpointError, DataError, RecipeError
from dira_core.export import Preprocessing, build
from dira_core.files import read_record
from dira_core.precision import resolve_device
from dira_core.targets import Labels, build_target
from dira_core.tensorfiles import read_tensors
from dira_core.transfer.finetune import BEST
from dira_core.transfer.images import LabelTask
from dira_core.transfer.measure import RESULT
from dira_core.transfer.networks import Classifier
from dira_core.transfer.plan import Plan
from dira_core.transfer.splits import split_of, watched
from dira_core.weightfiles import Header


@dataclass(frozen=True)
class Tuned:
    """A classifier as `dira transfer` left it.

    Attributes:
        classifier: In evaluation mode.
        target: What it was fine-tuned on.
        task: Reads its images.
        learned: Positions of the images it was trained with, or stopped by.
        device: Where it runs.
    """

    classifier: Classifier
    target: Labels
    task: LabelTask
    learned: frozenset[int]
    device: torch.device


def tuned(folder: Path) -> Tuned:
    """Read a finished fine-tuning on labels of whole images.

    Raises:
        RecipeError: The folder holds something else.
        DataError: Images, labels or split are not those of the transfer.
        CheckpointError: Its network does not fit.
    """
    try:
        result = read_record(folder / RESULT) or {}
        plan = Plan.model_validate(result["plan"])
        header = Header.model_validate(result["network"])
    except (ValueError, KeyError) as error:
        raise RecipeError(
            f"{folder} holds no finished transfer, or its {RESULT} is damaged: give the folder of "
            "dira transfer ... --target T"
        ) from error
    if plan.way != "fine-tune":
        raise RecipeError(f"{folder} was not fine-tuned but {plan.way}: use --way fine-tune")
    target = build_target(plan.target, header.window)
    if not isinstance(target, Labels):
        raise RecipeError(f"{folder} was trained with masks: localisation is of labels alone")
    if header.dims != 2:
        raise RecipeError(f"{folder} was trained on volumes: localisation is of flat images alone")
    parts = watched(split_of(target, plan), plan.training.least_validation)
    check_unchanged(target, result)
    prepare = Preprocessing(header.channels, header.size, header.window)
    backbone = build("backbone", header.backbone or {}, header.channels, header.dims)
    classifier = Classifier(backbone, len(target.classes))
    try:
        classifier.load_state_dict(read_tensors(folder / BEST))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / BEST} is missing, damaged or of another network: remove {RESULT} beside "
            "it, and do the transfer again"
        ) from error
    device = resolve_device(plan.device)
    place(classifier.eval(), device, channels_last=plan.channels_last)
    learned = frozenset(np.union1d(parts.train, parts.validation).tolist())
    task = LabelTask(target, prepare, plan, header.dims)
    return Tuned(classifier, target, task, learned, device)


def check_unchanged(target: Labels, result: dict[str, Any]) -> None:
    """Refuse a target that is not what a transfer learned from and was tested on.

    Args:
        target: As it is now.
        result: What the transfer's result.json says.

    Raises:
        DataError: They differ.
    """
    changed = [name for name, now in target.digests().items() if result.get(name) != now]
    if changed:
        raise DataError(
            "images, labels, patients or split changed since the transfer (different: "
            f"{', '.join(changed)}): restore them, or transfer again into another --out"
        )
