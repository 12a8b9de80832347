from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dira_core.report.charts import MOST, Interval, curves, intervals, steps, thinned


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_evenly_spaced_and_within(low: float, span: float) -> None:
    high = low + span
    found = steps(low, high)
    assert len(found) <= 6
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= value <= high + slack for value in found)
    for a, b in itertools.pairwise(found):
        mantissa = (b - a) / 10 ** math.floor(math.log10(b - a) + 1e-6)
        assert min(abs(mantissa - n) for n in (1, 2, 5, 10)) < 0.1 or slack > (b - a) / 100


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]  # type: ignore[misc]
        for line in re.findall(r'points="([^"]*)"', svg)
    ]


def test_a_curve_goes_up_where_its_values_do_and_leaves_out_what_is_not_finite() -> None:
    svg = curves({"a": [(0, 1.0), (1, math.nan), (2, 3.0), (3, 2.0)]})
    [[first, second, third]] = points(svg)
    assert first[0] < second[0] < third[0]
    assert second[1] < third[1] < first[1]  # y grows downwards


def test_a_logarithmic_curve_of_powers_is_straight_and_without_what_is_not_positive() -> None:
    [found] = points(curves({"a": [(n, 10.0**n) for n in range(4)] + [(4, 0.0)]}, log=True))
    assert len(found) == 4
    rises = [a[1] - b[1] for a, b in itertools.pairwise(found)]
    assert rises == pytest.approx([rises[0]] * 3, abs=0.2)


def test_without_values_there_is_no_chart_and_a_constant_has_one() -> None:
    assert curves({}) == curves({"a": [(0, math.inf)]}) == intervals([]) == ""
    assert "<circle" in curves({"a": [(5, 0.0)]})
    assert len(points(curves({"a": [(0, 0.0), (1, 0.0)]}))[0]) == 2


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    found = thinned([(float(n), 0.0) for n in range(10 * MOST + 7)])
    assert len(found) <= MOST + 1
    assert found[-1][0] == 10 * MOST + 6


def test_names_are_text_in_every_chart() -> None:
    name = '"><script>alert(1)</script>'
    drawn = curves({name: [(0, 1), (1, 2)], "b": [(0, 1)]})
    drawn += intervals([Interval(name, 1.0, (0.0, 2.0))])
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") == 3
