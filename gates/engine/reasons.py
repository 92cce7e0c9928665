"""Why: an evaluation with its reasons as data, each a code with the names and numbers behind it. Pure.

Codes and their fields stand in docs/gates.md, section 9; what they come to in words is said by `gates.engine.narration`, whenever somebody
reads. Evidence holds reasons and no sentence. What two evaluations differ in is told by `subject_of`: codes and names, no figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gates.engine.compiled import Comparison, CompiledPlan
from gates.engine.doubt import doubt_gate, doubts_of, set_aside
from gates.engine.facts import SlotSnapshot, Unreadable
from gates.engine.forecast import days_left, units_per_day
from gates.engine.plan import Kpi, rfc3339
from gates.engine.policy import Gate
from gates.engine.recommendations import experiment_of, recommendation_of, rule_of
from gates.engine.results import Evaluation, GateState, Reading, Reason, Verdict, rounded, rounded_end
from gates.engine.state import FRESH, MISSING, OVERDUE, ExperimentState, RunningBounds, VariantState
from gates.engine.statistics.srm import srm_log_e
from gates.engine.verdicts import LOG_ALARM, concerns, freshness, gate_verdicts, is_inside, split_log_e

_PROVED = frozenset({"too_small", "wins", "on_target", "harmful", "not_worth_it", "off_target"})
_COLLECTING = 5
_WAITING = (_COLLECTING, 9, 10)
"""Rules under which more data may still decide."""
_SILENT = ("stale", "buckets")
"""Reasons that a series which stopped after it began gives."""
_NAMES = ("code", "of", "gate", "metric", "variant", "problem")


def evaluation_of(compiled: CompiledPlan, state: ExperimentState, detail: SlotSnapshot, *, changed: bool) -> Evaluation:
    """The experiment as of the slot state stands at."""
    reasons, gates = _VariantReasons(compiled, state, detail), _GateStates(compiled, state, detail)
    arms = compiled.arms(detail.slot)
    variants = tuple(
        recommendation_of(compiled, state.variant_states[index], variant, reasons.of(index, variant))
        for index, variant in enumerate(compiled.judged_variants)
        if variant in arms
    )
    return Evaluation(
        slot=detail.slot,
        changed=changed,
        recommendation=experiment_of(compiled, state, variants),
        variants=variants,
        gates=tuple(gates.gate(gate, variant, verdict) for gate, variant, verdict in gate_verdicts(compiled, state)),
    )


def blocking(reasons: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are to go before anything else can be advised."""
    return [reason for reason in reasons if reason.get("blocks")]


def reasons_in(kept: Mapping[str, Any]) -> list[Reason]:
    """The reasons of a recommendation or gate as it is kept; of one that was kept in sentences, these."""
    if (reasons := kept.get("reasons")) is not None:
        return list(reasons)
    said = [*kept.get("rationale", ()), *([kept["reason"]] if kept.get("reason") else ())]
    return [*map(told, said), *({**told(text), "blocks": True} for text in kept.get("blockers", ()))]


def _unless_implied(unreadable: Iterable[Reason], late: Iterable[Reason]) -> list[Reason]:
    """Without what follows from a series that has no row at all, which is said of the series."""
    empty = {(reason["metric"], reason["variant"]) for reason in late if reason["code"] == "no_row"}
    return [
        reason
        for reason in unreadable
        if not (reason["code"] in ("no_value", "no_closed_row") and (reason["metric"], reason["variant"]) in empty)
        and not (reason["code"] == "no_closed_row" and (reason["metric"], reason["control"]) in empty)
    ]


def told(text: str) -> Reason:
    """A reason that is nothing but a sentence."""
    return {"code": "told", "text": text}


def subject_of(reason: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a reason is about, without its figures."""
    return tuple(str(reason.get(name)) for name in _NAMES)


class _Slot:
    """What one slot says of a gate, whoever asks."""

    def __init__(self, compiled: CompiledPlan, state: ExperimentState, detail: SlotSnapshot) -> None:
        self.compiled, self.state, self.detail = compiled, state, detail
        self.arms = compiled.arms(detail.slot)
        self.width = len(compiled.judged_variants)

    def _comparisons(self, index: int) -> list[tuple[Comparison, RunningBounds]]:
        if self.compiled.control is None:
            return []
        return [
            (comparison, self.state.bounds[g * self.width + index])
            for g, comparison in enumerate(self.compiled.comparisons)
        ]

    def _split_alarms(self) -> list[Reason]:
        """Each metric whose units did not arrive in the planned split, and what else than a wrong split the alarm of a guard may mean."""
        alarm = self.state.alarm
        guards_alone = {self.compiled.kpis[metric].role for metric in alarm} == {"guardrail"}
        as_planned = {other: units for other, units in self.detail.split.items() if other not in alarm}
        return [
            {
                "code": "split_alarm",
                "metric": metric,
                "units": self._in_order(alarm[metric]),
                "weights": self._in_order(self.compiled.weights, alarm[metric]),
                **self._tolerance(),
                "log_e": rounded(split_log_e(self.compiled, alarm[metric])),
                "since": rfc3339(self.state.alarm_at[metric]),
                "may_not_count_assignment": guards_alone,
                "as_planned": [(m, self._in_order(as_planned[m])) for m in self.compiled.counting if m in as_planned],
            }
            for metric in self.compiled.counting
            if metric in alarm
        ]

    def _tolerance(self) -> Reason:
        return {"tolerance": self.compiled.policy.srm_tolerance} if self.compiled.revision > 2 else {}

    def _in_order(self, counts: Mapping[str, float], among: Collection[str] | None = None) -> list[tuple[str, float]]:
        """Numbers per variant, in plan order."""
        return [(v, counts[v]) for v in self.compiled.variants if v in (counts if among is None else among)]

    def _measured(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> Reason:
        """One goal or guard in numbers, or why there are none."""
        if not bounds.readable:
            return self._unread(comparison, bounds, variant)
        return {
            "code": "measured",
            "metric": comparison.kpi.metric,
            "variant": variant,
            "effect": comparison.gate.effect,
            "alpha": rounded(comparison.alpha),
            "estimate": rounded(bounds.estimate),
            "lower": rounded_end(bounds.lower),
            "upper": rounded_end(bounds.upper),
            "running_lower": rounded_end(bounds.running_lower),
            "running_upper": rounded_end(bounds.running_upper),
            "units": bounds.n,
        }

    def _unread(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> Reason:
        about = {"metric": comparison.kpi.metric, "control": self.compiled.control, "variant": variant}
        if bounds.why == "zero":
            return {"code": "control_is_zero", **about}
        if bounds.why == "unreadable":
            return {"code": "row_unreadable", **about}
        if bounds.why == "missing":
            return {"code": "no_closed_row", **about}
        if bounds.why == "denominator":
            return {"code": "denominator_is_zero", **about}
        if bounds.why in ("", "young"):  # the rest of the floor is held: what is lacking is a control other than 0
            best = {"effect": comparison.gate.effect, "upper": rounded_end(bounds.running_upper)}
            return {"code": "bounded_above_only", **about, **best}
        return {"code": "too_few_units", **about}

    def _planned(self, comparison: Comparison, bounds: RunningBounds) -> Reason:
        """Units a day and days left."""
        rate = units_per_day(self.compiled, bounds)
        if rate is None:
            return {}
        stays, surely = days_left(comparison, bounds, rate)
        return {
            "units_per_day": rounded(rate),
            "days_left": None if stays is None else rounded(stays),
            "days_left_at_most": None if surely is None else rounded(surely),
        }

    def _due(self, metric: str) -> Reason:
        kpi = self.compiled.kpis[metric]
        holding = [part.said for part in kpi.expected if part.since is None or part.since <= self.detail.slot]
        expected = {"expected": holding[-1]} if holding else {}
        return {"expected_every_s": kpi.expected_every_s, **expected, "freshness_target_s": kpi.freshness_target_s}

    def _watched(self, gate: Gate, variant: str) -> Reason:
        observations = self.detail.watched[f"{gate.name}/{variant}"].newest[-gate.times :]
        about: Reason = {"gate": gate.name, "metric": gate.metric, "variant": variant}
        if not observations or observations[-1][1] is None:
            return {"code": "no_value", **about}
        seen = [[rfc3339(ts), rounded(value)] for ts, value in observations if value is not None]
        inside = is_inside(gate, observations[-1][1])
        return {"code": "inside_limit" if inside else "outside_limit", **about, **limits(gate), "observed": seen}

    def _density(self, gate: Gate) -> Reason:
        about: Reason = {"gate": gate.name, "at_least": gate.at_least}
        if gate.metric is not None:
            values = {
                watch.variant: self.detail.watched[watch.name].newest[-1][1]
                for watch in self.compiled.watches
                if watch.gate is gate and watch.variant in self.arms and self.detail.watched[watch.name].newest
            }
            known = {variant: value for variant, value in values.items() if value is not None}
            if not known:
                return {"code": "no_closed_value", "metric": gate.metric, **about}
            least = min(known, key=lambda variant: known[variant])
            return {
                "code": "least_value",
                "metric": gate.metric,
                "variant": least,
                "value": rounded(known[least]),
                **about,
            }
        worst = self._worst_density()
        if worst is None:
            return {"code": "dense_while_fresh", **about}
        name, observed, expected = worst
        metric, _, variant = name.partition("/")
        about |= {"metric": metric, "variant": variant}
        if not expected:
            return {"code": "no_bucket_closed", **about}
        return {"code": "buckets", **about, "observed": observed, "expected": expected}

    def _worst_density(self) -> tuple[str, int, int] | None:
        counted = [
            (observed / expected if expected else 0.0, name, observed, expected)
            for name, (observed, expected) in self.detail.dense.items()
        ]
        return min(counted)[1:] if counted else None

    def _target(self, gate: Gate, bounds: RunningBounds) -> Reason:
        about: Reason = {"gate": gate.name, "metric": gate.metric, "days": gate.days}
        if bounds.at is None:
            return {"code": "target_without_row", **about}
        if bounds.why == "day":
            return {"code": "target_day_without_row", **about}
        if not bounds.readable:
            return {"code": "target_without_day", **about}
        return {
            "code": "target_measured",
            **about,
            **limits(gate),
            "closed": bounds.n,
            "mean": rounded(bounds.estimate),
            "least": rounded(bounds.lower),
            "most": rounded(bounds.upper),
        }


class _VariantReasons(_Slot):
    """Why something is recommended of a variant."""

    def of(self, index: int, variant: str) -> tuple[Reason, ...]:
        """What its recommendation rests on, what was measured, what would change it; then what blocks it. Each once."""
        blockers = self._blockers(index, variant)
        blocked = {reason.get("metric") for reason in blockers}
        found = self._why(index, variant)
        for comparison, bounds in self._comparisons(index):
            if bounds.readable or comparison.kpi.metric not in blocked:
                found.append(self._measured(comparison, bounds, variant))
        for gate, bounds in zip(self.compiled.targets, self.state.targets, strict=True):
            told = self._target(gate, bounds)
            if (bounds.readable or gate.metric not in blocked) and not (
                told in blockers and self.compiled.revision > 2
            ):
                found.append(told)
        found += self._would_change(index, variant)
        if not rule_of(self.state.variant_states[index].rule).suspends_scale:
            found += doubts_of(self.compiled, self.state, (variant,))
        found += set_aside(self.compiled, self.detail.slot)
        variant_state, latch = self.state.variant_states[index], self.state.variant_states[index].latch
        if latch is not None and (latch.action, latch.code) != (variant_state.action, variant_state.code):
            found.append(
                {
                    "code": "stands_since",
                    "slot": rfc3339(latch.slot),
                    "proposed": [latch.action, latch.code],
                    "now": [variant_state.action, variant_state.code],
                }
            )
        elif latch is None and variant_state.action != "hold":
            found.append(self._held(variant_state))
        return (*found, *({**reason, "blocks": True} for reason in blockers))

    def _held(self, variant_state: VariantState) -> Reason:
        """Why an action the gates advise is not proposed yet."""
        advised = [variant_state.action, variant_state.code]
        for action, code, until in variant_state.snoozed:
            if [action, code] == advised and self.detail.slot < until:
                return {"code": "snoozed", "advised": advised, "until": rfc3339(until)}
        return {
            "code": "held",
            "advised": advised,
            "looks": variant_state.streak,
            "needed": self.compiled.policy.persist,
            "newer": variant_state.code != "undecided",
        }

    def _why(self, index: int, variant: str) -> list[Reason]:
        """What the rule that is recommended rests on."""
        variant_state = self.state.variant_states[index]
        if variant_state.code == "unsafe":
            return [
                self._watched(w.gate, w.variant)
                for w, verdict in zip(self.compiled.watches, self.state.watched, strict=True)
                if verdict == "fail" and concerns(w, variant, self.arms)
            ]
        if variant_state.code == "invalid":
            return self._invalid(index)
        if variant_state.code == "harm":
            return [
                {
                    "code": "harmed",
                    "metric": c.kpi.metric,
                    "variant": variant,
                    "effect": c.gate.effect,
                    "max_harm": c.gate.max_harm,
                    "upper": rounded_end(b.running_upper),
                    "looks": b.fails,
                }
                for c, b in self._comparisons(index)
                if not c.goal and b.verdict == "fail"
            ]
        if variant_state.code == "implausible":
            return [
                {
                    "code": "implausible",
                    "metric": c.kpi.metric,
                    "variant": variant,
                    "effect": c.gate.effect,
                    "lower": rounded_end(b.running_lower),
                    "plausible_to": rounded(c.plausible_to),
                }
                for c, b in self._comparisons(index)
                if b.beyond
            ]
        if variant_state.code == "undecided":
            ended = self.compiled.plan.ended_at
            goals = [b for c, b in self._comparisons(index) if c.goal and b.readable]
            return [
                {
                    "code": "undecided",
                    "variant": variant,
                    "ended": ended is not None and self.detail.slot >= ended,
                    "max_days": self.compiled.policy.max_days,
                    "leans": None if not goals else "up" if goals[0].estimate > 0 else "down",
                }
            ]
        return [{"code": variant_state.code, "variant": variant}] if variant_state.code in _PROVED else []

    def _invalid(self, index: int) -> list[Reason]:
        found = self._split_alarms()
        for comparison, bounds in self._comparisons(index):
            if bounds.invalid:
                found.append(
                    {
                        "code": "contradicts_itself",
                        "gate": comparison.gate.name,
                        "metric": comparison.kpi.metric,
                        "effect": comparison.gate.effect,
                        "scale_above": comparison.scale_above,
                        "lower": rounded_end(bounds.running_lower),
                        "upper": rounded_end(bounds.running_upper),
                    }
                )
        return found

    def _would_change(self, index: int, variant: str) -> list[Reason]:
        """What scale and an end still need, goal by goal, guard by guard."""
        if self.state.variant_states[index].rule not in _WAITING:
            return []
        found = []
        for comparison, bounds in self._comparisons(index):
            if not bounds.readable or bounds.verdict in ("pass", "fail", "invalid"):
                continue
            have = bounds.lower if bounds.running_lower is None else bounds.running_lower
            need: Reason = {
                "code": "scale_needs",
                "metric": comparison.kpi.metric,
                "goal": comparison.goal,
                "effect": comparison.gate.effect,
                "above": comparison.scale_above,
                "lower": rounded_end(have),
            }
            found.append({**need, **self._planned(comparison, bounds)})
        found += [
            {**self._watched(w.gate, w.variant), "code": "scale_needs_limit"}
            for w, verdict in zip(self.compiled.watches, self.state.watched, strict=True)
            if verdict != "pass" and w.gate.kind == "threshold" and concerns(w, variant, self.arms)
        ]
        return found

    def _blockers(self, index: int, variant: str) -> list[Reason]:
        variant_state = self.state.variant_states[index]
        found: list[Reason] = []
        latch = variant_state.latch
        if latch is not None and latch.restated:
            found.append(
                {
                    "code": "restated",
                    "variant": variant,
                    "slot": rfc3339(latch.slot),
                    "action": latch.action,
                    "needed": self.compiled.policy.persist,
                }
            )
        if rule_of(variant_state.rule).suspends_scale:
            late = self._late(variant)
            lacks = late + _unless_implied(self._unreadable(index, variant), late)
            found += doubts_of(self.compiled, self.state, (variant,))
            if variant_state.rule == _COLLECTING or not lacks:
                lacks += self._lacking(index, variant)
            found += self._with_quiet(lacks)
        return each_once(found)

    def _with_quiet(self, lacks: Sequence[Reason]) -> list[Reason]:
        """What lacks, saying of guardrails whose rows are missing while the goals' come that perhaps nothing happened."""
        missing = {reason["metric"] for reason in lacks if reason["code"] in _SILENT}
        goals = {comparison.kpi.metric for comparison in self.compiled.comparisons if comparison.goal}
        if not goals or goals & missing:
            return list(lacks)
        quiet = {metric for metric in missing if _may_be_sparse(self.compiled.kpis[metric])}
        return [
            {**reason, "may_be_quiet": True} if reason["code"] in _SILENT and reason["metric"] in quiet else reason
            for reason in lacks
        ]

    def _late(self, variant: str) -> list[Reason]:
        compiled, slot = self.compiled, self.detail.slot
        own = (compiled.control or variant, variant)
        found: list[Reason] = []
        for metric, arm in compiled.series:
            name = f"{metric}/{arm}"
            if arm not in self.arms:
                continue
            watermark, received = self.detail.fresh[name]
            status = freshness(compiled, name, watermark, slot)
            about = {"metric": metric, "variant": arm, **self._due(metric)}
            if status in (MISSING, OVERDUE):
                if arm in own or status == OVERDUE:
                    found.append({"code": "no_row", **about})
            elif status != FRESH and watermark is not None:
                refreshed = None if received is None else rfc3339(received)
                found.append({"code": "stale", **about, "watermark": rfc3339(watermark), "last_refresh_at": refreshed})
        return found

    def _unreadable(self, index: int, variant: str) -> list[Reason]:
        found: list[Reason] = []
        for comparison, bounds in self._comparisons(index):
            if bounds.verdict != "no_data":
                continue
            found += [
                {
                    "code": "row_unreadable",
                    "gate": comparison.gate.name,
                    "metric": comparison.kpi.metric,
                    "variant": arm,
                    **problem(why),
                }
                for arm, why in bounds.reasons
            ] or [{"gate": comparison.gate.name, **self._unread(comparison, bounds, variant)}]
        for gate, bounds in zip(self.compiled.targets, self.state.targets, strict=True):
            if bounds.verdict == "no_data":
                found.append(self._target(gate, bounds))
        own = (self.compiled.control or variant, variant)
        for watch, verdict in zip(self.compiled.watches, self.state.watched, strict=True):
            if verdict == "no_data" and (watch.variant in own or concerns(watch, variant, self.arms)):
                about = {"gate": watch.gate.name, "metric": watch.gate.metric, "variant": watch.variant}
                found.append({"code": "no_value", **about})
        return found

    def _lacking(self, index: int, variant: str) -> list[Reason]:
        compiled, found = self.compiled, []
        bounds_of = self._comparisons(index)
        gates = [b for _, b in bounds_of] or self.state.targets
        ages = [compiled.clock.days(b.at) for b in gates if b.at is not None]
        if ages and min(ages) < compiled.policy.min_days and any(b.why for b in gates):
            reached = compiled.clock.wall(compiled.min_age)
            found.append(
                {
                    "code": "days_lacking",
                    "days": min(ages),
                    "needed": compiled.policy.min_days,
                    "reached_at": None if reached is None else rfc3339(reached),
                }
            )
        for comparison, bounds in bounds_of:
            if (lacks := self._floor_lacks(comparison, bounds, variant)) is not None:
                found.append(lacks)
        for gate in compiled.gates:
            if gate.kind == "density":
                verdict = [v for g, _, v in gate_verdicts(compiled, self.state) if g is gate]
                if any(v != "pass" for v in verdict):
                    found.append(self._density(gate))
        return found

    def _floor_lacks(self, comparison: Comparison, bounds: RunningBounds, variant: str) -> Reason | None:
        metric, policy = comparison.kpi.metric, self.compiled.policy
        if bounds.why in ("zero", "denominator"):
            return self._unread(comparison, bounds, variant)
        if bounds.why == "units":
            least = min(bounds.arms)
            rate = units_per_day(self.compiled, bounds)
            days = None
            if rate and least:
                share = least / max(sum(bounds.arms), 1)
                days = rounded((policy.min_units - least) / (rate * share))
            return {
                "code": "units_lacking",
                "metric": metric,
                "units": least,
                "needed": policy.min_units,
                "units_per_day": None if rate is None else rounded(rate),
                "days_left": days,
            }
        if bounds.why == "spread":
            return {"code": "no_spread", "metric": metric}
        if bounds.why == "noisy":
            needed = policy.max_relative_se
            return {"code": "noisy", "metric": metric, "relative_se": rounded_end(bounds.noise), "needed": needed}
        return None


class _GateStates(_Slot):
    """Every gate as of the slot."""

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
            reasons = [self._measured(comparison, bounds, variant or "")]
            extra = (
                {"scale_above": gate.scale_above, "delete_below": gate.delete_below}
                if comparison.goal
                else {"max_harm": gate.max_harm}
            )
            extra |= {
                "effect": gate.effect,
                "arms": list(bounds.arms),
                "why": bounds.why,
                "alpha": rounded(comparison.alpha),
            }
            if bounds.readable:
                extra |= self._planned(comparison, bounds)
            if bounds.running_lower is not None and bounds.running_upper is not None:
                extra["drift"] = bounds.running_lower > bounds.running_upper
            reading = reading_of(bounds)
        elif gate.kind == "target":
            bounds = self.state.targets[self.compiled.targets.index(gate)]
            reasons, extra = [self._target(gate, bounds)], {**limits(gate), "days": gate.days, "descriptive": True}
            if bounds.readable:
                extra |= {
                    "mean": rounded(bounds.estimate),
                    "least": rounded(bounds.lower),
                    "most": rounded(bounds.upper),
                }
        elif gate.kind == "threshold" or (gate.kind == "density" and gate.metric is not None):
            reasons, extra = [self._watched(gate, variant or "")], {**limits(gate), "times": gate.times}
            newest = self.detail.watched[f"{gate.name}/{variant}"].newest
            extra["observed"] = [[rfc3339(ts), None if value is None else rounded(value)] for ts, value in newest]
        elif gate.kind == "density":
            reasons, extra = [self._density(gate)], limits(gate)
            worst = self._worst_density()
            if worst is not None:
                extra |= {"series": worst[0], "observed": worst[1], "expected": worst[2]}
        elif gate.kind == "freshness":
            reasons = self._freshness()
        elif gate.kind == "doubt":
            reasons, extra = doubt_gate(self.compiled, self.state, self.arms)
        else:
            reasons, extra = self._split()
        return GateState(gate.name, gate.kind, variant, gate.metric, verdict, since, reading, tuple(reasons), extra)

    def _freshness(self) -> list[Reason]:
        found: list[Reason] = []
        for metric, arm in self.compiled.series:
            if arm in self.arms:
                watermark, received = self.detail.fresh[f"{metric}/{arm}"]
                if freshness(self.compiled, f"{metric}/{arm}", watermark, self.detail.slot) != FRESH:
                    about = {"metric": metric, "variant": arm, **self._due(metric)}
                    if watermark is None:
                        found.append({"code": "no_row", **about})
                        continue
                    refreshed = None if received is None else rfc3339(received)
                    found.append(
                        {"code": "stale", **about, "watermark": rfc3339(watermark), "last_refresh_at": refreshed}
                    )
        return found or [{"code": "all_fresh"}]

    def _split(self) -> tuple[list[Reason], dict[str, Any]]:
        alarm = self.state.alarm
        source = alarm or self.detail.split
        extra: dict[str, Any] = {
            metric: {"units": units, "log_e": rounded(split_log_e(self.compiled, units))}
            for metric, units in source.items()
        }
        if alarm:
            if self.compiled.revision > 1:
                for metric in alarm:
                    extra[metric]["since"] = rfc3339(self.state.alarm_at[metric])
            return self._split_alarms(), extra
        if not extra:
            return [{"code": "split_not_counted"}], extra
        as_planned: Reason = {"code": "split_as_planned", "log_e": max(of["log_e"] for of in extra.values())}
        if self.compiled.revision < 3:
            return [as_planned], extra
        reasons = []
        for metric in [metric for metric in self.compiled.counting if metric in source]:
            units = source[metric]
            about = {
                "metric": metric,
                "units": self._in_order(units),
                "weights": self._in_order(self.compiled.weights, units),
            }
            if self._is_uneven(units):
                reasons.append({"code": "split_tolerated", **about, **self._tolerance()})
            else:
                reasons.append({**as_planned, **about, "log_e": extra[metric]["log_e"]})
        return reasons, extra

    def _is_uneven(self, units: Mapping[str, int]) -> bool:
        """Whether the split would be an alarm if nothing were tolerated."""
        if not self.compiled.policy.srm_tolerance:
            return False
        weights = [self.compiled.weights[variant] for variant in units]
        return srm_log_e(list(units.values()), weights) >= LOG_ALARM


# As it is kept --------------------------------------------------------------------------------------------------------


def _may_be_sparse(kpi: Kpi) -> bool:
    counts = kpi.kind in ("mean", "proportion") and kpi.temporality == "delta"
    return kpi.role == "guardrail" and counts and not kpi.sparse_beside


def each_once[R](reasons: Iterable[R]) -> list[R]:
    """Without repetitions, in their order."""
    found: list[R] = []
    for reason in reasons:
        if reason not in found:
            found.append(reason)
    return found


def problem(why: Unreadable | str) -> Reason:
    """What is wrong with a row; evidence of before said it in words."""
    if isinstance(why, str):
        return {"problem": "told", "text": why}
    said: Reason = {"problem": why.problem}
    if why.ts is not None:
        said["ts"] = rfc3339(why.ts)
    if why.value is not None:
        said["value"] = rounded(why.value)
    return said


def reading_of(bounds: RunningBounds) -> Reading | None:
    if bounds.at is None or not bounds.readable:
        return None
    return Reading(
        at=bounds.at,
        n=bounds.n,
        estimate=rounded(bounds.estimate),
        lower=rounded_end(bounds.lower),
        upper=rounded_end(bounds.upper),
        running_lower=rounded_end(bounds.running_lower),
        running_upper=rounded_end(bounds.running_upper),
        p=rounded_end(bounds.p),
    )


def limits(gate: Gate) -> dict[str, Any]:
    return {key: value for key, value in (("at_least", gate.at_least), ("at_most", gate.at_most)) if value is not None}
