"""Which of the buckets expected of a series have come, as of any slot: what density counts. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from gates.engine.compiled import CompiledPlan, SeriesSpec
from gates.engine.reader import MANY, SeriesReader


class DueCounts:
    """How many due instants are expected up to where, counted once for the many series that have the same."""

    __slots__ = ("compiled", "known")

    def __init__(self, compiled: CompiledPlan) -> None:
        self.compiled = compiled
        self.known: dict[tuple[int, int, int], int] = {}

    def closed(self, spec: SeriesSpec, slot: int) -> int:
        """Those that are overdue at a slot."""
        asked = id(spec.dues), spec.overdue_after, slot
        found = self.known.get(asked)
        if found is None:
            found = self.known[asked] = spec.dues.count(self.compiled.overdue(spec, slot))
        return found

    def final(self, spec: SeriesSpec, horizon: int) -> int:
        """Those that no row after a horizon can answer any more."""
        asked = id(spec.dues), -1, horizon
        found = self.known.get(asked)
        if found is None:
            found = self.known[asked] = spec.dues.final(horizon)
        return found


class Buckets:
    """Which of the expected due instants of one series have been answered, as of any slot of a range.

    A due instant is awaited until `overdue_after` after it, and by a feed that stamps its rows after the instants they answer that much longer.
    """

    __slots__ = ("answered", "compiled", "counts", "dues", "is_late", "progress", "reader", "since", "spec")

    def __init__(self, counts: DueCounts, reader: SeriesReader) -> None:
        self.counts, self.compiled, self.reader = counts, counts.compiled, reader
        self.spec, self.progress = spec, series_progress = reader.spec, reader.progress
        self.dues, places, ts = spec.dues, reader.news_places, reader.news_ts
        before, settled, every = series_progress.news_before, series_progress.filled, spec.every
        self.is_late = (
            before is not None and (not every or before % every > 0) and before > spec.schedule.answered(before)
        )
        """Rows are stamped after the instants they answer."""
        if places is not ts:
            self.is_late = self.is_late or any(at > spec.schedule.answered(at) for at in ts)
        self.since: Sequence[int] = ts
        if every and places is ts and not self.dues.without:
            behind = self.dues.start + every
            if len(ts) >= MANY:
                self.answered: list[int] = ((reader.news_array - behind) // every).tolist()
            else:
                self.answered = [(at - behind) // every for at in ts]
            if ts and self.answered[0] < settled:
                first = bisect_left(self.answered, settled)
                self.answered, self.since = self.answered[first:], ts[first:]
        else:
            self.answered, self.since = self._answered(places, ts, settled)

    def _answered(self, places: Sequence[int], stamps: Sequence[int], settled: int) -> tuple[list[int], list[int]]:
        """Positions of the unsettled due instants that rows answer, and the ts of the first row that does."""
        numbers: list[int] = []
        since: list[int] = []
        for place, ts in zip(places, stamps, strict=True):
            due = self.spec.schedule.answered(place)
            if self.dues.expects(due):
                number = self.dues.count(due) - 1
                if number >= settled and (not numbers or number > numbers[-1]):
                    numbers.append(number)
                    since.append(ts)
        return numbers, since

    def closed(self, slot: int) -> int:
        """How many due instants are overdue at a slot."""
        return self.dues.count(self._reached(slot)) if self.is_late else self.counts.closed(self.spec, slot)

    def _reached(self, slot: int) -> int:
        """The instant up to which due instants are overdue at a slot."""
        limit = self.compiled.overdue(self.spec, slot)
        newest = self.reader.newest(self.compiled.horizon(slot)) if self.is_late else None
        if newest is None:
            return limit
        return max(min(self.spec.schedule.answered(newest), limit), limit - self.dues.behind(newest))

    def _first(self, slot: int, closed: int) -> int:
        """How many of those that are overdue at a slot lie before the last min_days."""
        if self.spec.every:
            return max(0, closed - self.spec.window) if self.spec.window else 0
        return self._left_behind(self._reached(slot), closed)

    def _left_behind(self, reached: int, closed: int) -> int:
        """Of a calendar: as much running time as min_days, and one bucket at least. Never less at a later instant."""
        return min(self.dues.since(reached, self.spec.min_age), max(0, closed - 1)) if self.spec.min_age else 0

    def at(self, slot: int) -> tuple[int, int]:
        """(observed, expected) buckets over the last min_days whole days."""
        closed, settled, gaps = self.closed(slot), self.progress.filled, self.progress.gaps
        first = self._first(slot, closed)
        missing = bisect_left(gaps, closed) - bisect_left(gaps, first) if gaps else 0
        if closed > settled:
            begin = max(first, settled)
            upto = bisect_left(self.answered, closed)
            if self.is_late:
                upto = min(upto, bisect_right(self.since, self.compiled.horizon(slot)))
            missing += closed - begin - max(0, upto - bisect_left(self.answered, begin))
        return closed - first - missing, closed - first

    def is_whole(self, to: int) -> bool:
        """Whether nothing is missing up to a slot, at any slot before it either."""
        if self.progress.gaps or self.is_late:
            return False
        unsettled = self.closed(to) - self.progress.filled
        return unsettled <= 0 or bool(bisect_left(self.answered, unsettled + self.progress.filled) == unsettled)

    def closings(self, after: int, to: int) -> Iterable[int]:
        """Instants after a slot up to another at which the counts may change; at least the next."""
        first = self.closed(after)
        last = first if to > after and self.is_whole(to) else self.counts.closed(self.spec, to)
        overdue = [
            due + self.spec.overdue_after
            for number in range(first + 1, max(first, last) + 2)
            if (due := self.dues.at(number)) is not None
        ]
        if not self.spec.every and self.spec.min_age:
            overdue = sorted([*overdue, *self._leavings(after, first, to, last)])
        return [*overdue, *self._awaited(overdue)] if self.is_late else overdue

    def _leavings(self, after: int, first: int, to: int, last: int) -> Iterable[int]:
        """Of a calendar: when due instants come to lie before the last min_days; the next at least."""
        clock, gone = self.compiled.clock, self._first(after, first)
        for number in range(gone + 1, max(gone, self._first(to, last)) + 2):
            due = self.dues.at(number)
            left = None if due is None else clock.wall(clock.running(due) + self.spec.min_age)
            if left is not None:
                yield left + self.spec.overdue_after

    def _awaited(self, overdue: Sequence[int]) -> Iterable[int]:
        """When rows that are stamped late close, and due instants that wait for such rows."""
        schedule, stamps = self.spec.schedule, list(self.reader.news_ts)
        for ts in stamps:
            yield ts + self.compiled.closed_after
        if self.progress.news_before is not None:
            stamps.insert(0, self.progress.news_before)
        newest = 0
        for instant in overdue:
            while (
                newest + 1 < len(stamps) and schedule.answered(stamps[newest + 1]) < instant - self.spec.overdue_after
            ):
                newest += 1
            if stamps:
                yield instant + self.dues.behind(stamps[newest])

    def settled(self, slot: int, horizon: int) -> tuple[list[int], int, int]:
        """(positions of those that stay unanswered and may still count, how many are settled, the last of these) once a slot is judged."""
        answered, filled, gaps = self.answered, self.progress.filled, self.progress.gaps
        final = self.counts.final(self.spec, horizon)
        position = 0
        if final > filled:
            position = bisect_left(answered, final)
            if position < final - filled:
                there = set(answered[:position])
                gaps = [*gaps, *(number for number in range(filled, final) if number not in there)]
            filled = final
        while position < len(answered) and answered[position] == filled and self.since[position] <= horizon:
            position, filled = position + 1, filled + 1
        if gaps and (self.spec.window or not self.spec.every):
            first = self._first_ever(slot, horizon)
            gaps = [number for number in gaps if number >= first]
        return gaps, filled, self.dues.at(filled) or self.progress.filled_to

    def _first_ever(self, slot: int, horizon: int) -> int:
        """No later slot looks further back."""
        if self.spec.every:
            return self.closed(slot) - self.spec.window - 1
        limit, newest = self.compiled.overdue(self.spec, slot), self.reader.newest(horizon)
        reached = min(limit, self.dues.start if newest is None else self.spec.schedule.answered(newest))
        return self._left_behind(reached, self.dues.count(reached))


def steady(reader: SeriesReader, horizon: int, to: int) -> tuple[list[int], int, int] | None:
    """What `settled` of its buckets would say of a series of which each unread row came for the next due instant, and
    nothing is missing; else None."""
    series_progress, spec, stamps = reader.progress, reader.spec, reader.news_ts
    if series_progress.gaps or reader.news_places is not stamps or reader.is_long:
        return None
    if not spec.every or spec.dues.without:
        return None
    every, filled = spec.every, series_progress.filled
    due = series_progress.filled_to + every
    for ts in stamps:
        if ts >= due:
            if ts > horizon:
                break
            if ts > due:
                return None
            due += every
            filled += 1
    if due <= to - spec.overdue_after or due <= horizon - every // 2:
        return None
    return [], filled, due - every
