"""The slow engine: every slot judged, every fact found again from the rows, straight from docs/gates.md. Rules are the engine's own."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from experiments.schedule import schedule_of
from gates.engine.compiled import CompiledPlan, compile_plan
from gates.engine.facts import Days, MetricLook, Observations, SlotFacts, SlotSnapshot, Unreadable
from gates.engine.machine import StateMachine
from gates.engine.plan import DAY, SECOND, Kpi, Plan
from gates.engine.policy import Policy
from gates.engine.reasons import evaluation_of
from gates.engine.results import Evaluation
from gates.engine.series import Rows, Series
from gates.engine.state import ExperimentState
from gates.engine.statistics.moments import Moments, PairMoments, merge, merge_pairs, of_mean, of_proportion, of_ratio
from gates.engine.statistics.scatter import Scattered
from gates.engine.verdicts import watch_verdict

Place = tuple[int, int]
"""(due instant, number of the row among those that answer it)."""
Row = tuple[int, float | None, int | None, float | None, int, float | None, float | None, float | None]


class Naive:
    def __init__(self, policy: Policy, plan: Plan, rows: Rows, to: int = 0) -> None:
        self.compiled: CompiledPlan = compile_plan(policy, plan)
        self.policy, self.plan = policy, plan
        self.rows: dict[str, list[Row]] = {
            f"{m}/{v}": [r for r in _rows(rows[m, v]) if r[0] > plan.started_at] if (m, v) in rows else []
            for m, v in self.compiled.series
        }
        self.end = max([to, *(r[0] for rs in self.rows.values() for r in rs)])
        self._dues: dict[str, list[int]] = {}
        self.seen = {name: self._seen(name) for name in self.rows}
        self.rows = {name: self._completed(name) for name in self.rows}
        self.news = {name: _news(self.kpi(name), rs) for name, rs in self.rows.items()}
        self.places = {name: self._places(name) for name in self.rows}
        self._begin()

    def _begin(self) -> None:
        self.days_told: dict[str, int] = {}
        self.over: set[str] = set()
        self.read: dict[str, set[Place]] = defaultdict(set)
        self.beside: dict[str, set[Place]] = defaultdict(set)

    def _seen(self, name: str) -> list[Row]:
        """What keeps a series fresh: its news, and that of the goal beside a sparse one."""
        metric, _, variant = name.partition("/")
        news = _news(self.kpi(name), self.rows[name])
        goal = f"{self.compiled.kpis[metric].sparse_beside}/{variant}"
        if goal not in self.rows:
            return news
        both = [*news, *_news(self.kpi(goal), self.rows[goal])]
        first = {ts: min(r[4] for r in both if r[0] == ts) for ts in {r[0] for r in both}}
        return [(ts, None, 1, None, first[ts], None, None, None) for ts in sorted(first)]

    def _completed(self, name: str) -> list[Row]:
        """The rows of a sparse series and, for each due instant that none answers, one without events when all of the goal's are there."""
        metric, _, variant = name.partition("/")
        kpi, rows = self.kpi(name), self.rows[name]
        beside = self.compiled.kpis[metric].sparse_beside
        goal = f"{beside}/{variant}"
        if goal not in self.rows:
            return rows
        dues, of_goal = self.dues(kpi), self.dues(self.kpi(goal))
        told = [(self.nearest(self.kpi(goal), r[0]), r) for r in self.rows[goal] if r[2] != 0]
        start, answered = self.nearest(kpi, self.plan.started_at), {self.nearest(kpi, r[0]) for r in rows}
        empty: list[Row] = []
        for before, due, after in zip(dues, dues[1:], dues[2:], strict=False):
            ts = due + (after - due) // 2
            its = [(d, r) for d, r in told if before < d <= due and r[0] <= ts]
            asked = {d for d in of_goal if before < d <= due}
            if due <= start or due in answered or not asked or {d for d, _ in its} != asked:
                continue
            if all(r[2] is not None and r[2] > 0 for _, r in its):
                arrived = max(max(r[4] for _, r in its), ts + self.compiled.closed_after)
                empty.append((ts, 0.0, sum(r[2] or 0 for _, r in its), 0.0, arrived, None, None, None))
        return sorted([*rows, *empty], key=lambda r: r[0])

    def _places(self, name: str) -> dict[int, Place]:
        """By ts: the due instant, and how many rows of the series answered it before."""
        dues = [self.nearest(self.kpi(name), row[0]) for row in self.rows[name]]
        return {
            row[0]: (due, dues[:i].count(due)) for i, (row, due) in enumerate(zip(self.rows[name], dues, strict=True))
        }

    def kpi(self, name: str) -> Kpi:
        return self.compiled.kpis[name.partition("/")[0]]

    def evaluations(self, to: int) -> list[Evaluation]:
        state = ExperimentState.at_start(self.compiled)
        machine = StateMachine(self.compiled, state)
        found: list[Evaluation] = []
        self._begin()
        instants: dict[str, Place] = {}
        watched: dict[str, str] = {}
        slots = [s for s in range(0, to + 1, self.compiled.slot_us) if s > self.plan.started_at and self.judged(s)]
        for slot in slots:
            step, detail = self.facts(slot, instants, watched)
            changed = machine.advance(step)
            if changed or slot == slots[-1]:
                found.append(evaluation_of(self.compiled, state, detail, changed=changed))
        return found

    def judged(self, slot: int) -> bool:
        ended, final = self.plan.ended_at, self.compiled.final_slot
        if self.compiled.closing_at is not None and slot > self.compiled.closing_at:
            return False
        if slot == final:
            return True
        if ended is not None and slot > ended:
            return False
        return not any(a < slot and (b is None or slot < b) for a, b in self.plan.pauses)

    def facts(self, slot: int, instants: dict[str, Place], watched: dict[str, str]) -> tuple[SlotFacts, SlotSnapshot]:
        compiled = self.compiled
        arms = compiled.arms(slot)
        names = [f"{m}/{v}" for m, v in compiled.series if v in arms]
        final = slot == compiled.final_slot
        look = slot % compiled.look_us == 0 or final
        horizon = compiled.horizon(slot)
        looks: dict[str, MetricLook] = {}
        days: dict[str, Days] = {}
        scatter: dict[str, Scattered] = {}
        exposed: dict[str, dict[str, tuple[int, int]]] = {}
        if look:
            for metric in compiled.compared:
                common = self.common(metric, horizon, arms)
                if common is not None and common > instants.get(metric, (0, 0)):
                    looks[metric] = self.metric_look(metric, common, instants.get(metric, (0, 0)), horizon, arms)
                    instants[metric] = common
                    self.pair_up(metric, common, horizon, arms)
                    if self.is_new_day(metric, looks[metric].at) or final:
                        for variant in compiled.judged_variants:
                            if variant in arms and (told := self.scattered(metric, variant, common, horizon)):
                                scatter[f"{metric}/{variant}"] = told
                        exposed |= self.exposed(metric, common, horizon, arms)
            for gate in compiled.targets:
                fact = self.days(gate.metric or "", gate.days, slot)
                if fact is not None:
                    days[gate.name] = fact
        fresh = {name: self.watermark(name, slot) for name in names}
        observations = {w.name: self.observations(w, slot) for w in compiled.watches if w.variant in arms}
        seen = {}
        for watch in compiled.watches:
            if watch.variant in arms and observations[watch.name].newest:
                verdict = watch_verdict(watch.gate, observations[watch.name])
                if watched.get(watch.name, "no_data") != verdict:
                    watched[watch.name] = verdict
                    seen[watch.name] = observations[watch.name]
        dense = {}
        if compiled.density is not None:
            dense = {n: self.buckets(n, slot) for n in names if self.kpi(n).temporality != "cumulative"}
        split = {metric: units for metric in compiled.counting if (units := self.split(metric, horizon, arms))}
        step = SlotFacts(slot, look, final, looks, days, fresh, seen, dense, split, scatter, exposed)
        return step, SlotSnapshot(slot, fresh, observations, dense, split)

    def newest(self, name: str, instant: int) -> int | None:
        return max((r[0] for r in self.news[name] if r[0] <= instant), default=None)

    def common(self, metric: str, horizon: int, arms: tuple[str, ...]) -> Place | None:
        """The least, over arms with news, of the place of the newest."""
        newest = [self.places[f"{metric}/{v}"][at] for v in arms if (at := self.newest(f"{metric}/{v}", horizon))]
        return min(newest, default=None)

    def metric_look(self, metric: str, common: Place, before: Place, horizon: int, arms: tuple[str, ...]) -> MetricLook:
        states, restated, arrived, stamps = {}, [], 0, []
        unreadable: dict[str, Unreadable | str] = {}
        for variant in arms:
            name = f"{metric}/{variant}"
            place = self.places[name]
            read = [r for r in self.rows[name] if place[r[0]] <= common and r[0] <= horizon]
            if not read:
                continue
            if place[read[-1][0]] == common:
                stamps.append(read[-1][0])
            arrived = max(arrived, *(r[4] for r in read))
            kpi = self.kpi(name)
            if kpi.temporality == "cumulative":
                counts = [(r[0], r[2]) for r in read if r[2] is not None]
                if any(a - b > a / 1000 and place[ts] > before for (_, a), (ts, b) in itertools.pairwise(counts)):
                    restated.append(variant)
                read = read[-1:]
            state: Moments | PairMoments | None = None
            for row in read:
                if row[2] == 0 and kpi.temporality == "delta":
                    continue
                bucket = _bucket(kpi, row)
                if bucket is None:
                    unreadable[variant] = Unreadable("unreadable")
                    break
                if state is None:
                    state = bucket
                elif isinstance(state, PairMoments) and isinstance(bucket, PairMoments):
                    state = merge_pairs(state, bucket)
                elif isinstance(state, Moments) and isinstance(bucket, Moments):
                    state = merge(state, bucket)
            if state is not None and variant not in unreadable:
                states[variant] = tuple(state)
        return MetricLook(min(stamps), states, arrived, unreadable, tuple(restated))

    def is_new_day(self, metric: str, at: int) -> bool:
        before = self.days_told.get(metric, 0)
        self.days_told[metric] = max(before, self.compiled.clock.running(at) // DAY)
        return self.days_told[metric] > before

    def scattered(self, metric: str, variant: str, common: Place, horizon: int) -> Scattered | None:
        """Differences of neighbouring buckets that both arms have, out of all rows, one sum after the other."""
        kpi = self.kpi(f"{metric}/{variant}")
        if kpi.temporality == "cumulative":
            return None
        arms = [self._buckets_of(f"{metric}/{v}", common, horizon) for v in (self.compiled.control, variant)]
        shared = sorted(p for p in self.beside[f"{metric}/{variant}"] if min(arms[0][p][0], arms[1][p][0]) >= 10)
        told: list[Any] = []
        totals = [[0.0] * 3, [0.0] * 3]
        for place in shared:
            bucket = []
            for arm, total in zip(arms, totals, strict=True):
                n, mean, m2, *pair = arm[place]
                total[0] += n
                total[1] += n * mean
                if pair:
                    total[2] += n * pair[0]
                    ratio, size = total[1] / total[2], total[2] / total[0]
                    m2 = max(0.0, m2 - 2 * ratio * pair[2] + ratio**2 * pair[1]) / size**2
                    mean = (mean - ratio * pair[0]) / size
                bucket.append((n, mean, m2))
            told.append((place, *bucket))
        if len(told) < 24:
            return None
        v = [sum(of[arm][2] for of in told) / (totals[arm - 1][0] - len(told)) for arm in (1, 2)]
        terms, allowed, weights, grown = [], 0.0, 0.0, 0
        for (_, c, t), (_, c2, t2) in itertools.pairwise(told):
            of_c, of_t = 1 / c[0] + 1 / c2[0], 1 / t[0] + 1 / t2[0]
            terms.append(((t2[1] - c2[1]) - (t[1] - c[1])) ** 2 / (of_c + of_t))
            allowed += (v[0] * of_c + v[1] * of_t) / (of_c + of_t)
            weights += 1 / (of_c + of_t)
            grown += c2[0] > c[0] and t2[0] > t[0]
        parts = [a + b for a, b in itertools.pairwise([0.0, *terms])]
        control = totals[0]
        level = control[1] / (control[2] if kpi.kind == "ratio" else control[0])
        both = v[0] * (totals[0][0] - len(told)) + v[1] * (totals[1][0] - len(told))
        units = totals[0][0] + totals[1][0]
        worst = told[parts.index(max(parts))][0]
        return Scattered(
            len(terms), sum(terms), allowed, 2 * (0.01 * level) ** 2 * weights, grown, both / (units - 2 * len(told)),
            units / len(told) / 2, max(parts), int(sum(worst)),
        )  # fmt: skip

    def _buckets_of(self, name: str, common: Place, horizon: int) -> dict[Place, tuple[float, ...]]:
        place, found = self.places[name], {}
        for r in self.rows[name]:
            if place[r[0]] <= common and r[0] <= horizon and r[2] != 0:
                bucket = _bucket(self.kpi(name), r)
                if bucket is None:
                    break
                found[place[r[0]]] = tuple(bucket)
        return found

    def pair_up(self, metric: str, common: Place, horizon: int, arms: tuple[str, ...]) -> None:
        """Buckets that a treatment and control brought at the same look."""
        new: dict[str, set[Place]] = {}
        for v in arms:
            name = f"{metric}/{v}"
            read = set(self._buckets_of(name, common, horizon))
            new[v] = read - self.read[name]
            self.read[name] |= read
        for v in self.compiled.judged_variants:
            if v in arms:
                self.beside[f"{metric}/{v}"] |= new[v] & new.get(self.compiled.control or "", set())

    def exposed(
        self, metric: str, common: Place, horizon: int, arms: tuple[str, ...]
    ) -> dict[str, dict[str, tuple[int, int]]]:
        compiled = self.compiled
        if metric not in compiled.over_exposures:
            return {}
        shown = [
            of
            for exposure in compiled.exposures
            if (at := self.common(exposure, horizon, arms)) is not None
            and at >= common
            and (of := self.split(exposure, horizon, arms))
        ]
        units = self.split(metric, horizon, arms)
        if not shown or not units:
            return {}
        found = {v: (n, most) for v, n in units.items() if n > 1.05 * (most := max(of.get(v, 0) for of in shown))}
        if not found and metric not in self.over:
            return {}
        self.over = {*self.over, metric} if found else self.over - {metric}
        return {metric: found}

    def watermark(self, name: str, slot: int) -> tuple[int | None, int | None]:
        known = [r for r in self.seen[name] if r[0] <= slot and (r[4] <= slot or slot < self.plan.created_at)]
        if not known:
            return None, None
        newest = max(known, key=lambda r: r[0])
        return newest[0], newest[4]

    def observations(self, watch: object, slot: int) -> Observations:
        from gates.engine.compiled import Watch

        assert isinstance(watch, Watch)
        name = f"{watch.gate.metric}/{watch.variant}"
        kpi = self.kpi(name)
        closed = watch.gate.kind == "density" and kpi.kind != "gauge"
        end = self.compiled.horizon(slot) if closed else self.compiled.freshness_instant(slot)
        seen = [r for r in self.news[name] if r[0] <= end][-watch.gate.times :]
        values = tuple((r[0], _value(kpi, r)) for r in seen)
        return Observations(values, seen[-1][4] if seen else 0)

    def dues(self, kpi: Kpi) -> list[int]:
        """The due instants from long before the start on, one after the other."""
        if kpi.metric not in self._dues:
            first, last = self.plan.started_at - 40 * DAY, self.end + 40 * DAY
            if kpi.expected:
                self._dues[kpi.metric] = list(schedule_of(kpi.expected, 0).between(first, last))
            else:
                every = kpi.expected_every_s * SECOND
                self._dues[kpi.metric] = list(range(first // every * every, last, every))
        return self._dues[kpi.metric]

    def nearest(self, kpi: Kpi, ts: int) -> int:
        return nearest(ts, self.dues(kpi))

    def behind(self, kpi: Kpi, ts: int) -> int:
        """How late a row is stamped; of a calendar at most as far as two due instants that follow lie apart."""
        late = max(0, ts - self.nearest(kpi, ts))
        if not kpi.expected or not late:
            return late
        ahead = [d for d in self.dues(kpi) if d > ts and not in_outage(kpi, d)]
        return min(late, ahead[1] - ahead[0])

    def buckets(self, name: str, slot: int) -> tuple[int, int]:
        """(answered, expected) due instants of the window; a feed that stamps its rows late is awaited as long as it is late."""
        kpi, clock = self.kpi(name), self.compiled.clock
        known = [r[0] for r in self.news[name] if r[0] <= self.compiled.horizon(slot)]
        due, late = 0, 0
        if known:
            due, late = self.nearest(kpi, known[-1]), self.behind(kpi, known[-1])
        end = min(slot - self.compiled.closed_after, slot - kpi.freshness_target_s * SECOND, self.plan.ended_at or slot)
        start = self.nearest(kpi, self.plan.started_at)
        dues = [d for d in self.dues(kpi) if start < d <= end and not in_outage(kpi, d) and not self.paused(d)]
        closed = [d for d in dues if d <= due or d + late <= end]
        if kpi.expected and self.policy.min_days:
            reached = max(min(due, end), end - late) if late else end
            left = clock.running(reached) - self.policy.min_days * DAY
            expected = [d for d in closed if left < 0 or clock.running(d) > left] or closed[-1:]
        else:
            window = 0 if kpi.expected else self.policy.min_days * DAY // (kpi.expected_every_s * SECOND)
            expected = closed[-window:] if window else closed
        answered = {self.nearest(kpi, ts) for ts in known}
        return len([d for d in expected if d in answered]), len(expected)

    def paused(self, due: int) -> bool:
        return any(a < due and (b is None or due <= b) for a, b in self.plan.pauses)

    def split(self, metric: str, horizon: int, arms: tuple[str, ...]) -> dict[str, int] | None:
        common = self.common(metric, horizon, arms)
        if common is None or len(arms) < 2:
            return None
        units = {}
        for variant in arms:
            name = f"{metric}/{variant}"
            place = self.places[name]
            if not any(place[r[0]] <= common and r[0] <= horizon for r in self.news[name]):
                return None
            read = [r[2] for r in self.rows[name] if place[r[0]] <= common]
            if self.kpi(name).temporality == "cumulative":
                read = read[-1:]
            if any(n is None for n in read):
                return None
            units[variant] = sum(n for n in read if n is not None)
        return units

    def days(self, metric: str, wanted: int, slot: int) -> Days | None:
        name = f"{metric}/{self.compiled.judged_variants[0]}"
        kpi, clock = self.kpi(name), self.compiled.clock
        horizon = self.compiled.freshness_instant(slot) if kpi.kind == "gauge" else self.compiled.horizon(slot)
        newest = self.newest(name, horizon)
        if newest is None:
            return None
        closed = clock.running(horizon) // DAY
        values: list[tuple[int, float | None]] = []
        days = list(range(closed))
        if kpi.expected or kpi.outages:
            came = {(max(clock.running(r[0]), 1) - 1) // DAY for r in self.news[name] if r[0] <= horizon}
            start = self.nearest(kpi, self.plan.started_at)
            was_due = {
                (clock.running(d) - 1) // DAY
                for d in self.dues(kpi)
                if d > start and not in_outage(kpi, d) and not self.paused(d)
            }
            days = [day for day in days if day in came or day in was_due]
        for day in days[-wanted:]:
            rows = [r for r in self.news[name] if (max(clock.running(r[0]), 1) - 1) // DAY == day]
            rows = rows[-1:] if kpi.temporality == "cumulative" else rows
            known = [(_value(kpi, r), 1.0 if r[2] is None else float(r[2])) for r in rows]
            if not known or any(value is None for value, _ in known):
                values.append((day, None))
            else:
                total = 0.0
                for value, weight in known:
                    total += weight * (value or 0.0)
                values.append((day, total / sum(weight for _, weight in known)))
        arrived = max(r[4] for r in self.news[name] if r[0] <= horizon)
        return Days(newest, tuple(values), arrived)


def _rows(series: Series) -> list[Row]:
    empty = [None] * len(series.ts)
    columns = (
        series.ts,
        series.value,
        series.n,
        series.variance,
        series.first_received_at,
        series.denominator_value or empty,
        series.denominator_variance or empty,
        series.covariance or empty,
    )
    return list(zip(*columns, strict=True))


def nearest(ts: int, dues: Sequence[int]) -> int:
    """The due instant that a row answers: of two equally near the earlier."""
    at = bisect_right(dues, ts)
    earlier, later = dues[at - 1], dues[at]
    return earlier if ts - earlier <= later - ts else later


def in_outage(kpi: Kpi, due: int) -> bool:
    return any(begin <= due <= end for begin, end in kpi.outages)


def _news(kpi: Kpi, rows: list[Row]) -> list[Row]:
    news = []
    for i, row in enumerate(rows):
        same = i > 0 and kpi.temporality == "cumulative" and row[2] is not None and _says(row) == _says(rows[i - 1])
        if row[2] != 0 and not same:
            news.append(row)
    return news


def _says(row: Row) -> tuple[float | None, ...]:
    return (*row[1:4], *row[5:])


def _bucket(kpi: Kpi, row: Row) -> Moments | PairMoments | None:
    _, value, n, variance, _, d, v_d, cov = row
    if n is None or value is None:
        return None
    if kpi.kind == "proportion":
        return of_proportion(n, value)
    if n >= 2 and variance is None:
        return None
    if kpi.kind == "mean":
        return of_mean(n, value, variance or 0.0)
    if d is None or (n >= 2 and (v_d is None or cov is None)):
        return None
    return of_ratio(n, value, variance or 0.0, d, v_d or 0.0, cov or 0.0)


def _value(kpi: Kpi, row: Row) -> float | None:
    if kpi.kind == "ratio":
        return None if row[1] is None or not row[5] else row[1] / row[5]
    return row[1]
