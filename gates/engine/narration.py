"""What people read: an evaluation with its reasons, in sentences with the numbers. Pure; decides nothing.

Numbers are those of state and detail, so evidence holds every one of them. A rationale says what the gates see, what blocks,
and what would change the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from gates.engine.compiled import Comparison, CompiledPlan
from gates.engine.facts import SlotSnapshot
from gates.engine.plan import DAY, SECOND, Kpi, rfc3339
from gates.engine.policy import SRM_ALARM, Gate
from gates.engine.recommendations import experiment_of, listed, recommendation_of, rule_of
from gates.engine.results import Evaluation, GateState, Reading, Recommendation, Verdict
from gates.engine.state import FRESH, MISSING, OVERDUE, ExperimentState, RunningBounds, VariantState
from gates.engine.statistics.planning import units_for_half
from gates.engine.verdicts import LOG_ALARM, concerns, freshness, gate_verdicts, is_inside, split_log_e

DIGITS = 12
MINUS = "−"


def evaluation_of(compiled: CompiledPlan, state: ExperimentState, detail: SlotSnapshot, *, changed: bool) -> Evaluation:
    """The experiment as of the slot the state stands at."""
    sentences = _Sentences(compiled, state, detail)
    arms = compiled.arms(detail.slot)
    variants = tuple(
        sentences.recommendation(index, variant)
        for index, variant in enumerate(compiled.judged_variants)
        if variant in arms
    )
    return Evaluation(
        slot=detail.slot,
        changed=changed,
        recommendation=experiment_of(compiled, state, variants),
        variants=variants,
        gates=tuple(
            sentences.gate(gate, variant, verdict) for gate, variant, verdict in gate_verdicts(compiled, state)
        ),
    )


class _Sentences:
    """Recommendations and gate states of one slot."""

    def __init__(self, compiled: CompiledPlan, state: ExperimentState, detail: SlotSnapshot) -> None:
        self.compiled, self.state, self.detail = compiled, state, detail
        self.arms = compiled.arms(detail.slot)
        self.width = len(compiled.judged_variants)

    # Recommendations

    def recommendation(self, index: int, variant: str) -> Recommendation:
        blockers = self._blockers(index, variant)
        rationale = self._rationale(index, variant, blockers)
        return recommendation_of(
            self.compiled, self.state.variant_states[index], variant, tuple(rationale), tuple(blockers)
        )

    def _rationale(self, index: int, variant: str, blockers: list[str]) -> list[str]:
        variant_state = self.state.variant_states[index]
        said = list(self._why(index, variant, blockers))
        for comparison, bounds in self._comparisons(index):
            said.append(self._measured(comparison, bounds, variant))
        for t, gate in enumerate(self.compiled.targets):
            said.append(self._target_reason(gate, self.state.targets[t]))
        said += self._would_change(index, variant)
        latch = variant_state.latch
        if latch is not None and (latch.action, latch.code) != (variant_state.action, variant_state.code):
            said.append(
                f"Proposed at {rfc3339(latch.slot)} as {latch.action} {latch.code} and not answered yet; "
                f"the gates now say {variant_state.action} {variant_state.code}."
            )
        elif latch is None and variant_state.action != "hold":
            said.append(self._held(variant_state))
        return [sentence for sentence in said if sentence]

    def _held(self, variant_state: VariantState) -> str:
        """Why an action the gates advise is not proposed yet."""
        slot = self.detail.slot
        for action, code, until in variant_state.snoozed:
            if (action, code) == (variant_state.action, variant_state.code) and slot < until:
                return f"{action} {code} was answered; it is not proposed again before {rfc3339(until)}."
        needed = self.compiled.policy.persist
        which = "looks" if variant_state.code == "undecided" else "looks with newer rows"
        return f"{variant_state.action} {variant_state.code} has held at {variant_state.streak} of {needed} {which}."

    def _why(self, index: int, variant: str, blockers: list[str]) -> list[str]:
        """What the row that is recommended rests on."""
        variant_state = self.state.variant_states[index]
        rule = variant_state.rule
        if rule == 1:
            return [
                self._watch_reason(w.gate, w.variant)
                for w, verdict in zip(self.compiled.watches, self.state.watched, strict=True)
                if verdict == "fail" and concerns(w, variant, self.arms)
            ]
        if rule == 2:
            return self._invalid(index)
        if rule == 3:
            return [
                f"{_name(c.kpi)} of {variant} is proved to lose more than {_size(c, c.gate.max_harm)} "
                f"(at best {_effect(c, b.running_upper)}), at {b.fails} looks in a row."
                for c, b in self._comparisons(index)
                if not c.goal and b.verdict == "fail"
            ]
        words = {
            (6, "too_small"): f"{variant} is really better, but by less than what is worth it.",
            (7, "wins"): f"{variant} wins: every goal and every other gate passes.",
            (7, "on_target"): "On target: every closed day was inside. This describes, it does not prove a cause.",
            (8, "harmful"): f"{variant} is proved harmful.",
            (8, "not_worth_it"): f"{variant} is proved not worth it.",
            (8, "off_target"): "Off target: every closed day was outside. This describes, it does not prove a cause.",
        }
        said = [words[key]] if (key := (rule, variant_state.code)) in words else []
        if variant_state.code == "undecided":
            said.append(self._undecided(index, variant))
        if rule_of(rule).suspends_scale:
            said += blockers
        return said

    def _undecided(self, index: int, variant: str) -> str:
        ended = self.compiled.plan.ended_at
        ended_here = ended is not None and self.detail.slot >= ended
        end = "The experiment has ended" if ended_here else f"{self.compiled.policy.max_days} days are over"
        goals = [b for c, b in self._comparisons(index) if c.goal and b.readable]
        lean = "" if not goals else f"; {variant} leans {'up' if goals[0].estimate > 0 else 'down'}"
        return f"{end} without a decision{lean}."

    def _invalid(self, index: int) -> list[str]:
        said = []
        for metric in self.compiled.counting:
            if (units := self.state.alarm.get(metric)) is None:
                continue
            log_e = split_log_e(self.compiled, units)
            since = "" if self.compiled.revision == 1 else f", since {rfc3339(self.state.alarm_at[metric])}"
            said.append(
                f"Units of {metric} did not arrive in the planned split: {self._shares(units)} against "
                f"{self._shares(self.compiled.weights, units)} planned "
                f"(evidence {_sig(log_e)}, alarm at {LOG_ALARM:.1f}{since}). No comparison can be trusted until that is explained."
                f"{self._split_mend(metric)}"
            )
        for comparison, bounds in self._comparisons(index):
            if bounds.invalid:
                said.append(
                    f"{comparison.gate.name} contradicts itself: it was proved above {_effect(comparison, comparison.scale_above)} "
                    f"(L {_effect(comparison, bounds.running_lower)}) and below it (U {_effect(comparison, bounds.running_upper)})."
                )
        return said

    def _split_mend(self, metric: str) -> str:
        """What else than a wrong split the alarm of a guard may mean: that its n counts those who came to where it is measured."""
        roles = {self.compiled.kpis[other].role for other in self.state.alarm}
        if self.compiled.revision == 1 or roles != {"guardrail"}:
            return ""
        even = [
            f"n of {other} came as planned ({self._shares(units)})"
            for other, units in self.detail.split.items()
            if other not in self.state.alarm
        ]
        seen = f" {listed(even)}." if even else ""
        return (
            f"{seen} If n of {metric} counts only some of the users assigned, such as those who ordered, "
            f"set counts_assignment: false on {metric}."
        )

    def _measured(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> str:
        """One goal or guard in numbers."""
        name = _name(comparison.kpi)
        if not bounds.readable:
            return f"{name}: {self._unread(comparison, bounds, variant)}."
        level = 100 * (1 - comparison.alpha)
        best = ""
        running = bounds.running_lower, bounds.running_upper
        if running not in ((None, None), (_ended(bounds.lower), _ended(bounds.upper))):
            best = (
                f", over all looks {_effect(comparison, bounds.running_lower)} "
                f"to {_effect(comparison, bounds.running_upper)}"
            )
        return (
            f"{name}: {_effect(comparison, bounds.estimate)} for {variant} "
            f"(always-valid {level:.4g}% interval {_effect(comparison, bounds.lower)} to {_effect(comparison, bounds.upper)}{best}; "
            f"{bounds.n:,} units)."
        )

    def _unread(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> str:
        control = self.compiled.control or ""
        if bounds.why == "zero":
            mend = "" if self.compiled.revision == 1 else "; if it is 0 by design, use effect difference"
            return f"{control} is still 0, so there is no relative effect yet{mend}"
        if bounds.why == "unreadable":
            return f"a row of {control} or {variant} cannot be read"
        if bounds.why == "missing":
            return f"no closed row of {control} and {variant} yet"
        if bounds.why == "denominator":
            return f"the mean denominator of {control} or {variant} is 0, so there is no ratio yet"
        if bounds.why in ("", "young"):  # the rest of the floor is held: what is lacking is a control other than 0
            best = _effect(comparison, bounds.running_upper)
            return f"{control} is still 0, so there is no relative effect to show; {variant} is proved to be at best {best}"
        return "too few units for an interval"

    def _would_change(self, index: int, variant: str) -> list[str]:
        """What scale and an end still need, goal by goal, guard by guard."""
        variant_state = self.state.variant_states[index]
        if variant_state.rule not in (5, 9, 10):
            return []
        said = []
        for comparison, bounds in self._comparisons(index):
            if not bounds.readable or bounds.verdict in ("pass", "fail", "invalid"):
                continue
            word = "lower bound above" if comparison.goal else "guard's lower bound above"
            have = bounds.lower if bounds.running_lower is None else bounds.running_lower
            sentence = (
                f"Scale needs the {word} {_effect(comparison, comparison.scale_above)} for {_name(comparison.kpi)}; "
                f"it is {_effect(comparison, have)}"
            )
            said.append(f"{sentence}{self._days_left(comparison, bounds)}.")
        said += [
            f"Scale needs {w.gate.name} to pass: {self._watch_reason(w.gate, w.variant)}"
            for w, verdict in zip(self.compiled.watches, self.state.watched, strict=True)
            if verdict != "pass" and w.gate.kind == "threshold" and concerns(w, variant, self.arms)
        ]
        return said

    def _days_left(self, comparison: Comparison, bounds: RunningBounds) -> str:
        rate = units_per_day(self.compiled, bounds)
        if rate is None:
            return ""
        stays, surely = days_left(comparison, bounds, rate)
        text = f"; at today's {round(rate):,} units a day"
        if stays is None and surely is None:
            return ""
        about = (
            "it will not get there while the effect stays"
            if stays is None
            else f"about {_days(stays)} more days if the effect stays"
        )
        by = "" if surely is None else f", by {_days(surely)} whatever it is"
        return f"{text} {about}{by}"

    # Blockers: what rows 4 and 5 lack, and what has suspended a proposal

    def _blockers(self, index: int, variant: str) -> list[str]:
        variant_state = self.state.variant_states[index]
        found = self._restated(variant_state)
        if rule_of(variant_state.rule).suspends_scale:
            lacks = self._stale(variant) + self._unreadable(index, variant)
            if variant_state.rule == 5 or not lacks:
                lacks += self._collecting(index, variant)
            found += lacks
        return list(dict.fromkeys(found))

    def _restated(self, variant_state: VariantState) -> list[str]:
        latch = variant_state.latch
        if latch is None or not latch.restated:
            return []
        behind = f"Rows that the proposal of {rfc3339(latch.slot)} rests on were restated"
        return [
            f"{behind}; it stands again when {latch.action} has held at {self.compiled.policy.persist} looks on the new ones."
        ]

    def _stale(self, variant: str) -> list[str]:
        compiled, slot = self.compiled, self.detail.slot
        own = (compiled.control or variant, variant)
        said = []
        for metric, arm in compiled.series:
            name = f"{metric}/{arm}"
            if arm not in self.arms:
                continue
            watermark, received = self.detail.fresh[name]
            status = freshness(compiled, name, watermark, slot)
            kpi = compiled.kpis[metric]
            due = f"due every {_span(kpi.expected_every_s)}, allowed {_span(kpi.freshness_target_s)} more"
            if status in (MISSING, OVERDUE):
                if arm in own or status == OVERDUE:
                    said.append(f"{metric} of {arm} has no row yet ({due}).")
            elif status != FRESH and watermark is not None:
                age = (compiled.freshness_instant(slot) - watermark) // SECOND
                last = "" if received is None else f", last refreshed {rfc3339(received)}"
                newest = "its newest row is of" if compiled.revision == 1 else "nothing new since its row of"
                said.append(
                    f"{metric} of {arm} is stale: {newest} {rfc3339(watermark)}, {_span(age)} old{last} ({due})."
                )
        return said

    def _unreadable(self, index: int, variant: str) -> list[str]:
        said = []
        for comparison, bounds in self._comparisons(index):
            if bounds.verdict == "no_data":
                reasons = bounds.reasons or [self._unread(comparison, bounds, variant)]
                said += [f"{comparison.gate.name}: {why}." for why in reasons]
        for t, gate in enumerate(self.compiled.targets):
            if self.state.targets[t].verdict == "no_data":
                said.append(self._target_reason(gate, self.state.targets[t]))
        own = (self.compiled.control or variant, variant)
        for watch, verdict in zip(self.compiled.watches, self.state.watched, strict=True):
            if verdict == "no_data" and (watch.variant in own or concerns(watch, variant, self.arms)):
                said.append(f"{watch.gate.name}: {watch.gate.metric} of {watch.variant} has no readable value.")
        return said

    def _collecting(self, index: int, variant: str) -> list[str]:
        compiled, said = self.compiled, []
        bounds_of = self._comparisons(index)
        gates = [b for _, b in bounds_of] or self.state.targets
        ages = [compiled.clock.days(b.at) for b in gates if b.at is not None]
        if ages and min(ages) < compiled.policy.min_days and any(b.why for b in gates):
            reached = compiled.clock.wall(compiled.min_age)
            when = "" if reached is None else f", reached at {rfc3339(reached)}"
            said.append(f"{min(ages)} of {compiled.policy.min_days} whole days have run{when}.")
        for comparison, bounds in bounds_of:
            if (lacks := self._floor_lacks(comparison, bounds, variant)) is not None:
                said.append(lacks)
        for gate in compiled.gates:
            if gate.kind == "density":
                verdict = [v for g, _, v in gate_verdicts(compiled, self.state) if g is gate]
                if any(v != "pass" for v in verdict):
                    said.append(self._density_reason(gate, None))
        return said

    def _floor_lacks(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> str | None:
        name, policy = _name(comparison.kpi), self.compiled.policy
        if bounds.why in ("zero", "denominator"):
            return f"{name}: {self._unread(comparison, bounds, variant)}."
        if bounds.why == "units":
            least = min(bounds.arms)
            rate = units_per_day(self.compiled, bounds)
            when = ""
            if rate and least:
                share = least / max(sum(bounds.arms), 1)
                when = f"; at today's {round(rate):,} units a day about {_days((policy.min_units - least) / (rate * share))} more days"
            return f"{name}: {least:,} of {policy.min_units:,} units in the smaller arm{when}."
        if bounds.why == "spread":
            return f"{name}: every unit has the same value so far, so there is no spread to judge by."
        if bounds.why == "noisy":
            return (
                f"{name}: a mean is known to {bounds.noise * 100:.3g}% only; "
                f"{policy.max_relative_se * 100:g}% is needed before the interval can be trusted."
            )
        return None

    # Gates

    def gate(self, gate: Gate, variant: str | None, verdict: Verdict) -> GateState:
        since = self.state.since.get(f"{gate.name}/{variant or ''}", (verdict, self.detail.slot))[1]
        reading: Reading | None = None
        extra: dict[str, Any] = {}
        if gate.kind in ("uplift", "guard"):
            comparison, bounds = next(
                (c, b)
                for c, b in self._comparisons(self.compiled.judged_variants.index(variant or ""))
                if c.gate is gate
            )
            reason = self._measured(comparison, bounds, variant or "")
            extra = (
                {"scale_above": gate.scale_above, "delete_below": gate.delete_below}
                if comparison.goal
                else {"max_harm": gate.max_harm}
            )
            extra |= {
                "effect": gate.effect,
                "arms": list(bounds.arms),
                "why": bounds.why,
                "alpha": _round(comparison.alpha),
            }
            extra |= self._planned(comparison, bounds)
            if bounds.running_lower is not None and bounds.running_upper is not None:
                extra["drift"] = bounds.running_lower > bounds.running_upper
            reading = _reading(bounds)
        elif gate.kind == "target":
            bounds = self.state.targets[self.compiled.targets.index(gate)]
            reason, extra = self._target_reason(gate, bounds), {**_limits(gate), "days": gate.days, "descriptive": True}
            if bounds.readable:
                extra |= {"mean": _round(bounds.estimate), "least": _round(bounds.lower), "most": _round(bounds.upper)}
        elif gate.kind == "threshold" or (gate.kind == "density" and gate.metric is not None):
            reason, extra = self._watch_reason(gate, variant or ""), {**_limits(gate), "times": gate.times}
            newest = self.detail.watched[f"{gate.name}/{variant}"].newest
            extra["observed"] = [[rfc3339(ts), None if value is None else _round(value)] for ts, value in newest]
        elif gate.kind == "density":
            reason, extra = self._density_reason(gate, None), _limits(gate)
            worst = self._worst_density()
            if worst is not None:
                extra |= {"series": worst[0], "observed": worst[1], "expected": worst[2]}
        elif gate.kind == "freshness":
            reason, extra = self._freshness_reason(), {}
        else:
            reason, extra = self._srm_reason()
        return GateState(gate.name, gate.kind, variant, gate.metric, verdict, since, reading, reason, extra)

    def _planned(self, comparison: Comparison, bounds: RunningBounds) -> dict[str, Any]:
        """Units a day and days left, for the board."""
        rate = units_per_day(self.compiled, bounds)
        if rate is None or not bounds.readable:
            return {}
        stays, surely = days_left(comparison, bounds, rate)
        return {
            "units_per_day": _round(rate),
            "days_left": None if stays is None else _round(stays),
            "days_left_at_most": None if surely is None else _round(surely),
        }

    def _watch_reason(self, gate: Gate, variant: str) -> str:
        observations = self.detail.watched[f"{gate.name}/{variant}"].newest[-gate.times :]
        if not observations or observations[-1][1] is None:
            return f"{gate.metric} of {variant} has no readable value."
        seen = ", ".join(f"{_sig(value)} at {rfc3339(ts)}" for ts, value in observations if value is not None)
        inside = is_inside(gate, observations[-1][1])
        return f"{gate.metric} of {variant} is {'inside' if inside else 'outside'} its limit ({_band(gate)}): {seen}."

    def _worst_density(self) -> tuple[str, int, int] | None:
        counted = [
            (observed / expected if expected else 0.0, name, observed, expected)
            for name, (observed, expected) in self.detail.dense.items()
        ]
        return min(counted)[1:] if counted else None

    def _density_reason(self, gate: Gate, _variant: str | None) -> str:
        if gate.metric is not None:
            values = {
                watch.variant: self.detail.watched[watch.name].newest[-1][1]
                for watch in self.compiled.watches
                if watch.gate is gate and watch.variant in self.arms and self.detail.watched[watch.name].newest
            }
            known = {variant: value for variant, value in values.items() if value is not None}
            if not known:
                return f"{gate.metric} has no closed value yet; at least {gate.at_least:g} is needed."
            least = min(known, key=lambda variant: known[variant])
            return f"{gate.metric} is {_sig(known[least])} in {least}; at least {gate.at_least:g} is needed."
        worst = self._worst_density()
        if worst is None:
            return "Cumulative series are dense while they are fresh."
        name, observed, expected = worst
        if not expected:
            return f"No bucket of {name.replace('/', ' of ')} is closed yet."
        return (
            f"{observed:,} of {expected:,} expected buckets of {name.replace('/', ' of ')} have arrived "
            f"({100 * observed / expected:.3g}%; {100 * (gate.at_least or 0):g}% is needed)."
        )

    def _freshness_reason(self) -> str:
        said = []
        for metric, arm in self.compiled.series:
            if arm in self.arms:
                watermark, _ = self.detail.fresh[f"{metric}/{arm}"]
                if freshness(self.compiled, f"{metric}/{arm}", watermark, self.detail.slot) != FRESH:
                    said.append(
                        f"{metric} of {arm} "
                        + ("has no row yet" if watermark is None else f"ends at {rfc3339(watermark)}")
                    )
        return f"{'; '.join(said)}." if said else "Every series that is read is fresh."

    def _srm_reason(self) -> tuple[str, dict[str, Any]]:
        source = self.state.alarm or self.detail.split
        extra = {
            metric: {"units": units, "log_e": _round(split_log_e(self.compiled, units))}
            for metric, units in source.items()
        }
        if self.state.alarm:
            alarmed = [metric for metric in self.compiled.counting if metric in self.state.alarm]
            if self.compiled.revision == 1:
                del alarmed[1:]
            said = []
            for metric in alarmed:
                units, at = self.state.alarm[metric], self.state.alarm_at[metric]
                alarm = "alarm"
                if self.compiled.revision > 1:
                    alarm = f"alarm since {rfc3339(at)}"
                    extra[metric]["since"] = rfc3339(at)
                planned = self._shares(self.compiled.weights, units)
                said.append(f"Units of {metric} arrived as {self._shares(units)}, planned {planned}: {alarm}.")
            return f"{' '.join(said)}{self._split_mend(alarmed[-1])}", extra
        if not extra:
            return "Units are not counted in every arm yet.", extra
        most = max(split_log_e(self.compiled, units) for units in source.values())
        return f"Units arrive as planned (evidence {_sig(most)}, alarm at {math.log(SRM_ALARM):.1f}).", extra

    def _shares(self, counts: Mapping[str, float], among: Collection[str] | None = None) -> str:
        """Numbers per variant, in plan order."""
        return " : ".join(
            f"{variant} {counts[variant]:,g}"
            if isinstance(counts[variant], float)
            else f"{variant} {counts[variant]:,}"
            for variant in self.compiled.variants
            if variant in (counts if among is None else among)
        )

    def _target_reason(self, gate: Gate, bounds: RunningBounds) -> str:
        kpi = self.compiled.kpis[gate.metric or ""]
        if bounds.at is None:
            return f"{_name(kpi)} has no closed row yet."
        if bounds.why == "day":
            return f"{_name(kpi)} has a closed day without a readable row among the last {gate.days}."
        if not bounds.readable:
            return f"{_name(kpi)}: no day is closed yet; {gate.days} are needed."
        return (
            f"{_name(kpi)} over the last {bounds.n} of {gate.days} closed days: mean {_sig(bounds.estimate)}, "
            f"{_sig(bounds.lower)} to {_sig(bounds.upper)} (target {_band(gate)}; descriptive, not causal)."
        )

    def _comparisons(self, index: int) -> list[tuple[Comparison, RunningBounds]]:
        if self.compiled.control is None:
            return []
        return [
            (comparison, self.state.bounds[g * self.width + index])
            for g, comparison in enumerate(self.compiled.comparisons)
        ]


# Days left ------------------------------------------------------------------------------------------------------------


def units_per_day(compiled: CompiledPlan, bounds: RunningBounds) -> float | None:
    """Units of both arms a day, over the last week or since the start; None before anything can be said."""
    if bounds.at is None or bounds.n <= 0:
        return None
    for at, n in zip(bounds.rate_samples[::2], bounds.rate_samples[1::2], strict=True):
        ran = compiled.clock.running(bounds.at) - compiled.clock.running(at)
        if ran >= DAY and bounds.n > n:
            return (bounds.n - n) * DAY / ran
    ran = compiled.clock.running(bounds.at)
    return bounds.n * DAY / ran if ran > 0 else None


def days_left(comparison: Comparison, bounds: RunningBounds, rate: float) -> tuple[float | None, float | None]:
    """(A, B) of docs/gates.md section 6: days until decided if the effect stays, and by when whatever it is; None: never.

    A guard is decided at half = |estimate + max_harm|; it has no B.
    """
    if comparison.goal:
        stays = max(bounds.estimate - comparison.scale_above, comparison.fail_below - bounds.estimate)
        surely = (comparison.fail_below - comparison.scale_above) / 2.0
    else:
        stays, surely = abs(bounds.estimate - comparison.scale_above), 0.0

    def days(half: float) -> float | None:
        units = units_for_half(half, bounds.se, bounds.n, comparison.rho2, comparison.alpha)
        return None if units is None else (units - bounds.n) / rate

    return days(stays), days(surely)


# Numbers as people read them ------------------------------------------------------------------------------------------


def _round(value: float) -> float:
    """12 significant digits.

    >>> _round(0.1 + 0.2)
    0.3
    """
    return float(f"{value:.{DIGITS}g}")


def _reading(bounds: RunningBounds) -> Reading | None:
    if bounds.at is None or not bounds.readable:
        return None
    return Reading(
        at=bounds.at,
        n=bounds.n,
        estimate=_round(bounds.estimate),
        lower=_bounded(bounds.lower),
        upper=_bounded(bounds.upper),
        running_lower=_bounded(bounds.running_lower),
        running_upper=_bounded(bounds.running_upper),
        p=_bounded(bounds.p),
    )


def _bounded(value: float | None) -> float | None:
    """An end of an interval as people and evidence read it; None where there is none."""
    return None if value is None or math.isinf(value) else _round(value)


def _ended(value: float) -> float | None:
    return None if math.isinf(value) else value


def _effect(comparison: Comparison, value: float | None) -> str:
    if value is None or math.isinf(value):
        return "not known"
    if comparison.gate.effect == "relative":
        return _percent(value)
    unit = f" {comparison.kpi.unit}" if comparison.kpi.unit else ""
    return f"{_signed(value)}{unit}"


def _size(comparison: Comparison, value: float) -> str:
    return _effect(comparison, value).removeprefix("+")


def _percent(value: float) -> str:
    """A fraction as a signed percentage with three significant digits at most.

    >>> _percent(0.0412), _percent(-0.004), _percent(0.0), _percent(0.000123)
    ('+4.12%', '−0.4%', '0%', '+0.0123%')
    """
    return f"{_signed(value * 100)}%"


def _signed(value: float) -> str:
    text = _sig(value)
    return text if text == "0" or text.startswith(MINUS) else f"+{text}"


def _sig(value: float) -> str:
    """Three significant digits, a true minus, thousands set apart.

    >>> _sig(1234567.0), _sig(-0.00456), _sig(3.0)
    ('1,234,567', '−0.00456', '3')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{MINUS if value < 0 else ''}{text}"


def _days(days: float) -> str:
    """Whole days, rounded up so that the promise holds; under a day, tenths."""
    if days < 1:
        return f"{math.ceil(max(days, 0) * 10 + 1e-9) / 10:g}"
    return f"{math.ceil(days):,}"


def _span(seconds: float) -> str:
    """A span of time in at most two units.

    >>> _span(7800), _span(900), _span(86400), _span(45)
    ('2 h 10 min', '15 min', '1 d', '45 s')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    parts = [(whole // 86_400, "d"), (whole % 86_400 // 3600, "h"), (whole % 3600 // 60, "min")]
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2])


def _name(kpi: Kpi) -> str:
    return kpi.name or kpi.metric


def _limits(gate: Gate) -> dict[str, Any]:
    return {key: value for key, value in (("at_least", gate.at_least), ("at_most", gate.at_most)) if value is not None}


def _band(gate: Gate) -> str:
    words = [
        f"{word} {_sig(value)}"
        for word, value in (("at least", gate.at_least), ("at most", gate.at_most))
        if value is not None
    ]
    return " and ".join(words)
