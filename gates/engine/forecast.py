"""Whether a plan can end: what its goals need before they are decided whatever the effect is (B of docs/gates.md section 6). Pure."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from gates.engine.compiled import Comparison, CompiledPlan, compile_plan
from gates.engine.plan import DAY, SECOND, Dues, Kpi, Plan
from gates.engine.policy import Policy
from gates.engine.state import RunningBounds
from gates.engine.statistics.planning import smallest_effect, units_for_half


class Forecast(NamedTuple):
    """One goal of one treatment, before any row. Effects are in the gate's unit: fractions of the control for a relative effect.

    units: of both arms together, by which it is decided; days: from the start until they have come at the expected units a day of
    those days on which something is due, never less than the policy's min_days; None: out of reach. smallest_effect: the smallest gap between scale and delete that max_days surely decide.
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
    dues = {spec.metric: spec.dues for spec in compiled.specs}
    found = [
        _of(c, policy, Coming(dues[c.kpi.metric], c.kpi), daily, share)
        for c in compiled.comparisons
        if c.goal and _spread(c) is not None
    ]
    return [one for one in found if math.isfinite(one.smallest_effect)]


def _spread(comparison: Comparison) -> float | None:
    baseline = comparison.kpi.baseline
    if baseline is None or baseline.stddev <= 0:
        return None
    if comparison.gate.effect != "relative":
        return baseline.stddev
    return baseline.stddev / abs(baseline.mean) if baseline.mean else None


class Coming:
    """When units of a feed come: with its due instants. One that is due seldom brings the units of as many days as it is apart from the
    next; more often, the due instants of a day bring that day's."""

    MOST_DAYS = 3_650
    """What takes longer is counted as if something were due on every day."""

    def __init__(self, dues: Dues, kpi: Kpi) -> None:
        self.dues, self.start = dues, dues.clock.started_at
        self.steady = bool(dues.schedule.every) and not dues.outages
        self.days_apart = round(kpi.expected_every_s * SECOND / DAY)
        self.first = int(dues.start > self.start)
        """Density does not ask for the due instant that a row of the start would answer; if it lies after the start, its units come."""

    def days_worth(self, days: int) -> float:
        """Of how many days units have come once so many have passed since the start; one due instant's at least."""
        if self.steady:
            return days
        if self.days_apart:
            return self.days_apart * max(1, self._count(days))
        counts = [self._count(day) for day in range(days + 1)]
        return max(1, sum(before < after for before, after in pairwise(counts)))

    def after_days(self, worth: float) -> float:
        """After how many days the units of so many have come; what a day brings comes evenly over it.

        >>> from experiments.schedule import Calendar
        >>> from gates.engine.plan import Clock
        >>> monday = Plan(started_at=1_791_158_400 * SECOND, created_at=0, variants=(), kpis=())
        >>> on_weekdays = Dues(Calendar("0 0 * * 2-6", ()), Clock(monday))
        >>> [Coming(on_weekdays, Kpi("m", expected_every_s=86_400)).after_days(days) for days in (1, 5, 6, 9.5, 10)]
        [1.0, 5.0, 8.0, 12.0, 12.0]
        """
        if self.steady or worth > self.MOST_DAYS:
            return worth
        if self.days_apart:
            due = self.dues.at(math.ceil(worth / self.days_apart) - self.first)
            return worth if due is None else (due - self.start) / DAY
        came = 0
        for day in range(2 * self.MOST_DAYS):
            if self._count(day) < self._count(day + 1):
                if came + 1 >= worth:
                    return day + worth - came
                came += 1
        return worth

    def _count(self, days: int) -> int:
        upto = self.start + days * DAY
        return self.dues.count(upto) + (self.first if upto >= self.dues.start else 0)


def _of(comparison: Comparison, policy: Policy, coming: Coming, daily: float, share: float) -> Forecast:
    spread = _spread(comparison) or 0.0
    gap = comparison.fail_below - comparison.scale_above
    se_of_two = spread * math.sqrt((1 / share + 1 / (1 - share)) / 2)
    units = units_for_half(gap / 2, se_of_two, 2, comparison.rho2, comparison.alpha)
    reached = daily * coming.days_worth(policy.max_days)
    return Forecast(
        metric=comparison.kpi.metric,
        units=units,
        days=None if units is None else max(coming.after_days(units / daily), float(policy.min_days)),
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
