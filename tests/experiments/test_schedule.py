"""When buckets are due: by the clock on somebody's wall, over changes of clocks in both directions, and whoever answers them."""

import datetime as dt
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from experiments.expected import cron_of, faults, in_words, nominal_s, normal, part
from experiments.schedule import DAY, SECOND, Calendar, Dated, Grid, Part, Schedule, offsets, schedule_of

UTC = dt.UTC
MINUTE = 60 * SECOND
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca")
CRONS = (
    "0 6 * * 1-5",
    "30 2 * * *",
    "*/15 * * * *",
    "0 * * * *",
    "0 0 1 * *",
    "59 23 L * *",
    "10 1-3 * * *",
    "0 0 * * 0",
    "45 1,2 * * 7",
)


def us(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(dt.datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * SECOND


def utc(instant: int) -> str:
    return dt.datetime.fromtimestamp(instant // SECOND, UTC).strftime("%d %b %H:%M")


def dues_by_looking(cron: str, zone: str, after: int, upto: int) -> list[int]:
    """The first minute at which the clocks show a time of the cron expression or a later one, found by looking at every minute."""
    there = ZoneInfo(zone)
    minutes = range(after // MINUTE - 2 * 1_440, upto // MINUTE + 1)
    shown = [dt.datetime.fromtimestamp(m * 60, there).replace(tzinfo=None) for m in minutes]
    latest = list(np.maximum.accumulate(np.array(shown, dtype="datetime64[s]")))
    found = set()
    for wall in CronSim(cron, shown[0] - dt.timedelta(minutes=1)):
        at = bisect_left(latest, np.datetime64(wall))
        if at == len(latest):
            break
        found.add(minutes[at] * MINUTE)
    return sorted(due for due in found if after < due <= upto)


@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(ZONES),
    day=st.sampled_from([us(2026, 3, 7), us(2026, 3, 28), us(2026, 4, 4), us(2026, 10, 3), us(2026, 10, 24), us(2026, 10, 31), us(2026, 2, 14)]),
    shift=st.integers(-1_440, 1_440),
)  # fmt: skip
def test_a_calendar_is_due_when_its_clocks_first_show_the_time_or_a_later_one(
    cron: str, zone: str, day: int, shift: int
) -> None:
    after = day + shift * MINUTE
    found = Calendar(cron, offsets(zone, 2025, 2027))
    right = dues_by_looking(cron, zone, after, after + 3 * DAY)

    assert list(found.between(after, after + 3 * DAY)) == right
    assert found.count(after, after + 3 * DAY) == len(right)


def test_a_day_that_a_date_line_takes_away_is_due_when_the_next_begins() -> None:
    """Samoa went from 29 to 31 December 2011."""
    found = Calendar("0 6 * * *", offsets("Pacific/Apia", 2011, 2012))

    assert [utc(due) for due in found.between(us(2011, 12, 28), us(2012, 1, 1))] == [
        "28 Dec 16:00", "29 Dec 16:00", "30 Dec 10:00", "30 Dec 16:00", "31 Dec 16:00",
    ]  # fmt: skip


def test_half_an_hour_is_skipped_and_repeated_at_lord_howe() -> None:
    found = Calendar("15 2 * * *", offsets("Australia/Lord_Howe", 2025, 2027))

    # 5 April: 02:00 becomes 01:30, and 02:15 comes once; 4 October: 02:00 becomes 02:30.
    assert [utc(due) for due in found.between(us(2026, 4, 3), us(2026, 4, 6))] == [
        "03 Apr 15:15",
        "04 Apr 15:45",
        "05 Apr 15:45",
    ]
    assert [utc(due) for due in found.between(us(2026, 10, 2), us(2026, 10, 5))] == [
        "02 Oct 15:45",
        "03 Oct 15:30",
        "04 Oct 15:15",
    ]


@given(
    cron=st.sampled_from(["0 6 * * 1-5", "30 2 * * *", "15 3 1,15 * *"]),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    year=st.integers(2024, 2029),
)
def test_jobs_at_a_time_of_day_are_due_when_cron_itself_would_run_them(cron: str, zone: str, year: int) -> None:
    ours = Calendar(cron, offsets(zone, year - 1, year + 1))
    theirs = CronSim(cron, dt.datetime(year, 1, 1, tzinfo=ZoneInfo(zone)))
    first = us(year, 1, 2)
    runs = [run for run in (int(next(theirs).timestamp()) * SECOND for _ in range(20)) if run > first]

    assert list(ours.between(first, runs[-1])) == sorted(set(runs))


def schedules() -> st.SearchStrategy[Schedule]:
    grids = st.sampled_from([3_600, 86_400, 25_200]).map(lambda s: Grid(s * SECOND))
    calendars = st.builds(
        lambda c, z: Calendar(c, offsets(z, 2025, 2027)), st.sampled_from(CRONS), st.sampled_from(ZONES)
    )
    single = st.one_of(grids, calendars)
    begins = st.lists(st.integers(us(2026, 3, 1) // MINUTE, us(2026, 3, 20) // MINUTE), max_size=3, unique=True)
    dated = st.builds(
        lambda first, since, others: Dated([(0, first), *zip(sorted(m * MINUTE for m in since), others, strict=False)]),
        single, begins, st.lists(single, min_size=3, max_size=3),
    )  # fmt: skip
    return st.one_of(single, dated)


@given(
    found=schedules(),
    ts=st.integers(us(2026, 3, 1), us(2026, 3, 31)),
    later=st.integers(0, 3 * DAY),
    n=st.integers(0, 40),
)
def test_every_question_about_a_schedule_has_the_answer_its_due_instants_give(
    found: Schedule, ts: int, later: int, n: int
) -> None:
    dues: Sequence[int] = list(found.between(ts - 33 * DAY, ts + 35 * DAY))
    at = bisect_right(dues, ts)

    assert sorted(set(dues)) == dues
    assert (found.before(ts), found.after(ts)) == (dues[at - 1], dues[at])
    assert found.count(ts, ts + later) == bisect_right(dues, ts + later) - at
    assert found.answered(ts) == min(dues, key=lambda due: (abs(due - ts), due))
    if at - 1 + n < len(dues):
        assert found.nth(ts, n) == dues[at - 1 + n]


@given(found=schedules(), stamps=st.lists(st.integers(us(2026, 3, 1), us(2026, 3, 31)), min_size=1, max_size=80))
def test_many_rows_answer_what_each_answers(found: Schedule, stamps: list[int]) -> None:
    assert found.answered(np.array(stamps, dtype=np.int64)).tolist() == [found.answered(ts) for ts in stamps]


@given(every_s=st.sampled_from([7, 60, 900, 86_400]), ts=st.integers(0, us(2030, 1, 1)))
def test_seconds_are_counted_from_the_epoch_as_they_always_were(every_s: int, ts: int) -> None:
    every, found = every_s * SECOND, schedule_of((), every_s)

    assert found.answered(ts) == (2 * ts + every - 1) // (2 * every) * every
    assert (found.before(ts), found.after(ts)) == (ts // every * every, (ts // every + 1) * every)


def test_a_new_schedule_is_due_from_its_beginning_on_and_the_old_one_up_to_it() -> None:
    parts = (Part(every_s=3_600), Part(since=us(2026, 3, 2, 12), cron="0 6 * * *", offsets=((0, 0),)))
    found = schedule_of(parts, 3_600)

    assert [utc(due) for due in found.between(us(2026, 3, 2, 10), us(2026, 3, 4, 12))] == [
        "02 Mar 11:00", "02 Mar 12:00", "03 Mar 06:00", "04 Mar 06:00",
    ]  # fmt: skip
    assert utc(found.answered(us(2026, 3, 2, 20))) == "02 Mar 12:00"
    assert utc(found.answered(us(2026, 3, 2, 22))) == "03 Mar 06:00"


# What people write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "cron", "words", "apart_s"),
    [
        ({"every": "hourly", "at": ":05"}, "5 * * * *", "hourly at :05 UTC", 3_600),
        ({"every": "daily", "at": "06:30", "timezone": "Asia/Kathmandu"}, "30 6 * * *", "daily at 06:30 Asia/Kathmandu", 86_400),
        ({"every": "weekdays", "at": "24:00"}, "0 0 * * 2-6", "weekdays at 24:00 UTC", 86_400),
        ({"every": "weekly"}, "0 0 * * 1", "weekly on Monday at 00:00 UTC", 604_800),
        ({"every": "weekly", "on": "Sunday", "at": "24:00"}, "0 0 * * 1", "weekly on Sunday at 24:00 UTC", 604_800),
        ({"every": "monthly", "on": "last", "at": "18:00"}, "0 18 L * *", "monthly on the last day at 18:00 UTC", 2_678_400),
        ({"every": "monthly", "on": 3, "at": "24:00"}, "0 0 4 * *", "monthly on day 3 at 24:00 UTC", 2_678_400),
        ({"cron": "0 6 * * mon-fri"}, "0 6 * * MON-FRI", "by cron 0 6 * * MON-FRI UTC", 86_400),
        ({"every_s": 5_400}, "", "every 90 minutes", 5_400),
    ],
)  # fmt: skip
def test_words_are_a_schedule(expected: dict[str, object], cron: str, words: str, apart_s: int) -> None:
    kept = normal(expected)

    assert not list(faults(expected))
    assert not list(faults(kept))
    assert normal(kept) == kept
    assert (cron_of(kept), in_words(kept), nominal_s(kept)) == (cron, words, apart_s)
    assert part(kept, since=None, around=us(2026, 1, 1)).said == words


@pytest.mark.parametrize(
    ("expected", "field", "code"),
    [
        ({}, "", "missing_field"),
        ({"every_s": 60, "cron": "0 6 * * *"}, "", "two_schedules"),
        ({"every_s": 60, "every": "daily"}, "", "two_schedules"),
        ({"every_s": 0}, "every_s", "invalid_number"),
        ({"every_s": 1.5}, "every_s", "invalid_number"),
        ({"every_s": True}, "every_s", "invalid_number"),
        ({"every_s": 60, "timezone": "UTC"}, "timezone", "unknown_field"),
        ({"cron": "0 6 * * *", "timezone": "Europe/Bonn"}, "timezone", "unknown_timezone"),
        ({"cron": "0 6 * * *", "timezone": "../../etc/passwd"}, "timezone", "unknown_timezone"),
        ({"cron": "0 6 * * *", "timezone": 1}, "timezone", "unknown_timezone"),
        ({"cron": "0 0 30 2 *"}, "cron", "never_due"),
        ({"cron": "0 0 31 4,6 *"}, "cron", "never_due"),
        ({"cron": "0 0 6 * * *"}, "cron", "too_often"),
        ({"cron": "0 6 * *"}, "cron", "invalid_cron"),
        ({"cron": "61 6 * * *"}, "cron", "invalid_cron"),
        ({"cron": "@daily"}, "cron", "invalid_cron"),
        ({"cron": 5}, "cron", "invalid_cron"),
        ({"cron": "0 6 * * *", "at": "06:00"}, "at", "unknown_field"),
        ({"every": "fortnightly"}, "every", "invalid"),
        ({"every": 900}, "every", "invalid"),
        ({"every": "daily", "at": "24:01"}, "at", "invalid"),
        ({"every": "daily", "at": "6"}, "at", "invalid"),
        ({"every": "hourly", "at": "06:10"}, "at", "invalid"),
        ({"every": "daily", "on": "monday"}, "on", "unknown_field"),
        ({"every": "weekly", "on": "someday"}, "on", "invalid"),
        ({"every": "monthly", "on": 31}, "on", "invalid"),
        ({"every": "monthly", "on": 2.0}, "on", "invalid"),
        ({"every": "monthly", "on": 28, "at": "24:00"}, "at", "invalid"),
    ],
)
def test_what_is_no_schedule_is_refused_at_its_field(expected: dict[str, object], field: str, code: str) -> None:
    assert [(fault.pointer, fault.code) for fault in faults(expected)] == [(f"/{field}" if field else "", code)]


def test_leap_days_are_due() -> None:
    assert not list(faults({"cron": "0 0 29 2 *"}))
    found = Calendar("0 0 29 2 *", ((0, 0),))
    assert [utc(found.before(us(2026, 1, 1))), utc(found.after(us(2026, 1, 1)))] == ["29 Feb 00:00", "29 Feb 00:00"]
