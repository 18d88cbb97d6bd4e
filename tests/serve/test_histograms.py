"""Histograms that add up: how far their quantiles are off, whoever counted what."""

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.histograms import ERROR, Histogram, add, beyond, code_of, dump, load, merge, quantile, size, value_of

NUMBERS = st.floats(min_value=1e-18, max_value=1e18) | st.floats(min_value=-1e18, max_value=-1e-18) | st.just(0.0)


def counted(values: list[float]) -> Histogram:
    histogram: Histogram = {}
    for value in values:
        add(histogram, value)
    return histogram


@given(st.lists(NUMBERS, min_size=1), st.floats(0, 1))
def test_a_quantile_is_off_by_at_most_the_error(values: list[float], share: float) -> None:
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    assert abs(quantile(counted(values), share) - exact) <= ERROR * abs(exact) * (1 + 1e-9)


@given(st.lists(st.lists(NUMBERS), min_size=1))
def test_parts_add_up_to_what_one_would_have_counted(parts: list[list[float]]) -> None:
    together: Histogram = {}
    for part in parts:
        merge(together, load(orjson.loads(orjson.dumps(dump(counted(part))))))
    whole = [value for part in parts for value in part]
    assert together == counted(whole)
    assert size(together) == len(whole)


@given(NUMBERS, NUMBERS)
def test_codes_are_in_the_order_of_the_numbers(one: float, other: float) -> None:
    assert (code_of(one) <= code_of(other)) or one > other
    assert value_of(code_of(one)) == pytest.approx(one, rel=ERROR * 1.001)


@given(st.lists(NUMBERS), NUMBERS)
def test_what_is_beyond_is_beyond_by_more_than_a_bucket_at_most(values: list[float], value: float) -> None:
    below, above = beyond(counted(values), value)
    assert below <= sum(one < value for one in values)
    assert above <= sum(one > value for one in values)
    margin = 1.0 + 2.1 * ERROR
    assert above >= sum(one > max(value * margin, value / margin) for one in values)
    assert below >= sum(one < min(value * margin, value / margin) for one in values)


def test_the_outermost_buckets_hold_what_is_beyond() -> None:
    assert counted([1e-300, 1e300, -1e-300, -1e300]) == {1: 1, 2000: 1, -1: 1, -2000: 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        code_of(value)


@pytest.mark.parametrize("pairs", [[[1]], [[1, 0]], [["1", 2]], [[1, 2.5]], [[3000, 1]], [[True, 1]]])
def test_what_is_no_histogram_is_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"histogram|unpack"):
        load(pairs)


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="empty histogram"):
        quantile({}, 0.5)
