"""The rows of one series, read forward: which are news, what they sum up to, how far they were read. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple, TypeGuard

import msgspec
import numpy as np

from gates.engine.compiled import SeriesSpec
from gates.engine.facts import Sums, Unreadable
from gates.engine.policy import Gate
from gates.engine.series import Series
from gates.engine.statistics.moments import (
    NO_PAIRS,
    NOTHING,
    Moments,
    PairMoments,
    chain,
    chain_pairs,
    merge,
    merge_pairs,
    of_mean,
    of_proportion,
    of_ratio,
)

NEVER = -1
"""An instant before every row."""
MANY = 64
"""From this many rows on arrays are faster than loops."""
CORRECTED = 1_000
"""A cumulative n that falls by at most one in so many is a correction; users who ask to be forgotten are no restatement."""
EXACT = 2**53
"""Up to this integers are exact as floats."""


class SeriesProgress(msgspec.Struct, array_like=True):
    """How far one series is read. Rows up to `base` are never needed again; the rest of the fields sum them up.

    row_before: what the newest of them says, of a cumulative series. place_before: its place, NEVER without one. news_before, news_place_before: ts
    and place of the newest that was news. units_before: their units, -1: one does not say. through: ts of the newest row merged
    into `sums`. filled: how many of the due instants expected are settled, filled_to the last of them; gaps: which of them nothing
    answered, counted from 0.
    """

    base: int
    row_before: tuple[float | int | None, ...] | None = None
    place_before: int = -1
    units_before: int = 0
    news_before: int | None = None
    news_place_before: int | None = None
    through: int = 0
    sums: Sums | None = None
    n_through: int | None = None
    unreadable: Unreadable | None = None
    arrived: int = 0
    watermark: int | None = None
    received_at: int | None = None
    status: int = 2
    filled: int = 0
    filled_to: int = 0
    gaps: list[int] = []
    dense: bool = False


type Seen = tuple[Sequence[int], Sequence[int]]
"""(ts, first arrival) of what keeps a series fresh, in order, each ts once."""


type Taken = tuple[int, Moments | PairMoments]
"""(place, bucket) of a row."""


class SeriesReader:
    """The unread rows of one series within a range of slots, and which of them are news. seen: what keeps it fresh, if not its news alone."""

    def __init__(
        self, spec: SeriesSpec, series: Series, progress: SeriesProgress, to: int, seen: Seen | None = None
    ) -> None:
        self.spec, self.kpi, self.series, self.progress = spec, spec.kpi, series, progress
        ts, n, received = series.ts, series.n, series.first_received_at
        self.first, self.end = first, end = bisect_right(ts, progress.base), bisect_right(ts, to)
        if first or end < len(ts):
            ts, n, received = ts[first:end], n[first:end], received[first:end]
        self.ts, self.n, self.received = ts, n, received
        self.cumulative = spec.cumulative
        self.places: Sequence[int] = ts
        every = spec.every
        self.is_long = len(ts) >= MANY
        if not every:
            self.places = self._places() if ts else ts
        elif self.is_long:
            if (self.ts_array % every).any() or progress.place_before >= ts[0]:
                self.places = self._places()
        elif ts:
            behind = progress.place_before
            for at in ts:
                if (
                    at % every or behind >= at
                ):  # else every row bears the instant it answers, so that its ts is its place
                    self.places = self._places()
                    break
        self.news: Sequence[int] = range(len(ts))
        self.news_ts, self.news_places, self.news_receipts = ts, self.places, received
        if self.cumulative or 0 in n:
            news = self._news()
            if len(news) < len(ts):
                self.news, self.news_ts, self.news_receipts = news, [ts[i] for i in news], [received[i] for i in news]
                self.news_places = [self.places[i] for i in news] if self.places is not ts else self.news_ts
        self.seen_ts, self.seen_receipts = self.news_ts, self.news_receipts
        if seen is not None:
            first, end = bisect_right(seen[0], progress.base), bisect_right(seen[0], to)
            self.seen_ts, self.seen_receipts = seen[0][first:end], seen[1][first:end]
        self.position = bisect_right(ts, progress.through)
        self.steady: tuple[list[int], int, int] | None = None
        self._units: list[int | None] | None = None

    def _places(self) -> list[int]:
        """Where rows stand beside those of other arms, which may be stamped otherwise: the due instant each answers, and how many rows
        of this series answered it before. Strictly rising, like ts."""
        schedule, before = self.spec.schedule, self.progress.place_before
        due, rank = NEVER, 0
        if before > NEVER:
            due = schedule.answered(before)
            rank = before - due
        places = []
        many: Iterable[int] = map(schedule.answered, self.ts)
        if self.is_long:
            many = schedule.answered(self.ts_array).tolist()
        for answered in many:
            rank = rank + 1 if answered == due else 0
            due = answered
            places.append(due + rank)
        return places

    def _news(self) -> list[int]:
        """Positions of rows that say something new: not n = 0, nor a cumulative row that repeats the one before it."""
        if not self.cumulative:
            return [i for i, n in enumerate(self.n) if n != 0]
        news = []
        before = self.progress.row_before
        for i, row in enumerate(zip(*self._columns(slice(self.first, self.end)), strict=True)):
            if row[0] != 0 and (row[0] is None or row != before):
                news.append(i)
            before = row
        return news

    def _columns(self, rows: slice) -> list[Sequence[float | int | None]]:
        """The columns of what rows say, n first; one that the series does not have says nothing."""
        s = self.series
        columns = (s.n, s.value, s.variance, s.denominator_value, s.denominator_variance, s.covariance)
        nothing = [None] * len(s.ts)
        return [(column or nothing)[rows] for column in columns]

    def row(self, i: int) -> tuple[float | int | None, ...]:
        """What unread row i says."""
        return tuple([column[0] for column in self._columns(slice(self.first + i, self.first + i + 1))])

    def newest(self, instant: int) -> int | None:
        """ts of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_ts[i - 1] if i else self.progress.news_before

    def reach(self, instant: int) -> int | None:
        """Place of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_places[i - 1] if i else self.progress.news_place_before

    def news_at(self, instant: int) -> tuple[int | None, int | None]:
        """ts and place of the newest news at or before an instant."""
        if i := bisect_right(self.news_ts, instant):
            return self.news_ts[i - 1], self.news_places[i - 1]
        return self.progress.news_before, self.progress.news_place_before

    def units_after(self, rows: int) -> int | None:
        """Units so far after that many unread rows; None when one does not say."""
        if self.is_long and self.units_array is not None:
            return int(self.units_array[rows])
        if self._units is None:
            self._units = self._units_so_far()
        return self._units[rows]

    @cached_property
    def units_array(self) -> Any:
        """Units before the first unread row and after each, of many; None when a row does not say."""
        before = self._n_before if self.cumulative else self.progress.units_before
        if before is None or before < 0 or self.counts is None:
            return None
        return np.concatenate(([before], self.counts if self.cumulative else before + np.cumsum(self.counts)))

    @property
    def _n_before(self) -> int | None:
        return self.progress.row_before[0] if self.progress.row_before else None  # type: ignore[return-value] # n is whole

    def _units_so_far(self) -> list[int | None]:
        if self.cumulative:
            return [self._n_before, *self.n]
        total: int | None = self.progress.units_before if self.progress.units_before >= 0 else None
        if total is None:
            return [None] * (len(self.n) + 1)
        units: list[int | None] = [total]
        for n in self.n:
            total = None if n is None or n < 0 or total is None else total + n
            units.append(total)
        return units

    def read_to(self, place: int, horizon: int, taken: list[Taken]) -> bool:
        """Merge closed rows up to a place into the progress, in ts order; True when one restated n on the way. taken: is given the buckets of
        delta rows."""
        progress, restated = self.progress, False
        i, places, ts = self.position, self.places, self.ts
        while i < len(places) and places[i] <= place and ts[i] <= horizon:
            n, received = self.n[i], self.received[i]
            if received > progress.arrived:
                progress.arrived = received
            if self.cumulative:
                if n is not None:
                    restated = restated or (progress.n_through is not None and is_restated(progress.n_through, n))
                    progress.n_through = n
                bucket = self._bucket(i)
                progress.unreadable = bucket if isinstance(bucket, Unreadable) else None
                if not isinstance(bucket, Unreadable):
                    progress.sums = bucket
            elif n != 0 and not progress.unreadable:
                bucket = self._bucket(i)
                if isinstance(bucket, Unreadable):
                    progress.unreadable = bucket
                else:
                    taken.append((places[i], bucket))
                    if progress.sums is None:
                        progress.sums = bucket
                    elif isinstance(bucket, PairMoments):
                        progress.sums = merge_pairs(PairMoments(*progress.sums), bucket)  # type: ignore[arg-type]
                    else:
                        progress.sums = merge(progress.sums, bucket)  # type: ignore[arg-type]
            i += 1
        if i > self.position:
            progress.through = self.ts[i - 1]
        self.position = i
        return restated

    @cached_property
    def ts_array(self) -> Any:
        return np.fromiter(self.ts, np.int64, len(self.ts))

    @cached_property
    def received_array(self) -> Any:
        return np.fromiter(self.received, np.int64, len(self.received))

    @cached_property
    def news_received(self) -> Any:
        return self.received_array if len(self.news) == len(self.ts) else self.received_array[np.array(self.news)]

    @cached_property
    def news_array(self) -> Any:
        return self.ts_array if self.news_ts is self.ts else np.array(self.news_ts, dtype=np.int64)

    @cached_property
    def seen_array(self) -> Any:
        return self.news_array if self.seen_ts is self.news_ts else np.array(self.seen_ts, dtype=np.int64)

    @cached_property
    def seen_received(self) -> Any:
        if self.seen_ts is self.news_ts:
            return self.news_received
        return np.array(self.seen_receipts, dtype=np.int64)

    @cached_property
    def places_array(self) -> Any:
        return self.ts_array if self.places is self.ts else np.array(self.places, dtype=np.int64)

    def reach_of(self, horizons: Any) -> Any:
        """`reach` for many instants, NEVER where there is none."""
        places = self.news_array if self.news_places is self.news_ts else np.array(self.news_places, dtype=np.int64)
        before = NEVER if self.progress.news_place_before is None else self.progress.news_place_before
        return np.concatenate(([before], places))[np.searchsorted(self.news_array, horizons, side="right")]

    def all_sums(self) -> _RunningSums | None:
        """The state before and after each unread row, when every row is readable and none is restated; else None."""
        progress, read = self.progress, self.position
        if progress.unreadable or not self.ts or self.counts is None:
            return None
        buckets = self._buckets(read)
        if buckets is None:
            return None
        pairs = self.kpi.kind == "ratio"
        start: Any = progress.sums or (NO_PAIRS if pairs else NOTHING)
        if self.cumulative:
            before = np.concatenate(([progress.n_through or 0], buckets[0][:-1]))
            if is_restated(before, buckets[0]).any():
                return None
            columns = tuple(np.concatenate(([first], column)) for first, column in zip(start, buckets, strict=True))
        else:
            columns = chain_pairs(PairMoments(*start), *buckets) if pairs else chain(Moments(*start), *buckets)
        if read:
            columns = tuple(np.concatenate(([column[0]] * read, column)) for column in columns)
        taken = None if self.cumulative else (self.places_array[read:], buckets)
        arrived = np.full(len(self.ts) + 1, progress.arrived)
        arrived[read + 1 :] = np.maximum(np.maximum.accumulate(self.received_array[read:]), progress.arrived)
        return _RunningSums(columns, arrived, taken)

    def _buckets(self, read: int) -> tuple[Any, ...] | None:
        """Columns of the rows from position `read` on as moments; None when one is unreadable."""
        series, rows = self.series, slice(self.first + read, self.end)
        if self.spec.unsupported_because:
            return None
        n = self.counts[read:]
        k = np.maximum(n - 1, 0)
        value = _numbers(series.value[rows])
        if value is None:
            return None
        if self.kpi.kind == "proportion":
            return None if ((value < 0) | (value > 1)).any() else (n, value, n * value * (1.0 - value))
        variance = _numbers(series.variance[rows], k)
        if variance is None or (variance < 0).any():
            return None
        if self.kpi.kind != "ratio":
            return n, value, variance * k
        value_d = _numbers(series.denominator_value[rows])
        variance_d, covariance = _numbers(series.denominator_variance[rows], k), _numbers(series.covariance[rows], k)
        if value_d is None or len(value_d) < len(n) or variance_d is None or covariance is None:
            return None
        return None if (variance_d < 0).any() else (n, value, variance * k, value_d, variance_d * k, covariance * k)

    @cached_property
    def counts(self) -> Any:
        """n as integers; None when one is missing, negative or beyond what a float holds exactly."""
        counts = None if self.n and self.n[0] is None else _numbers(self.n)
        return counts.astype(np.int64) if counts is not None and ((counts >= 0) & (counts < EXACT)).all() else None

    def stand_at(self, rows: _RunningSums, upto: int) -> None:
        """Move the progress to where `read_to` would leave it."""
        progress = self.progress
        if upto > self.position:
            state = tuple(column[upto].item() for column in rows.columns)
            if self.cumulative or state[0]:
                progress.sums = state
            if self.cumulative:
                progress.n_through = self.n[upto - 1]
            progress.arrived = int(rows.arrived[upto])
            progress.through = self.ts[upto - 1]
            self.position = upto

    def _bucket(self, i: int) -> Moments | PairMoments | Unreadable:
        """One row as moments, or why it is unreadable."""
        at = self.first + i
        value, n, kind = self.series.value[at], self.n[i], self.kpi.kind
        if self.spec.unsupported_because:
            return self.spec.unsupported_because
        if n is None or n < 0:
            return Unreadable("no_units", self.ts[i])
        if value is None or not isfinite(value):
            return Unreadable("no_value", self.ts[i])
        if kind == "proportion":
            if not 0 <= value <= 1:
                return Unreadable("no_proportion", self.ts[i], value)
            return of_proportion(n, value)
        variance = self.series.variance[at]
        if n >= 2 and (variance is None or not isfinite(variance) or variance < 0):
            return Unreadable("no_variance", self.ts[i])
        if kind == "mean":
            return of_mean(n, value, variance or 0.0)
        columns = (self.series.denominator_value, self.series.denominator_variance, self.series.covariance)
        d, v_d, cov = (column[at] if at < len(column) else None for column in columns)
        if not _real(d) or (n >= 2 and (not _real(v_d) or v_d < 0 or not _real(cov))):
            return Unreadable("no_denominator", self.ts[i])
        return of_ratio(n, value, variance or 0.0, d, v_d or 0.0, cov or 0.0)

    def crossings(self, gate: Gate, first: int) -> Iterable[int]:
        """Which news from position `first` on may change a watch's verdict: all of a few, of many those where sides change."""
        if len(self.news) - first < MANY or self.kpi.kind == "ratio":
            return range(first, len(self.news))
        value = np.array(self.series.value[self.first : self.end], dtype=np.float64)[self.news][first:]
        inside = value >= (-np.inf if gate.at_least is None else gate.at_least)
        inside &= value <= (np.inf if gate.at_most is None else gate.at_most)
        side = np.where(np.isfinite(value), inside, 2)
        changes = [0, *(np.flatnonzero(side[1:] != side[:-1]) + 1).tolist()]
        return {first + at for k in changes for at in range(k, min(k + gate.times, len(side)))}

    def observed(self, i: int) -> float | None:
        """The value a threshold or target sees in news row i; None when unreadable."""
        at = self.first + i
        value = self.series.value[at]
        if self.kpi.kind == "ratio":
            d = self.series.denominator_value[at] if at < len(self.series.denominator_value) else None
            return value / d if _real(value) and _real(d) and d != 0 else None
        return None if value is None or not isfinite(value) else value


class _RunningSums(NamedTuple):
    """columns: n, mean, M2 of a series before its first unread row and after each. arrived: latest arrival so far.
    taken: of delta rows that are not merged yet their places, and their own columns."""

    columns: tuple[Any, ...]
    arrived: Any
    taken: tuple[Any, tuple[Any, ...]] | None


def is_restated(before: Any, n: Any) -> Any:
    """Whether a cumulative count takes back more of the one before it than a correction does: numbers, or arrays of them.

    >>> [is_restated(10_000, n) for n in (10_001, 9_990, 9_989)]
    [False, False, True]
    """
    return (before - n) * CORRECTED > before


def _numbers(column: Sequence[float | None], where: Any = None) -> Any:
    """A column as floats; None when a cell is missing or not finite where `where` is not 0 (there, such cells become 0)."""
    numbers = np.array(column, dtype=np.float64)  # None becomes NaN
    good = np.isfinite(numbers)
    if where is not None and len(numbers):
        numbers[~good & (where == 0)] = 0.0
        good |= where == 0
    return numbers if good.all() else None


def _real(value: float | None) -> TypeGuard[float]:
    return value is not None and isfinite(value)
