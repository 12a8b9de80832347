from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from dira_core.metrics import knn_accuracy
from dira_core.transfer.frozen import GRID, folds, knn_scores, linear_scores
from dira_core.transfer.losses import any_of_several, one_of_several, soft_dice


def blobs(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return rng.normal(size=(n, 6)) + 1.5 * np.eye(6)[label], np.eye(classes)[label]


def test_knn_classifies_as_the_probe_of_a_run_does() -> None:
    x, y = blobs(90, 3)
    train = torch.arange(90) < 60
    scores = knn_scores(x[:60], y[:60], x[60:], k=20, temperature=0.07)
    accuracy = float((scores.argmax(1) == y[60:].argmax(1)).mean())
    labels = torch.from_numpy(y.argmax(1))
    assert accuracy == knn_accuracy(torch.from_numpy(x), labels, train, 20, 0.07)
    assert scores.sum(1) == pytest.approx(1.0)


def test_knn_of_many_is_that_of_each() -> None:
    x, y = blobs(400, 3)
    many = knn_scores(x[:100], y[:100], x[100:], k=20, temperature=0.07)
    each = [knn_scores(x[:100], y[:100], row[None], k=20, temperature=0.07) for row in x[100:]]
    assert many == pytest.approx(np.concatenate(each))


def test_knn_of_a_small_temperature_is_the_label_of_the_nearest() -> None:
    x, y = blobs(60, 3)
    cosine = x[40:] @ (x[:40] / np.linalg.norm(x[:40], axis=1, keepdims=True)).T
    scores = knn_scores(x[:40], y[:40], x[40:], k=5, temperature=1e-4)
    assert (scores.argmax(1) == y[:40][cosine.argmax(1)].argmax(1)).all()


def test_a_neighbour_whose_label_is_not_known_does_not_vote() -> None:
    x = np.eye(3)
    y = np.array([[1.0], [np.nan], [0.0]])
    sure = knn_scores(x, y, np.array([[1.0, 1.0, 0.0]]), k=2, temperature=0.1)
    assert sure == pytest.approx(np.array([[1.0]]))
    unknown = knn_scores(x, np.full((3, 1), np.nan), x[:1], k=2, temperature=0.1)
    assert unknown == pytest.approx(np.array([[0.5]]))


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_is_logistic_regression_with_the_c_it_says(classes: int) -> None:
    x, y = blobs(120, classes)
    patients = [f"p{i // 2}" for i in range(90)]
    found, (c,) = linear_scores(x[:90], y[:90], patients, x[90:], exclusive=True, seed=0)
    scaler = StandardScaler().fit(x[:90])
    model = LogisticRegression(C=c, max_iter=5000).fit(scaler.transform(x[:90]), y[:90].argmax(1))
    assert c in GRID
    assert found == pytest.approx(model.predict_proba(scaler.transform(x[90:])), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides_of_a_fold_and_every_class_is_fitted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 80)
    patients = np.array([f"p{i}" for i in rng.integers(0, 30, 80)])
    parts = folds(label, patients, seed)
    assert parts
    for fit, test in parts:
        assert not set(patients[fit]) & set(patients[test])
        assert set(label[fit]) == {0, 1, 2}
    assert len(np.unique(np.concatenate([test for _, test in parts]))) <= 80


def test_labels_are_fitted_one_by_one_on_the_images_where_they_are_known() -> None:
    x, y = blobs(80, 2)
    y = np.stack([y[:, 0], y[:, 1], np.full(80, np.nan), np.ones(80)], 1)
    y[::3, 0] = np.nan
    patients = [str(i) for i in range(80)]
    found, chosen = linear_scores(x, y, patients, x, exclusive=False, seed=0)
    known = ~np.isnan(y[:, 0])
    alone, c = linear_scores(
        x[known],
        np.stack([y[known, 0], 1 - y[known, 0]], 1),
        [p for p, k in zip(patients, known, strict=True) if k],
        x,
        exclusive=True,
        seed=0,
    )
    assert found[:, 0] == pytest.approx(alone[:, 0], abs=1e-3)
    assert len(chosen) == 4
    assert found[:, 2] == pytest.approx(0.5)
    assert found[:, 3] == pytest.approx(1.0)
    assert c[0] == chosen[0]


def test_one_patient_a_class_is_enough_to_fit() -> None:
    x, y = blobs(6, 2)
    patients = ["a", "b"] * 3
    found, chosen = linear_scores(x, y, patients, x, exclusive=True, seed=0)
    assert found.sum(1) == pytest.approx(1.0)
    assert chosen == [GRID[len(GRID) // 2]]


def test_losses_are_torchs_where_everything_is_known() -> None:
    torch.manual_seed(0)
    logits, known = torch.randn(5, 3), torch.ones(5, 3)
    truth = F.one_hot(torch.tensor([0, 1, 2, 1, 0]), 3).float()
    assert one_of_several(logits, truth, known).item() == pytest.approx(
        F.cross_entropy(logits, truth.argmax(1)).item()
    )
    assert any_of_several(logits, truth, known).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, truth).item()
    )


def test_what_is_not_known_has_no_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, requires_grad=True)
    known = torch.tensor([[1.0, 0, 1]] * 4)
    any_of_several(logits, torch.ones(4, 3), known).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, 0] != 0).all()
    assert one_of_several(logits, torch.eye(3)[[0, 1, 2, 0]], torch.zeros(4, 3)).item() == 0


def test_soft_dice_of_hard_masks_is_one_minus_dice() -> None:
    torch.manual_seed(0)
    p, t = (torch.rand(3, 2, 8, 8) < 0.4 for _ in range(2))
    known = (torch.rand(3, 1, 8, 8) < 0.9).float()
    each = []
    for k in range(2):
        a, b = p[:, k] & (known[:, 0] > 0), t[:, k] & (known[:, 0] > 0)
        each.append((2 * (a & b).sum() + 1) / (a.sum() + b.sum() + 1))
    expected = 1 - torch.stack(each).mean()
    assert soft_dice(p.float(), t.float(), known).item() == pytest.approx(expected.item())
    assert soft_dice(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), known[:2, :, :4, :4]) == 0
