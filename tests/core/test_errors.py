"""The tree of errors, its exit codes, and the nearest names."""

from __future__ import annotations

import re

import pytest

from dira_core import errors
from dira_core.errors import DiraError, did_you_mean


def everything() -> list[type[DiraError]]:
    """Return the errors of errors.py, not those other tests may have made."""
    near = DiraError.__subclasses__()
    below = [*near, *(error for each in near for error in each.__subclasses__())]
    return [DiraError, *(error for error in below if error.__module__ == errors.__name__)]


def test_the_docstring_shows_every_error_with_its_exit_code() -> None:
    shown = dict(re.findall(r"(\w+Error) +(?:exit code )?(\d)", errors.__doc__ or ""))
    ours = {e.__name__: str(e.exit_code) for e in everything()}
    assert {name: ours.get(name) for name in shown} == shown
    assert set(ours) == set(shown)


def test_no_exit_code_means_success_or_a_bug() -> None:
    assert all(error.exit_code not in (0, 1) for error in everything())


@pytest.mark.parametrize(
    ("typed", "expected"), [("simsam", ", did you mean 'simsiam'?"), ("qqqq", ""), ("", "")]
)
def test_a_near_name_is_suggested_and_a_far_one_is_not(typed: str, expected: str) -> None:
    assert did_you_mean(typed, ["simsiam", "mocov2"]) == expected


def test_at_most_two_names_are_suggested() -> None:
    assert did_you_mean("aaa1", ["aaa2", "aaa3", "aaa4"]).count("'") == 4
