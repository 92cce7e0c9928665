"""How a metric says when its buckets end: in seconds, by cron, or in words; what of it is refused, and how it is said. Pure.

    {"every_s": 3600}
    {"cron": "0 6 * * 1-5", "timezone": "Europe/Berlin"}
    {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}

`every` is one of WORDS. `at` is the wall time at which a bucket ends, 24:00 the end of the day; of `hourly` the minute, as ":10". `on` is
the weekday of `weekly` and the day of `monthly`, 1 to 28 or "last". Without a timezone clocks show UTC.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError

from decisioning.refusals import Fault
from experiments.schedule import Part, offsets

WORDS = ("hourly", "daily", "weekdays", "weekly", "monthly")
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MOST_S = 366 * 86_400
_KEYS = {"every_s": {"every_s"}, "cron": {"cron", "timezone"}, "every": {"every", "at", "on", "timezone"}}
_YEARS_LOOKED_AT = 28
"""After so many years weekdays fall on the same dates again."""
_YEARS_BEFORE, _YEARS_AFTER = 1, 10
"""For how long around its beginning a plan carries the offsets of a zone."""

type Expected = Mapping[str, Any]
"""(field, code, message): what is wrong with a field, and what to write in its place."""


def faults(expected: Expected) -> Iterator[Fault]:
    """Everything that is wrong with what somebody wrote.

    >>> [[fault.code for fault in faults(said)] for said in ({"cron": "0 0 30 2 *"}, {"every": "daily", "timezone": "Mars"})]
    [['never_due'], ['unknown_timezone']]
    """
    said = [key for key in _KEYS if expected.get(key) is not None]
    if len(said) != 1:
        yield Fault(
            "",
            "two_schedules" if said else "missing_field",
            f"expected says {' and '.join(said) or 'nothing'}: give one of every_s, cron, or every with a word.",
        )
        return
    for key in sorted(expected.keys() - _KEYS[said[0]]):
        if expected[key] is not None:
            yield Fault(f"/{key}", "unknown_field", f"{key} says nothing beside {said[0]}. Leave it out.")
    if said[0] == "every_s":
        every_s = expected["every_s"]
        if isinstance(every_s, bool) or not isinstance(every_s, int) or not 1 <= every_s <= MOST_S:
            yield Fault(
                "/every_s", "invalid_number", f"every_s is {_json(every_s)}, must be 1 to {MOST_S} whole seconds."
            )
        return
    zone = expected.get("timezone")
    if zone is not None and (not isinstance(zone, str) or zone not in available_timezones()):
        yield Fault(
            "/timezone", "unknown_timezone", f"{_json(zone)} is no time zone. Use a name such as Europe/Berlin or UTC."
        )
    yield from _cron_faults(expected["cron"]) if said[0] == "cron" else _word_faults(expected)


def _cron_faults(cron: object) -> Iterator[Fault]:
    if not isinstance(cron, str):
        yield Fault("/cron", "invalid_cron", f"cron is {_json(cron)}, must be text such as 0 6 * * 1-5.")
        return
    fields = len(cron.split())
    if fields == 6:
        yield Fault(
            "/cron",
            "too_often",
            f"{cron!r} has six fields, the first for seconds. A bucket is a minute at least: give five, minute first.",
        )
    elif fields != 5 or len(cron) > 200:
        yield Fault(
            "/cron",
            "invalid_cron",
            f"{cron[:60]!r} has {fields} fields, must have five: minute hour day month weekday.",
        )
    else:
        try:
            found = CronSim(cron, dt.datetime(2000, 1, 1))  # noqa: DTZ001 - a wall time
        except CronSimError as error:
            if str(error) == "Bad day-of-month" and _is_cron(" ".join((*cron.split()[:2], "1", *cron.split()[3:]))):
                yield Fault("/cron", "never_due", f"{cron!r} is never due: {error}. Name a day that its months have.")
            else:
                yield Fault(
                    "/cron", "invalid_cron", f"{cron!r} cannot be read: {error}. Correct it, such as 0 6 * * 1-5."
                )
        else:
            days = (dt.date(2000, 1, 1) + dt.timedelta(days=n) for n in range(_YEARS_LOOKED_AT * 366))
            if not any(day.month in found.months and found.match_day(day) for day in days):
                yield Fault(
                    "/cron",
                    "never_due",
                    f"{cron!r} is never due: no day is all of what it asks. Name days that there are.",
                )


def _is_cron(text: str) -> bool:
    try:
        CronSim(text, dt.datetime(2000, 1, 1))  # noqa: DTZ001 - a wall time
    except CronSimError:
        return False
    return True


def _word_faults(expected: Expected) -> Iterator[Fault]:
    every, at, on = expected["every"], expected.get("at"), expected.get("on")
    if every not in WORDS:
        yield Fault(
            "/every", "invalid", f"every is {_json(every)}, must be one of {', '.join(WORDS)}; or give every_s."
        )
        return
    if at is not None and _minute_of_day(every, at) is None:
        how = "the minute, as :10" if every == "hourly" else "a time of day, as 06:00, up to 24:00"
        yield Fault("/at", "invalid", f"at is {_json(at)}, must be {how}.")
    if every == "weekly" and on is not None and str(on).lower() not in WEEKDAYS:
        yield Fault("/on", "invalid", f"on is {_json(on)}, must be a weekday: {', '.join(WEEKDAYS)}.")
    elif every == "monthly" and on is not None and on != "last" and (type(on) is not int or not 1 <= on <= 28):
        yield Fault("/on", "invalid", f'on is {_json(on)}, must be a day from 1 to 28, or "last".')
    elif every == "monthly" and on == 28 and at == "24:00":
        yield Fault("/at", "invalid", "The 28th at 24:00 is another date every four years. Use 23:59, or on: last.")
    elif every not in ("weekly", "monthly") and on is not None:
        yield Fault("/on", "unknown_field", f"on says nothing beside {every}. Leave it out.")


def _minute_of_day(every: str, at: object) -> int | None:
    """
    >>> _minute_of_day("daily", "24:00"), _minute_of_day("hourly", ":10"), _minute_of_day("daily", "24:01")
    (1440, 10, None)
    """
    found = re.fullmatch(r":([0-5]\d)" if every == "hourly" else r"(\d\d):([0-5]\d)", at if isinstance(at, str) else "")
    if not found:
        return None
    minute = int(found[1]) if every == "hourly" else 60 * int(found[1]) + int(found[2])
    return minute if minute <= 1_440 else None


def normal(expected: Expected) -> dict[str, Any]:
    """What is kept of what somebody wrote, faults apart: only what was said, a zone with it wherever clocks are read.

    >>> normal({"every": "weekdays", "at": "06:00", "every_s": None})
    {'every': 'weekdays', 'at': '06:00', 'timezone': 'UTC'}
    """
    said = {key: value for key, value in expected.items() if value is not None}
    if "every_s" in said:
        return said
    if "cron" in said:
        said["cron"] = " ".join(said["cron"].upper().split())
    elif said["every"] in ("weekly", "monthly"):
        said.setdefault("on", "monday" if said["every"] == "weekly" else 1)
        said["on"] = said["on"].lower() if isinstance(said["on"], str) else said["on"]
    if "every" in said:
        said.setdefault("at", ":00" if said["every"] == "hourly" else "00:00")
    said.setdefault("timezone", "UTC")
    return said


def cron_of(expected: Expected) -> str:
    """The cron expression of what is kept; empty where it says seconds.

    >>> cron_of({"every": "weekdays", "at": "24:00"}), cron_of({"every": "monthly", "on": "last", "at": "24:00"})
    ('0 0 * * 2-6', '0 0 1 * *')
    >>> cron_of({"every": "weekly", "on": "saturday", "at": "24:00"}), cron_of({"every": "hourly", "at": ":10"})
    ('0 0 * * 0', '10 * * * *')
    """
    if "every" not in expected:
        return str(expected.get("cron", ""))
    every, on = expected["every"], expected.get("on")
    if every == "hourly":
        return f"{_minute_of_day(every, expected['at'])} * * * *"
    past, minute = divmod(_minute_of_day(every, expected["at"]) or 0, 1_440)
    day, weekday = "*", "*"
    if every == "weekdays":
        weekday = f"{1 + past}-{5 + past}"
    elif every == "weekly":
        weekday = str((WEEKDAYS.index(str(on)) + past) % 7)
    elif every == "monthly":
        day = ("1" if past else "L") if on == "last" else str(int(str(on)) + past)
    return f"{minute % 60} {minute // 60} {day} * {weekday}"


def part(expected: Expected, *, since: int | None, around: int) -> Part:
    """What is kept as the engine reads it. around: the instant whose years a zone's offsets are told of.

    >>> part({"every_s": 60}, since=None, around=0)
    Part(since=None, every_s=60, cron='', offsets=(), said='every minute')
    """
    if "every_s" in expected:
        return Part(since, every_s=expected["every_s"], said=in_words(expected))
    year = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=max(around, 0))).year
    of_zone = offsets(expected["timezone"], year - _YEARS_BEFORE, year + _YEARS_AFTER)
    return Part(since, cron=cron_of(expected), offsets=of_zone, said=in_words(expected))


@lru_cache(maxsize=256)
def _apart_s(cron: str) -> int:
    found = CronSim(cron, dt.datetime(2001, 1, 1))  # noqa: DTZ001 - a wall time
    walls = []
    for wall in found:
        walls.append(wall)
        if len(walls) > 60:
            break
    apart = sorted((b - a).total_seconds() for a, b in pairwise(walls))
    return int(apart[len(apart) // 2]) if apart else MOST_S


def nominal_s(expected: Expected) -> int:
    """How far apart its due instants mostly are, in seconds.

    >>> nominal_s({"every_s": 900}), nominal_s({"cron": "0 6 * * 1-5"}), nominal_s({"every": "monthly", "on": 1, "at": "00:00"})
    (900, 86400, 2678400)
    """
    return expected["every_s"] if "every_s" in expected else min(_apart_s(cron_of(expected)), MOST_S)


def in_words(expected: Expected) -> str:
    """As people read it.

    >>> in_words({"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}), in_words({"every_s": 3600})
    ('weekdays at 06:00 Europe/Berlin', 'every hour')
    >>> in_words({"cron": "0 6 * * 1-5", "timezone": "UTC"}), in_words({"every": "weekly", "on": "friday", "at": "24:00", "timezone": "UTC"})
    ('by cron 0 6 * * 1-5 UTC', 'weekly on Friday at 24:00 UTC')
    """
    if "every_s" in expected:
        return f"every {_span(expected['every_s'])}"
    zone = expected["timezone"]
    if "cron" in expected:
        return f"by cron {expected['cron']} {zone}"
    every, at, on = expected["every"], expected["at"], expected.get("on")
    if every == "hourly":
        return f"hourly at {at} {zone}"
    day = (
        ""
        if on is None
        else f" on {on.capitalize()}"
        if every == "weekly"
        else " on the last day"
        if on == "last"
        else f" on day {on}"
    )
    return f"{every}{day} at {at} {zone}"


def _span(seconds: int) -> str:
    for width, one in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds % width == 0:
            return one if seconds == width else f"{seconds // width} {one}s"
    return f"{seconds} seconds"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
