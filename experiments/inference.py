"""The schedule that rows of a feed show, found from their `ts` alone, and how well it explains them. Pure.

Every candidate is a period on the clocks of a zone, less the times of day and the weekdays at which nothing comes. Of those that explain
the rows the one that says them in the fewest bits is taken (Rissanen 1978, minimum description length): what the words cost, which due
instants nothing answered, rows that share one, and how far each row lies from its due instant. Clocks that change tell zones apart; where
none has changed among the rows a zone the team uses is taken before UTC, and the finding says that it is not told by the rows.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.expected import MOST_S, WEEKDAYS, cron_of, in_words, normal
from experiments.schedule import SECOND, Calendar, Grid, Schedule, offsets

type Expected = dict[str, Any]
type State = Literal["found", "not_enough_rows", "irregular"]
type ToldBy = Literal["rows", "team", "assumed"]
"""How a zone is known: clocks changed among the rows, it is one the team uses, or neither."""

LEAST_ROWS, LEAST_SELDOM = 8, 4
"""So many rows are needed; so many of a feed with five days and more between them."""
NEAR, LEAST_NEAR, LEAST_ANSWERED, MOST_SHARED = 5, 0.9, 0.6, 0.15
"""Nine rows of ten lie within a fifth of a period of their due instant (at random two of five would), six due instants of ten are
answered, and hardly any row shares one: less than that is no schedule."""
MOST_OF_CHANCE = 0.8
"""Nor is what takes more of the bits that rows at random instants would take."""
COMMON_ZONES = (
    "Europe/Berlin", "America/New_York", "Europe/London", "America/Los_Angeles", "America/Chicago", "America/Denver", "Europe/Athens",
    "Asia/Kolkata", "Asia/Tokyo", "Asia/Singapore", "Asia/Shanghai", "Asia/Kathmandu", "Australia/Sydney", "Australia/Adelaide",
    "Australia/Lord_Howe", "Pacific/Auckland", "Pacific/Chatham", "America/Sao_Paulo", "America/Halifax", "America/St_Johns",
    "America/Santiago", "America/Havana", "Asia/Jerusalem", "Africa/Cairo",
)  # fmt: skip
"""One at least of each rule by which clocks change today; all others show the same instants at another hour."""
_DAY_S, _HOUR_S = 86_400, 3_600
_PERIODS_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 240, 300, 360, 600, 720, 900, 1_200, 1_800, 3_600, 7_200, 10_800, 14_400, 21_600, 28_800, 43_200, _DAY_S)  # fmt: skip
_RESOLUTION_S = 30
_DAYS_TO_TELL_HOURS, _DAYS_TO_TELL_WEEKDAYS = 3, 8
MOST_OTHERS = 3
_UNUSED_BITS = 8.0
"""What it costs to name a zone that nobody uses: so many bits clocks that changed have to save before they tell of one."""
_CLEARLY = 6.0
"""Bits by which something has to be the better explanation before it is said to be one."""


class Fit(NamedTuple):
    """How a schedule explains rows, from the due instant that the oldest answers to the one that the newest does.

    due: instants expected. missing: those of them that no row answers. rows: with different ts. shared: rows beyond the first that
    answer one instant. explained: rows that are near the due instant they answer, and share it with none. off_s: how far nine of ten rows lie from the
    due instant they answer, at most.
    """

    due: int
    missing: int
    rows: int
    shared: int
    explained: int
    off_s: int


@dataclass(frozen=True)
class Finding:
    """What rows show. expected: as experiments.expected keeps it, None unless `found`. told_by: how its zone is known. others: the same
    instants by other clocks, as far as these rows tell."""

    state: State
    expected: Expected | None = None
    fit: Fit | None = None
    told_by: ToldBy = "rows"
    others: Sequence[Expected] = field(default=())

    @property
    def words(self) -> str:
        return "" if self.expected is None or self.fit is None else about(self.expected, self.fit)


def about(expected: Expected, fit: Fit) -> str:
    """A schedule in words, as exactly as rows tell its time of day.

    >>> about({"every": "weekdays", "at": "06:10", "timezone": "Europe/Berlin"}, Fit(10, 0, 10, 0, 10, off_s=1_080))
    'weekdays at about 06:10 Europe/Berlin'
    """
    words = in_words(expected)
    return words.replace(" at ", " at about ", 1) if fit.off_s > 2 * _RESOLUTION_S else words


def infer(
    stamps: Sequence[int] | NDArray[np.int64],
    *,
    older: Sequence[int] | NDArray[np.int64] = (),
    zones: Sequence[str] = (),
    outages: Sequence[tuple[int, int]] = (),
) -> Finding:
    """The schedule of a feed. stamps: `ts` of its rows, in microseconds. older: those before, which tell zones apart over clock changes
    that lie further back. zones: those the team uses, the likeliest first. outages: (from, to) in which nothing is expected.

    >>> hours = [h * 3_600 * SECOND for h in range(490_000, 490_048)]
    >>> infer(hours).expected, infer(hours).words
    ({'every_s': 3600}, 'every hour')
    """
    seen = np.unique(np.asarray(stamps, dtype=np.int64))
    gaps = np.diff(seen)
    if len(seen) < LEAST_SELDOM or (len(seen) < LEAST_ROWS and np.median(gaps) < 5 * _DAY_S * SECOND):
        return Finding("not_enough_rows")
    tried = [found for found in _candidates(seen, gaps, zones, outages) if found.is_schedule]
    if not tried:
        return Finding("irregular")
    best = min(tried, key=lambda one: one.bits)
    if "timezone" not in best.expected or (best.zone == "UTC" and cron_of(best.expected).endswith(" * * * *")):
        return Finding("found", best.expected, best.fit)
    alike = [one for one in tried if one.bits <= best.bits + _CLEARLY + _UNUSED_BITS and "timezone" in one.expected]
    if len(older):
        alike = _told_apart(alike, np.unique(np.asarray(older, dtype=np.int64)))
    best = min(alike, key=lambda one: one.bits)
    pattern = _changes(best.zone, seen, older)
    used = (*zones, "UTC")
    alike = [
        one
        for one in alike
        if one.zone in (*used, *COMMON_ZONES[:3])
        and one.bits <= best.bits + _CLEARLY + (0 if one.zone in used else _UNUSED_BITS)
    ]
    others = _apart_in_a_year(best, alike, int(seen[-1]))
    if any(pattern) and all(_changes(one.zone, seen, older) == pattern for one in others):
        told_by: ToldBy = "rows"
    else:
        told_by = "team" if best.zone in zones else "assumed"
    return Finding("found", best.expected, best.fit, told_by, [one.expected for one in others[:MOST_OTHERS]])


def fit(
    schedule: Schedule,
    stamps: Sequence[int] | NDArray[np.int64],
    *,
    period_s: int,
    outages: Sequence[tuple[int, int]] = (),
) -> Fit:
    """How a schedule explains rows, of which there is one at least. period_s: how far apart its due instants mostly are.

    >>> fit(Grid(60 * SECOND), [60 * SECOND, 121 * SECOND, 240 * SECOND], period_s=60)
    Fit(due=4, missing=1, rows=3, shared=0, explained=3, off_s=1)
    """
    return _explained(schedule, np.unique(np.asarray(stamps, dtype=np.int64)), outages, period_s)[0]


def is_regular(found: Fit) -> bool:
    """Whether rows follow a schedule at all.

    >>> is_regular(Fit(10, 1, 9, 0, 9, 60)), is_regular(Fit(100, 90, 10, 0, 10, 0))
    (True, False)
    """
    alone = found.explained + found.shared >= LEAST_NEAR * found.rows and found.shared <= MOST_SHARED * found.rows
    return alone and found.due - found.missing >= LEAST_ANSWERED * found.due


def explains(given: Fit, found: Fit, *, tolerance_s: float) -> bool:
    """Whether a schedule that is in use explains rows as well as another: each row comes near enough, nothing else is missing.

    tolerance_s: how far a row may be from its due instant without being late.

    >>> explains(Fit(10, 0, 10, 0, 10, 5), Fit(10, 0, 10, 0, 10, 1), tolerance_s=10)
    True
    """
    return (
        given.shared <= found.shared + found.rows // 50
        and given.missing <= found.missing + found.due // 50
        and given.off_s <= max(tolerance_s, found.off_s + 2 * _RESOLUTION_S)
    )


# Candidates -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    expected: Expected
    zone: str
    """The clocks it was read from; empty where clocks do not matter."""
    fit: Fit
    off: NDArray[np.float64]
    period_s: int
    words: float

    @property
    def is_schedule(self) -> bool:
        return is_regular(self.fit) and self.bits <= MOST_OF_CHANCE * self.chance

    @property
    def chance(self) -> float:
        """Bits that say as many instants anywhere in the same time."""
        due, _, rows, *_ = self.fit
        return rows * math.log2(1 + math.e * due * self.period_s / _RESOLUTION_S / rows)

    @property
    def bits(self) -> float:
        due, missing, _, shared, _, _ = self.fit
        silent = missing / due
        entropy = -sum(p * math.log2(p) for p in (silent, 1 - silent) if p)
        apart = math.log2(2 + self.period_s / _RESOLUTION_S)
        return self.words + due * entropy + shared * (apart + 2) + off_bits(self.off)


def off_bits(off: NDArray[np.float64]) -> float:
    """What it takes to say how far rows lie from their due instants, in seconds: nothing for none."""
    return float(np.log2(1 + 4 * off / _RESOLUTION_S).sum())


def _candidates(
    seen: NDArray[np.int64], gaps: NDArray[np.int64], zones: Sequence[str], outages: Sequence[tuple[int, int]]
) -> Iterator[_Candidate]:
    low, high = (float(q) / SECOND for q in np.quantile(gaps, (0.4, 0.75)))
    if low >= 20 * _DAY_S:
        periods: list[int] = [_DAY_S]
    else:
        periods = [
            p
            for p in _PERIODS_S
            if low / 3.2 <= p <= 1.3 * high or (p == _HOUR_S <= high) or (p == _DAY_S <= 1.3 * high)
        ]
    whole = round(float(np.median(gaps)) / SECOND)
    for every_s in {p for p in periods if p < _DAY_S} | ({whole} if 1 <= whole <= MOST_S else set()):
        cost = 1.0 if every_s in _PERIODS_S else 10.0
        yield _tried({"every_s": every_s}, "", seen, outages, every_s, cost)
    known: set[str] = set()
    for zone, cost in _clocks(seen, zones):
        ahead = _ahead(zone, seen)
        wall, shifts = seen + ahead, bool(np.any((ahead - ahead[0]) % (_HOUR_S * SECOND)))
        for period_s in periods:
            if period_s < 60:
                continue
            for expected, apart_s, words in _shapes(wall // SECOND, period_s, zone, by_clock=shifts or zone == "UTC"):
                key = str(sorted(expected.items()))
                if key not in known:
                    known.add(key)
                    yield _tried(expected, zone, seen, outages, apart_s, words + cost)


def _clocks(seen: NDArray[np.int64], zones: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Zones worth trying, with what naming them costs: of those nobody uses only ones whose clocks changed among the rows as no other's did."""
    used = [zone for zone in dict.fromkeys(zones) if zone != "UTC"]
    changes: set[bytes] = set()
    for position, zone in enumerate([*used, "UTC"]):
        ahead = _ahead(zone, seen)
        changes.add((ahead - ahead[0]).tobytes())
        yield zone, 0.2 * position if zone in used else 1.0
    for position, zone in enumerate(zone for zone in COMMON_ZONES if zone not in used):
        ahead = _ahead(zone, seen)
        if (ahead - ahead[0]).tobytes() not in changes or position < 6:
            yield zone, _UNUSED_BITS + 0.1 * position


def _ahead(zone: str, instants: NDArray[np.int64]) -> NDArray[np.int64]:
    of_zone = _offsets(zone, instants)
    begins = np.array([at for at, _ in of_zone[1:]], dtype=np.int64)
    return np.array([s for _, s in of_zone], dtype=np.int64)[np.searchsorted(begins, instants, side="right")] * SECOND


def _offsets(zone: str, instants: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    years = [(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=int(at))).year for at in (instants[0], instants[-1])]  # noqa: DTZ001 - UTC
    return offsets(zone, years[0] - 1, years[1] + 1)


type _Shape = tuple[Expected, int, float]
"""A schedule, how many seconds its due instants are apart, and what saying it costs."""


def _shapes(wall: NDArray[np.int64], period_s: int, zone: str, *, by_clock: bool) -> Iterator[_Shape]:
    """Schedules of one period on these clocks. wall: whole seconds. by_clock: whether what comes every hour of every day is read from them."""
    phase = _phase(wall, period_s)
    nominal = (wall - phase + period_s // 2) // period_s * period_s + phase
    days, times = nominal // _DAY_S, nominal % _DAY_S // 60
    span = float(wall[-1] - wall[0]) / _DAY_S
    if period_s == _DAY_S and np.diff(np.unique(days)).min(initial=_DAY_S) >= 20:
        yield from _monthly(days, int(times[0]), zone)
        return
    weekdays = _weekdays(days) if span >= _DAYS_TO_TELL_WEEKDAYS else set(range(7))
    step = period_s // 60
    every_time = set(range(phase // 60 % step, 1_440, step))
    told = _often_times(days, times) if span >= _DAYS_TO_TELL_HOURS or period_s == _DAY_S else every_time
    for chosen, on in ((told, weekdays), (told, set(range(7))), (every_time, weekdays)):
        if by_clock or period_s > _HOUR_S or len(on) < 7 or chosen != every_time:
            yield _said(chosen, every_time, on, period_s, zone)


def _phase(wall: NDArray[np.int64], period_s: int) -> int:
    """Where in a period rows lie, in seconds: whole minutes, and as round as their scatter allows."""
    angle = wall % period_s * (2 * math.pi / period_s)
    middle = math.atan2(np.sin(angle).mean(), np.cos(angle).mean()) / (2 * math.pi) * period_s
    off = (wall - middle + period_s / 2) % period_s - period_s / 2
    middle += float(np.median(off))
    spread = float(np.median(np.abs(off - np.median(off))))
    sure = spread / math.sqrt(len(wall))
    for minutes, times in ((60, 1), (30, 1), (15, 1), (10, 2), (5, 3)):
        rounded = round(middle / (60 * minutes)) * 60 * minutes
        if abs(rounded - middle) <= max(30.0, times * sure):
            return rounded % period_s
    return round(middle / 60) * 60 % period_s


def _weekdays(days: NDArray[np.int64]) -> set[int]:
    """Those on most of which something came, from Sunday, 0. days: since 1970."""
    there = np.unique(days)
    came, were = (np.bincount((some + 4) % 7, minlength=7) for some in (there, np.arange(there[0], there[-1] + 1)))
    return {day for day in range(7) if came[day] and 2 * came[day] >= were[day]}


def _often_times(days: NDArray[np.int64], times: NDArray[np.int64]) -> set[int]:
    """Minutes of the day at which something came on most days on which anything did."""
    once = np.unique((days - days[0]) * 1_440 + times)
    came = np.bincount(once % 1_440, minlength=1_440)
    return set(np.flatnonzero(2 * came >= came.max()).tolist())


def _said(times: set[int], every_time: set[int], weekdays: set[int], period_s: int, zone: str) -> _Shape:
    """weekdays: from Sunday, 0."""
    every_day = len(weekdays) == 7
    if len(times) == 1 and (said := _once_a_day(next(iter(times)), weekdays)):
        expected, words = said
    elif times == every_time and every_day and period_s == _HOUR_S:
        expected, words = {"every": "hourly", "at": f":{min(times) % 60:02}"}, 2.0
    else:
        hours, minutes = {time // 60 for time in times}, {time % 60 for time in times}
        on = "*" if every_day else _numbers_text(weekdays, 7)
        expected = {"cron": f"{_minutes_text(minutes)} {_numbers_text(hours, 24)} * * {on}"}
        words = 4.0 + (0 if len(hours) in (1, 24) else 4 + 2 * _stretches(hours))
        words += 0 if minutes == {time % 60 for time in every_time} else 4
        words += 0 if every_day else 2 if weekdays == {1, 2, 3, 4, 5} else 8
    listed = sorted(times)
    apart = min((b - a for a, b in pairwise([*listed, listed[0] + 1_440])), default=1_440)
    return normal({**expected, "timezone": zone}), 60 * apart, words


def _once_a_day(time: int, weekdays: set[int]) -> tuple[Expected, float] | None:
    """What has a word; ends of days are likelier than other times."""
    at, midnight = f"{time // 60:02}:{time % 60:02}", 2.0 if time == 0 else 0.0
    if len(weekdays) == 7:
        return {"every": "daily", "at": at}, 2.0 - midnight
    if weekdays == {1, 2, 3, 4, 5}:
        return {"every": "weekdays", "at": at}, 3.0
    if weekdays == {2, 3, 4, 5, 6} and time == 0:
        return {"every": "weekdays", "at": "24:00"}, 3.0 - midnight
    if len(weekdays) == 1:
        return {"every": "weekly", "on": WEEKDAYS[next(iter(weekdays))], "at": at}, 5.0 - midnight
    return None


def _monthly(days: NDArray[np.int64], time: int, zone: str) -> Iterator[_Shape]:
    """days: since 1970, each with a row."""
    dates = [dt.date(1970, 1, 1) + dt.timedelta(days=int(day)) for day in days]
    every, of_month = (
        {"every": "monthly", "at": f"{time // 60:02}:{time % 60:02}", "timezone": zone},
        [date.day for date in dates],
    )
    often = max(set(of_month), key=of_month.count)
    if often <= 28:
        yield normal({**every, "on": often}), _DAY_S, 6.0
    if 2 * sum((date + dt.timedelta(days=1)).day == 1 for date in dates) >= len(dates):
        yield normal({**every, "on": "last"}), _DAY_S, 6.0


def _minutes_text(minutes: set[int]) -> str:
    listed = sorted(minutes)
    apart = {b - a for a, b in pairwise(listed)}
    if listed[0] == 0 and len(apart) == 1 and 60 % (step := apart.pop()) == 0 and len(listed) == 60 // step:
        return "*" if step == 1 else f"*/{step}"
    return _numbers_text(minutes, 60)


def _numbers_text(numbers: set[int], of: int) -> str:
    """
    >>> _numbers_text({0, 7, 8, 9, 23}, 24), _numbers_text(set(range(7)), 7)
    ('0,7-9,23', '*')
    """
    if len(numbers) == of:
        return "*"
    listed, texts = sorted(numbers), []
    while listed:
        upto = next(i for i in range(len(listed)) if i + 1 == len(listed) or listed[i + 1] != listed[i] + 1)
        texts.append(f"{listed[0]}-{listed[upto]}" if upto > 1 else ",".join(map(str, listed[: upto + 1])))
        listed = listed[upto + 1 :]
    return ",".join(texts)


def _stretches(hours: set[int]) -> int:
    return sum((hour + 1) % 24 not in hours for hour in hours)


def _tried(
    expected: Expected,
    zone: str,
    seen: NDArray[np.int64],
    outages: Sequence[tuple[int, int]],
    period_s: int,
    words: float,
) -> _Candidate:
    every_s = expected.get("every_s")
    holds: Schedule = (
        Grid(every_s * SECOND) if every_s else Calendar(cron_of(expected), _offsets(expected["timezone"], seen))
    )
    fitted, off = _explained(holds, seen, outages, period_s)
    return _Candidate(expected, zone, fitted, off, period_s, words)


def _explained(
    schedule: Schedule, seen: NDArray[np.int64], outages: Sequence[tuple[int, int]], period_s: int
) -> tuple[Fit, NDArray[np.float64]]:
    """The fit, and how many seconds each row lies from the due instant it answers."""
    dues = schedule.answered(seen)
    answered = np.unique(dues)
    first, last = int(answered[0]), int(answered[-1])
    expected = schedule.count(first - 1, last)
    for begins, ends in outages:
        inside = schedule.count(max(begins, first) - 1, min(ends, last)) if begins <= last and ends >= first else 0
        expected -= inside - int(((answered >= begins) & (answered <= ends)).sum())
    off = np.abs(seen - dues) / SECOND
    shared = len(seen) - len(answered)
    explained = max(0, int((NEAR * off <= period_s).sum()) - shared)
    fitted = Fit(
        expected, expected - len(answered), len(seen), shared, explained, math.ceil(float(np.quantile(off, 0.9)))
    )
    return fitted, off


def _told_apart(alike: Sequence[_Candidate], older: NDArray[np.int64]) -> list[_Candidate]:
    """With what it takes to say by their clocks how far older rows were from their due instants."""
    told = []
    for one in alike:
        holds = Calendar(cron_of(one.expected), _offsets(one.expected["timezone"], older))
        told.append(replace(one, words=one.words + off_bits(_explained(holds, older, (), one.period_s)[1])))
    return told


def _changes(zone: str, *stamps: Sequence[int] | NDArray[np.int64]) -> bytes:
    """By how much the zone's clocks changed among rows; zeros for not at all."""
    seen = np.unique(np.concatenate([np.asarray(some, dtype=np.int64) for some in stamps]))
    ahead = _ahead(zone, seen)
    return bytes((ahead - ahead[0]).tobytes())


def _apart_in_a_year(best: _Candidate, others: Sequence[_Candidate], now: int) -> list[_Candidate]:
    """Of others, the likeliest first, those whose due instants within a year are no earlier one's and not the best's."""

    def dues(one: _Candidate) -> bytes:
        until = now + 366 * _DAY_S * SECOND
        of_zone = _offsets(one.expected["timezone"], np.array([now, until]))
        return bytes(Calendar(cron_of(one.expected), of_zone).instants(now, until).tobytes())

    known, found = {dues(best)}, []
    for one in sorted(others, key=lambda one: one.bits):
        if (its := dues(one)) not in known:
            known.add(its)
            found.append(one)
    return found
