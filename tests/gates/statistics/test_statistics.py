"""Properties every formula must have, whatever the numbers."""

from __future__ import annotations

import math
from statistics import fmean, variance
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.engine.screening import _arms
from gates.engine.statistics.effects import difference, relative_interval, relative_uplift
from gates.engine.statistics.moments import (
    NOTHING,
    Arm,
    Moments,
    chain,
    chain_pairs,
    mean_arm,
    merge,
    merge_pairs,
    of_mean,
    of_proportion,
    of_ratio,
    proportion_arm,
    ratio_arm,
)
from gates.engine.statistics.planning import planned_units, smallest_effect, units_for_half
from gates.engine.statistics.sequences import always_valid_p, half_width, intersect, log_p, tuning
from gates.engine.statistics.srm import srm_log_e, srm_log_e_at_most
from tests.examples import examples

VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
BUCKETS = st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=12)
ARMS = st.builds(Arm, st.floats(0.1, 1e4), st.floats(1e-3, 1e6), st.integers(10, 10**7))


def bucket(values: list[float]) -> Moments:
    return of_mean(len(values), fmean(values), variance(values) if len(values) > 1 else 0.0)


@examples(60)
@given(BUCKETS)
def test_merged_buckets_know_what_all_their_units_would_say(buckets: list[list[float]]) -> None:
    state = NOTHING
    for values in buckets:
        state = merge(state, bucket(values))
    units = [value for values in buckets for value in values]

    assert state.n == len(units)
    assert state.mean == pytest.approx(fmean(units), rel=1e-9, abs=1e-6)
    if len(units) > 1:
        assert mean_arm(state).v == pytest.approx(variance(units), rel=1e-6, abs=1e-3)


def test_a_mean_far_above_its_spread_keeps_its_variance() -> None:
    """sum_sq - sum^2/n loses all digits here; the merge does not."""
    state = NOTHING
    for start in range(0, 1000, 10):
        state = merge(state, bucket([1e9 + (i % 7) for i in range(start, start + 10)]))

    assert mean_arm(state).v == pytest.approx(variance([i % 7 for i in range(1000)]), rel=1e-9)


@examples(60)
@given(BUCKETS)
def test_a_chain_of_buckets_is_merge_after_merge_to_the_last_bit(buckets: list[list[float]]) -> None:
    moments = [bucket(values) for values in buckets]
    one_by_one = [NOTHING]
    for each in moments:
        one_by_one.append(merge(one_by_one[-1], each))

    for begin in (0, len(moments) // 2):
        n, mean, m2 = ([m[c] for m in moments[begin:]] for c in range(3))
        columns = chain(
            one_by_one[begin],
            np.array(n, dtype=np.int64),
            np.array(mean, dtype=np.float64),
            np.array(m2, dtype=np.float64),
        )
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == [tuple(s) for s in one_by_one[begin:]]


def test_a_chain_of_ratio_buckets_is_merge_after_merge_too() -> None:
    buckets = [of_ratio(n, 2.0 + n, 1.0, 4.0, 0.5, 0.1 * n) for n in (3, 0, 5, 1)]
    state = buckets[0]
    for each in buckets[1:]:
        state = merge_pairs(state, each) if each.n else state

    n, mean, m2, mean_d, m2_d, co = (np.array(column) for column in zip(*buckets[1:], strict=True))
    columns = chain_pairs(buckets[0], n, mean, m2, mean_d, m2_d, co)
    assert tuple(column[-1].item() for column in columns) == state


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_merged_proportions_are_the_proportion_of_all(a: int, b: int, p: float, q: float) -> None:
    state = merge(of_proportion(a, p), of_proportion(b, q))

    assert state.mean == pytest.approx((a * p + b * q) / (a + b), rel=1e-9, abs=1e-12)
    assert state.m2 == pytest.approx(state.n * state.mean * (1 - state.mean), rel=1e-6, abs=1e-6)
    if 0 < state.mean < 1:
        assert proportion_arm(state).v == state.mean * (1 - state.mean)


@given(st.integers(1, 10**9), st.sampled_from([0.0, 1.0]))
def test_a_proportion_of_exactly_none_or_all_has_the_spread_of_half_a_unit(n: int, p: float) -> None:
    smoothed = (n * p + 0.5) / (n + 1)

    assert proportion_arm(of_proportion(n, p)).v == pytest.approx(smoothed * (1 - smoothed), rel=1e-6)


MEANS = st.floats(-100, 100).filter(lambda m: abs(m) > 1e-3) | st.just(0.0)
ANY_ARMS = st.builds(Arm, MEANS, st.floats(1e-3, 1e4), st.integers(2, 10**6))


@given(ANY_ARMS, ANY_ARMS, st.floats(1.0, 8.0), st.floats(-0.99, 2.0))
def test_a_bound_lies_outside_the_relative_interval_just_when_its_contrast_says_so(
    t: Arm, c: Arm, reach: float, b: float
) -> None:
    lower, upper = relative_interval(t, c, reach)
    sign = math.copysign(1.0, c.m)
    contrast = t.m - c.m - b * abs(c.m)
    se = math.sqrt(t.v / t.n + (1 + b * sign) ** 2 * c.v / c.n)
    told = abs(c.m) > reach * math.sqrt(c.v / c.n)  # its sign is known

    assert lower <= upper
    if told and abs(abs(contrast) - reach * se) > 1e-9 * (abs(t.m) + abs(c.m)):
        assert (b < lower) == (contrast > reach * se)
        assert (b > upper) == (contrast < -reach * se)
    if not told:
        assert math.isinf(lower) or math.isinf(upper)


@given(ANY_ARMS, ANY_ARMS, st.floats(1.0, 8.0))
def test_the_relative_interval_of_arrays_is_that_of_numbers(t: Arm, c: Arm, reach: float) -> None:
    with np.errstate(all="ignore"):
        arrays = relative_interval(Arm(*map(np.array, t)), Arm(*map(np.array, c)), np.array(reach), xp=np)  # type: ignore[arg-type]

    assert [float(end) for end in arrays] == pytest.approx(relative_interval(t, c, reach), rel=1e-9, abs=1e-12)


def test_at_the_boundary_the_contrast_is_the_delta_method() -> None:
    c, b = Arm(10.0, 16.0, 10_000), -0.1
    t = Arm(10.0 * (1 + b), 16.0, 10_000)
    contrast = math.sqrt(t.v / t.n + (1 + b) ** 2 * c.v / c.n) / c.m

    assert relative_uplift(t, c)[1] == pytest.approx(contrast, rel=1e-12)


def test_a_ratio_with_a_constant_denominator_is_a_mean() -> None:
    ratio = ratio_arm(of_ratio(100, 6.0, 9.0, 2.0, 0.0, 0.0))

    assert ratio == Arm(3.0, 9.0 / 4.0, 100)


@given(ARMS, ARMS)
def test_swapping_arms_flips_the_sign_of_a_difference_and_keeps_its_error(a: Arm, b: Arm) -> None:
    d, se = difference(a, b)
    e, other = difference(b, a)

    assert d == -e
    assert se == pytest.approx(other)


@given(ARMS, ARMS, st.sampled_from([1e-3, 0.01, 100.0, 1e6]))
def test_a_relative_uplift_has_no_unit(t: Arm, c: Arm, unit: float) -> None:
    u, se = relative_uplift(t, c)
    scaled = relative_uplift(Arm(t.m * unit, t.v * unit**2, t.n), Arm(c.m * unit, c.v * unit**2, c.n))

    assert scaled == pytest.approx((u, se), rel=1e-9, abs=1e-12)


@given(ARMS, ARMS)
def test_arrays_and_numbers_give_the_same(t: Arm, c: Arm) -> None:
    arrays = relative_uplift(Arm(*(np.array([x]) for x in t)), Arm(*(np.array([x]) for x in c)), xp=np)  # type: ignore[arg-type]

    assert [float(column[0]) for column in arrays] == pytest.approx(relative_uplift(t, c), rel=1e-12, abs=1e-15)
    half = half_width(np.array([0.1]), np.array([float(t.n)]), 1e-4, 0.05, xp=np)
    assert float(half[0]) == pytest.approx(half_width(0.1, t.n, 1e-4, 0.05), rel=1e-12)
    assert float(log_p(np.array([0.2]), np.array([0.1]), np.array([float(t.n)]), 1e-4, xp=np)[0]) == pytest.approx(
        log_p(0.2, 0.1, t.n, 1e-4), rel=1e-12
    )


def test_arms_from_columns_are_the_arms_of_states() -> None:
    state = of_ratio(50, 2.0, 1.5, 3.0, 0.4, 0.2)
    columns = tuple(np.array([float(cell)]) for cell in state)
    cells: list[Any] = list(_arms("ratio", columns))

    assert [float(cell[0]) for cell in cells] == pytest.approx(list(ratio_arm(state)))


def test_the_interval_is_tightest_relative_to_a_fixed_one_near_its_t_opt() -> None:
    rho2 = tuning(10_000, 0.05)
    relative = {n: half_width(1 / math.sqrt(n), n, rho2, 0.05) * math.sqrt(n) for n in (100, 1_000, 10_000, 10**6)}

    assert min(relative, key=lambda n: relative[n]) == 10_000


def test_p_is_at_most_alpha_exactly_where_the_interval_leaves_zero() -> None:
    rho2, n, se = tuning(5_000, 0.05), 4_000, 0.3
    edge = half_width(se, n, rho2, 0.05)

    assert always_valid_p(edge * 1.0001, se, n, rho2) < 0.05 < always_valid_p(edge * 0.9999, se, n, rho2)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1))
def test_the_running_intersection_is_the_highest_lower_and_lowest_upper(looks: list[tuple[float, float]]) -> None:
    running: tuple[float | None, float | None] = (None, None)
    for lower, upper in looks:
        running = intersect(running, lower, upper)

    assert running == (max(lower for lower, _ in looks), min(upper for _, upper in looks))


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=4), st.floats(0.2, 5))
def test_the_cheap_bound_of_the_split_test_is_never_below_it(counts: list[int], weight: float) -> None:
    weights = [weight, *([1.0] * (len(counts) - 1))]

    assert srm_log_e(counts, weights) <= srm_log_e_at_most(counts, weights) + 1e-6


def test_a_fair_split_rarely_alarms_however_often_one_looks() -> None:
    draw = np.random.default_rng(3)
    alarms = 0
    for _ in range(60):
        arms = np.cumsum(draw.binomial(200, 0.5, size=300))
        total = 200 * np.arange(1, 301)
        alarms += any(
            srm_log_e([int(a), int(n - a)], [1, 1]) >= math.log(1000)
            for a, n in zip(arms[9::10], total[9::10], strict=True)
        )

    assert alarms == 0


@pytest.mark.parametrize(
    ("counts", "weights"), [([1], [1.0]), ([1, 2], [1.0]), ([1, 2], [1.0, 0.0]), ([1, 2, 3], [1.0, 1.0])]
)
def test_a_split_without_a_plan_for_each_variant_is_refused(counts: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must be as many and positive"):
        srm_log_e(counts, weights)


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.2), st.integers(100, 10**6))
def test_the_units_a_half_width_needs_are_the_first_that_suffice(half: float, se: float, n: int) -> None:
    units = units_for_half(half, se, n, 1e-4, 0.05)

    if units is not None and units > n:
        assert half_width(se * math.sqrt(n / units), units, 1e-4, 0.05) <= half
        assert half_width(se * math.sqrt(n / (units - 1)), units - 1, 1e-4, 0.05) > half


def test_planning_knows_the_textbook_number_and_refuses_nonsense() -> None:
    assert planned_units(1.0, 0.5) == pytest.approx(62.79, abs=0.01)
    assert units_for_half(0.0, 1.0, 100, 1e-4, 0.05) is None
    assert smallest_effect(10**6, 1.0, 1e-4, 0.05) < smallest_effect(10**5, 1.0, 1e-4, 0.05)
    for stddev, effect in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="must not be 0"):
            planned_units(stddev, effect)
    with pytest.raises(ValueError, match="t_opt"):
        tuning(0.0, 0.05)


def test_arms_without_variance_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        mean_arm(Moments(1, 2.0, 0.0))
    with pytest.raises(ValueError, match="at least 1"):
        proportion_arm(NOTHING)
    with pytest.raises(ValueError, match="not 0"):
        ratio_arm(of_ratio(5, 1.0, 1.0, 0.0, 1.0, 0.0))
