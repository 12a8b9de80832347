"""How well a linear classifier tells two classes apart on frozen features: before and after.

    dira run --name mine --data cxr/labels.csv --set data.split=train --backbone resnet18 --size 64
    python examples/benchmarks/linear_probe.py cxr/labels.csv label virus bacteria \\
        random:0 runs/mine

The CSV file is a manifest as `dira run --data` takes it, with columns `image`, `split` (train or
test), the label, and `patient` where several images may show one. Logistic regression on
standardised features; its C is chosen by cross-validation on training images alone, with no patient
in two folds. Printed is the AUROC on test images, twice. "plain": features of the weights as they
are. "re-measured": batch-norm statistics of a copy are measured on all training images first, since
an untrained network has none, and a trained one has those of distorted crops. `random:SEED` is the
untrained backbone that a run of this seed starts from. Needs `pip install scikit-learn`.
"""

from __future__ import annotations

import argparse
import copy
import csv
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.optim.swa_utils import update_bn

from dira_core import Backbone, Preprocessing, gather, load, pool, resolve
from dira_core.build import build_trio

Rows = list[dict[str, str]]


def network(name: str, backbone: str, size: int) -> tuple[Backbone, Preprocessing]:
    """Return the backbone of a run folder, or an untrained one, and what to feed it with."""
    if not name.startswith("random:"):
        pretrained = load(name)
        return pretrained.backbone, pretrained.preprocess
    seed = name.removeprefix("random:")
    given = [f"backbone={backbone}", f"seed={seed}", f"views.size={size}"]
    recipe = resolve(gather(preset="fixed", assignments=given, data="phantom")).recipe
    return build_trio(recipe).backbone.eval(), Preprocessing(recipe.views.channels, size)


def pieces(images: Tensor) -> tuple[Tensor, ...]:
    """Cut images (N, C, H, W) into batches of nearly the same size, about 128."""
    return images.tensor_split(max(1, round(len(images) / 128)))


def measured(backbone: Backbone, images: Tensor) -> Backbone:
    """Return a copy whose batch-norm statistics are those of the images."""
    again = copy.deepcopy(backbone)
    update_bn(pieces(images), again)
    return again.eval()


def features(backbone: Backbone, images: Tensor) -> np.ndarray:
    """Encode images (N, C, H, W): the deepest map averaged over space, (N, D)."""
    with torch.no_grad():
        return torch.cat([pool(backbone(batch)[-1]) for batch in pieces(images)]).numpy()


def auroc(x: np.ndarray, rows: Rows, column: str, classes: tuple[str, str]) -> float:
    """Fit on the training rows of two classes, score their test rows.

    Args:
        x: Features of all rows, (N, D).
        rows: Lines of the manifest.
        column: Of the label.
        classes: The positive class, and the one it is told from.
    """
    y = np.array([row[column] == classes[0] for row in rows])
    chosen = np.array([row[column] in classes for row in rows])
    training = np.array([row["split"] == "train" for row in rows])
    patients = np.array([row.get("patient", row["image"]) for row in rows])
    fit, test = chosen & training, chosen & ~training
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": np.logspace(-5, -1, 5)},
        scoring="roc_auc",
        cv=GroupKFold(3),
    )
    search.fit(x[fit], y[fit], groups=patients[fit])
    return float(roc_auc_score(y[test], search.decision_function(x[test])))


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="CSV file with image, split and label")
    parser.add_argument("column", help="column of the label")
    parser.add_argument("classes", nargs=2, help="the positive one, and the one it is told from")
    parser.add_argument("networks", nargs="+", help="run folders, or random:SEED")
    parser.add_argument("--backbone", default="resnet18", help="of random:SEED")
    parser.add_argument("--size", type=int, default=64, help="side of an image, of random:SEED")
    given = parser.parse_args()
    with given.manifest.open(encoding="utf-8-sig", newline="") as file:
        rows: Rows = list(csv.DictReader(file))
    training = torch.tensor([row["split"] == "train" for row in rows])
    read: dict[Preprocessing, Tensor] = {}
    print(f"{'AUROC of ' + given.classes[0]:32}{'plain':>8}{'re-measured':>13}")
    for name in given.networks:
        backbone, prepare = network(name, given.backbone, given.size)
        if prepare not in read:
            files = (given.manifest.parent / row["image"] for row in rows)
            read[prepare] = torch.cat([prepare(file) for file in files])
        probed = (backbone, measured(backbone, read[prepare][training]))
        found = [features(each, read[prepare]) for each in probed]
        plain, again = (auroc(x, rows, given.column, tuple(given.classes)) for x in found)
        print(f"{name:32}{plain:8.4f}{again:13.4f}", flush=True)


if __name__ == "__main__":
    main()
