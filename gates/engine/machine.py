"""Verdicts and recommendations: a small state machine over facts, as docs/gates.md sections 3 to 6 say. Pure.

`CompiledPlan` is what policy and plan fix, `ExperimentState` what earlier looks left, `StateMachine.advance` moves it over one slot's facts. Nothing else
decides: the fold only finds the facts, and replay runs the same steps again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from experiments.schedule import Grid, Schedule
from gates.engine.facts import Days, MetricLook, Observations, SlotFacts, Sums
from gates.engine.plan import DAY, SECOND, Action, Answer, Clock, Dues, Kpi, Plan
from gates.engine.policy import SRM_ALARM, Gate, GateKind, Policy, counting, derive
from gates.engine.screening import MetricTrack, Screen
from gates.engine.statistics.effects import relative_interval, relative_se, relative_uplift, with_spread
from gates.engine.statistics.moments import Arm, PairMoments, mean_arm, proportion_arm, ratio_arm
from gates.engine.statistics.planning import planned_units
from gates.engine.statistics.sequences import always_valid_p, half_width, intersect, tuning
from gates.engine.statistics.srm import srm_log_e

Verdict = Literal["pass", "fail", "inconclusive", "no_data", "stale", "invalid"]
RecommendationState = Literal["open", "proposed", "suspended"]
Why = Literal["", "missing", "unreadable", "units", "denominator", "spread", "zero", "noisy", "young", "day"]
"""What a gate lacks before its interval is believed; "": nothing."""

REVISION = 2
"""Of these rules. Evidence and states name the one they were made by: a state of an earlier one is folded anew, once, and
evidence of an earlier one replays by what `gates.engine.revisions` keeps of it."""

FRESH, STALE, MISSING, OVERDUE = range(4)
"""Freshness of a series: watermark young enough; too old; no row yet; no row and past due."""

LOG_ALARM = math.log(SRM_ALARM)
HARM_LOOKS = 2
RATE_SAMPLES = 8
COLLECTING = 5
HOLD_OPEN = 10
AT_ONCE = 3
"""Rows 1 to 3 act at once."""
AT_ONCE_CODES = ("unsafe", "invalid", "harm")
NOT_MEASURED = (1, 2)
"""Rows that rest on no running bounds, so a restatement does not touch what they proposed."""


class Rule(NamedTuple):
    """One of the ten rules of docs/gates.md section 5: when it matches, the (action, code) it may say, and how it acts."""

    number: int
    when: str
    says: tuple[tuple[Action, str], ...]
    acts: Literal["at once", "suspends a scale", "after a streak", ""] = "after a streak"


UNDECIDED: tuple[Action, str] = ("review", "undecided")
"""Once time is over."""
RULES = (
    Rule(1, "a safety limit is broken", (("delete", "unsafe"),), "at once"),
    Rule(2, "the split or a reading is invalid", (("review", "invalid"),), "at once"),
    Rule(3, "a guard is proved to be harmed", (("delete", "harm"),), "at once"),
    Rule(4, "data is missing or too old", (("hold", "no_data"), ("hold", "stale"), UNDECIDED), "suspends a scale"),
    Rule(5, "buckets, days or units are lacking", (("hold", "collecting"), UNDECIDED), "suspends a scale"),
    Rule(6, "the goals pass, by too little", (("review", "too_small"),)),
    Rule(7, "the goals pass, and all else", (("scale", "wins"), ("scale", "on_target"))),
    Rule(8, "the goals fail", (("delete", "harmful"), ("delete", "not_worth_it"), ("delete", "off_target"))),
    Rule(9, "time is over", (UNDECIDED,)),
    Rule(10, "else", (("hold", "open"),), ""),
)
"""The first that matches says what to do. Tests hold the table to what the machine below does, and docs/gates.md to the table."""


# What a slot's evaluation looks like ----------------------------------------------------------------------------------


class Reading(msgspec.Struct, frozen=True):
    """What one goal or guard gate measured at one look; 12 significant digits. Up is good.

    estimate, lower, upper: the always-valid interval, fractions for a relative effect; None where nothing bounds it yet.
    running_lower, running_upper: L and U, None until a look counts for them. p: always-valid p for no effect. n: units of both
    arms. at: the common instant.
    """

    at: int
    n: int
    estimate: float
    lower: float | None
    upper: float | None
    running_lower: float | None
    running_upper: float | None
    p: float | None


class GateState(msgspec.Struct, frozen=True):
    """One gate (of one variant, None for gates of the whole experiment) as of a slot.

    since: the slot at which the verdict became this one. reason: a sentence with the numbers. extra: limits to draw
    (`scale_above`, `delete_below`, `max_harm`, `at_least`, `at_most`) and what the kind counts (`observed`, `expected`).
    """

    gate: str
    kind: GateKind
    variant: str | None
    metric: str | None
    verdict: Verdict
    since: int
    reading: Reading | None
    reason: str
    extra: dict[str, Any]


class Recommendation(msgspec.Struct, frozen=True):
    """What the gates advise for one variant, or for the experiment (then `variant` is the winner of a scale, else None).

    A latched proposal is `proposed` or `suspended` and has `proposed_slot`; a hold is `open`.
    first_stable_at: data time at which the recommended row had held long enough. knowable_at: when that could be known.
    stands_alone: a variant's delete that a person may answer apart from the experiment (rows 1 and 3).
    """

    action: Action
    code: str
    variant: str | None
    state: RecommendationState
    rationale: tuple[str, ...]
    blockers: tuple[str, ...]
    first_stable_at: int | None
    knowable_at: int | None
    proposed_slot: int | None
    stands_alone: bool = False


class Evaluation(msgspec.Struct, frozen=True):
    """The experiment as of one slot. changed: an action, code, state or verdict differs from the slot before."""

    slot: int
    changed: bool
    recommendation: Recommendation
    variants: tuple[Recommendation, ...]
    gates: tuple[GateState, ...]


# What policy and plan fix ---------------------------------------------------------------------------------------------


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

    schedule, every: when its buckets are due. allowed: how old its watermark may be. dues, lag: the due instants that are expected,
    and how long after one a bucket is overdue. window: over how many buckets density looks, 0: all. counted: the density of its buckets is judged. at_horizon, at_present: a watch
    reads it up to there. targets: positions of the targets that read it. unsupported_because: why no goal or guard can judge it, whatever its
    rows; empty when one can, and such plans are refused.
    """

    name: str
    """"metric/variant"."""
    metric: str
    variant: str
    kpi: Kpi
    cumulative: bool
    schedule: Schedule
    every: int
    allowed: int
    dues: Dues
    overdue_after: int
    window: int
    counted: bool
    compared: bool
    splits: bool
    at_horizon: bool
    at_present: bool
    targets: tuple[int, ...]
    unsupported_because: str


class CompiledPlan:
    """Everything about judging one plan by one policy that no row changes. Build with `compile_plan`."""

    def __init__(self, policy: Policy, plan: Plan, revision: int = REVISION) -> None:
        self.policy, self.plan, self.clock, self.revision = policy, plan, Clock(plan), revision
        self.gates, self.ended_at = derive(policy, plan), plan.ended_at
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
        self.scheduled_slots = self._scheduled_slots()
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
        )

    def _spec(self, metric: str, variant: str) -> SeriesSpec:
        kpi = self.kpis[metric]
        cumulative = kpi.temporality == "cumulative"
        watches = [watch for watch in self.watches if watch.gate.metric == metric]
        schedule = Grid(kpi.expected_every_s * SECOND)
        return SeriesSpec(
            name=f"{metric}/{variant}",
            metric=metric,
            variant=variant,
            kpi=kpi,
            cumulative=cumulative,
            schedule=schedule,
            every=schedule.every,
            allowed=(kpi.expected_every_s + kpi.freshness_target_s) * SECOND,
            dues=Dues(schedule, self.clock),
            overdue_after=max(self.closed_after, kpi.freshness_target_s * SECOND),
            window=self.policy.min_days * 86_400 // kpi.expected_every_s,
            counted=self.density is not None and not cumulative,
            compared=metric in self.compared,
            splits=metric in self.counting,
            at_horizon=any(watch.closed for watch in watches),
            at_present=any(not watch.closed for watch in watches),
            targets=tuple(t for t, gate in enumerate(self.targets) if gate.metric == metric),
            unsupported_because=_unsupported_because(kpi),
        )

    def _visibility_lag(self, kpi: Kpi) -> int:
        """How far behind a slot the newest instant judged for a metric lies."""
        watched = any(watch.gate.metric == kpi.metric for watch in self.watches)
        return 0 if watched or kpi.kind == "gauge" or kpi.temporality == "cumulative" else self.closed_after

    def _scheduled_slots(self) -> list[int]:
        """Slots at which plan and policy alone may change something: the first, answers, ends of snoozes, max_days, drops."""
        instants = [self.first(), *self.dropped.values()]
        for answer in self.answers:
            instants += [answer.at, answer.at + self.policy.snooze_days * DAY]
        if (oldest := self.clock.wall(self.max_age)) is not None:
            instants.append(oldest + self.closed_after)
        judged = (self.next_judged(self.slot_at(instant)) for instant in instants)
        return sorted({slot for slot in judged if slot is not None})

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


def _unsupported_because(kpi: Kpi) -> str:
    if kpi.kind == "gauge":
        return f"{kpi.metric} is a gauge, which has no units to compare"
    return "" if kpi.direction else f"{kpi.metric} does not say which direction is better"


def tightest_at(policy: Policy, kpi: Kpi, gate: Gate, worthwhile: float) -> float:
    """t_opt: units of both arms at which the gate's interval is tightest, fixed at the start (docs/gates.md section 3)."""
    baseline = kpi.baseline
    if baseline is None or baseline.stddev <= 0 or worthwhile == 0:
        return float(policy.planned_units)
    effect = worthwhile * (abs(baseline.mean) if gate.effect == "relative" else 1.0)
    units = 2.0 * planned_units(baseline.stddev, effect) if effect else float(policy.planned_units)
    return min(max(units, 1e-100), 1e100)  # a baseline may be as far from the effect as numbers are taken


def _closes(answer: Answer, judged_variants: tuple[str, ...]) -> bool:
    """Whether an answer ends the experiment."""
    if answer.action == "override":
        return answer.override_to in ("scale", "delete", "stop")
    action = answer.of[0]
    return action == "scale" or (action == "delete" and (answer.variant is None or len(judged_variants) == 1))


# What earlier looks left ----------------------------------------------------------------------------------------------


class RunningBounds(msgspec.Struct, array_like=True):
    """A goal or guard gate of one treatment: its newest reading and its running bounds."""

    verdict: Verdict = "no_data"
    why: Why = "missing"
    at: int | None = None
    n: int = 0
    estimate: float = 0.0
    se: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    readable: bool = False
    floor: bool = False
    running_lower: float | None = None
    running_upper: float | None = None
    p: float | None = None
    small: bool = False
    """U is below what is worth it."""
    lost: bool = False
    """U is below 0."""
    invalid: bool = False
    fails: int = 0
    arrived: int = 0
    arms: tuple[int, int] = (0, 0)
    noise: float = 0.0
    reasons: list[str] = []
    """Why series are unreadable, one a series."""
    rate_samples: list[int] = []
    """Instants about a day apart, oldest first, each followed by the units until then: the present units a day."""


class Latch(msgspec.Struct, array_like=True):
    """A proposal that stands until it is answered or withdrawn."""

    rule: int
    action: Action
    code: str
    slot: int
    stable_at: int
    knowable_at: int
    lower: float = -math.inf
    restated: bool = False


class VariantState(msgspec.Struct, array_like=True):
    """One judged variant: the rule that matches now, how long its action has held, and what is latched.

    hold_code: what a hold is called while nothing is latched. held, streak: the action of the last looks and at how many of
    them it held. hold_streak: at how many looks rule 10 held. counted: per gate, its common instant at the last look that counted.
    readable_at: the first look at which rows 1 to 5 did not match. snoozed: (action, code, until).
    """

    rule: int = 4
    action: Action = "hold"
    code: str = "no_data"
    hold_code: str = "no_data"
    held: Action = "hold"
    streak: int = 0
    stable_at: int = 0
    knowable_at: int = 0
    counted: list[int | None] = []
    hold_streak: int = 0
    hold_stable_at: int = 0
    hold_knowable_at: int = 0
    readable_at: int | None = None
    latch: Latch | None = None
    snoozed: list[tuple[str, str, int]] = []


class ExperimentState(msgspec.Struct, array_like=True):
    """Everything later slots depend on; lists run over the compiled plan's series, watches, comparisons x treatments, judged variants."""

    slot: int
    fresh: list[int]
    dense: list[bool]
    watched: list[Verdict]
    observed: list[tuple[int, int]]
    bounds: list[RunningBounds]
    targets: list[RunningBounds]
    variant_states: list[VariantState]
    alarm: dict[str, dict[str, int]] = {}
    answered: int = 0
    since: dict[str, tuple[Verdict, int]] = {}
    shown: list[tuple[str, str, str]] = []
    alarm_at: dict[str, int] = {}

    @classmethod
    def at_start(cls, compiled: CompiledPlan) -> ExperimentState:
        gates = len(compiled.comparisons)
        counted = gates + len(compiled.targets)
        return cls(
            slot=compiled.plan.started_at,
            fresh=[MISSING] * len(compiled.series),
            dense=[False] * len(compiled.series),
            watched=["no_data"] * len(compiled.watches),
            observed=[(0, 0)] * len(compiled.watches),
            bounds=[RunningBounds() for _ in range(gates * len(compiled.judged_variants))],
            targets=[RunningBounds() for _ in compiled.targets],
            variant_states=[VariantState(counted=[None] * counted) for _ in compiled.judged_variants],
        )


# One slot -------------------------------------------------------------------------------------------------------------


class StateMachine:
    """The state machine: `step` takes the facts of one slot after the other."""

    def __init__(self, compiled: CompiledPlan, state: ExperimentState) -> None:
        self.compiled, self.state = compiled, state
        self.treatments = compiled.judged_variants if compiled.control is not None else ()
        self.width = len(compiled.judged_variants)
        self.measured = [
            state.bounds[index :: self.width] if self.treatments else state.targets for index in range(self.width)
        ]
        self.goals = [[measured[g] for g in compiled.goals] for measured in self.measured]
        self.guards = [[measured[g] for g in compiled.guards] for measured in self.measured]
        self.touched = not state.shown
        self.fast_forwarding: FastForward | None = None

    def advance(self, facts: SlotFacts) -> bool:
        """Move the state over one slot; True when an action, code, state or verdict changed."""
        return self._advance_with(facts, self._apply_look)

    def _advance_with(self, facts: SlotFacts, read_look: Callable[[SlotFacts], None]) -> bool:
        state, compiled = self.state, self.compiled
        state.slot = facts.slot
        if state.answered < len(compiled.answers):
            self._apply_answers(facts.slot)
        if facts.fresh or facts.dense or facts.watched or facts.split:
            self._apply_slot_facts(facts)
        if facts.look:
            read_look(facts)
        arms = compiled.arms(facts.slot)
        for index, variant in enumerate(compiled.judged_variants):
            if variant in arms:
                self._update_variant(index, variant, arms, facts)
        changed = self.touched and self._record_changes(facts.slot)
        self.touched = False
        return changed

    def fast_forward(
        self, looks: Sequence[int], steps: Mapping[int, SlotFacts], tracks: Mapping[str, MetricTrack]
    ) -> Iterator[tuple[int, bool]]:
        """What `advance` would do over a range of slots whose compared metrics are given as tracks: stops only where it may matter.

        looks: every look of the range; steps: all other facts by slot; tracks: one for each compared metric. Yields
        (slot, changed) after each stop; whoever wants to read the numbers there calls `catch_up` first.
        """
        fast_forward = FastForward(self, looks, tracks)
        stops = sorted({*steps, *fast_forward.must_stop})
        position = 0
        for stop in stops:
            while True:
                ahead = bisect_left(looks, stop, position)
                if position < ahead and self._is_counting():
                    yield looks[position], fast_forward.stop(position, SlotFacts(slot=looks[position], look=True))
                    position += 1
                    continue
                fast_forward.skip(position, ahead)
                position = ahead
                break
            facts = steps.get(stop) or SlotFacts(slot=stop, look=True)
            yield stop, fast_forward.stop(position, facts)
            position += position < len(looks) and looks[position] == stop
        while position < len(looks) and self._is_counting():
            yield looks[position], fast_forward.stop(position, SlotFacts(slot=looks[position], look=True))
            position += 1
        fast_forward.skip(position, len(looks))
        self.compute_pending()

    def compute_pending(self) -> None:
        """Bring the numbers of every gate to the look they stand at, by the scalar path."""
        if self.fast_forwarding is not None:
            self.fast_forwarding.compute_pending()

    def _is_counting(self) -> bool:
        """Whether the next look may change something even if no verdict changes: something is being counted."""
        state, persist = self.state, self.compiled.policy.persist
        arms = self.compiled.arms(state.slot)
        for index, variant_state in enumerate(state.variant_states):
            if self.compiled.judged_variants[index] not in arms:
                continue
            latch = variant_state.latch
            waits = latch is None or latch.restated or (latch.code == "undecided" and variant_state.action != "review")
            if (
                variant_state.rule > AT_ONCE
                and variant_state.action != "hold"
                and (waits or variant_state.streak < persist)
            ):
                return True
            if variant_state.action != variant_state.held or (
                variant_state.rule <= AT_ONCE and variant_state.streak < persist
            ):
                return True
            if variant_state.readable_at is None and variant_state.rule > COLLECTING:
                return True
            if (variant_state.rule == HOLD_OPEN) != (
                variant_state.hold_streak > 0
            ) or 0 < variant_state.hold_streak < persist:
                return True
            for comparison, bounds in zip(self.compiled.comparisons, self.measured[index], strict=True):
                if not comparison.goal and bounds.verdict == "fail" and bounds.fails < HARM_LOOKS:
                    return True
        return False

    # Facts into verdicts

    def _apply_slot_facts(self, facts: SlotFacts) -> None:
        """Facts of the slot itself: freshness, density, thresholds, split."""
        state, compiled = self.state, self.compiled
        self.touched = True
        for name, (watermark, _) in facts.fresh.items():
            state.fresh[compiled.series_index[name]] = freshness(compiled, name, watermark, facts.slot)
        for name, counts in facts.dense.items():
            state.dense[compiled.series_index[name]] = is_dense(compiled, counts)
        for name, observations in facts.watched.items():
            index = compiled.watch_index[name]
            state.watched[index] = watch_verdict(compiled.watches[index].gate, observations)
            newest = observations.newest[-1][0] if observations.newest else 0
            state.observed[index] = (newest, observations.arrived)
        for metric, units in facts.split.items():
            if metric not in state.alarm and split_log_e(compiled, units) >= LOG_ALARM:
                state.alarm[metric] = units
                state.alarm_at[metric] = facts.slot

    def _apply_look(self, facts: SlotFacts) -> None:
        compiled, state = self.compiled, self.state
        arms = compiled.arms(facts.slot)
        for g, comparison in enumerate(compiled.comparisons):
            look = facts.looks.get(comparison.kpi.metric)
            if look is None:
                continue
            for v, variant in enumerate(self.treatments):
                if variant in arms:
                    self._read(comparison, state.bounds[g * self.width + v], look, variant, state.variant_states[v])
        for index, gate in enumerate(compiled.targets):
            days = facts.days.get(gate.name)
            if days is not None:
                self._read_target(gate, state.targets[index], days)

    def _read(
        self, comparison: Comparison, bounds: RunningBounds, look: MetricLook, variant: str, variant_state: VariantState
    ) -> None:
        control = self.compiled.control or ""
        moved = bounds.at is None or look.at > bounds.at
        bounds.at, bounds.arrived = look.at, look.arrived
        if look.restated and (control in look.restated or variant in look.restated):
            bounds.running_lower = bounds.running_upper = bounds.p = None
            bounds.small = bounds.lost = False
            bounds.fails = variant_state.streak = variant_state.hold_streak = 0
            bounds.rate_samples = []
            if variant_state.latch is not None and variant_state.latch.rule not in NOT_MEASURED:
                variant_state.latch.restated = self.touched = True
        bounds.reasons = []
        if look.unreadable:
            bounds.reasons = [f"{v}: {look.unreadable[v]}" for v in (control, variant) if v in look.unreadable]
        if bounds.reasons or control not in look.states or variant not in look.states:
            bounds.readable = bounds.floor = False
            bounds.why = "unreadable" if bounds.reasons else "missing"
        else:
            self._measure(comparison, bounds, look.at, look.states[control], look.states[variant])
            if bounds.readable:
                sample_rate(bounds, look.at, bounds.n)
        self._set_verdict(bounds, self._verdict(comparison, bounds))
        if moved and not comparison.goal:
            self._count_fails(comparison, bounds, variant, 1)

    def _verdict(self, comparison: Comparison, bounds: RunningBounds) -> Verdict:
        return bounds_verdict(comparison, bounds)

    def _set_verdict(self, bounds: RunningBounds, verdict: Verdict) -> None:
        if verdict != bounds.verdict:
            bounds.verdict = verdict
            self.touched = True

    def _count_fails(self, comparison: Comparison, bounds: RunningBounds, variant: str, looks: int) -> None:
        """A guard over looks with newer rows that all have its present verdict and freshness."""
        fails = bounds.verdict == "fail" and self._is_fresh(
            comparison.kpi.metric, (self.compiled.control or "", variant)
        )
        bounds.fails = bounds.fails + looks if fails else 0

    def _measure(self, comparison: Comparison, bounds: RunningBounds, at: int, control: Sums, treatment: Sums) -> None:
        """Newest reading, floor and running bounds of a gate, or why there is none."""
        bounds.readable = bounds.floor = False
        bounds.noise = 0.0
        units, units_t = int(control[0]), int(treatment[0])
        bounds.arms, bounds.n = (units, units_t), units + units_t
        found = measure(comparison, control, treatment)
        if found is None:
            bounds.why = "units" if min(bounds.arms) < 2 else "denominator"
            return
        estimate, se, lower, upper, of_control, gap, gap_se, noise, own_noise = found
        if not math.isfinite(estimate + se):
            bounds.why = "spread"
            return
        bounds.estimate, bounds.se, bounds.lower, bounds.upper = estimate, se, lower, upper
        bounds.readable = of_control != 0 or comparison.gate.effect != "relative"
        bounds.noise = noise if noise > own_noise else own_noise
        bounds.why = why = self._floor(comparison, bounds, of_control, gap_se)
        if why and (why in ("units", "spread") or not noise <= self.compiled.policy.max_relative_se):
            return
        young = self.compiled.clock.running(at) < self.compiled.min_age
        if young and not why:
            bounds.why = "young"
        if young and comparison.goal:
            return
        bounds.floor = True
        highest, lowest = intersect((bounds.running_lower, bounds.running_upper), lower, upper)
        bounds.running_upper = lowest if lowest < math.inf else None
        if not why and highest > -math.inf:
            bounds.running_lower = highest
        p = always_valid_p(gap, gap_se, bounds.n, comparison.rho2)
        bounds.p = p if bounds.p is None or p < bounds.p else bounds.p
        bounds.small, bounds.lost = lowest < comparison.fail_below, lowest < 0
        if why and bounds.small:
            bounds.why = "young" if young else ""  # what is missing is not needed for what is proved
        if bounds.running_lower is not None and bounds.running_lower > comparison.scale_above > lowest:
            bounds.invalid = True

    def _floor(self, comparison: Comparison, bounds: RunningBounds, of_control: float, gap_se: float) -> Why:
        """Why the floor of a pass is not held; empty when it is.

        For a fail it is enough that both means are known to max_relative_se of the larger of the two: so harm is seen
        the sooner the larger it is, and a control of 0 can be harmed.
        """
        policy = self.compiled.policy
        if min(bounds.arms) < policy.min_units:
            return "units"
        if gap_se <= 0:
            return "spread"
        if of_control == 0 and comparison.gate.effect == "relative":
            return "zero"
        return "noisy" if bounds.noise > policy.max_relative_se else ""

    def _read_target(self, gate: Gate, bounds: RunningBounds, days: Days) -> None:
        bounds.at, bounds.arrived, bounds.n = days.at, days.arrived, len(days.closed)
        bounds.floor = True
        young = self.compiled.clock.running(days.at) < self.compiled.min_age
        values = [value for _, value in days.closed]
        self.touched = True
        if any(value is None for value in values):
            bounds.verdict, bounds.why = "no_data", "day"
        elif young or len(values) < gate.days:
            bounds.verdict, bounds.why = "inconclusive", "young"
        else:
            inside = [value is not None and is_inside(gate, value) for value in values]
            bounds.why = ""
            bounds.verdict = "pass" if all(inside) else "inconclusive" if any(inside) else "fail"
        known = [value for value in values if value is not None]
        bounds.readable = bool(known)
        if known:
            bounds.estimate = math.fsum(known) / len(known)
            bounds.lower, bounds.upper = min(known), max(known)

    def _is_fresh(self, metric: str, variants: tuple[str, ...]) -> bool:
        index = self.compiled.series_index
        return all(self.state.fresh[index[f"{metric}/{variant}"]] == FRESH for variant in variants)

    # Verdicts into a row of section 5

    def _match(self, index: int, variant: str, arms: tuple[str, ...], facts: SlotFacts) -> tuple[int, Action, str, str]:
        """The first row that matches: (row, action, code), and what a hold is called meanwhile."""
        compiled, goals, guards = self.compiled, self.goals[index], self.guards[index]
        if self._unsafe(variant, arms):
            return 1, "delete", "unsafe", "open"
        if self.state.alarm or True in [bounds.invalid for bounds in self.measured[index]]:
            return 2, "review", "invalid", "open"
        if self._harmful(index, variant, final=facts.final):
            return 3, "delete", "harm", "open"
        over = facts.final or compiled.clock.running(compiled.horizon(facts.slot)) >= compiled.max_age
        missing = self._missing(index, variant, arms)
        if missing:
            return (4, "review", "undecided", missing) if over else (4, "hold", missing, missing)
        if self._collecting(index, arms):
            return (5, "review", "undecided", "collecting") if over else (5, "hold", "collecting", "collecting")
        decided = self._decide(variant, arms, goals, guards) if goals else None
        if decided is not None:
            return (*decided, "open")
        return (9, "review", "undecided", "open") if over else (10, "hold", "open", "open")

    def _unsafe(self, variant: str, arms: tuple[str, ...]) -> bool:
        state = self.state
        return "fail" in state.watched and any(
            verdict == "fail"
            and watch.gate.kind == "threshold"
            and state.fresh[watch.series] == FRESH
            and concerns(watch, variant, arms)
            for watch, verdict in zip(self.compiled.watches, state.watched, strict=True)
        )

    def _harmful(self, index: int, variant: str, *, final: bool) -> bool:
        needed = 1 if final else HARM_LOOKS
        for comparison, bounds in zip(self.compiled.comparisons, self.measured[index], strict=False):
            if (
                bounds.fails >= needed
                and bounds.verdict == "fail"
                and not comparison.goal
                and self._is_fresh(comparison.kpi.metric, (self.compiled.control or "", variant))
            ):
                return True
        return False

    def _missing(self, index: int, variant: str, arms: tuple[str, ...]) -> Literal["", "stale", "no_data"]:
        """Row 4."""
        compiled, state = self.compiled, self.state
        own = (compiled.control or variant, variant)
        stale = False
        if any(state.fresh):
            for (_, arm), fresh in zip(compiled.series, state.fresh, strict=True):
                if fresh == FRESH or arm not in arms:
                    continue
                if fresh >= MISSING and arm in own:
                    return "no_data"
                stale = stale or fresh != MISSING
        if "no_data" in [bounds.verdict for bounds in self.measured[index]]:
            return "no_data"
        if "no_data" in state.watched:
            for watch, verdict in zip(compiled.watches, state.watched, strict=True):
                if verdict == "no_data" and (watch.variant in own or concerns(watch, variant, arms)):
                    return "no_data"
        return "stale" if stale else ""

    def _collecting(self, index: int, arms: tuple[str, ...]) -> bool:
        """Row 5."""
        if any(bounds.why for bounds in self.measured[index]):
            return True
        if self.compiled.density is not None and not dense_everywhere(self.compiled, self.state, arms):
            return True
        return any(
            watch.gate.kind == "density" and watch.variant in arms and verdict != "pass"
            for watch, verdict in zip(self.compiled.watches, self.state.watched, strict=True)
        )

    def _decide(
        self, variant: str, arms: tuple[str, ...], goals: list[RunningBounds], guards: list[RunningBounds]
    ) -> tuple[int, Action, str] | None:
        """Rows 6 to 8."""
        passed = [b.verdict == "pass" for b in goals]
        failed = [b.verdict == "fail" for b in goals]
        every = self.compiled.policy.require == "all" or not self.treatments
        if all(passed) if every else any(passed):
            small = [b.small for b in goals if every or b.verdict == "pass"]
            if self.treatments and (any(small) if every else all(small)):
                return 6, "review", "too_small"
            if self._others_pass(variant, arms, guards):
                return 7, "scale", "wins" if self.treatments else "on_target"
            return None
        if any(failed) if every else all(failed):
            if not self.treatments:
                return 8, "delete", "off_target"
            lost = any(b.lost for b, fails in zip(goals, failed, strict=True) if fails)
            return 8, "delete", "harmful" if lost else "not_worth_it"
        return None

    def _others_pass(self, variant: str, arms: tuple[str, ...], guards: list[RunningBounds]) -> bool:
        state, compiled = self.state, self.compiled
        return (
            all(b.verdict == "pass" for b in guards)
            and all(
                verdict == "pass"
                for watch, verdict in zip(compiled.watches, state.watched, strict=True)
                if concerns(watch, variant, arms)
            )
            and all(fresh == FRESH for (_, arm), fresh in zip(compiled.series, state.fresh, strict=True) if arm in arms)
        )

    # Rows into what is proposed

    def _update_variant(self, index: int, variant: str, arms: tuple[str, ...], facts: SlotFacts) -> None:
        variant_state = self.state.variant_states[index]
        rule, action, code, hold_code = self._match(index, variant, arms, facts)
        if code != variant_state.code or rule != variant_state.rule or hold_code != variant_state.hold_code:
            variant_state.rule, variant_state.action, variant_state.code, variant_state.hold_code = (
                rule,
                action,
                code,
                hold_code,
            )
            self.touched = True
        if facts.look:
            self._count(index, variant_state, facts)
        if rule <= AT_ONCE:
            self._propose_at_once(index, variant_state, facts)
        elif facts.look and action != "hold":
            self._propose_when_held(index, variant_state, facts)

    def _count(self, index: int, variant_state: VariantState, facts: SlotFacts) -> None:
        """At how many looks in a row the action has held: those that brought newer rows to every goal and guard.

        Counted to `persist` and no further: more says nothing.
        """
        instants = [b.at for b in self.measured[index]]
        newer = is_newer(instants, variant_state.counted)
        persist = self.compiled.policy.persist
        if variant_state.action != variant_state.held:
            variant_state.held, variant_state.streak = variant_state.action, 0
        if variant_state.rule != HOLD_OPEN:
            variant_state.hold_streak = 0
        if variant_state.readable_at is None and variant_state.rule > COLLECTING:
            variant_state.readable_at = facts.slot
        counts = newer or variant_state.code == "undecided"
        if variant_state.action != "hold" and variant_state.streak < persist and (counts or facts.final):
            variant_state.streak = persist if facts.final else variant_state.streak + 1
            if variant_state.streak == persist:
                variant_state.stable_at, variant_state.knowable_at = self._held_at(index, facts)
        if variant_state.rule == HOLD_OPEN and newer and variant_state.hold_streak < persist:
            variant_state.hold_streak += 1
            if variant_state.hold_streak == persist:
                variant_state.hold_stable_at, variant_state.hold_knowable_at = self._held_at(index, facts)
        if newer:
            variant_state.counted = instants

    def _held_at(self, index: int, facts: SlotFacts) -> tuple[int, int]:
        """Up to which instant a look reads, and when that could be known."""
        return self.compiled.horizon(facts.slot), max([facts.slot, *[b.arrived for b in self.measured[index]]])

    def _propose_at_once(self, index: int, variant_state: VariantState, facts: SlotFacts) -> None:
        latch = variant_state.latch
        if latch is not None and latch.rule <= AT_ONCE and latch.action == variant_state.action:
            if latch.restated and latch.rule == variant_state.rule:
                latch.restated = False
                self.touched = True
            return
        stable_at, arrived = self.compiled.horizon(facts.slot), 0
        if variant_state.rule == 1:
            failing = [
                seen
                for seen, verdict, watch in zip(
                    self.state.observed, self.state.watched, self.compiled.watches, strict=True
                )
                if verdict == "fail"
                and concerns(watch, self.compiled.judged_variants[index], self.compiled.arms(facts.slot))
            ]
            stable_at, arrived = max(failing)
        else:
            arrived = max((b.arrived for b in self.measured[index]), default=0)
        self._propose(index, variant_state, facts.slot, stable_at, max(facts.slot, arrived))

    def _propose_when_held(self, index: int, variant_state: VariantState, facts: SlotFacts) -> None:
        if variant_state.streak < self.compiled.policy.persist:
            return
        latch = variant_state.latch
        if latch is not None:
            if latch.restated and latch.action == variant_state.action:
                latch.restated = False
                self.touched = True
                return
            replaceable = latch.code == "undecided" and variant_state.action in ("scale", "delete")
            if not latch.restated and not replaceable:
                return
        self._propose(index, variant_state, facts.slot, variant_state.stable_at, variant_state.knowable_at)

    def _propose(self, index: int, variant_state: VariantState, slot: int, stable_at: int, knowable_at: int) -> None:
        if any(
            (action, code) == (variant_state.action, variant_state.code) and slot < until
            for action, code, until in variant_state.snoozed
        ):
            return
        lower = -math.inf
        if variant_state.action == "scale" and self.treatments:
            self.compute_pending()  # the bounds are numbers, which a fast-forward has not measured yet
            lower = max((b.running_lower for b in self.goals[index] if b.running_lower is not None), default=lower)
        variant_state.latch = Latch(
            rule=variant_state.rule,
            action=variant_state.action,
            code=variant_state.code,
            slot=slot,
            stable_at=stable_at,
            knowable_at=knowable_at,
            lower=lower,
        )
        self.touched = True

    def _apply_answers(self, slot: int) -> None:
        state, compiled = self.state, self.compiled
        while state.answered < len(compiled.answers) and compiled.answers[state.answered].at <= slot:
            answer = compiled.answers[state.answered]
            state.answered += 1
            self.touched = True
            for variant, variant_state in zip(compiled.judged_variants, state.variant_states, strict=True):
                if answer.variant is None or answer.variant == variant:
                    self._apply_answer(answer, variant_state)

    def _apply_answer(self, answer: Answer, variant_state: VariantState) -> None:
        """Take an answered proposal away, and do not ask the same again for a while."""
        answered = [answer.of]
        latch = variant_state.latch
        if (
            latch is not None
            and latch.action == answer.of[0]
            and (answer.variant is None or latch.code == answer.of[1])
        ):
            answered.append((latch.action, latch.code))
            variant_state.latch = None
        until = answer.at + self.compiled.policy.snooze_days * DAY
        variant_state.snoozed = [entry for entry in variant_state.snoozed if entry[2] > answer.at]
        for action, code in dict.fromkeys(answered):
            acknowledged = answer.action == "accept" and action == "review"
            if acknowledged or (answer.action == "override" and code not in AT_ONCE_CODES):
                variant_state.snoozed.append((action, code, until))

    # What changed

    def _record_changes(self, slot: int) -> bool:
        """Record since when each verdict stands; True when anything a person sees is other than before."""
        state, compiled = self.state, self.compiled
        changed = False
        for gate, variant, verdict in gate_verdicts(compiled, state):
            name = f"{gate.name}/{variant or ''}"
            before = state.since.get(name)
            if before is None or before[0] != verdict:
                state.since[name] = (verdict, slot)
                changed = True
        arms = compiled.arms(slot)
        shown = [
            shown_of(s)
            for s, variant in zip(state.variant_states, compiled.judged_variants, strict=True)
            if variant in arms
        ]
        if shown != state.shown:
            state.shown = shown
            changed = True
        return changed


class FastForward:
    """Looks over which the machine stops only where a screen says so."""

    def __init__(self, machine: StateMachine, looks: Sequence[int], tracks: Mapping[str, MetricTrack]) -> None:
        self.machine, self.looks = machine, looks
        compiled, state = machine.compiled, machine.state
        arms = compiled.arms(looks[0] if looks else state.slot)
        self.screens: list[tuple[int, int, Comparison, RunningBounds, Screen]] = []
        self.reached: dict[str, Sequence[int]] = {
            metric: range(1, len(looks) + 1)
            if len(track.looks) == len(looks)
            else np.searchsorted(track.looks, looks, side="right").tolist()
            for metric, track in tracks.items()
        }
        self.must_stop: set[int] = set()
        for g, comparison in enumerate(compiled.comparisons):
            track = tracks[comparison.kpi.metric]
            for v, variant in enumerate(machine.treatments):
                if variant in arms and track.looks:
                    bounds = state.bounds[g * machine.width + v]
                    screen = Screen(compiled, comparison, track, variant, bounds)
                    self.screens.append((g, v, comparison, bounds, screen))
                    self.must_stop.update(track.looks[k] for k in np.flatnonzero(screen.must_stop).tolist())
        self.read = [0] * len(self.screens)
        machine.fast_forwarding = self

    def stop(self, position: int, facts: SlotFacts) -> bool:
        """One slot; `position` is its look's, when it is one."""
        return self.machine._advance_with(facts, lambda _: self._apply_look(position))

    def _apply_look(self, position: int) -> None:
        machine = self.machine
        for screen_index, (_, _, comparison, bounds, screen) in enumerate(self.screens):
            reached = self.reached[comparison.kpi.metric][position]
            if reached == self.read[screen_index]:
                continue
            k = reached - 1
            self._set(screen_index, k)
            if screen.must_stop[k]:
                self._catch_up(screen_index)
                machine._set_verdict(bounds, machine._verdict(comparison, bounds))
            if not comparison.goal:
                machine._count_fails(comparison, bounds, screen.variant, 1)

    def _set(self, screen_index: int, k: int) -> None:
        _, _, _, bounds, screen = self.screens[screen_index]
        bounds.at, bounds.arrived = screen.track.at[k], screen.track.arrived[k]
        self.read[screen_index] = k + 1

    def skip(self, begin: int, end: int) -> None:
        """Looks at which nothing changes: only what they add to the counts."""
        if begin >= end:
            return
        machine = self.machine
        for v, variant in enumerate(machine.treatments):
            mine = [(screen_index, entry) for screen_index, entry in enumerate(self.screens) if entry[1] == v]
            if mine and variant in machine.compiled.arms(self.looks[begin]):
                self._count_over(v, [screen_index for screen_index, _ in mine], begin, end)
        for screen_index, (_, _, comparison, bounds, screen) in enumerate(self.screens):
            reached = self.reached[comparison.kpi.metric][end - 1]
            newer = reached - self.read[screen_index]
            if newer:
                self._set(screen_index, reached - 1)
                if not comparison.goal:
                    machine._count_fails(comparison, bounds, screen.variant, newer)

    def _count_over(self, v: int, screens: list[int], begin: int, end: int) -> None:
        """Which of the looks passed over was the last to count for a treatment."""
        variant_state = self.machine.state.variant_states[v]
        if len(screens) < len(variant_state.counted):
            return
        tracks = [
            (self.screens[screen_index][4].track.at, self.reached[self.screens[screen_index][2].kpi.metric])
            for screen_index in screens
        ]
        counted = variant_state.counted
        last = [at[reached[end - 1] - 1] if reached[end - 1] else None for at, reached in tracks]
        metrics = {self.screens[screen_index][2].kpi.metric for screen_index in screens}
        together = len({tuple(self.reached[m][begin:end]) for m in metrics}) == 1 and counted == [
            self.screens[screen_index][3].at for screen_index in screens
        ]
        if together:
            if is_newer(last, counted):
                variant_state.counted = last
            return
        for position in range(begin, end):
            instants = [at[reached[position] - 1] if reached[position] else None for at, reached in tracks]
            if is_newer(instants, counted):
                counted = instants
        variant_state.counted = list(counted)

    def compute_pending(self) -> None:
        for screen_index in range(len(self.screens)):
            self._catch_up(screen_index)

    def _catch_up(self, screen_index: int) -> None:
        _, _, comparison, bounds, screen = self.screens[screen_index]
        k = self.read[screen_index] - 1
        if k <= screen.computed_to:
            return
        machine, track = self.machine, screen.track
        control = machine.compiled.control or ""
        for j in (*screen.extremes(k), k):
            machine._measure(comparison, bounds, track.at[j], track.state(control, j), track.state(screen.variant, j))
        self._mark(bounds, screen, screen.computed_to + 1, k)
        bounds.reasons = []
        screen.computed_to = k

    def _mark(self, bounds: RunningBounds, screen: Screen, first: int, last: int) -> None:
        at = screen.track.at
        k = first
        while True:
            if bounds.rate_samples:
                k = max(k, bisect_left(at, bounds.rate_samples[-2] + DAY))
            while k <= last and not screen.readable[k]:
                k += 1
            if k > last:
                return
            sample_rate(bounds, at[k], int(screen.units[k]))
            k += 1


# Pure pieces of the machine -------------------------------------------------------------------------------------------


def is_newer(instants: Sequence[int | None], counted: Sequence[int | None]) -> bool:
    """Whether every gate has read newer rows than at the last look that counted."""
    for at, was in zip(instants, counted, strict=False):
        if at is None or (was is not None and at <= was):
            return False
    return bool(instants)


def sample_rate(bounds: RunningBounds, at: int, n: int) -> None:
    """Keep units about a day apart, for the present rate."""
    if not bounds.rate_samples or at - bounds.rate_samples[-2] >= DAY:
        bounds.rate_samples += (at, n)
        if len(bounds.rate_samples) > 2 * RATE_SAMPLES:
            del bounds.rate_samples[:2]


def arm_of(kpi: Kpi, state: Sums) -> Arm:
    """What an effect needs of a stored state with n >= 2."""
    if kpi.kind == "ratio":
        return ratio_arm(PairMoments(int(state[0]), *state[1:]))
    return (proportion_arm if kpi.kind == "proportion" else mean_arm)(state)  # type: ignore[arg-type] # these are Moments


class Measured(NamedTuple):
    """What a goal or guard reads of two states. Up is good.

    estimate, se: the effect; 0 and the difference's where there is no relative one. lower, upper: its always-valid interval,
    infinite where nothing bounds it. control: its point estimate. gap, gap_se: the difference, against which no effect is tested.
    noise: the larger standard error as a share of the larger mean; noise_of_control: of control in itself.
    """

    estimate: float
    se: float
    lower: float
    upper: float
    control: float
    gap: float
    gap_se: float
    noise: float
    noise_of_control: float


def measure(comparison: Comparison, control: Sums, treatment: Sums) -> Measured | None:
    """Two states as a gate reads them; None when they have too few units, or no denominator, for any spread."""
    kpi, noise, noise_of_control = comparison.kpi, 0.0, 0.0
    if control[0] < 2 or treatment[0] < 2 or (kpi.kind == "ratio" and (control[3] == 0 or treatment[3] == 0)):
        return None
    c, t = arm_of(kpi, control), arm_of(kpi, treatment)
    if c.v <= 0 or t.v <= 0:
        c, t = with_spread(c, t), with_spread(t, c)
    (m_c, v_c, n_c), (m_t, v_t, n_t) = c, t
    error_c, error_t = v_c / n_c, v_t / n_t
    estimate = gap = m_t - m_c
    se = gap_se = math.sqrt(error_t + error_c)
    reach = half_width(1.0, n_c + n_t, comparison.rho2, comparison.alpha)
    if comparison.gate.effect == "relative":
        estimate, se = relative_uplift(t, c) if m_c else (0.0, gap_se)
        lower, upper = relative_interval(t, c, reach)
        size, of_treatment = abs(m_c), abs(m_t)
        noise_of_control = math.sqrt(error_c) / size if size else math.inf
        larger = size if size > of_treatment else of_treatment
        noise = math.sqrt(error_c if error_c > error_t else error_t) / larger if larger else math.inf
    else:
        lower, upper = estimate - reach * se, estimate + reach * se
    if kpi.kind == "ratio":
        for state in (control, treatment):
            noise = max(noise, relative_se(state[3], state[4] / (state[0] - 1), state[0]))
    if kpi.direction == "decrease":
        estimate, lower, upper = -estimate, -upper, -lower
    return Measured(estimate, se, lower, upper, m_c, gap, gap_se, noise, noise_of_control)


def bounds_verdict(comparison: Comparison, bounds: RunningBounds) -> Verdict:
    """The verdict of a goal or guard: pass is tested first, and needs more of the floor."""
    if bounds.invalid:
        return "invalid"
    if bounds.why in ("missing", "unreadable"):
        return "no_data"
    if not bounds.floor:
        return "inconclusive"
    lower, upper = bounds.running_lower, bounds.running_upper
    if lower is not None and lower > comparison.scale_above and bounds.why in ("", "young"):
        return "pass"
    return "fail" if upper is not None and upper < comparison.fail_below else "inconclusive"


def freshness(compiled: CompiledPlan, name: str, watermark: int | None, slot: int) -> int:
    """FRESH, STALE, MISSING or OVERDUE; pauses do not age a watermark, nor does time after the end."""
    ran = compiled.clock.running(compiled.freshness_instant(slot))
    since = 0 if watermark is None else max(compiled.clock.running(watermark), 0)
    late = ran - since > compiled.specs[compiled.series_index[name]].allowed
    if watermark is None:
        return OVERDUE if late else MISSING
    return STALE if late else FRESH


def is_dense(compiled: CompiledPlan, counts: tuple[int, int]) -> bool:
    """Whether (observed, expected) buckets are enough; nothing expected yet is not."""
    observed, expected = counts
    least = compiled.density.at_least if compiled.density is not None else None
    return expected > 0 and observed >= (least or 0.0) * expected


def dense_everywhere(compiled: CompiledPlan, state: ExperimentState, arms: tuple[str, ...]) -> bool:
    """The density gate: every series of every arm; a cumulative one is dense when fresh."""
    if all(state.dense) and not any(state.fresh):
        return True
    return all(
        (fresh == FRESH if spec.cumulative else dense)
        for spec, dense, fresh in zip(compiled.specs, state.dense, state.fresh, strict=True)
        if spec.variant in arms
    )


def watch_verdict(gate: Gate, observations: Observations) -> Verdict:
    """A threshold, or a density gate on a metric, of one series."""
    newest = observations.newest[-gate.times :]
    if not newest or newest[-1][1] is None:
        return "no_data"
    if is_inside(gate, newest[-1][1]):
        return "pass"
    outside = all(value is not None and not is_inside(gate, value) for _, value in newest)
    return "fail" if gate.kind == "threshold" and outside and len(newest) == gate.times else "inconclusive"


def is_inside(gate: Gate, value: float) -> bool:
    return (gate.at_least is None or value >= gate.at_least) and (gate.at_most is None or value <= gate.at_most)


def concerns(watch: Watch, variant: str, arms: tuple[str, ...]) -> bool:
    """Whether a watched series speaks for a judged variant: its own, or any arm's where the gate is the experiment's."""
    if watch.gate.kind == "density" or watch.gate.scope == "experiment":
        return watch.variant in arms
    return watch.variant == variant


def split_log_e(compiled: CompiledPlan, units: dict[str, int]) -> float:
    """Log evidence against the planned split of the variants in `units`."""
    variants = [variant for variant in compiled.variants if variant in units]
    return srm_log_e([units[variant] for variant in variants], [compiled.weights[variant] for variant in variants])


def gate_verdicts(compiled: CompiledPlan, state: ExperimentState) -> list[tuple[Gate, str | None, Verdict]]:
    """Every gate as shown: (gate, variant or None, verdict), in the policy's order."""
    arms = compiled.arms(state.slot)
    found: list[tuple[Gate, str | None, Verdict]] = []
    width = len(compiled.judged_variants)
    comparisons = {comparison.gate.name: g for g, comparison in enumerate(compiled.comparisons)}
    for gate in compiled.gates:
        if gate.name in comparisons:
            first = comparisons[gate.name] * width
            found += [
                (gate, v, state.bounds[first + i].verdict) for i, v in enumerate(compiled.judged_variants) if v in arms
            ]
        elif gate.kind == "target":
            found.append((gate, compiled.judged_variants[0], state.targets[compiled.targets.index(gate)].verdict))
        elif gate.metric is not None:
            found += [
                (gate, watch.variant, verdict)
                for watch, verdict in zip(compiled.watches, state.watched, strict=True)
                if watch.gate is gate and watch.variant in arms
            ]
        elif gate.kind == "density":
            found.append((gate, None, "pass" if dense_everywhere(compiled, state, arms) else "inconclusive"))
        else:
            statuses = [f for (_, arm), f in zip(compiled.series, state.fresh, strict=True) if arm in arms]
            found.append(
                (
                    gate,
                    None,
                    _freshness_verdict(statuses) if gate.kind == "freshness" else _srm_verdict(compiled, state, arms),
                )
            )
    return found


def _freshness_verdict(statuses: list[int]) -> Verdict:
    if any(status in (STALE, OVERDUE) for status in statuses):
        return "stale"
    return "no_data" if MISSING in statuses else "pass"


def _srm_verdict(compiled: CompiledPlan, state: ExperimentState, arms: tuple[str, ...]) -> Verdict:
    if state.alarm:
        return "invalid"
    missing = any(
        fresh >= MISSING
        for (metric, arm), fresh in zip(compiled.series, state.fresh, strict=True)
        if metric in compiled.counting and arm in arms
    )
    return "no_data" if missing else "pass"


def state_of(variant_state: VariantState) -> RecommendationState:
    """A latched scale is suspended while row 4 or 5 matches, anything measured while its rows were restated."""
    latch = variant_state.latch
    if latch is None:
        return "open"
    suspended = latch.restated or (latch.action == "scale" and variant_state.rule in (4, 5))
    return "suspended" if suspended else "proposed"


def shown_of(variant_state: VariantState) -> tuple[str, str, str]:
    """(action, code, state) of a judged variant as people see it."""
    latch = variant_state.latch
    if latch is None:
        return "hold", variant_state.hold_code, "open"
    return latch.action, latch.code, state_of(variant_state)
