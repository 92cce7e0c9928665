"""Whether a plan can end: what its goals need before they are decided whatever the effect is (B of docs/gates.md section 6). Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from gates.engine.compiled import Comparison, CompiledPlan, compile_plan
from gates.engine.plan import DAY, Plan
from gates.engine.policy import Policy
from gates.engine.state import RunningBounds
from gates.engine.statistics.planning import smallest_effect, units_for_half


class Forecast(NamedTuple):
    """One goal of one treatment, before any row. Effects are in the gate's unit: fractions of the control for a relative effect.

    units: of both arms together, by which it is decided; days: at the expected units a day, never less than the policy's
    min_days; None: out of reach. smallest_effect: the smallest gap between scale and delete that max_days surely decide.
    """

    metric: str
    units: int | None
    days: float | None
    max_days: int
    smallest_effect: float
    relative: bool

    @property
    def ends(self) -> bool:
        """Whether it is decided before the policy asks for a person."""
        return self.days is not None and self.days <= self.max_days

    @property
    def warning(self) -> str:
        """What to do when the plan cannot end; empty when it can."""
        if self.ends:
            return ""
        effect = f"{100 * self.smallest_effect:.3g}%" if self.relative else f"{self.smallest_effect:.3g}"
        when = "longer than can be counted" if self.days is None else f"up to {math.ceil(self.days)} days"
        return (
            f"{self.metric} may take {when} to decide, and after {self.max_days} days a person is asked, decided or not. With these units a day "
            f"the smallest effect that is surely decided by then is {effect}: ask for that much, bring more units, or allow more days."
        )


_LEAST_SHARE = 1e-15
"""A float tells no share from 0 or 1 that is nearer to it."""


def forecast(policy: Policy, plan: Plan) -> list[Forecast]:
    """Each goal whose baseline and expected units a day are known; of several treatments the one with the least share."""
    compiled = compile_plan(policy, plan)
    control = plan.control
    if control is None or not plan.expected_units_per_day or plan.expected_units_per_day <= 0:
        return []
    total = math.fsum(variant.weight for variant in plan.variants)
    least = min(treatment.weight for treatment in plan.treatments)
    daily = plan.expected_units_per_day * (control.weight + least) / total
    share = min(max(least / (control.weight + least), _LEAST_SHARE), 1 - _LEAST_SHARE)
    found = [_of(c, policy, daily, share) for c in compiled.comparisons if c.goal and _spread(c) is not None]
    return [one for one in found if math.isfinite(one.smallest_effect)]


def _spread(comparison: Comparison) -> float | None:
    baseline = comparison.kpi.baseline
    if baseline is None or baseline.stddev <= 0:
        return None
    if comparison.gate.effect != "relative":
        return baseline.stddev
    return baseline.stddev / abs(baseline.mean) if baseline.mean else None


def _of(comparison: Comparison, policy: Policy, daily: float, share: float) -> Forecast:
    spread = _spread(comparison) or 0.0
    gap = comparison.fail_below - comparison.scale_above
    se_of_two = spread * math.sqrt((1 / share + 1 / (1 - share)) / 2)
    units = units_for_half(gap / 2, se_of_two, 2, comparison.rho2, comparison.alpha)
    reached = daily * policy.max_days
    return Forecast(
        metric=comparison.kpi.metric,
        units=units,
        days=None if units is None else max(units / daily, float(policy.min_days)),
        max_days=policy.max_days,
        smallest_effect=smallest_effect(reached, spread, comparison.rho2, comparison.alpha, share=share),
        relative=comparison.gate.effect == "relative",
    )


# While it runs -------------------------------------------------------------------------------------------------------


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
