"""What policy and plan fix: the gates of an experiment ready to read, and the slots at which it is judged. Pure.

No row changes any of it, so it is made once for a policy and a plan, by `compile_plan`, and kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from experiments.schedule import Part, Schedule, schedule_of
from gates.engine.facts import Unreadable
from gates.engine.plan import DAY, SECOND, Answer, Clock, Dues, Kpi, Plan
from gates.engine.policy import Gate, Policy, counting, derive
from gates.engine.statistics.planning import planned_units
from gates.engine.statistics.sequences import tuning

REVISION = 3
"""Of these rules. Evidence and states name the one they were made by: a state of an earlier one is folded anew, once, and
evidence of an earlier one replays by what `gates.engine.revisions` keeps of it."""


class Comparison(NamedTuple):
    """A goal or guard gate, ready to read."""

    gate: Gate
    kpi: Kpi
    alpha: float
    rho2: float
    goal: bool
    scale_above: float
    fail_below: float
    """`delete_below` of a goal, -max_harm of a guard."""
    plausible_to: float
    """An effect of a goal proved to be beyond is not believed; infinite where nothing says so."""


class Watch(NamedTuple):
    """A threshold gate, or a density gate on a metric, of one variant."""

    gate: Gate
    variant: str
    series: int
    name: str
    """"gate/variant"."""
    closed: bool
    """It reads closed rows only, up to the horizon."""


class SeriesSpec(NamedTuple):
    """One series and what it is read for.

    schedule, every: when its buckets are due, and how far apart where that never changes, else 0. tolerated: the least age its watermark
    may have, `tolerance` says how old one may be. dues, overdue_after: the due instants that are expected, and how long after one a bucket
    is overdue. window: over how many buckets density looks, 0: all; of a calendar over those of min_age. counted: the density of its
    buckets is judged. sparse_beside: place of the series whose rows tell that nothing happened. at_horizon, at_present: a watch
    reads it up to there. targets: positions of the targets that read it. unsupported_because: why no goal or guard can judge it, whatever its
    rows; None when one can, and such plans are refused.
    """

    name: str
    """"metric/variant"."""
    metric: str
    variant: str
    kpi: Kpi
    cumulative: bool
    schedule: Schedule
    every: int
    tolerated: int
    dues: Dues
    overdue_after: int
    window: int
    min_age: int
    counted: bool
    compared: bool
    splits: bool
    at_horizon: bool
    at_present: bool
    targets: tuple[int, ...]
    unsupported_because: Unreadable | None
    sparse_beside: int | None

    def tolerance(self, watermark: int | None) -> int:
        """How long after a watermark, in running time, its series is fresh; None, and one from before the start: after the start."""
        is_row = watermark is not None and watermark > self.dues.clock.started_at
        return self.dues.wait(watermark if is_row else None) + self.kpi.freshness_target_s * SECOND


class CompiledPlan:
    """Everything about judging one plan by one policy that no row changes. Build with `compile_plan`."""

    def __init__(self, policy: Policy, plan: Plan, revision: int = REVISION) -> None:
        self.policy, self.plan, self.clock, self.revision = policy, plan, Clock(plan), revision
        self.gates, self.ended_at = derive(policy, plan), plan.ended_at
        if revision < 3:
            self.gates = [gate for gate in self.gates if gate.kind != "doubt"]
        self.closed_after = policy.closed_after_s * SECOND
        self.slot_us, self.look_us = policy.slot_s * SECOND, policy.look_s * SECOND
        self.control = plan.control.key if plan.control else None
        self.judged_variants = tuple(variant.key for variant in plan.judged_variants)
        self.variants = tuple(variant.key for variant in plan.variants)
        self.metrics = self._metrics_read()
        self.kpis = {metric: kpi for metric in self.metrics if (kpi := plan.kpi(metric)) is not None}
        self.series = tuple((metric, variant) for metric in self.metrics for variant in self.variants)
        self.series_index = {f"{metric}/{variant}": i for i, (metric, variant) in enumerate(self.series)}
        self.comparisons = tuple(self._comparison(gate) for gate in self.gates if gate.kind in ("uplift", "guard"))
        goals = [g for g, comparison in enumerate(self.comparisons) if comparison.goal]
        self.guards = tuple(g for g in range(len(self.comparisons)) if g not in goals)
        self.compared = tuple(dict.fromkeys(comparison.kpi.metric for comparison in self.comparisons))
        self.targets = tuple(gate for gate in self.gates if gate.kind == "target")
        self.goals = tuple(goals) if self.control is not None else tuple(range(len(self.targets)))
        """Places of goals among a judged variant's measured gates; a target counts as one."""
        self.watches = tuple(
            Watch(
                gate=gate,
                variant=variant,
                series=self.series_index[f"{gate.metric}/{variant}"],
                name=f"{gate.name}/{variant}",
                closed=gate.kind == "density" and self.kpis[gate.metric].kind != "gauge",
            )
            for gate in self.gates
            if gate.metric is not None and gate.kind in ("threshold", "density")
            for variant in self.variants
        )
        self.watch_index = {watch.name: i for i, watch in enumerate(self.watches)}
        self.density = next((g for g in self.gates if g.kind == "density" and g.metric is None), None)
        self.srm = any(gate.kind == "srm" for gate in self.gates)
        self.counting = tuple(kpi.metric for kpi in counting(plan, self.gates)) if self.srm else ()
        self.exposures = tuple(
            metric for metric in self.counting if self.kpis[metric].role == "exposure" and revision > 2
        )
        self.over_exposures = frozenset(
            c.kpi.metric for c in self.comparisons if c.goal and c.kpi.metric in self.counting and self.exposures
        )
        """Goals that can have no more units than were exposed."""
        self.weights = {variant.key: variant.weight for variant in plan.variants}
        self.min_age = policy.min_days * DAY
        self.max_age = policy.max_days * DAY
        self.answers = tuple(sorted(plan.answers, key=lambda answer: answer.at))
        self.dropped = self._dropped()
        self.closing_at = min((a.at for a in self.answers if _closes(a, self.judged_variants)), default=None)
        self.is_steady = not self.clock.pauses and plan.ended_at is None and self.closing_at is None
        """Every slot is judged."""
        self.final_slot = None if plan.ended_at is None else self.slot_at(plan.ended_at + self.closed_after)
        self.created = self.slot_at(plan.created_at)
        self.plan_changes = self._plan_changes()
        self.trust_slots = self._trust_slots()
        self.scheduled_slots = self._scheduled_slots()
        self._dues: dict[tuple[tuple[Part, ...] | int, tuple[tuple[int, int], ...]], Dues] = {}
        self.specs = tuple(self._spec(metric, variant) for metric, variant in self.series)
        self.visibility_lags = {metric: self._visibility_lag(kpi) for metric, kpi in self.kpis.items()}
        self.no_lags = dict.fromkeys(self.kpis, 0)
        self.fingerprints: dict[int, str] = {}

    def slot_at(self, instant: int) -> int:
        """The first slot at or after an instant."""
        return -(-instant // self.slot_us) * self.slot_us

    def horizon(self, slot: int) -> int:
        """The instant up to which rows with units are closed at a slot."""
        horizon, ended = slot - self.closed_after, self.ended_at
        return horizon if ended is None or horizon < ended else ended

    def overdue(self, spec: SeriesSpec, slot: int) -> int:
        """The instant up to which buckets of a source are overdue at a slot."""
        overdue, ended = slot - spec.overdue_after, self.ended_at
        return overdue if ended is None or overdue < ended else ended

    def freshness_instant(self, slot: int) -> int:
        """The instant freshness and gauges are measured at: the slot, at most the end of the experiment."""
        return slot if self.ended_at is None or slot < self.ended_at else self.ended_at

    def first(self) -> int:
        """The first slot after the start."""
        return self.slot_at(self.plan.started_at + 1)

    def next_judged(self, slot: int) -> int | None:
        """The first judged slot at or after a slot; None when there is none any more."""
        if self.is_steady:
            return slot
        judged: int | None = slot
        for begin, end in self.clock.pauses:
            if judged is not None and begin < judged and (end is None or judged < end):
                judged = None if end is None else self.slot_at(end)
        ended = self.plan.ended_at
        if ended is not None and (judged is None or judged > ended):
            judged = self.final_slot if self.final_slot is not None and slot <= self.final_slot else None
        return None if judged is None or (self.closing_at is not None and judged > self.closing_at) else judged

    def newest_judged(self, to: int) -> int | None:
        """The newest judged slot up to an instant; None before the first."""
        slot = to // self.slot_us * self.slot_us
        if self.closing_at is not None:
            slot = min(slot, self.closing_at // self.slot_us * self.slot_us)
        ended = self.plan.ended_at
        if ended is not None and self.final_slot is not None:
            if slot >= self.final_slot and self.next_judged(self.final_slot) == self.final_slot:
                return self.final_slot
            slot = min(slot, ended // self.slot_us * self.slot_us)
        for begin, end in reversed(self.clock.pauses):
            if begin < slot and (end is None or slot < end):
                slot = begin // self.slot_us * self.slot_us
        return slot if slot > self.plan.started_at else None

    def looks(self, after: int, to: int) -> list[int]:
        """Judged looks in (after, to], the last look after the end among them."""
        first, last = (after // self.look_us + 1) * self.look_us, to
        for end in (self.plan.ended_at, self.closing_at):
            last = last if end is None else min(last, end)
        looks = list(range(first, last + 1, self.look_us))
        if self.clock.pauses:
            looks = [look for look in looks if self.next_judged(look) == look]
        if self.final_slot is not None and after < self.final_slot <= to and self.final_slot not in looks[-1:]:
            looks += [self.final_slot] if self.next_judged(self.final_slot) == self.final_slot else []
        return looks

    def arms(self, slot: int) -> tuple[str, ...]:
        """Variants still read at a slot."""
        if not self.dropped:
            return self.variants
        return tuple(v for v in self.variants if v not in self.dropped or slot < self.dropped[v])

    def _metrics_read(self) -> tuple[str, ...]:
        metrics = [gate.metric for gate in self.gates if gate.metric is not None]
        if self.plan.treatments:
            metrics += [kpi.metric for kpi in self.plan.kpis if kpi.role == "exposure"]
        return tuple(dict.fromkeys(metrics))

    def _comparison(self, gate: Gate) -> Comparison:
        kpi = self.plan.kpi(gate.metric or "")
        assert kpi is not None  # noqa: S101 - derive binds gates to the plan's KPIs only
        goal = gate.kind == "uplift"
        goals = sum(1 for other in self.gates if other.kind == "uplift")
        alpha = self.policy.alpha
        if goal:
            alpha /= len(self.plan.treatments) * (goals if self.policy.require == "any" else 1)
        worthwhile = kpi.minimum_effect if goal else gate.max_harm
        return Comparison(
            gate=gate,
            kpi=kpi,
            alpha=alpha,
            rho2=tuning(tightest_at(self.policy, kpi, gate, worthwhile), alpha),
            goal=goal,
            scale_above=gate.scale_above if goal else -gate.max_harm,
            fail_below=gate.delete_below if goal else -gate.max_harm,
            plausible_to=plausible_to(self.policy, kpi, gate) if goal else math.inf,
        )

    def _spec(self, metric: str, variant: str) -> SeriesSpec:
        kpi = self.kpis[metric]
        cumulative = kpi.temporality == "cumulative"
        watches = [watch for watch in self.watches if watch.gate.metric == metric]
        dues = self._dues_of(kpi)
        schedule = dues.schedule
        return SeriesSpec(
            name=f"{metric}/{variant}",
            metric=metric,
            variant=variant,
            kpi=kpi,
            cumulative=cumulative,
            schedule=schedule,
            every=schedule.every,
            tolerated=schedule.every + kpi.freshness_target_s * SECOND,
            dues=dues,
            overdue_after=max(self.closed_after, kpi.freshness_target_s * SECOND),
            window=self.policy.min_days * 86_400 // kpi.expected_every_s,
            min_age=self.min_age,
            counted=self.density is not None and not cumulative,
            compared=metric in self.compared,
            splits=metric in self.counting,
            at_horizon=any(watch.closed for watch in watches),
            at_present=any(not watch.closed for watch in watches),
            targets=tuple(t for t, gate in enumerate(self.targets) if gate.metric == metric),
            unsupported_because=_unsupported_because(kpi),
            sparse_beside=self.series_index.get(f"{kpi.sparse_beside}/{variant}"),
        )

    def _dues_of(self, kpi: Kpi) -> Dues:
        """The same object for all series that are due at the same instants."""
        of = kpi.expected or kpi.expected_every_s, kpi.outages
        if of not in self._dues:
            self._dues[of] = Dues(schedule_of(kpi.expected, kpi.expected_every_s), self.clock, kpi.outages)
        return self._dues[of]

    def _visibility_lag(self, kpi: Kpi) -> int:
        """How far behind a slot the newest instant judged for a metric lies."""
        watched = any(watch.gate.metric == kpi.metric for watch in self.watches)
        return 0 if watched or kpi.kind == "gauge" or kpi.temporality == "cumulative" else self.closed_after

    def _scheduled_slots(self) -> list[int]:
        """Slots at which plan and policy alone may change something: the first, answers, ends of snoozes, max_days, drops."""
        instants = [self.first(), *self.dropped.values(), *self.trust_slots]
        for answer in self.answers:
            instants += [answer.at, answer.at + self.policy.snooze_days * DAY]
        if (oldest := self.clock.wall(self.max_age)) is not None:
            instants.append(oldest + self.closed_after)
        judged = (self.next_judged(self.slot_at(instant)) for instant in instants)
        return sorted({slot for slot in judged if slot is not None})

    def _trust_slots(self) -> frozenset[int]:
        """Slots at which a person's word about doubt begins or ends to count."""
        instants = [
            instant for kpi in self.plan.kpis for span in kpi.trusted for instant in span[:2] if instant is not None
        ]
        judged = (self.next_judged(self.slot_at(instant)) for instant in instants)
        return frozenset(slot for slot in judged if slot is not None)

    def _plan_changes(self) -> list[int]:
        """Slots from which on the plan reads as if more had happened, in order."""
        plan = self.plan
        plan_changes: list[int | None] = [
            plan.ended_at,
            *(v.dropped_at for v in plan.variants),
            *(a.at for a in plan.answers),
        ]
        for begin, end in plan.pauses:
            plan_changes += [begin + 1, end]
        for kpi in plan.kpis:
            plan_changes += [instant for outage in kpi.outages for instant in outage]
            plan_changes += [instant for begin, end, _ in kpi.trusted for instant in (begin, end)]
        return sorted(turn for turn in plan_changes if turn is not None)

    def _dropped(self) -> dict[str, int]:
        dropped = {v.key: v.dropped_at for v in self.plan.variants if v.dropped_at is not None}
        for answer in self.answers:
            if answer.action == "accept" and answer.of[0] == "delete" and answer.variant is not None:
                dropped[answer.variant] = min(answer.at, dropped.get(answer.variant, answer.at))
        return dropped


@lru_cache(maxsize=4096)
def compile_plan(policy: Policy, plan: Plan, revision: int = REVISION) -> CompiledPlan:
    """The plan compiled for judging; the same object for equal arguments. revision: which rules, the present ones or those of old evidence."""
    return CompiledPlan(policy, plan, revision)


def _unsupported_because(kpi: Kpi) -> Unreadable | None:
    if kpi.kind == "gauge":
        return Unreadable("gauge")
    return None if kpi.direction else Unreadable("no_direction")


def tightest_at(policy: Policy, kpi: Kpi, gate: Gate, worthwhile: float) -> float:
    """t_opt: units of both arms at which the gate's interval is tightest, fixed at the start (docs/gates.md section 3)."""
    baseline = kpi.baseline
    if baseline is None or baseline.stddev <= 0 or worthwhile == 0:
        return float(policy.planned_units)
    effect = worthwhile * (abs(baseline.mean) if gate.effect == "relative" else 1.0)
    units = 2.0 * planned_units(baseline.stddev, effect) if effect else float(policy.planned_units)
    return min(max(units, 1e-100), 1e100)  # a baseline may be as far from the effect as numbers are taken


def plausible_to(policy: Policy, kpi: Kpi, gate: Gate) -> float:
    """The largest effect that is believed of a goal: its own, else the policy's where the effect is relative."""
    if kpi.plausible_to is not None:
        return kpi.plausible_to
    return policy.doubt_above if policy.doubt_above is not None and gate.effect == "relative" else math.inf


def _closes(answer: Answer, judged_variants: tuple[str, ...]) -> bool:
    """Whether an answer ends the experiment."""
    if answer.action == "override":
        return answer.override_to in ("scale", "delete", "stop")
    action = answer.of[0]
    return action == "scale" or (action == "delete" and (answer.variant is None or len(judged_variants) == 1))
