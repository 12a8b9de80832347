"""What every options model promises."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from dira_core.components import Choice, DistortionOptions, Options


class Sample(Options):
    rate: float = Field(0.5, ge=0)
    clip: float | None = 1.0
    title: str = "x"
    note: str | None = None


@pytest.mark.parametrize(
    "values",
    [{"rat": 1}, {"rate": float("nan")}, {"rate": float("inf")}, {"rate": "nan"}, {"rate": -1}],
)
def test_unknown_keys_and_numbers_out_of_range_are_errors(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sample.model_validate(values)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Sample().rate = 1.0  # type: ignore[misc]


def test_none_as_a_word_is_no_value_only_where_there_may_be_none() -> None:
    sample = Sample.model_validate({"clip": "none", "title": "none", "note": "none"})
    assert (sample.clip, sample.title, sample.note) == (None, "none", None)


def test_none_as_a_word_is_no_number() -> None:
    with pytest.raises(ValidationError, match="rate"):
        Sample.model_validate({"rate": "none"})


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_the_probability_of_a_distortion_lies_between_0_and_1(p: float) -> None:
    with pytest.raises(ValidationError):
        DistortionOptions(p=p)


def test_choices_are_equal_when_name_and_options_are() -> None:
    assert Choice("a", Sample(rate=1)) == Choice("a", Sample(rate=1.0))
    assert Choice("a", Sample(rate=1)) != Choice("a", Sample(rate=2))
