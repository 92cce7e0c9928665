"""A schedule found instead of typed: feeds of a known schedule, and what is said of them."""

import datetime as dt
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.expected import Expected, normal, part
from experiments.inference import Finding, explains, fit, infer
from experiments.schedule import DAY, SECOND, Grid, Schedule, schedule_of
from tests.examples import examples

BERLIN, HOUR_S, QUARTER_S = "Europe/Berlin", 3_600, 900
MINUTE = 60 * SECOND


def at(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp()) * SECOND


def holds(expected: Expected, around: int) -> Schedule:
    return schedule_of((part(normal(expected), since=None, around=around),), 0)


def feed(
    expected: Expected, first: str, days: int, *, jitter_s: int = 0, lost: float = 0.0, seed: int = 1
) -> list[int]:
    """Stamps around the due instants of so many days, some of them lost."""
    some, start = random.Random(seed), at(f"{first}T00:00:00Z")
    dues = holds(expected, start).between(start - 1, start + days * DAY)
    return [due + round(some.uniform(-jitter_s, jitter_s)) * SECOND for due in dues if some.random() >= lost]


def daily(at: str, zone: str, **said: Any) -> dict[str, Any]:
    return {"every": "daily", "at": at, "timezone": zone, **said}


def dues_of(expected: Expected | None, first: str) -> list[int]:
    """Due instants over a year, through both changes of clocks; of frequent ones the first."""
    start = at(f"{first}T00:00:00Z")
    return list(islice(holds(expected, start).between(start, start + 366 * DAY), 9_000)) if expected else []


TOLD: dict[str, tuple[Expected, str, int, dict[str, Any]]] = {
    "every hour": ({"every_s": HOUR_S}, "2026-06-16", 14, {}),
    "every 15 minutes, jittered": ({"every_s": QUARTER_S}, "2026-06-16", 14, {"jitter_s": 60}),
    "every minute, with holes": ({"every_s": 60}, "2026-06-16", 2, {"lost": 0.1}),
    "every 10 seconds": ({"every_s": 10}, "2026-06-16", 1, {"lost": 0.05}),
    "every 2 hours": ({"every_s": 7_200}, "2026-06-16", 14, {}),
    "hourly, sparse with holes": ({"every_s": HOUR_S}, "2026-06-16", 14, {"lost": 0.25, "jitter_s": 200}),
    "hourly at half past": ({"every": "hourly", "at": ":30", "timezone": "UTC"}, "2026-06-16", 14, {"jitter_s": 90}),
    "at odd hours": ({"cron": "0 1-23/2 * * *", "timezone": "UTC"}, "2026-06-16", 14, {}),
    "quiet nights": ({"cron": "0 0,7-23 * * *", "timezone": "UTC"}, "2026-06-16", 14, {"lost": 0.05}),
    "twice an hour, unevenly": ({"cron": "0,20 * * * *", "timezone": "UTC"}, "2026-06-16", 14, {"jitter_s": 90}),
    "weekdays at the day's end": ({"every": "weekdays", "at": "24:00", "timezone": "UTC"}, "2026-10-05", 15, {}),
    "Monday, Wednesday, Friday": ({"cron": "0 6 * * 1,3,5", "timezone": "UTC"}, "2026-10-05", 28, {}),
    "weekly": ({"every": "weekly", "on": "friday", "at": "06:00", "timezone": "UTC"}, "2026-06-01", 80, {}),
    "monthly": ({"every": "monthly", "on": 1, "at": "00:00", "timezone": "UTC"}, "2026-01-15", 200, {}),
    "the last day of a month": ({"every": "monthly", "on": "last", "at": "06:00", "timezone": BERLIN}, "2026-01-15", 200, {}),
    "midnight in Berlin as summer time ends": (daily("24:00", BERLIN), "2026-10-16", 14, {}),
    "midnight in Berlin as it begins": (daily("24:00", BERLIN), "2026-03-20", 14, {}),
    "New York in autumn": (daily("02:30", "America/New_York"), "2026-10-25", 14, {}),
    "New York in spring": (daily("06:00", "America/New_York"), "2026-03-01", 14, {"lost": 0.1}),
    "half an hour in Lord Howe": (daily("24:00", "Australia/Lord_Howe"), "2026-09-25", 16, {}),
    "hourly by clocks that change by half an hour": ({"every": "hourly", "at": ":00", "timezone": "Australia/Lord_Howe"}, "2026-09-28", 14, {}),
    "Kathmandu, three quarters off": (daily("24:00", "Asia/Kathmandu"), "2026-09-25", 14, {}),
    "office hours over a change": ({"cron": "*/15 8-17 * * 1-5", "timezone": BERLIN}, "2026-10-19", 14, {"jitter_s": 60}),
    "a late start": ({"every_s": HOUR_S}, "2026-06-28", 2, {}),
}  # fmt: skip


@pytest.mark.parametrize("named", TOLD)
def test_a_feed_tells_its_schedule_and_no_other(named: str) -> None:
    truth, first, days, how = TOLD[named]

    found = infer(feed(truth, first, days, **how), zones=[BERLIN] if truth.get("every") == "monthly" else [])

    assert found.state == "found"
    assert dues_of(found.expected, first) == dues_of(normal(truth), first), found.words
    assert found.fit is not None
    assert found.fit.shared == 0
    assert found.fit.explained == found.fit.rows


@pytest.mark.parametrize("first", ["2026-11-02", "2026-10-19", "2026-03-16"])
@pytest.mark.parametrize("seed", range(4))
def test_a_job_on_weekdays_give_or_take_twenty_minutes(first: str, seed: int) -> None:
    truth = {"every": "weekdays", "at": "06:10", "timezone": BERLIN}
    stamps = feed(truth, first, 14, jitter_s=1_200, seed=seed)

    found = infer(stamps, zones=[BERLIN])

    assert found.expected is not None
    assert found.expected | {"at": "06:10"} == truth
    assert "06:00" <= found.expected["at"] <= "06:20"
    assert found.words == f"weekdays at about {found.expected['at']} Europe/Berlin"
    assert (found.fit or fit(Grid(DAY), stamps, period_s=86_400))[:4] == (10, 0, 10, 0)


def test_a_zone_is_told_by_clocks_that_changed_else_by_the_team_else_assumed() -> None:
    summer, autumn = (feed(daily("24:00", BERLIN), first, 14) for first in ("2026-06-16", "2026-10-16"))

    assert (infer(autumn).told_by, infer(autumn).words) == ("rows", "daily at 00:00 Europe/Berlin")
    assert (infer(summer, zones=[BERLIN]).told_by, infer(summer, zones=[BERLIN]).words) == ("team", "daily at 00:00 Europe/Berlin")  # fmt: skip
    assumed = infer(summer)
    assert (assumed.told_by, assumed.words) == ("assumed", "daily at 22:00 UTC")
    assert daily("00:00", BERLIN) in assumed.others


def test_older_rows_tell_zones_apart_by_a_change_that_lies_further_back() -> None:
    summer = feed(daily("24:00", BERLIN), "2026-06-16", 14)
    spring = feed(daily("24:00", BERLIN), "2026-03-01", 60)

    found = infer(summer, older=spring)

    assert (found.told_by, found.words) == ("rows", "daily at 00:00 Europe/Berlin")


def test_a_planned_outage_is_no_hole() -> None:
    hours = feed({"every_s": HOUR_S}, "2026-06-16", 4)
    gone = (hours[30], hours[59])
    stamps = [ts for ts in hours if not gone[0] <= ts <= gone[1]]

    assert infer(stamps, outages=[gone]).fit == fit(Grid(HOUR_S * SECOND), stamps, period_s=HOUR_S, outages=[gone])
    assert (infer(stamps, outages=[gone]).fit or (0, 9))[1] == 0
    assert (infer(stamps).fit or (0, 0))[1] == 30


def test_two_feeds_in_one_are_no_schedule_unless_their_times_are_one() -> None:
    morning, evening = (feed(daily(at, "UTC"), "2026-06-16", 14) for at in ("06:00", "18:00"))
    assert infer([*morning, *evening]).expected == {"cron": "0 6,18 * * *", "timezone": "UTC"}

    hourly, odd = feed({"every_s": HOUR_S}, "2026-06-16", 14), feed(daily("06:37", "UTC"), "2026-06-16", 14)
    mixed = infer([*hourly, *odd])
    assert mixed.expected == {"every_s": HOUR_S}
    assert (mixed.fit or (0, 0, 0, 0))[3] == len(odd)  # says how many rows it does not explain

    some = random.Random(4)
    other = feed({"every_s": 5_400}, "2026-06-16", 14)
    drifting = [ts + some.randrange(600) * SECOND for ts in other]
    assert infer(sorted({*hourly, *drifting})).state == "irregular"


def test_what_a_day_or_a_week_has_not_shown_is_not_concluded() -> None:
    one_morning = feed({"every_s": QUARTER_S}, "2026-06-16", 1)[32:60]
    assert infer(one_morning).expected == {"every_s": QUARTER_S}
    one_week = feed({"every_s": HOUR_S}, "2026-06-15", 5)  # Monday to Friday, as far as it goes
    assert infer(one_week).expected == {"every_s": HOUR_S}


def test_few_rows_are_too_few() -> None:
    days = feed(daily("06:00", "UTC"), "2026-06-16", 14)
    assert [infer(days[:n]).state for n in (0, 1, 7, 8)] == [*["not_enough_rows"] * 3, "found"]
    months = feed({"every": "monthly", "on": 3, "at": "06:00", "timezone": "UTC"}, "2026-01-01", 150)
    assert [infer(months[:n]).state for n in (3, 4)] == ["not_enough_rows", "found"]


@examples(15)
@given(seed=st.integers(0, 10**6), rows=st.integers(10, 200))
def test_rows_at_random_show_no_schedule(seed: int, rows: int) -> None:
    some, start = random.Random(seed), at("2026-06-16T00:00:00Z")
    stamps = [start + some.randrange(14 * 86_400) * SECOND for _ in range(rows)]

    assert infer(stamps) == Finding("irregular")


@examples(20)
@given(
    every_s=st.sampled_from([60, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200]),
    lost=st.floats(0, 0.2),
    seed=st.integers(0, 10**6),
)
def test_seconds_on_the_grid_are_found_whatever_is_lost(every_s: int, lost: float, seed: int) -> None:
    some, start = random.Random(seed), at("2026-06-16T00:00:00Z")
    stamps = [start + n * every_s * SECOND for n in range(60) if some.random() >= lost]

    assert infer(stamps).expected == {"every_s": every_s}


@examples(15)
@given(
    zone=st.sampled_from([BERLIN, "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC", "Pacific/Apia"]),
    every=st.sampled_from(["daily", "weekdays"]),
    minute=st.integers(0, 1_439),
    day=st.integers(0, 364),
    seed=st.integers(0, 10**6),
)
def test_a_local_time_of_day_is_found_by_the_clocks_the_team_uses(
    zone: str, every: str, minute: int, day: int, seed: int
) -> None:
    truth = normal({"every": every, "at": f"{minute // 60:02}:{minute % 60:02}", "timezone": zone})
    first = str(dt.date(2026, 1, 1) + dt.timedelta(days=day))

    found = infer(feed(truth, first, 21, seed=seed), zones=[zone])

    assert dues_of(found.expected, first)[:28] == dues_of(truth, first)[:28]


def test_what_is_configured_explains_rows_that_come_near_enough_to_it() -> None:
    six = feed(daily("06:00", "UTC"), "2026-11-02", 14, jitter_s=1_200)
    found = infer(six).fit
    assert found is not None

    def given(expected: Expected, stamps: Sequence[int] = six) -> bool:
        period_s = expected.get("every_s", 86_400)
        fitted = fit(holds(expected, stamps[0]), stamps, period_s=period_s)
        return explains(fitted, found, tolerance_s=period_s / 8)

    assert given(daily("06:00", "UTC"))
    assert given(daily("05:30", "UTC"))
    assert not given({"every_s": QUARTER_S})
    assert not given(daily("18:00", "UTC"))
    assert not given({"every": "weekly", "on": "monday", "at": "06:00", "timezone": "UTC"})
