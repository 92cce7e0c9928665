"""Feeds with a calendar: weekdays, clocks that change, quiet hours, outages. Whole histories by the shipped policy, row by row."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.expected import normal, part
from experiments.schedule import DAY, SECOND, Grid, Part, Schedule, offsets, schedule_of
from gates.engine.fold import FoldResult, fold
from gates.engine.narration import Reader, sentence
from gates.engine.plan import Clock, Dues, Kpi, Plan, Variant, rfc3339, to_us
from gates.engine.policy import DEFAULT_BODY
from gates.engine.policy_checks import parse
from gates.engine.reasons import blocking
from gates.engine.series import Series, SeriesKey

UTC = dt.UTC
HOUR = 3600 * SECOND
POLICY = parse(DEFAULT_BODY, name="default", version=1)
Shares = dict[str, dict[str, float]]
SHARES: Shares = {"K": {"control": 0.30, "treatment": 0.33}, "G": {"control": 0.05, "treatment": 0.05}}


def at(text: str) -> int:
    return to_us(dt.datetime.fromisoformat(text))


def feed(metric: str = "K", **said: Any) -> Kpi:
    """A daily proportion that may be six hours late, unless it is said otherwise."""
    expected = said.pop("expected", None)
    if expected is not None:
        said["expected"] = (part(normal(expected), since=None, around=at("2026-10-01T00:00:00Z")),)
    roles: dict[str, Any] = {"role": "goal", "direction": "increase"}
    if metric == "G":
        roles = {"role": "guardrail", "direction": "decrease", "max_harm": 0.1, "counts_assignment": False}
    daily = {"expected_every_s": 86_400, "freshness_target_s": 21_600}
    return Kpi(metric, kind="proportion", **{**roles, **daily, **said})


def plan(started_at: str, *kpis: Kpi, **said: Any) -> Plan:
    start = at(started_at)
    arms = (Variant("control", control=True), Variant("treatment", position=1))
    return Plan(**{"started_at": start, "created_at": start, "variants": arms, "kpis": kpis or (feed(),), **said})


def rows(
    of: Plan, stamps: Iterable[int] | dict[str, Iterable[int]], *, n: int = 20_000, delay: int = 240
) -> dict[SeriesKey, Series]:
    """Rows of every KPI and arm at these instants, of constant shares, `delay` seconds later here."""
    found: dict[SeriesKey, Series] = {}
    kept = list(stamps) if not isinstance(stamps, dict) else []
    for kpi in of.kpis:
        ts = sorted(stamps[kpi.metric]) if isinstance(stamps, dict) else kept
        for variant in of.variants:
            share = SHARES[kpi.metric][variant.key]
            received = [t + delay * SECOND for t in ts]
            found[kpi.metric, variant.key] = Series(ts, [share] * len(ts), [n] * len(ts), [None] * len(ts), received)
    return found


def judged(of: Plan, given: dict[SeriesKey, Series], to: int) -> FoldResult:
    return fold(POLICY, of, given, to=to)


def story(of: Plan, given: dict[SeriesKey, Series], to: int) -> list[tuple[str, str, str, str]]:
    """(when, action, code, state) of the experiment each time one of the last three changed."""
    told: list[tuple[str, str, str, str]] = []
    for evaluation in judged(of, given, to).evaluations:
        r = evaluation.recommendation
        if not told or told[-1][1:] != (r.action, r.code, r.state):
            told.append((rfc3339(evaluation.slot), r.action, r.code, r.state))
    return told


def proposed(told: Sequence[tuple[str, str, str, str]]) -> str | None:
    return next((when for when, action, _, state in told if action == "scale" and state == "proposed"), None)


def midnights(zone: str, first: dt.date, days: int) -> list[int]:
    there = ZoneInfo(zone)
    return [to_us(dt.datetime.combine(first + dt.timedelta(days=n), dt.time(), there)) for n in range(days)]


# The cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started_at", ["2026-10-16T00:00:00+02:00", "2026-10-16T09:00:00+02:00"])
@pytest.mark.parametrize(
    ("target_s", "expected"),
    [(21_600, None), (21_600, {"every": "daily", "at": "24:00", "timezone": "Europe/Berlin"}), (900, {"every": "daily", "at": "24:00", "timezone": "Europe/Berlin"})],
)  # fmt: skip
def test_midnight_in_berlin_is_never_suspended_when_summer_time_ends(
    started_at: str, target_s: int, expected: dict[str, str] | None
) -> None:
    of = plan(started_at, feed(freshness_target_s=target_s, expected=expected))

    told = story(of, rows(of, midnights("Europe/Berlin", dt.date(2026, 10, 17), 25)), at("2026-11-10T12:00:00Z"))

    assert told[-1][1:] == ("scale", "wins", "proposed")
    assert [state for _, _, _, state in told].count("suspended") == 0
    assert (proposed(told) or "") < "2026-10-27T01"


def test_a_job_at_six_give_or_take_twenty_minutes_is_proposed_at_the_look_at_which_exact_stamps_are() -> None:
    of = plan("2026-11-02T06:00:00Z")
    exact = [at("2026-11-02T06:00:00Z") + k * DAY for k in range(1, 25)]
    jittered = [ts + (17 * k % 41 - 20) * 60 * SECOND for k, ts in enumerate(exact, 1)]
    end = at("2026-11-26T12:00:00Z")
    day = (proposed(story(of, rows(of, exact), end)) or "")[:10]

    told = story(of, rows(of, jittered), end)

    assert (proposed(told) or "")[:10] == day != ""
    assert "suspended" not in {state for *_, state in told}


WEEKDAYS = {"every": "weekdays", "at": "24:00", "timezone": "UTC"}


def weekday_ends(first: str, days: int) -> list[int]:
    """The ends of Mondays to Fridays."""
    starts = [at(first) + n * DAY for n in range(days)]
    return [start + DAY for start in starts if dt.datetime.fromtimestamp(start // SECOND, UTC).weekday() < 5]


def test_a_weekday_feed_is_never_stale_and_decides_within_a_day_of_one_of_seven_days_with_the_same_units() -> None:
    end = at("2026-11-02T12:00:00Z")
    of = plan("2026-10-05T00:00:00Z", feed(expected=WEEKDAYS))
    seven = plan("2026-10-05T00:00:00Z")

    told = story(of, rows(of, weekday_ends("2026-10-05T00:00:00Z", 28), n=20_000), end)
    daily = story(
        seven, rows(seven, [at("2026-10-05T00:00:00Z") + k * DAY for k in range(1, 29)], n=20_000 * 5 // 7), end
    )

    assert "stale" not in {code for _, _, code, _ in told}
    assert told[-1][1:] == ("scale", "wins", "proposed")
    first, other = (dt.datetime.fromisoformat(proposed(of) or "") for of in (told, daily))
    assert abs(first - other) <= dt.timedelta(days=1)


def test_a_monday_that_is_missing_holds_until_it_comes() -> None:
    of = plan("2026-10-05T00:00:00Z", feed(expected=WEEKDAYS))
    monday = at("2026-10-20T00:00:00Z")
    stamps = [ts for ts in weekday_ends("2026-10-05T00:00:00Z", 28) if ts != monday]

    result = judged(of, rows(of, stamps), at("2026-10-23T12:00:00Z"))
    (buckets,) = [reason for gate in result.evaluations[-1].gates if gate.kind == "density" for reason in gate.reasons]
    assert (buckets["observed"], buckets["expected"]) == (4, 5)
    assert result.evaluations[-1].recommendation.state == "suspended"

    came = story(of, rows(of, sorted([*stamps, monday])), at("2026-10-23T12:00:00Z"))
    assert came[-1][1:] == ("scale", "wins", "proposed")


def quiet_nights(days: int = 10, *, until: int = 99) -> dict[str, Iterable[int]]:
    """Hourly stamps from 5 October on; of the guard none from 01:00 to 06:00; none of either after a day."""
    hours = [at("2026-10-05T00:00:00Z") + h * HOUR for h in range(1, 24 * min(days, until) + 1)]
    return {"K": hours, "G": [ts for ts in hours if not 1 <= ts // HOUR % 24 <= 6]}


HOURLY: dict[str, Any] = {"expected_every_s": 3_600, "freshness_target_s": 3_600}
HEALED: dict[str, Callable[[dict[SeriesKey, Series]], tuple[Kpi, dict[SeriesKey, Series]]]] = {
    "sparse": lambda given: (feed("G", **HOURLY, sparse_beside="K"), given),
    "a schedule without those hours": lambda given: (feed("G", **HOURLY, expected={"cron": "0 0,7-23 * * *"}), given),
}


@pytest.mark.parametrize("way", HEALED)
def test_quiet_nights_of_a_guard_do_not_hold_where_it_is_said_that_nothing_happens(way: str) -> None:
    of = plan("2026-10-05T00:00:00Z", feed(**HOURLY), feed("G", **HOURLY))
    guard, given = HEALED[way](rows(of, quiet_nights(), n=1_000))
    healed = msgspec.structs.replace(of, kpis=(of.kpis[0], guard))

    told = story(healed, given, at("2026-10-15T00:00:00Z"))

    assert told[-1][1:] == ("scale", "wins", "proposed")
    assert not {"stale", "suspended"} & {word for entry in told[1:] for word in entry}


def test_zeros_that_are_sent_heal_quiet_nights_too() -> None:
    of = plan("2026-10-05T00:00:00Z", feed(**HOURLY), feed("G", **HOURLY))
    hours = list(quiet_nights()["K"])
    given = rows(of, hours, n=1_000)
    for variant in ("control", "treatment"):
        series = given["G", variant]
        values = [0.0 if 1 <= ts // HOUR % 24 <= 6 else 0.05 for ts in series.ts]
        given["G", variant] = Series(series.ts, values, series.n, series.variance, series.first_received_at)

    assert story(of, given, at("2026-10-15T00:00:00Z"))[-1][1:] == ("scale", "wins", "proposed")


def test_quiet_nights_that_nobody_explains_hold_and_the_blocker_names_three_ways_out() -> None:
    of = plan("2026-10-05T00:00:00Z", feed(**HOURLY), feed("G", **HOURLY))

    result = judged(of, rows(of, quiet_nights(), n=1_000), at("2026-10-14T12:00:00Z"))

    recommendation = result.evaluations[-1].recommendation
    assert recommendation.action == "hold"
    (blocker,) = blocking(recommendation.reasons)
    told = sentence(blocker, Reader())
    assert "value 0 and n above 0" in told
    assert "schedule" in told
    assert "sparse" in told


def test_an_empty_bucket_counts_as_no_events_of_the_goals_units() -> None:
    of = plan("2026-10-05T00:00:00Z", feed(**HOURLY), feed("G", **HOURLY, sparse_beside="K"))

    result = judged(of, rows(of, quiet_nights(), n=1_000), at("2026-10-14T00:00:00Z"))

    reading = next(gate.reading for gate in result.evaluations[-1].gates if gate.metric == "G")
    assert reading is not None
    assert reading.n == 2 * 1_000 * ((reading.at - of.started_at + HOUR // 2) // HOUR)


def test_silence_of_goal_and_guard_is_no_zero() -> None:
    of = plan("2026-10-05T00:00:00Z", feed(**HOURLY), feed("G", **HOURLY, sparse_beside="K"))

    told = story(of, rows(of, quiet_nights(until=6), n=1_000), at("2026-10-15T00:00:00Z"))

    assert told[-1][1:] == ("hold", "stale", "open")
    assert proposed(told) is None


def test_a_planned_outage_is_not_stale_and_density_counts_without_it() -> None:
    hours = [at("2026-10-05T00:00:00Z") + h * HOUR for h in range(1, 24 * 11)]
    gone = (at("2026-10-13T00:00:00Z"), at("2026-10-14T06:00:00Z"))
    outage = msgspec.structs.replace(feed(**HOURLY), outages=(gone,))
    planned, unplanned = plan("2026-10-05T00:00:00Z", outage), plan("2026-10-05T00:00:00Z", feed(**HOURLY))
    given = rows(planned, [ts for ts in hours if not gone[0] <= ts < gone[1]], n=1_000)
    end = at("2026-10-15T20:00:00Z")

    told, without = story(planned, given, end), story(unplanned, given, end)

    assert told[-1][1:] == ("scale", "wins", "proposed")
    assert "suspended" not in {state for *_, state in told}
    assert "suspended" in {state for *_, state in without}


def test_an_outage_that_is_entered_afterwards_gives_the_same_from_then_on() -> None:
    hours = [at("2026-10-05T00:00:00Z") + h * HOUR for h in range(1, 24 * 11)]
    gone = (at("2026-10-13T00:00:00Z"), at("2026-10-14T06:00:00Z"))
    unplanned = plan("2026-10-05T00:00:00Z", feed(**HOURLY))
    planned = plan("2026-10-05T00:00:00Z", msgspec.structs.replace(feed(**HOURLY), outages=(gone,)))
    given = rows(planned, [ts for ts in hours if not gone[0] <= ts < gone[1]], n=1_000)
    entered, end = at("2026-10-15T00:00:00Z"), at("2026-10-15T20:00:00Z")

    before = judged(unplanned, given, entered)
    assert not before.checkpoint.fits(POLICY, planned)  # so it is told anew
    assert before.evaluations[-1].recommendation.state == "suspended"
    assert judged(planned, given, entered).evaluations[-1].recommendation.state == "proposed"
    assert story(planned, given, end)[-1][1:] == ("scale", "wins", "proposed")


def test_an_outage_that_is_planned_ahead_outdates_nothing() -> None:
    hours = [at("2026-10-05T00:00:00Z") + h * HOUR for h in range(1, 72)]
    unplanned = plan("2026-10-05T00:00:00Z", feed(**HOURLY))
    ahead = (at("2026-10-09T00:00:00Z"), at("2026-10-10T00:00:00Z"))
    planned = plan("2026-10-05T00:00:00Z", msgspec.structs.replace(feed(**HOURLY), outages=(ahead,)))
    longer = plan(
        "2026-10-05T00:00:00Z", msgspec.structs.replace(feed(**HOURLY), outages=((ahead[0], ahead[1] + DAY),))
    )

    state = judged(unplanned, rows(unplanned, hours, n=1_000), hours[-1]).checkpoint
    assert state.fits(POLICY, planned)
    during = judged(planned, rows(planned, hours, n=1_000), ahead[0] + HOUR).checkpoint
    assert during.fits(POLICY, longer)
    assert not during.fits(POLICY, unplanned)


# Real zones -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "started_on"),
    [
        ("Europe/Berlin", dt.date(2026, 3, 20)), ("Europe/Berlin", dt.date(2026, 10, 16)),
        ("America/New_York", dt.date(2026, 2, 27)), ("America/New_York", dt.date(2026, 10, 23)),
        ("Australia/Lord_Howe", dt.date(2026, 3, 27)), ("Australia/Lord_Howe", dt.date(2026, 9, 25)),
        ("Asia/Kathmandu", dt.date(2026, 5, 1)),
    ],
)  # fmt: skip
def test_a_daily_feed_on_local_clocks_is_whole_over_every_change_of_them(zone: str, started_on: dt.date) -> None:
    expected = {"every": "daily", "at": "24:00", "timezone": zone}
    stamps = midnights(zone, started_on, 26)
    kpi = msgspec.structs.replace(
        feed(freshness_target_s=900), expected=(part(normal(expected), since=None, around=stamps[0]),)
    )
    of = plan(rfc3339(stamps[0]), kpi)

    result = judged(of, rows(of, stamps[1:]), stamps[-1] + HOUR)

    assert {rate for step in result.steps for rate in step.dense.values()} <= {(1, 1)}
    assert "stale" not in {e.recommendation.code for e in result.evaluations}
    assert result.evaluations[-1].recommendation.code == "wins"


@pytest.mark.parametrize(
    ("zone", "started_on"),
    [
        ("Europe/Berlin", dt.date(2026, 3, 16)), ("Europe/Berlin", dt.date(2026, 10, 12)),
        ("America/New_York", dt.date(2026, 2, 23)), ("America/New_York", dt.date(2026, 10, 19)),
        ("Australia/Lord_Howe", dt.date(2026, 3, 23)), ("Australia/Lord_Howe", dt.date(2026, 9, 21)),
        ("Asia/Kathmandu", dt.date(2026, 5, 4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("jitter_m", [0, 20])
def test_a_weekday_feed_on_local_clocks_decides_within_a_day_of_one_of_seven_days_with_the_same_units(
    zone: str, started_on: dt.date, jitter_m: int
) -> None:
    expected = {"every": "weekdays", "at": "24:00", "timezone": zone}
    ends = midnights(zone, started_on, 28)
    weekdays = [end for end, day in zip(ends[1:], range(27), strict=True) if day % 7 < 5]
    stamps = [end + (17 * k % 41 - 20) * 60 * SECOND * (jitter_m // 20) for k, end in enumerate(weekdays)]
    kpi = msgspec.structs.replace(feed(), expected=(part(normal(expected), since=None, around=ends[0]),))
    of, seven = plan(rfc3339(ends[0]), kpi), plan(rfc3339(ends[0]))

    told = story(of, rows(of, stamps, n=20_000), ends[-1])
    daily = story(seven, rows(seven, [ends[0] + k * DAY for k in range(1, 28)], n=20_000 * 5 // 7), ends[-1])

    assert "stale" not in {code for _, _, code, _ in told}
    assert "suspended" not in {state for *_, state in told}
    first, other = (dt.datetime.fromisoformat(proposed(it) or "") for it in (told, daily))
    assert abs(first - other) <= dt.timedelta(days=1)


# What is awaited ------------------------------------------------------------------------------------------------------

SCHEDULES = [
    schedule_of((part(normal(expected), since=None, around=at("2026-10-01T00:00:00Z")),), 0)
    for expected in (WEEKDAYS, {"cron": "0 6 * * *", "timezone": "Europe/Berlin"}, {"cron": "*/30 8-17 * * 1-5", "timezone": "America/New_York"})
]  # fmt: skip


@given(
    schedule=st.sampled_from([*SCHEDULES, Grid(HOUR), Grid(DAY)]),
    outages=st.lists(st.tuples(st.integers(0, 20 * 24), st.integers(1, 60)), max_size=3),
    hours=st.lists(st.integers(1, 25 * 24 * 60), min_size=2, max_size=2),
)
def test_a_newer_row_is_never_awaited_for_less(
    schedule: Schedule, outages: list[tuple[int, int]], hours: list[int]
) -> None:
    start = at("2026-10-10T00:00:00Z")
    windows = [(start + a * HOUR, start + (a + b) * HOUR) for a, b in outages]
    dues = Dues(schedule, Clock(plan(rfc3339(start))), windows)
    earlier, later = (start + minute * 60 * SECOND for minute in sorted(hours))

    assert earlier + dues.wait(earlier) <= later + dues.wait(later)
    if not schedule.every:
        answered, due = schedule.answered(earlier), earlier + dues.wait(earlier)
        first = next(d for d in schedule.between(answered, due + DAY) if not any(a <= d <= b for a, b in windows))
        assert first <= due <= first + max(0, earlier - answered)


@given(every=st.sampled_from([60, 900, 3_600, 86_400]), minutes=st.integers(0, 10**6))
def test_seconds_are_awaited_from_the_newest_row_as_they_always_were(every: int, minutes: int) -> None:
    dues = Dues(Grid(every * SECOND), Clock(plan("2026-10-10T00:00:00Z")))

    assert dues.wait(minutes * 60 * SECOND) == dues.wait(None) == every * SECOND


def test_evidence_counts_by_the_offsets_it_carries_whatever_zones_say_today() -> None:
    """A plan of another country's clocks, as some zone database may have had them."""
    strange: Part = Part(cron="0 6 * * *", offsets=((0, 3_600), (at("2026-10-20T00:00:00Z"), 9_000)))
    of = plan("2026-10-16T05:00:00Z", msgspec.structs.replace(feed(), expected=(strange,)))
    stamps = [at("2026-10-16T05:00:00Z") + k * DAY for k in range(1, 4)]
    stamps += [at("2026-10-20T03:30:00Z") + k * DAY for k in range(10)]

    result = judged(of, rows(of, stamps), stamps[-1] + HOUR)

    assert {rate for step in result.steps for rate in step.dense.values()} <= {(1, 1)}
    assert offsets("UTC", 2026, 2026) == ((at("2026-01-01T00:00:00Z"), 0),)
