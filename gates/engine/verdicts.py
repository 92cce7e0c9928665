"""Facts into verdicts, as docs/gates.md section 3 says: what each gate says of what was read. Pure.

`Verdicts` moves the state of an experiment's gates over one slot's facts; the functions below it read that state.
"""

from __future__ import annotations

import math

from gates.engine.compiled import Comparison, CompiledPlan, Watch
from gates.engine.doubt import cause_of, doubted, is_wide
from gates.engine.facts import Days, MetricLook, Observations, SlotFacts, Sums
from gates.engine.measuring import measure
from gates.engine.policy import SRM_ALARM, Gate
from gates.engine.results import Verdict
from gates.engine.state import (
    FRESH,
    MISSING,
    OVERDUE,
    STALE,
    ExperimentState,
    RunningBounds,
    Why,
    sample_rate,
)
from gates.engine.statistics.sequences import always_valid_p, intersect
from gates.engine.statistics.srm import nearest_split, srm_log_e

LOG_ALARM = math.log(SRM_ALARM)


class Verdicts:
    """Applies facts to the gates of an experiment. changed: whether a verdict is another, or may be; whoever reads it resets it."""

    def __init__(self, compiled: CompiledPlan, state: ExperimentState) -> None:
        self.compiled, self.state = compiled, state
        self.treatments = compiled.judged_variants if compiled.control is not None else ()
        self.width = len(compiled.judged_variants)
        self.changed = False

    def apply_slot_facts(self, facts: SlotFacts) -> None:
        """Facts of the slot itself: freshness, density, thresholds, split."""
        state, compiled = self.state, self.compiled
        self.changed = True
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

    def apply_doubts(self, facts: SlotFacts) -> None:
        """What rows are doubted, and what a person has come to say of it."""
        state = self.state
        self.changed = True
        for name, found in facts.scatter.items():
            cause = cause_of(found, wide=is_wide(self.compiled, name.partition("/")[0]))
            state.scatter.pop(name, None)
            state.doubts.pop(name, None)
            if cause or found.too_little:
                state.scatter[name] = found
            if cause:
                state.doubts[name] = cause
        for metric, over in facts.exposed.items():
            state.exposed.pop(metric, None)
            if over:
                state.exposed[metric] = over

    def apply_look(self, facts: SlotFacts) -> None:
        """Facts of a look: goals, guards and targets."""
        compiled, state = self.compiled, self.state
        arms = compiled.arms(facts.slot)
        for g, comparison in enumerate(compiled.comparisons):
            look = facts.looks.get(comparison.kpi.metric)
            if look is None:
                continue
            for v, variant in enumerate(self.treatments):
                if variant in arms:
                    self._read_look(comparison, state.bounds[g * self.width + v], look, variant)
        for index, gate in enumerate(compiled.targets):
            days = facts.days.get(gate.name)
            if days is not None:
                self._read_target(gate, state.targets[index], days)

    def _read_look(self, comparison: Comparison, bounds: RunningBounds, look: MetricLook, variant: str) -> None:
        control = self.compiled.control or ""
        moved = bounds.at is None or look.at > bounds.at
        bounds.at, bounds.arrived = look.at, look.arrived
        if look.restated and (control in look.restated or variant in look.restated):
            bounds.running_lower = bounds.running_upper = bounds.p = None
            bounds.small = bounds.lost = bounds.beyond = False
            bounds.fails = 0
            bounds.rate_samples = []
        bounds.reasons = []
        if look.unreadable:
            bounds.reasons = [(v, look.unreadable[v]) for v in (control, variant) if v in look.unreadable]
        if bounds.reasons or control not in look.states or variant not in look.states:
            bounds.readable = bounds.floor = False
            bounds.why = "unreadable" if bounds.reasons else "missing"
        else:
            self.take_reading(comparison, bounds, look.at, look.states[control], look.states[variant])
            if bounds.readable:
                sample_rate(bounds, look.at, bounds.n)
        self.update_verdict(comparison, bounds)
        if moved and not comparison.goal:
            self.count_fails(comparison, bounds, variant, 1)

    def update_verdict(self, comparison: Comparison, bounds: RunningBounds) -> None:
        """The verdict that its bounds give."""
        verdict = self.verdict_of(comparison, bounds)
        if verdict != bounds.verdict:
            bounds.verdict = verdict
            self.changed = True

    def verdict_of(self, comparison: Comparison, bounds: RunningBounds) -> Verdict:
        return bounds_verdict(comparison, bounds)

    def count_fails(self, comparison: Comparison, bounds: RunningBounds, variant: str, looks: int) -> None:
        """A guard over looks with newer rows that all have its present verdict and freshness."""
        fails = bounds.verdict == "fail" and is_fresh(
            self.compiled, self.state, comparison.kpi.metric, (self.compiled.control or "", variant)
        )
        bounds.fails = bounds.fails + looks if fails else 0

    def take_reading(
        self, comparison: Comparison, bounds: RunningBounds, at: int, control: Sums, treatment: Sums
    ) -> None:
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
            bounds.beyond = highest > comparison.plausible_to
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
        self.changed = True
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
    late = ran - since > compiled.specs[compiled.series_index[name]].tolerance(watermark)
    if watermark is None:
        return OVERDUE if late else MISSING
    return STALE if late else FRESH


def is_fresh(compiled: CompiledPlan, state: ExperimentState, metric: str, variants: tuple[str, ...]) -> bool:
    """Whether the series of a metric in all these variants are fresh."""
    index = compiled.series_index
    return all(state.fresh[index[f"{metric}/{variant}"]] == FRESH for variant in variants)


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
    """Log evidence against the planned split of the variants in `units`, or the one within the tolerance that comes nearest."""
    variants = [variant for variant in compiled.variants if variant in units]
    counts, weights = [units[variant] for variant in variants], [compiled.weights[variant] for variant in variants]
    if tolerance := compiled.policy.srm_tolerance:
        return srm_log_e(counts, weights, nearest=nearest_split(counts, weights, tolerance))
    return srm_log_e(counts, weights)


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
        elif gate.kind == "doubt":
            of = doubted(compiled, state, compiled.judged_variants) if state.doubts or state.exposed else ()
            missing = not of and _is_missing(compiled, state, arms, compiled.compared)
            found.append((gate, None, "inconclusive" if of else "no_data" if missing else "pass"))
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
    return "no_data" if _is_missing(compiled, state, arms, compiled.counting) else "pass"


def _is_missing(
    compiled: CompiledPlan, state: ExperimentState, arms: tuple[str, ...], metrics: tuple[str, ...]
) -> bool:
    """Whether a series of these metrics has no row."""
    return any(
        fresh >= MISSING
        for (metric, arm), fresh in zip(compiled.series, state.fresh, strict=True)
        if metric in metrics and arm in arms
    )
