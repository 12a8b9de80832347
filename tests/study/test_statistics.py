from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from dira_core.study.statistics import (
    hedges_g,
    holm,
    interval,
    resampled,
    spread,
    t_test,
    weighted_auc,
    weighted_mean,
    win_tie_loss,
)


def test_a_spread_is_that_of_a_sample_and_one_value_has_none() -> None:
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, stats.tstd([1.0, 2.0, 4.0])))
    assert spread([3.0]) == (3.0, None)


def test_p_is_that_of_students_t_distribution() -> None:
    a, b = [0.81, 0.83, 0.80], [0.78, 0.79, 0.80, 0.77]
    pooled = (2 * np.var(a, ddof=1) + 3 * np.var(b, ddof=1)) / 5
    t = (np.mean(a) - np.mean(b)) / math.sqrt(pooled * (1 / 3 + 1 / 4))
    assert t_test(a, b) == pytest.approx(2 * stats.t.sf(abs(t), 5))
    assert t_test(a, b) == t_test(b, a)


@pytest.mark.filterwarnings("error")
def test_an_arm_that_varies_by_rounding_alone_is_tested_against_one_that_varies_more() -> None:
    a, b = [0.5, math.nextafter(0.5, 1)], [0.4, 0.44]
    t = (0.5 - 0.42) / math.sqrt(np.var(b, ddof=1) / 2)
    assert t_test(a, b) == pytest.approx(2 * stats.t.sf(t, 2))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0], [2.0, 3.0]),
        ([1.0, 1.0], [2.0, 2.0]),
        ([1.0, math.nextafter(1, 2)], [2.0, 2.0]),
        ([], []),
    ],
)
def test_without_two_values_that_vary_nothing_is_tested(a: list[float], b: list[float]) -> None:
    assert t_test(a, b) is None
    assert hedges_g(a, b) is None


def test_hedges_g_is_cohens_d_times_the_exact_correction() -> None:
    a, b = [2.0, 4.0, 6.0], [1.0, 2.0, 3.0]
    d = (4 - 2) / math.sqrt((2 * 4 + 2 * 1) / 4)
    correction = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert hedges_g(a, b) == pytest.approx(d * correction)
    assert correction == pytest.approx(1 - 3 / (4 * 4 - 1), abs=0.01)  # the usual approximation


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p: list[float], alpha: float) -> None:
    rejected = set()
    for step, which in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[which] * (len(p) - step) > alpha:
            break
        rejected.add(which)
    assert {i for i, q in enumerate(holm(p)) if q <= alpha} == rejected


def test_holm_of_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_images_of_a_patient_are_drawn_together_and_draws_repeat() -> None:
    weights = resampled([3, 7, 3, 9], 500, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights.mean(0) == pytest.approx(np.ones(4), abs=0.15)
    assert np.array_equal(weights, resampled([3, 7, 3, 9], 500, seed=1))


@given(st.integers(0, 2**16))
def test_weighted_auc_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.array([0, 1, *rng.integers(0, 2, 18)])
    scores = rng.integers(0, 6, 20) / 5  # with ties
    weights = rng.integers(0, 4, (3, 20)).astype(float)
    weights[:, :2] += 1
    expected = [roc_auc_score(truth, scores, sample_weight=w) for w in weights]
    assert weighted_auc(truth, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_a_draw_of_one_class_alone_has_no_auc_and_no_part_in_the_interval() -> None:
    truth, scores = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    area = weighted_auc(truth, scores, np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    assert area[0] == 1
    assert math.isnan(area[1])
    assert interval(area) == (1.0, 1.0)
    assert interval(np.array([math.nan, math.nan, 1.0])) is None
    assert interval(np.array([])) is None


def test_the_bootstrap_interval_of_a_mean_is_about_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = interval(weighted_mean(values, resampled(range(400), 2000))) or (0, 0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_only_a_significant_difference_wins_or_loses() -> None:
    findings = [(0.1, 0.01), (0.1, 0.2), (-0.1, 0.01), (-0.1, None), (0.2, 0.04)]
    assert win_tie_loss(findings) == (2, 1, 1, 1)
