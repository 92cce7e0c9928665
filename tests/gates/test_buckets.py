"""Arms and metrics meet at due instants, not at the seconds their rows bear: nothing is lost between stamps or when clocks change."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.schedule import Grid
from gates.engine.fold import FoldResult, fold
from gates.engine.plan import DAY, SECOND, Clock, Dues, Kpi, Plan, to_us
from gates.engine.series import Series, SeriesKey
from tests.gates.histories import DENSITY, GOAL, HOUR, START, plan, policy, without
from tests.gates.test_rules import gate, walk

MINUTE = 60 * SECOND
DAILY = Kpi("orders", "goal", "proportion", "increase", expected_every_s=86_400, freshness_target_s=21_600)
STRICT = {**DENSITY, "at_least": 0.95}
WEEK = policy(GOAL, STRICT, min_days=7, max_days=28)


def daily(stamps: list[int], **shift: Callable[[int], int]) -> dict[SeriesKey, Series]:
    """30% and 33% of 20,000 units a day; a variant's stamps may be shifted, by the row's position."""
    rows = {}
    for variant, share in (("control", 0.30), ("t1", 0.33)):
        move = shift.get(variant)
        ts = [at + (move(i) if move else 0) for i, at in enumerate(stamps)]
        rows["orders", variant] = Series(ts, [share] * len(ts), [20_000] * len(ts), [None] * len(ts), ts)
    return rows


def days(folded: FoldResult, plan: Plan) -> tuple[float | None, set[str]]:
    """The day on which a scale was proposed, and the states it had from then on."""
    proposed = [e for e in folded.evaluations if e.recommendation.action == "scale"]
    at = (proposed[0].slot - plan.started_at) / DAY if proposed else None
    later = [e.recommendation for e in folded.evaluations if proposed and e.slot >= proposed[0].slot]
    return at, {f"{r.action} {r.state}" for r in later}


# Arms that are stamped apart


def test_arms_stamped_seconds_apart_raise_no_alarm_and_lose_no_bucket() -> None:
    exact, apart = walk(hours=40), walk(hours=40)
    for metric in ("value", "speed"):
        series = apart.rows[metric, "t1"]
        apart.rows[metric, "t1"] = replace(series, ts=[ts + 40 * SECOND for ts in series.ts])

    assert apart.said() == exact.said() == ("scale", "wins", "proposed")
    assert gate(apart.at(), "srm", None).verdict == "pass"
    reading, told = gate(apart.at(), "value_uplift").reading, gate(exact.at(), "value_uplift").reading
    assert reading is not None
    assert told is not None
    assert (reading.n, reading.estimate, reading.lower) == (told.n, told.estimate, told.lower)
    assert gate(apart.at(), "density", None).extra["observed"] == gate(exact.at(), "density", None).extra["observed"]


def test_cumulative_arms_two_minutes_apart_are_compared_day_by_day() -> None:
    of = plan(msgspec.structs.replace(DAILY, temporality="cumulative"))
    stamps = [START + (k + 1) * DAY for k in range(14)]
    rows = daily(stamps, t1=lambda _: 2 * MINUTE)
    for key, series in rows.items():
        rows[key] = replace(series, n=[20_000 * (k + 1) for k in range(14)])

    assert days(fold(WEEK, of, rows, to=stamps[-1] + 6 * HOUR), of)[1] == {"scale proposed"}


def test_rows_that_come_more_often_than_was_said_are_compared_row_by_row() -> None:
    """A row a quarter of an hour, said to be hourly; the treatment is three rows behind. That is no wrong split."""
    hourly = Kpi("orders", "goal", "mean", "increase", expected_every_s=3600, freshness_target_s=3600)
    ts = [START + (k + 1) * 15 * MINUTE for k in range(40 * 4)]
    rows = {
        ("orders", variant): Series(ts, [value] * len(ts), [2_000] * len(ts), [16.0] * len(ts), ts)
        for variant, value in (("control", 10.0), ("t1", 11.0))
    }
    for behind in (1, 2, 3):
        rows["orders", "t1"] = without(rows["orders", "control"], lambda i, n=behind: i < len(ts) - n)
        folded = fold(policy(GOAL), plan(hourly), rows, to=ts[-1] + HOUR)
        reading = gate(folded.evaluations[-1], "orders_uplift").reading
        assert gate(folded.evaluations[-1], "srm", None).verdict == "pass"
        assert reading is not None
        assert reading.n == 2 * 2_000 * (len(ts) - behind)


# Stamps around the due instant


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_local_midnights_over_a_change_of_clocks_are_all_there(zone: str) -> None:
    for first in (dt.datetime(2026, 3, 5, tzinfo=ZoneInfo(zone)), dt.datetime(2026, 10, 2, tzinfo=ZoneInfo(zone))):
        midnights = [to_us(first + dt.timedelta(days=k)) for k in range(60)]
        of = plan(DAILY, started_at=midnights[0], created_at=midnights[0])
        folded = fold(msgspec.structs.replace(WEEK, max_days=70), of, daily(midnights[1:]), to=midnights[-1] + 8 * HOUR)

        at, states = days(folded, of)
        assert at is not None
        assert at < 11.5, "a day that is an hour short may take min_days a day further"
        assert states == {"scale proposed"}
        density = gate(folded.evaluations[-1], "density", None)
        assert (density.extra["observed"], density.extra["expected"]) == (7, 7)


def test_a_job_at_six_give_or_take_twenty_minutes_scales_when_exact_stamps_would() -> None:
    started = START + 6 * HOUR
    of = plan(DAILY, started_at=started, created_at=started)
    stamps = [started + k * DAY for k in range(1, 25)]

    def jitter(i: int) -> int:
        return (17 * (i + 1) % 41 - 20) * MINUTE

    exact = days(fold(WEEK, of, daily(stamps), to=stamps[-1] + 8 * HOUR), of)
    jittered = days(fold(WEEK, of, daily(stamps, control=jitter, t1=jitter), to=stamps[-1] + 8 * HOUR), of)
    assert jittered == exact
    assert exact[1] == {"scale proposed"}


def test_a_bucket_that_nothing_answers_is_missing_however_rows_are_stamped() -> None:
    for late in (0, 5 * HOUR, -5 * HOUR):
        of = plan(DAILY)
        rows = daily([START + k * DAY + late for k in range(1, 20)])
        rows = {key: without(series, lambda i: i != 9) for key, series in rows.items()}
        density = gate(fold(WEEK, of, rows, to=START + 13 * DAY + late).evaluations[-1], "density", None)
        assert density.verdict == "inconclusive"
        assert density.extra["expected"] - density.extra["observed"] == 1


def test_a_dead_feed_that_stamps_late_is_missed_as_much_later_as_it_was_late() -> None:
    hourly = Kpi("orders", "goal", "mean", "increase", expected_every_s=3600, freshness_target_s=1800)
    for late in (0, 20 * MINUTE):
        ts = [START + k * HOUR + late for k in range(1, 13)]
        rows = {("orders", v): Series(ts, [10.0] * 12, [500] * 12, [16.0] * 12, ts) for v in ("control", "t1")}
        counts = {
            minute: gate(
                fold(policy(GOAL, STRICT), plan(hourly), rows, to=ts[-1] + HOUR + minute * MINUTE).evaluations[-1],
                "density",
                None,
            ).extra["expected"]
            for minute in (25, 30)
        }
        assert counts == {25: 12, 30: 13}


# Rows on the grid: what it was

GRIDS = st.sampled_from([60, 900, 3600, 86_400]).map(lambda s: s * SECOND)
SPANS = st.lists(st.integers(1, 200), max_size=6, unique=True).map(sorted)


@given(GRIDS, SPANS, st.integers(0, 300), st.integers(0, 10**9))
def test_on_the_grid_due_instants_are_the_buckets_of_running_time(
    every: int, turns: list[int], buckets: int, beyond: int
) -> None:
    start = START
    pauses = tuple((start + a * every, start + b * every) for a, b in zip(turns[::2], turns[1::2], strict=False))
    clock = Clock(Plan(started_at=start, created_at=start, variants=(), kpis=(), pauses=pauses))
    dues, schedule = Dues(Grid(every), clock), Grid(every)
    instant = start + buckets * every + beyond % every

    assert dues.count(instant) == clock.running(instant) // every
    assert schedule.answered(start + buckets * every) == start + buckets * every
    if buckets:
        due = dues.at(buckets)
        assert due == clock.wall(buckets * every)
        assert due is not None
        assert dues.expects(due)
        assert dues.count(due) == buckets


@given(GRIDS, st.integers(0, 10**15))
def test_a_row_answers_the_nearest_due_instant_and_of_two_the_earlier(every: int, ts: int) -> None:
    due = Grid(every).answered(ts)

    assert due % every == 0
    assert -every < 2 * (ts - due) <= every
