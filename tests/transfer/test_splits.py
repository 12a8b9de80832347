from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_core.errors import DataError
from dira_core.transfer.splits import named_parts, portion, split


def cohort(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return patients with one to a few images each, and a rare and a common label."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i}" for i in rng.integers(0, max(1, n // 2), n)]
    return patients, (rng.random((n, 2)) < [0.1, 0.5]).astype(float)


def of(positions: np.ndarray, patients: list[str]) -> set[str]:
    return {patients[i] for i in positions}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(40, 150))
def test_label_fractions_are_nested_and_touch_no_test_image(seed: int, n: int) -> None:
    patients, labels = cohort(n, seed)
    parts = [split(None, patients, labels, f, seed, seed + 1) for f in (0.01, 0.1, 0.5, 1.0)]
    for small, large in pairwise(parts):
        assert set(small.train) <= set(large.train)
        assert set(small.validation) <= set(large.validation)
        assert np.array_equal(small.test, large.test)
    whole = parts[-1]
    assert len(np.concatenate([whole.train, whole.validation, whole.test])) == n
    assert not of(whole.train, patients) & of(whole.test, patients)
    assert not of(whole.train, patients) & of(whole.validation, patients)
    assert np.array_equal(whole.fit, np.union1d(whole.train, whole.validation))


def test_another_label_seed_draws_other_labels_and_tests_the_same_images() -> None:
    patients, labels = cohort(300, 2)
    one, two = (split(None, patients, labels, 0.2, 5, seed) for seed in (0, 1))
    assert np.array_equal(one.test, two.test)
    assert not np.array_equal(one.train, two.train)
    assert not {*one.fit, *two.fit} & {*one.test}
    whole, again = (split(None, patients, labels, 1.0, 5, seed) for seed in (0, 1))
    assert np.array_equal(whole.train, again.train)


def test_a_fraction_keeps_the_prevalence_and_every_class() -> None:
    patients = [f"p{i}" for i in range(1000)]
    labels = np.zeros((1000, 1))
    labels[:50] = 1
    for fraction in (0.1, 0.2, 0.5):
        part = split(["train"] * 999 + ["test"], patients, labels, fraction, 3, 3)
        assert len(part.fit) == pytest.approx(fraction * 999, abs=3)
        assert labels[part.fit].mean() == pytest.approx(0.05, abs=0.012)
    few = split(["train"] * 999 + ["test"], patients, labels, 0.001, 3, 3)
    assert labels[few.train].sum() >= 1


def test_a_fraction_does_not_depend_on_the_labels_of_test_images() -> None:
    patients, labels = cohort(200, 1)
    column = ["train"] * 150 + ["test"] * 50
    other = labels.copy()
    other[150:] = 1 - other[150:]
    one, two = (
        split(column, patients[:150] + [f"t{i}" for i in range(50)], of, 0.2, 0, 0)
        for of in (labels, other)
    )
    assert np.array_equal(one.train, two.train)


def test_a_tenth_of_the_training_part_stops_training_unless_there_is_a_validation_part() -> None:
    patients = [f"p{i}" for i in range(110)]
    held = split(["train"] * 100 + ["test"] * 10, patients, None, 1.0, 0, 0)
    assert (len(held.train), len(held.validation), held.held_out) == (90, 10, True)
    column = ["train"] * 80 + ["Val"] * 20 + ["test"] * 9 + [""]
    own = split(column, patients, None, 0.5, 0, 0)
    assert (len(own.train), own.held_out) == (40, False)
    assert np.array_equal(own.validation, np.arange(80, 100))
    assert np.array_equal(own.fit, own.train)
    assert 109 not in own.test


@pytest.mark.parametrize("column", [None, ["train"] * 60 + ["test"] * 20])
def test_the_only_patient_of_a_class_trains(column: list[str] | None) -> None:
    patients, labels = [f"p{i}" for i in range(80)], np.zeros((80, 2))
    labels[::2, 0] = 1
    labels[7] = [0, 1]
    for seed in range(20):
        parts = split(column, patients, labels, 1.0, seed, seed)
        assert 7 in parts.train
        assert len(parts.validation) > 1


def test_where_no_class_has_a_second_patient_none_is_left_to_test_on() -> None:
    with pytest.raises(DataError, match="no class has a second patient to test on"):
        split(None, ["a", "b"], np.eye(2), 1.0, 0, 0)
    one_each = split(["train", "train", "test"], ["a", "b", "c"], np.eye(2)[[0, 1, 1]], 1.0, 0, 0)
    assert one_each.train.tolist() == [0, 1]


def test_another_seed_gives_another_order_and_the_same_one_the_same() -> None:
    positions, patients = np.arange(100), [f"p{i}" for i in range(100)]
    strata = np.zeros(100, np.int64)
    one, again = (portion(positions, patients, strata, 0.2, 0, "a") for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, portion(positions, patients, strata, 0.2, 1, "a"))
    assert not np.array_equal(one, portion(positions, patients, strata, 0.2, 0, "b"))


def test_a_patient_in_two_parts_is_an_error_that_says_how_many_and_not_who() -> None:
    patients = ["Anna", "Anna", "Berta", "Carla"]
    with pytest.raises(DataError, match="1 of 3 patients are in more than one part") as error:
        split(["train", "test", "test", "train"], patients, None, 1.0, 0, 0)
    assert not re.search("Anna|Berta|Carla", str(error.value))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["train", "tset"], "says 'tset', did you mean 'test'"),
        (["train", "train"], "gives no image to 'test'"),
        (["test", ""], "gives no image to 'train'"),
    ],
)
def test_a_split_column_that_cannot_be_used_says_why(column: list[str], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        named_parts(column)
