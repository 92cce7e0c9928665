"""When the buckets of a feed are due, and which of them a row answers. Pure: no clock, no database, no framework.

Instants are whole microseconds since 1970-01-01T00:00:00Z, as the engine counts them. A calendar keeps the offsets of its zone beside it:
the same due instants follow from it whatever zone database the machine has.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar, overload
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from cronsim import CronSim
from numpy.typing import NDArray

SECOND = 1_000_000
DAY = 86_400 * SECOND
Instants = TypeVar("Instants", int, NDArray[np.int64])
type Offsets = tuple[tuple[int, int], ...]
"""(from which instant on, how many seconds a zone's clocks are ahead of UTC), in order; the first holds before it too."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FIRST_YEAR, _LAST_YEAR = 1971, 2200
"""Between these every instant of a row lies, and whoever asks beyond them has no calendar to ask."""


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a feed is due from `since` on; None: from the beginning.

    Every `every_s` seconds, counted from the epoch; or at the wall times of `cron` on clocks with these offsets. said: the same in words.
    """

    since: int | None = None
    every_s: int = 0
    cron: str = ""
    offsets: Offsets = ()
    said: str = ""


class Schedule(ABC):
    """The due instants of a feed, from the beginning to the end of time. `every`: how far apart they are where they always are, else 0."""

    every: int = 0

    @abstractmethod
    def before(self, instant: int) -> int:
        """The newest due instant at or before an instant."""

    @abstractmethod
    def after(self, instant: int) -> int:
        """The first due instant after an instant."""

    @abstractmethod
    def count(self, after: int, upto: int) -> int:
        """How many due instants lie in (after, upto]."""

    @overload
    def answered(self, ts: int) -> int: ...
    @overload
    def answered(self, ts: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def answered(self, ts: Any) -> Any:
        """The due instant that a row of `ts` answers: the nearest, of two the earlier. Numbers or arrays of them."""
        if isinstance(ts, np.ndarray):
            return np.fromiter((self.answered(one) for one in ts.tolist()), np.int64, len(ts))
        behind, ahead = self.before(ts), self.after(ts)
        return behind if 2 * ts <= behind + ahead else ahead

    def nth(self, after: int, n: int) -> int:
        """The n-th due instant after an instant; the newest at or before it for 0."""
        due = self.before(after)
        for _ in range(n):
            due = self.after(due)
        return due

    def between(self, after: int, upto: int) -> Iterator[int]:
        """The due instants in (after, upto], in order.

        >>> list(Grid(10).between(10, 40))
        [20, 30, 40]
        """
        due = self.after(after)
        while due <= upto:
            yield due
            due = self.after(due)


class Grid(Schedule):
    """A bucket ends every `every` microseconds, counted from the epoch.

    >>> minutes = Grid(60_000_000)
    >>> [minutes.answered(s * 1_000_000) // 1_000_000 for s in (60, 90, 91, 119, 31)]
    [60, 60, 120, 120, 60]
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def before(self, instant: int) -> int:
        return instant // self.every * self.every

    def after(self, instant: int) -> int:
        return (instant // self.every + 1) * self.every

    def answered(self, ts: Any) -> Any:
        return (2 * ts + self.every - 1) // (2 * self.every) * self.every

    def count(self, after: int, upto: int) -> int:
        return max(0, upto // self.every - after // self.every)

    def nth(self, after: int, n: int) -> int:
        """
        >>> Grid(10).nth(7, 1), Grid(10).nth(10, 2)
        (10, 30)
        """
        return (after // self.every + n) * self.every


class Calendar(Schedule):
    """A bucket ends at each wall time of a cron expression of five fields, on clocks with these offsets.

    A wall time that clocks skip is due at the first instant after the gap, one that they show twice once, at its first.

    >>> berlin = Calendar("30 2 * * *", offsets("Europe/Berlin", 2026, 2026))
    >>> def utc(us): return str(dt.datetime.fromtimestamp(us // SECOND, dt.UTC))[:16]
    >>> [utc(due) for due in berlin.between(_us(2026, 3, 28), _us(2026, 3, 30))]
    ['2026-03-28 01:30', '2026-03-29 01:00']
    >>> [utc(due) for due in berlin.between(_us(2026, 10, 25), _us(2026, 10, 27))]
    ['2026-10-25 00:30', '2026-10-26 01:30']
    """

    def __init__(self, cron: str, of_zone: Offsets) -> None:
        self._days = CronSim(cron, dt.datetime(_FIRST_YEAR, 1, 1))  # noqa: DTZ001 - a wall time
        minutes = sorted(60 * hour + minute for hour in self._days.hours for minute in self._days.minutes)
        self._minutes = np.array(minutes, dtype=np.int64)
        self._begins = np.array([at for at, _ in of_zone] or [0], dtype=np.int64)
        self._ahead = np.array([s * SECOND for _, s in of_zone] or [0], dtype=np.int64)
        self._known: tuple[int, int, NDArray[np.int64]] = (0, 0, np.array([], dtype=np.int64))
        """(first year, year after the last, their due instants): one value, so that threads may look things up at once."""

    def before(self, instant: int) -> int:
        dues = self._around(instant)
        return int(dues[np.searchsorted(dues, instant, side="right") - 1])

    def after(self, instant: int) -> int:
        dues = self._around(instant)
        return int(dues[np.searchsorted(dues, instant, side="right")])

    def answered(self, ts: Any) -> Any:
        if not isinstance(ts, np.ndarray) or not len(ts):
            return super().answered(ts)
        dues = self._around(int(ts.min()), int(ts.max()))
        ahead = np.searchsorted(dues, ts, side="right")
        return np.where(2 * ts <= dues[ahead - 1] + dues[ahead], dues[ahead - 1], dues[ahead])

    def count(self, after: int, upto: int) -> int:
        return len(self.instants(after, upto))

    def instants(self, after: int, upto: int) -> NDArray[np.int64]:
        """The due instants in (after, upto], at once."""
        dues = self._around(after, max(after, upto))
        first, last = np.searchsorted(dues, (after, upto), side="right")
        return dues[first:last]

    def nth(self, after: int, n: int) -> int:
        dues, reached = self._around(after), after
        while (at := int(np.searchsorted(dues, after, side="right")) - 1 + n) >= len(dues):
            reached = int(dues[-1])
            dues = self._around(after, reached)
        return int(dues[at])

    def _around(self, first: int, last: int | None = None) -> NDArray[np.int64]:
        """The due instants found so far, more of them where it takes them: at least one at or before, and one after these instants."""
        last = first if last is None else last
        begins, ends, dues = self._known
        if not len(dues):
            begins = ends = min(max(_year(first), _FIRST_YEAR), _LAST_YEAR)
        while not len(dues) or dues[-1] <= last:
            dues, ends = _each_once(dues, self._of_year(ends)), ends + 1
        while dues[0] > first:
            dues, begins = _each_once(self._of_year(begins - 1), dues), begins - 1
        self._known = begins, ends, dues
        return dues

    def _of_year(self, year: int) -> NDArray[np.int64]:
        """Those whose wall time lies in a year."""
        if not _FIRST_YEAR <= year <= _LAST_YEAR:
            raise OverflowError(f"No due instant is counted in {year}.")
        first = dt.date(year, 1, 1)
        days = (first + dt.timedelta(days=n) for n in range((dt.date(year + 1, 1, 1) - first).days))
        midnights = np.array([(day - _EPOCH.date()).days * 1_440 for day in days if self._is_due(day)], dtype=np.int64)
        walls = (midnights[:, None] + self._minutes[None, :]).ravel() * (60 * SECOND)
        # The first stretch of constant offset that has not ended by then on its own clock has that wall time, or begins after it.
        stretch = np.searchsorted(self._begins[1:] + self._ahead[:-1], walls, side="right")
        shown = walls - self._ahead[stretch]
        return np.where(stretch == 0, shown, np.maximum(shown, self._begins[stretch]))

    def _is_due(self, day: dt.date) -> bool:
        return day.month in self._days.months and self._days.match_day(day)


def _each_once(*rising: NDArray[np.int64]) -> NDArray[np.int64]:
    """Instants that never fall, each once: several wall times in one gap of the clocks are due at its end."""
    together = np.concatenate(rising)
    return together[np.concatenate(([True], together[1:] != together[:-1]))] if len(together) else together


class Dated(Schedule):
    """One schedule after the other, each from an instant on: of each the due instants after its own beginning, up to that of the next.

    >>> hourly_then_daily = Dated(((0, Grid(10)), (35, Grid(100))))
    >>> list(hourly_then_daily.between(10, 200)), hourly_then_daily.before(99), hourly_then_daily.count(10, 200)
    ([20, 30, 100, 200], 30, 4)
    """

    def __init__(self, parts: Sequence[tuple[int, Schedule]]) -> None:
        self._schedules = [schedule for _, schedule in parts]
        self._begins = [since for since, _ in parts][1:]

    def before(self, instant: int) -> int:
        at = bisect_right(self._begins, instant - 1)
        due = self._schedules[at].before(instant)
        while at and due <= self._begins[at - 1]:
            at -= 1
            due = self._schedules[at].before(self._begins[at])
        return due

    def after(self, instant: int) -> int:
        at = bisect_right(self._begins, instant)
        due = self._schedules[at].after(instant)
        while at < len(self._begins) and due > self._begins[at]:
            due = self._schedules[at + 1].after(self._begins[at])
            at += 1
        return due

    def count(self, after: int, upto: int) -> int:
        found = 0
        for at, schedule in enumerate(self._schedules):
            first = after if at == 0 else max(after, self._begins[at - 1])
            last = upto if at == len(self._begins) else min(upto, self._begins[at])
            found += schedule.count(first, last) if last > first else 0
        return found


def schedule_of(parts: Sequence[Part], every_s: int) -> Schedule:
    """What these parts say, in order of their beginning; without any, every `every_s` seconds from the epoch.

    >>> schedule_of((), 60).every == 60 * SECOND
    True
    """
    if not parts:
        return Grid(every_s * SECOND)
    schedules = [(part.since or 0, _one(part.every_s, part.cron, part.offsets)) for part in parts]
    return schedules[0][1] if len(schedules) == 1 else Dated(schedules)


@lru_cache(maxsize=512)
def _one(every_s: int, cron: str, of_zone: Offsets) -> Schedule:
    return Calendar(cron, of_zone) if cron else Grid(every_s * SECOND)


@lru_cache(maxsize=512)
def offsets(zone: str, first_year: int, last_year: int) -> Offsets:
    """What a zone's clocks show from the beginning of one year to the end of another; before and after that as at the ends.

    Raises ZoneInfoNotFoundError.

    >>> [(str(dt.datetime.fromtimestamp(at // SECOND, dt.UTC)), s) for at, s in offsets("Europe/Berlin", 2026, 2026)][1:]
    [('2026-03-29 01:00:00+00:00', 7200), ('2026-10-25 01:00:00+00:00', 3600)]
    """
    there = ZoneInfo(zone)

    def ahead(second: int) -> int:
        return int((_EPOCH + dt.timedelta(seconds=second)).astimezone(there).utcoffset().total_seconds())  # type: ignore[union-attr]

    begins, ends = (_us(year, 1, 1) // SECOND for year in (first_year, last_year + 1))
    found, known = [(begins * SECOND, ahead(begins))], begins
    for day in range(begins + 86_400, ends + 1, 86_400):
        now = ahead(day)
        if now != found[-1][1]:
            low, high = known, day
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if ahead(middle) == found[-1][1] else (low, middle)
            found.append((high * SECOND, now))
        known = day
    return tuple(found)


def _us(year: int, month: int, day: int) -> int:
    return (dt.datetime(year, month, day, tzinfo=dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)


def _year(instant: int) -> int:
    return (_EPOCH + dt.timedelta(seconds=min(max(instant // SECOND, 0), 86_400 * 366 * 240))).year
