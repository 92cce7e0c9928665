"""Rows into facts: what changes at which slot of a range, and how all stands at any of them. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from gates.engine.buckets import Buckets, DueCounts, steady
from gates.engine.checkpoint import Progress
from gates.engine.compared import NO_END, ComparedMetrics
from gates.engine.compiled import CompiledPlan, SeriesSpec, Watch
from gates.engine.doubt import doubt_facts
from gates.engine.facts import Days, MetricLook, Observations, SlotFacts, SlotSnapshot
from gates.engine.measuring import NEAR
from gates.engine.plan import DAY
from gates.engine.policy import Gate
from gates.engine.reader import MANY, NEVER, SeriesProgress, SeriesReader
from gates.engine.series import EMPTY, Rows, SeriesKey
from gates.engine.sparse import completed
from gates.engine.state import FRESH
from gates.engine.statistics.srm import srm_log_e_at_most
from gates.engine.tracks import MetricTrack
from gates.engine.verdicts import LOG_ALARM, freshness, is_dense, split_log_e, watch_verdict
from gates.engine.watermarks import Watermarks

FEW_LOOKS = 6
"""Below this many looks screening costs more than it saves."""


class SlotFactsOfRange(NamedTuple):
    """The facts of one range of slots: by slot, and tracks of compared metrics apart."""

    by_slot: dict[int, SlotFacts]
    looks: Sequence[int]
    tracks: dict[str, MetricTrack]

    def steps(self) -> list[SlotFacts]:
        if not self.tracks:
            return [self.by_slot[slot] for slot in sorted(self.by_slot)]
        metric_looks: dict[int, dict[str, MetricLook]] = {}
        for metric, track in self.tracks.items():
            for k, look in enumerate(track.looks):
                metric_looks.setdefault(look, {})[metric] = track.look(k)
        steps = []
        for slot in sorted({*self.by_slot, *self.looks}):
            step = self.by_slot.get(slot) or SlotFacts(slot=slot, look=True)
            steps.append(replace(step, looks=metric_looks[slot]) if slot in metric_looks else step)
        return steps


class FactExtractor:
    """Facts over the slots in (after, to]: first when they change, then as they stand at any of these slots."""

    def __init__(self, compiled: CompiledPlan, progress: Progress, rows: Rows, after: int, to: int) -> None:
        self.compiled, self.progress, self.after, self.to = compiled, progress, after, to
        self.arms = compiled.arms(after if to == NO_END else to)
        self.watched, self.verdicts = list(progress.watched), list(progress.watch_verdicts)
        self.readers = [
            SeriesReader(spec, rows.get(key, EMPTY), series_progress, to)
            if spec.sparse_beside is None
            else _sparse_reader(compiled, key, spec, rows, series_progress, to)
            for key, spec, series_progress in zip(compiled.series, compiled.specs, progress.series, strict=True)
        ]
        self.read = self.readers
        if len(self.arms) < len(compiled.variants):
            self.read = [reader for reader in self.readers if reader.spec.variant in self.arms]
        self.by_metric: dict[str, dict[str, SeriesReader]] = {metric: {} for metric in compiled.metrics}
        for reader in self.read:
            self.by_metric[reader.spec.metric][reader.spec.variant] = reader
        self.compared = ComparedMetrics(compiled, progress, self.by_metric)
        self.watermarks = {reader.spec.name: Watermarks(compiled, reader, after, to) for reader in self.read}
        self.buckets: dict[str, Buckets] = {}
        self.counts = DueCounts(compiled)
        self.observed: dict[tuple[int, int], Observations] = {}
        self.pending: dict[int, dict[str, Any]] = {}

    @property
    def is_long(self) -> bool:
        """Whether arrays are worth their while."""
        if self.to - self.after >= FEW_LOOKS * self.compiled.look_us:
            return True
        return max([len(reader.ts) for reader in self.read], default=0) >= MANY

    def facts(self) -> SlotFactsOfRange:
        """The facts of every slot at which anything may change."""
        compiled = self.compiled
        looks = compiled.looks(self.after, self.to)
        tracks = self.compared.tracks(looks) if len(looks) >= FEW_LOOKS and not compiled.targets else {}
        if not tracks:
            for look in looks:
                self._at(look)["look"] = True
            for look, metric, metric_look in self.compared.at_looks(looks):
                self._record(look, "looks", metric, metric_look)
        if self.compared.scatter.checks:
            for look, kind, name, fact in doubt_facts(self.compared.scatter, self.compared.common, self._split_at):
                self._record(look, kind, name, fact)
        self._freshness()
        if compiled.targets:
            self._targets(looks)
        self._watched()
        if compiled.density is not None:
            self._density()
        self._split()
        scheduled = compiled.scheduled_slots
        for slot in scheduled[bisect_right(scheduled, self.after) : bisect_right(scheduled, self.to)]:
            self._at(slot)
        if compiled.final_slot is not None and compiled.final_slot in (*self.pending, *looks[-1:]):
            self._at(compiled.final_slot)["final"] = True
        if tracks:
            at_looks = set(looks)
            for slot in self.pending:
                if slot in at_looks:
                    self.pending[slot]["look"] = True
        return SlotFactsOfRange(
            {slot: SlotFacts(slot=slot, **facts) for slot, facts in self.pending.items()}, looks, tracks
        )

    def detail(self, slot: int) -> SlotSnapshot:
        """Every slot fact as it stands at a slot of this range, now or after it is closed."""
        compiled = self.compiled
        return SlotSnapshot(
            slot=slot,
            fresh={reader.spec.name: self.watermarks[reader.spec.name].at(slot) for reader in self.read},
            watched={
                watch.name: self._observations(w, watch, slot)
                for w, watch in enumerate(compiled.watches)
                if watch.variant in self.arms
            },
            dense={reader.spec.name: self.buckets_of(reader).at(slot) for reader in self.read if reader.spec.counted},
            split={
                metric: units for metric in compiled.counting if (units := self._split_at(metric, slot)) is not None
            },
        )

    def close(self) -> None:
        """Leave the progress at the end of the range. It is made of new ones, so that details can be asked for later."""
        compiled, to, progress = self.compiled, self.to, self.progress
        horizon, freshness_instant, is_known = (
            compiled.horizon(to),
            compiled.freshness_instant(to),
            to >= compiled.created,
        )
        commons = {metric: self.compared.common(metric, horizon) for metric in compiled.counting}
        for i, reader in enumerate(self.readers):
            spec, series_progress = reader.spec, reader.progress
            if spec.variant not in self.arms:
                continue
            gaps, filled, filled_to = series_progress.gaps, series_progress.filled, series_progress.filled_to
            floor, (watermark, received_at) = series_progress.base, self.watermarks[reader.spec.name].at(to)
            base = floor if watermark is None or not is_known else watermark
            if spec.compared and series_progress.through < base:
                base = series_progress.through
            if spec.splits:
                common = commons[spec.metric]
                counted = 0 if common is None else bisect_right(reader.places, common)
                if not counted or reader.ts[counted - 1] < base:
                    base = reader.ts[counted - 1] if counted else floor
            if spec.counted:
                gaps, filled, filled_to = reader.steady or self.buckets_of(reader).settled(to, horizon)
                if filled_to < base or horizon < base:
                    base = min(filled_to, horizon)
            if spec.at_horizon:
                base = min(base, horizon)
            if spec.at_present:
                base = min(base, freshness_instant)
            if spec.targets:
                base = min(base, *[progress.target_through[t] for t in spec.targets])
            if base < floor:
                base = floor
            news_before, news_place_before = reader.news_at(base)
            read = bisect_right(reader.ts, base)
            units = reader.units_after(read) if spec.splits else None
            progress.series[i] = replace(
                series_progress,
                base=base,
                row_before=reader.row(read - 1) if read and reader.cumulative else series_progress.row_before,
                place_before=reader.places[read - 1] if read else series_progress.place_before,
                units_before=-1 if units is None else units,
                news_before=news_before,
                news_place_before=news_place_before,
                watermark=watermark,
                received_at=received_at,
                filled=filled,
                filled_to=filled_to,
                gaps=gaps,
            )
        for w, watch in enumerate(compiled.watches):
            if watch.variant in self.arms:
                progress.watched[w] = self._observations(w, watch, to)

    def _at(self, slot: int) -> dict[str, Any]:
        return self.pending.setdefault(slot, {})

    def _record(self, slot: int, kind: str, name: str, fact: Any) -> None:
        self._at(slot).setdefault(kind, {})[name] = fact

    def _judged(self, slot: int) -> int | None:
        """The judged slot of this range at which an event of `slot` is first seen; None: not in this range."""
        judged = slot if self.compiled.is_steady else self.compiled.next_judged(slot)
        return judged if judged is not None and self.after < judged <= self.to else None

    def _targets(self, looks: Sequence[int]) -> None:
        compiled = self.compiled
        for t, gate in enumerate(compiled.targets):
            reader = self.readers[compiled.series_index[f"{gate.metric}/{compiled.judged_variants[0]}"]]
            seen = self.progress.target_seen[t]
            for look in looks:
                horizon = compiled.freshness_instant(look) if reader.kpi.kind == "gauge" else compiled.horizon(look)
                newest = reader.newest(horizon)
                closed = compiled.clock.running(horizon) // DAY
                if newest is None or (newest, closed) == seen:
                    continue
                seen = (newest, closed)
                self._record(look, "days", gate.name, self._days(t, gate, reader, horizon, newest, closed))
            self.progress.target_seen[t] = seen

    def _days(self, t: int, gate: Gate, reader: SeriesReader, horizon: int, newest: int, closed: int) -> Days:
        """Mean value of each of the last closed days of running time; of a cumulative KPI the newest one."""
        clock, days = self.compiled.clock, self.progress.target_days[t]
        series_progress = reader.progress
        for i in reader.news:
            ts = reader.ts[i]
            if not self.progress.target_through[t] < ts <= horizon:
                continue
            day_of = str((max(clock.running(ts), 1) - 1) // DAY)
            value = reader.observed(i)
            n = reader.n[i]
            weight, total, good = days.get(day_of, (0.0, 0.0, True))
            add = 1.0 if n is None else float(n)
            if reader.cumulative:
                weight, total = 0.0, 0.0
            days[day_of] = (weight + add, total + add * (value or 0.0), good and value is not None)
            series_progress.arrived = max(series_progress.arrived, reader.received[i])
        self.progress.target_through[t] = max(self.progress.target_through[t], horizon)
        wanted = self._days_expected(reader.spec, days, closed, gate.days)
        for old in [day for day in days if int(day) < (wanted[0] if wanted else 0)]:
            del days[old]
        values = []
        for day in wanted:
            weight, total, good = days.get(str(day), (0.0, 0.0, False))
            values.append((day, total / weight if good and weight else None))
        return Days(at=newest, closed=tuple(values), arrived=series_progress.arrived)

    def _days_expected(self, spec: SeriesSpec, days: Mapping[str, Any], closed: int, most: int) -> Sequence[int]:
        """The last closed days, oldest first; of a calendar those in which something was due or came."""
        if spec.every and not spec.dues.outages:
            return range(max(0, closed - most), closed)
        found: list[int] = []
        for day in range(closed - 1, -1, -1):
            begins, ends = self.compiled.clock.wall(day * DAY), self.compiled.clock.wall((day + 1) * DAY)
            if begins is None or ends is None:
                continue
            if str(day) in days or spec.dues.count(ends) > spec.dues.count(begins):
                found.append(day)
                if len(found) == most:
                    break
        return found[::-1]

    def _freshness(self) -> None:
        compiled = self.compiled
        for i, reader in enumerate(self.readers):
            spec, series_progress = reader.spec, reader.progress
            if spec.variant not in self.arms:
                continue
            known = self.watermarks[spec.name]
            newest, status = known.newest, series_progress.status
            if status == FRESH and not known.late and newest is not None and self.to - newest <= spec.tolerated:
                continue
            interesting = {self.after + compiled.slot_us, *known.onset(newest)}
            for k, before in known.late:
                interesting.add(k)
                interesting.update(known.onset(before))
            if compiled.final_slot is not None:
                interesting.add(compiled.final_slot)
            judged = {slot for k in interesting if (slot := self._judged(k)) is not None}
            for slot in sorted(judged):
                watermark, received = known.at(slot)
                now = freshness(compiled, spec.name, watermark, slot)
                if now != status:
                    status = now
                    self._record(slot, "fresh", spec.name, (watermark, received))
            self.progress.series[i].status = status

    def _watch_horizon(self, watch: Watch, slot: int) -> int:
        return self.compiled.horizon(slot) if watch.closed else self.compiled.freshness_instant(slot)

    def _watched(self) -> None:
        compiled = self.compiled
        for w, watch in enumerate(compiled.watches):
            if watch.variant not in self.arms:
                continue
            reader = self.readers[watch.series]
            overdue_after = compiled.closed_after if watch.closed else 0
            first = bisect_right(reader.news_ts, self._watch_horizon(watch, self.after))
            slots = {
                slot
                for p in reader.crossings(watch.gate, first)
                if (slot := self._judged(compiled.slot_at(reader.news_ts[p] + overdue_after))) is not None
            }
            verdict = self.verdicts[w]
            for slot in sorted(slots):
                observations = self._observations(w, watch, slot)
                now = watch_verdict(watch.gate, observations)
                if now != verdict:
                    verdict = now
                    self._record(slot, "watched", watch.name, observations)
            self.progress.watch_verdicts[w] = verdict

    def _observations(self, w: int, watch: Watch, slot: int) -> Observations:
        found = self.observed.get((w, slot))
        if found is not None:
            return found
        reader, found = self.readers[watch.series], self.watched[w]
        end = bisect_right(reader.news_ts, self._watch_horizon(watch, slot))
        last = found.newest[-1][0] if found.newest else self.compiled.plan.started_at
        first = max(bisect_right(reader.news_ts, last), end - watch.gate.times)
        if first < end:
            fresh = [(reader.news_ts[p], reader.observed(reader.news[p])) for p in range(first, end)]
            found = Observations(
                tuple([*found.newest, *fresh][-watch.gate.times :]), reader.received[reader.news[end - 1]]
            )
        self.observed[w, slot] = found
        return found

    def buckets_of(self, reader: SeriesReader) -> Buckets:
        name = reader.spec.name
        if name not in self.buckets:
            self.buckets[name] = Buckets(self.counts, reader)
        return self.buckets[name]

    def _density(self) -> None:
        compiled, horizon = self.compiled, self.compiled.horizon(self.to)
        is_running = not compiled.clock.pauses
        for i, reader in enumerate(self.readers):
            spec, dense = reader.spec, reader.progress.dense
            if not spec.counted or spec.variant not in self.arms:
                continue
            reader.steady = steady(reader, horizon, self.to) if is_running else None
            if dense and reader.steady:
                continue
            buckets = self.buckets_of(reader)
            if dense and buckets.is_whole(self.to):
                continue
            slots = {self._judged(compiled.slot_at(instant)) for instant in buckets.closings(self.after, self.to)}
            for slot in sorted(slot for slot in slots if slot is not None):
                counted = buckets.at(slot)
                if is_dense(compiled, counted) != dense:
                    dense = not dense
                    self._record(slot, "dense", spec.name, counted)
            self.progress.series[i].dense = dense

    def _split_at(self, metric: str, slot: int) -> dict[str, int] | None:
        """Units per arm at the metric's common instant of a slot; None while an arm is missing or does not say."""
        horizon = self.compiled.horizon(slot)
        common = self.compared.common(metric, horizon)
        if common is None:
            return None
        split: dict[str, int] = {}
        for variant, reader in self.by_metric[metric].items():
            has_news = reader.progress.news_before is not None or bool(
                reader.news_ts and reader.news_places[0] <= common and reader.news_ts[0] <= horizon
            )
            units = reader.units_after(bisect_right(reader.places, common)) if has_news else None
            if units is None:
                return None
            split[variant] = units
        return split if len(split) > 1 else None

    def _split(self) -> None:
        compiled = self.compiled
        floor = compiled.horizon(self.after)
        for metric in compiled.counting:
            if metric in self.progress.alarmed:
                continue
            overdue_after = compiled.closed_after
            slots = {
                self._judged(compiled.slot_at(ts + overdue_after))
                for ts in _suspicious(compiled, self.by_metric[metric], floor, self.to)
            }
            for slot in sorted([slot for slot in slots if slot is not None]):
                units = self._split_at(metric, slot)
                if units is None:
                    continue
                weights = [compiled.weights[variant] for variant in units]
                if srm_log_e_at_most(list(units.values()), weights) < LOG_ALARM:
                    continue
                if split_log_e(compiled, units) >= LOG_ALARM:
                    self._record(slot, "split", metric, units)
                    self.progress.alarmed = sorted([*self.progress.alarmed, metric])
                    break


def _sparse_reader(
    compiled: CompiledPlan, key: SeriesKey, spec: SeriesSpec, rows: Rows, progress: SeriesProgress, to: int
) -> SeriesReader:
    """A series whose empty buckets the rows of its goal tell."""
    series = rows.get(key, EMPTY)
    assert spec.sparse_beside is not None  # noqa: S101 - asked for such series only
    beside, goal = compiled.specs[spec.sparse_beside], rows.get(compiled.series[spec.sparse_beside], EMPTY)
    told = completed(compiled, spec, series, beside, goal, progress)
    return SeriesReader(spec, told.series, progress, to, told.seen)


def _suspicious(compiled: CompiledPlan, of: Mapping[str, SeriesReader], floor: int, to: int) -> Iterable[int]:
    """Instants of news after `floor` where the split may be off: each of a few, of many those arrays point at."""
    for reader in of.values():
        if len(reader.n) < MANY or reader.units_array is None:
            newest = to - compiled.closed_after
            return {ts for other in of.values() for ts in other.news_ts if floor < ts <= newest}
    arms = list(of.items())
    every = arms[0][1].news_array
    if any(not np.array_equal(reader.news_array, every) for _, reader in arms[1:]):
        every = np.unique(np.concatenate([reader.news_array for _, reader in arms]))
    every = every[every > floor]
    common = np.minimum.reduce([reader.reach_of(every) for _, reader in arms])
    share = math.fsum(compiled.weights[variant] for variant, _ in arms)
    units = [
        reader.units_array[np.searchsorted(reader.places_array, common, side="right")].astype(np.float64)
        for _, reader in arms
    ]
    total = np.add.reduce(units)
    chi_square = np.zeros(len(every))
    for (variant, _), n in zip(arms, units, strict=True):
        planned = total * (compiled.weights[variant] / share)
        chi_square += (n - planned) ** 2 / np.maximum(planned, 1e-9)
    suspicious: list[int] = every[(common > NEVER) & (chi_square >= LOG_ALARM * (1 - NEAR))].tolist()
    return suspicious
