from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.segmentation import dice_score

from dira_core.errors import DiraError, DivergedError
from dira_core.transfer import extra
from dira_core.transfer.metrics import (
    classification_scores,
    dice,
    hd95,
    iou,
    mean_auc,
    overlap,
    segmentation_scores,
)

NAMES = ("a", "b", "c")


def pairs_won(y: np.ndarray, score: np.ndarray) -> float:
    """The AUC by its meaning: pairs in order, ties half (Mann and Whitney, 1947)."""
    positive, negative = score[y == 1], score[y == 0]
    difference = positive[:, None] - negative[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), levels=st.integers(1, 6))
def test_auc_is_the_part_of_pairs_in_order_and_single_classes_are_counted_out(
    seed: int, n: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, 3)).astype(float)
    y[rng.random((n, 3)) < 0.2] = np.nan
    score = rng.integers(0, levels, (n, 3)) / levels
    found = classification_scores(y, score, NAMES, exclusive=False)["auc"]
    expected = {}
    for k, name in enumerate(NAMES):
        known = ~np.isnan(y[:, k])
        both = len(np.unique(y[known, k])) == 2
        expected[name] = pairs_won(y[known, k], score[known, k]) if both else None
    defined = [value for value in expected.values() if value is not None]
    assert found["by_class"] == pytest.approx(expected, abs=1e-12)
    assert found["left_out"] == [name for name, value in expected.items() if value is None]
    assert found["mean"] == (pytest.approx(np.mean(defined)) if defined else None)
    json.dumps(found, allow_nan=False)


@settings(max_examples=250, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), levels=st.integers(1, 8))
def test_auc_and_average_precision_are_torchmetrics(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 1)) < rng.choice([0.0, 0.2, 0.5, 1.0])).astype(float)
    score = rng.integers(0, levels, (n, 1)) / levels
    found = classification_scores(y, score, ("a",), exclusive=False)
    if 0 < y.sum() < n:
        given_both = torch.from_numpy(score[:, 0]), torch.from_numpy(y[:, 0]).long()
        auc, precision = binary_auroc(*given_both), binary_average_precision(*given_both)
        assert found["auc"]["mean"] == pytest.approx(auc.item(), abs=1e-6)  # they are float32
        assert found["average_precision"]["mean"] == pytest.approx(precision.item(), abs=1e-6)
    else:
        nothing = {"mean": None, "by_class": {"a": None}, "left_out": ["a"]}
        assert found["auc"] == found["average_precision"] == nothing


def test_the_order_of_images_and_a_monotone_map_of_scores_change_no_auc() -> None:
    rng = np.random.default_rng(3)
    y, score = rng.integers(0, 2, (50, 3)).astype(float), rng.integers(0, 9, (50, 3)) / 9
    order = rng.permutation(50)
    found = classification_scores(y, score, NAMES, exclusive=False)["auc"]
    mapped = np.exp(5 * score)
    assert classification_scores(y[order], mapped[order], NAMES, exclusive=False)["auc"] == found
    flipped = classification_scores(1 - y, score, NAMES, exclusive=False)["auc"]
    assert flipped["mean"] == pytest.approx(1 - found["mean"], abs=1e-12)


def test_one_image_has_an_accuracy_and_no_auc() -> None:
    found = classification_scores(np.eye(3)[[1]], np.eye(3)[[1]], NAMES, exclusive=True)
    assert found["accuracy"] == 1
    assert found["auc"]["mean"] is None
    assert found["auc"]["left_out"] == list(NAMES)


def test_exclusive_classes_are_scored_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 60)
    score = rng.random((60, 3)) + np.eye(3)[label] * 0.5
    found = classification_scores(np.eye(3)[label], score, NAMES, exclusive=True)
    assert found["accuracy"] == accuracy_score(label, score.argmax(1))
    for k, name in enumerate(NAMES):
        expected = average_precision_score(label == k, score[:, k])
        assert found["average_precision"]["by_class"][name] == pytest.approx(expected, abs=1e-12)


def test_only_scored_classes_enter_the_mean() -> None:
    rng = np.random.default_rng(1)
    y, score = rng.integers(0, 2, (30, 3)), rng.random((30, 3))
    found = classification_scores(y, score, NAMES, exclusive=False, scored=("a", "c"))["auc"]
    assert set(found["by_class"]) == set(NAMES)
    assert found["mean"] == pytest.approx((found["by_class"]["a"] + found["by_class"]["c"]) / 2)


def test_accuracy_of_labels_counts_known_ones_at_one_half() -> None:
    truth = np.array([[1, np.nan], [0, 1.0]])
    scores = np.array([[0.5, 0.9], [0.7, 0.2]])
    found = classification_scores(truth, scores, ("a", "b"), exclusive=False)
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_nothing_known_gives_none_instead_of_a_number() -> None:
    unknown = np.full((4, 1), np.nan)
    found = classification_scores(unknown, np.zeros((4, 1)), ("a",), exclusive=False)
    assert found["accuracy"] is None
    assert found["auc"] == {"mean": None, "by_class": {"a": None}, "left_out": ["a"]}
    assert mean_auc(unknown, np.zeros((4, 1))) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_by_number(bad: float) -> None:
    scores = np.array([[0.1], [bad], [0.3]])
    with pytest.raises(DivergedError, match="predictions of 1 of 3 images are not finite"):
        classification_scores(np.array([[0.0], [1], [1]]), scores, ("a",), exclusive=False)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_dice_and_iou_are_scikit_learns_f1_and_jaccard(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 7, 9)) < density
    known = rng.random((7, 9)) < 0.8
    counts = overlap(a, b, known)
    flat = b[known], a[known]
    assert dice(counts) == pytest.approx(f1_score(*flat, zero_division=1.0), abs=1e-12)
    assert iou(counts) == pytest.approx(jaccard_score(*flat, zero_division=1.0), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_dice_of_images_is_torchmetrics_and_global_dice_that_of_one_large_image(
    seed: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((n, 2, 6, 5)) < rng.choice([0.0, 0.3, 1.0], (n, 2, 1, 1)) for _ in "ab")
    known = np.ones((6, 5), bool)
    counts = np.array([[overlap(a[i, k], b[i, k], known) for k in range(2)] for i in range(n)])
    found = segmentation_scores(counts, [[None, None]] * n, ("x", "y"), "px")
    both = [torch.from_numpy(each).long() for each in (a, b)]
    each = dice_score(*both, num_classes=2, input_format="one-hot", average="none")
    large = [m.transpose(0, 1).reshape(1, 2, 6 * n, 5) for m in both]
    whole = dice_score(*large, num_classes=2, input_format="one-hot", average="none")[0]
    for k, name in enumerate(("x", "y")):
        empty = torch.tensor([not (a[i, k].any() or b[i, k].any()) for i in range(n)])
        expected = torch.where(empty, 1.0, each[:, k]).mean().item()  # 0 / 0 is 1 here
        assert found["dice_per_image"]["by_class"][name] == pytest.approx(expected, abs=1e-6)
        together = 1.0 if empty.all() else whole[k].item()
        assert found["dice_global"]["by_class"][name] == pytest.approx(together, abs=1e-6)


def border(mask: np.ndarray) -> np.ndarray:
    """Positions of pixels with a neighbour by face outside the mask, or outside the image."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for step in (-1, 1):
            shifted = np.roll(padded, step, axis)
            inner &= shifted[tuple(slice(1, -1) for _ in mask.shape)]
    return np.argwhere(mask & ~inner)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), dims=st.sampled_from([2, 3]))
def test_hd95_is_that_of_all_pairs_of_border_pixels(seed: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, *[6] * dims)) < rng.choice([0.05, 0.5, 0.95])
    spacing = rng.uniform(0.3, 2, dims)
    found = hd95(a, b, spacing.tolist())
    if not (a.any() and b.any()):
        assert found is None
        return
    distance = cdist(border(a) * spacing, border(b) * spacing)
    there, back = distance.min(1), distance.min(0)
    assert found == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


def test_hd95_of_shifted_squares_is_their_shift_in_the_unit_of_the_spacing() -> None:
    a, b = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    a[5:15, 5:15], b[5:15, 9:19] = True, True
    assert hd95(a, b, (1.0, 1.0)) == pytest.approx(4.0)
    assert hd95(a, b, (1.0, 0.5)) == pytest.approx(2.0)
    assert hd95(b, a, (1.0, 0.5)) == pytest.approx(2.0)
    assert hd95(a, a, (1.0, 1.0)) == 0
    assert hd95(a, np.zeros_like(a), (1.0, 1.0)) is None
    assert hd95(np.zeros_like(a), np.zeros_like(a), (1.0, 1.0)) is None


def test_global_dice_weighs_pixels_and_the_other_one_images() -> None:
    full, empty, known = np.ones((4, 4), bool), np.zeros((4, 4), bool), np.ones((4, 4), bool)
    corner = empty.copy()
    corner[0, 0] = True
    pairs = [(full, full), (corner, empty), (empty, empty)]
    counts = np.stack([[overlap(a, b, known)] for a, b in pairs])
    distances = [[hd95(a, b, (1.0, 1.0))] for a, b in pairs]
    found = segmentation_scores(counts, distances, ("lung",), "mm")
    assert found["dice_global"]["mean"] == pytest.approx(2 * 16 / 33)
    assert found["dice_per_image"]["mean"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["iou_global"]["mean"] == pytest.approx(16 / 17)
    assert found["hd95_mm"] == {"mean": 0.0, "by_class": {"lung": 0.0}}
    assert found["hd95_undefined"] == {"lung": 2}
    assert found["scored"] == ["lung"]


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra.require()
    monkeypatch.setattr(extra, "LIBRARIES", {"sklearn_of_nobody": "scikit-learn"})
    with pytest.raises(DiraError, match=r'scikit-learn.*pip install "dira-ssl\[eval\]"'):
        extra.require()
    assert "sklearn_of_nobody" not in sys.modules
