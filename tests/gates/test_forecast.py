"""Whether a plan can end, said before the first row."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.expected import nominal_s, normal, part
from gates.engine.compiled import compile_plan
from gates.engine.forecast import forecast
from gates.engine.plan import DAY, SECOND, Baseline, Kpi
from gates.engine.statistics.sequences import half_width
from tests.examples import examples
from tests.gates.histories import GOAL, GUARD, plan, policy

MONDAY = 1_791_158_400 * SECOND
"""2026-10-05T00:00:00Z."""
DEVIATION = Baseline(mean=3.0, stddev=6.0)


def goal(minimum_effect: float) -> Kpi:
    return Kpi("value", direction="increase", minimum_effect=minimum_effect, baseline=DEVIATION)


def test_at_the_units_it_names_the_interval_is_as_narrow_as_the_gap_asks() -> None:
    by, of = policy(GOAL, max_days=28), plan(goal(0.05), expected_units_per_day=20_000)
    (found,) = forecast(by, of)

    assert found.units is not None
    comparison = compile_plan(by, of).comparisons[0]
    half = [half_width(2.0 * 2 / n**0.5, n, comparison.rho2, comparison.alpha) for n in (found.units, found.units - 2)]
    assert half[0] <= 0.05 / 2 < half[1]
    assert found.days == pytest.approx(found.units / 20_000)
    assert found.ends
    assert found.warning == ""


def test_a_plan_that_cannot_end_is_warned_with_an_effect_that_can() -> None:
    by = policy(GOAL, max_days=28)
    (found,) = forecast(by, plan(goal(0.005), expected_units_per_day=5_000))

    assert not found.ends
    assert f"{100 * found.smallest_effect:.3g}%" in found.warning
    (asked,) = forecast(by, plan(goal(found.smallest_effect * 1.3), expected_units_per_day=5_000))
    assert asked.ends, "asking for more than the smallest decidable effect can end"


def calendar(expected: dict[str, str]) -> dict[str, Any]:
    parts = (part(normal(expected), since=None, around=MONDAY),)
    return {"expected": parts, "expected_every_s": nominal_s(normal(expected))}


@pytest.mark.parametrize(
    ("expected", "days"),
    [
        ({"every": "daily", "at": "24:00"}, 12),
        ({"every": "weekdays", "at": "24:00"}, 16),  # two weeks, Monday and Tuesday
        ({"every": "weekdays", "at": "24:00", "timezone": "Europe/Berlin"}, 15 + 22 / 24),
        ({"cron": "0 8-18 * * 1-5"}, 15 + 0.36),  # the twelfth working day, and its part of the day
        ({"cron": "10 * * * *"}, 11.36),
        ({"every": "weekly", "on": "monday", "at": "00:00"}, 14),
        ({"every": "monthly", "on": 1, "at": "00:00"}, 27),
    ],
)
def test_units_come_with_due_instants_so_weekday_feeds_reach_their_days_later(
    expected: dict[str, Any], days: float
) -> None:
    by = policy(GOAL, min_days=0, max_days=28)
    kpi = msgspec.structs.replace(goal(0.05), **calendar(expected))
    start = msgspec.structs.replace(plan(kpi), started_at=MONDAY)
    (units,) = {one.units for one in forecast(by, msgspec.structs.replace(start, expected_units_per_day=20_000.0))}
    assert units is not None

    (found,) = forecast(by, msgspec.structs.replace(start, expected_units_per_day=units / 11.36))

    assert found.days == pytest.approx(days, abs=0.02)
    assert found.units == units


@pytest.mark.parametrize("every_s", [60, 900, 3_600, 86_400, 7 * 86_400])
def test_the_forecast_of_seconds_is_that_of_units_a_day(every_s: int) -> None:
    kpi = msgspec.structs.replace(goal(0.05), expected_every_s=every_s)
    (found,) = forecast(policy(GOAL, min_days=0), plan(kpi, expected_units_per_day=20_000))

    assert found.units is not None
    assert found.days == found.units / 20_000


def test_due_instants_in_a_planned_outage_bring_no_units() -> None:
    by, weekdays = policy(GOAL, min_days=0, max_days=28), calendar({"every": "weekdays", "at": "24:00"})
    out = ((MONDAY + 7 * DAY + 1, MONDAY + 14 * DAY),)  # the second week
    start = msgspec.structs.replace(plan(goal(0.05), expected_units_per_day=30_000), started_at=MONDAY)

    def days(**said: Any) -> float:
        kpi = msgspec.structs.replace(start.kpis[0], **weekdays, **said)
        (found,) = forecast(by, msgspec.structs.replace(start, kpis=(kpi,)))
        assert found.days is not None
        return found.days

    assert days(outages=out) == days() + 7


def test_a_plan_whose_feed_brings_too_little_by_its_last_day_is_warned() -> None:
    by = policy(GOAL, max_days=28)
    of = msgspec.structs.replace(plan(goal(0.03), expected_units_per_day=27_000), started_at=MONDAY)
    (daily,) = forecast(by, of)
    kpi = msgspec.structs.replace(of.kpis[0], **calendar({"every": "weekdays", "at": "24:00"}))
    (weekdays,) = forecast(by, msgspec.structs.replace(of, kpis=(kpi,)))

    assert daily.ends
    assert not weekdays.ends
    assert weekdays.smallest_effect > daily.smallest_effect
    assert "days to decide" in weekdays.warning


def test_more_treatments_share_the_units_and_take_longer() -> None:
    by = policy(GOAL, max_days=28)
    one, three = (forecast(by, plan(goal(0.05), treatments=k, expected_units_per_day=20_000))[0] for k in (1, 3))

    assert one.days is not None
    assert three.days is not None
    assert three.days > 2 * one.days


def test_without_baseline_or_units_a_day_nothing_is_claimed() -> None:
    assert forecast(policy(GOAL), plan(goal(0.05))) == []
    assert forecast(policy(GOAL), plan(Kpi("value", direction="increase"), expected_units_per_day=100)) == []


EXTREMES = st.sampled_from([1e-100, 1e-9, 0.02, 1.0, 1e9, 1e100])


@examples(100, fresh=True)
@given(
    mean=EXTREMES, below=st.booleans(), stddev=EXTREMES, effect=EXTREMES, control=EXTREMES, treatment=EXTREMES, daily=EXTREMES,
    kind=st.sampled_from(["relative", "difference"]),
)  # fmt: skip
def test_every_plan_whose_numbers_are_taken_can_be_judged_and_looked_ahead(
    mean: float, below: bool, stddev: float, effect: float, control: float, treatment: float, daily: float, kind: Any
) -> None:
    of = plan(
        msgspec.structs.replace(goal(effect), baseline=Baseline(-mean if below else mean, stddev)),
        msgspec.structs.replace(
            goal(0.02), metric="kept", role="guardrail", max_harm=effect, baseline=Baseline(mean, stddev)
        ),
        expected_units_per_day=daily,
    )
    weights = (control, treatment)
    of = msgspec.structs.replace(
        of,
        variants=tuple(msgspec.structs.replace(v, weight=x) for v, x in zip(of.variants, weights, strict=True)),
    )
    by = policy({**GOAL, "effect": kind}, {**GUARD, "effect": kind}, max_days=28)

    assert all(0 < c.rho2 < math.inf for c in compile_plan(by, of).comparisons)
    assert all(0 < found.smallest_effect < math.inf for found in forecast(by, of))
