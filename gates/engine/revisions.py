"""What earlier revisions of the rules said, kept only so that evidence made by them replays to the same bytes. Pure.

Nothing new is judged by these: folds, backtests and evaluations of the past use the present rules.
"""

from __future__ import annotations

import math

from gates.engine.compiled import REVISION, Comparison, CompiledPlan
from gates.engine.facts import Sums
from gates.engine.machine import StateMachine
from gates.engine.measuring import arm_of
from gates.engine.results import Verdict
from gates.engine.state import ExperimentState, RunningBounds, Why
from gates.engine.statistics.effects import difference, relative_se, relative_uplift
from gates.engine.statistics.moments import Arm
from gates.engine.statistics.sequences import always_valid_p, half_width, intersect
from gates.engine.verdicts import Verdicts

REVISIONS = range(1, REVISION + 1)
SINCE_REVISION_3 = ("doubt_above", "srm_tolerance")
"""Settings of a policy that revision 2 did not have. Nor did it doubt rows: there is no gate for it, and no such facts in its evidence."""


def machine_of(compiled: CompiledPlan, state: ExperimentState) -> StateMachine:
    """The machine of the compiled plan's revision."""
    return StateMachine(compiled, state, FirstRevision(compiled, state) if compiled.revision == 1 else None)


class FirstRevision(Verdicts):
    """Revision 1: each arm's error against its own mean, intervals by the delta method, nothing said of a control of 0."""

    def take_reading(
        self, comparison: Comparison, bounds: RunningBounds, at: int, control: Sums, treatment: Sums
    ) -> None:
        kpi = comparison.kpi
        bounds.readable = bounds.floor = False
        bounds.noise = 0.0
        units, units_t = int(control[0]), int(treatment[0])
        bounds.arms, bounds.n = (units, units_t), units + units_t
        if units < 2 or units_t < 2 or (kpi.kind == "ratio" and (control[3] == 0 or treatment[3] == 0)):
            bounds.why = "units"
            return
        c, t = _arm(comparison, control), _arm(comparison, treatment)
        relative = comparison.gate.effect == "relative"
        if relative and c.m == 0:
            bounds.why = "zero"
            return
        estimate, se = (relative_uplift if relative else difference)(t, c)
        if kpi.direction == "decrease":
            estimate = -estimate
        bounds.estimate, bounds.se = estimate, se
        half = half_width(se, bounds.n, comparison.rho2, comparison.alpha)
        if not math.isfinite(half) or not math.isfinite(estimate):
            bounds.why = "spread"
            return
        bounds.lower, bounds.upper, bounds.readable = estimate - half, estimate + half, True
        bounds.why = self._own_floor(comparison, bounds, c, t, (control, treatment))
        if bounds.why:
            return
        bounds.floor = True
        if self.compiled.clock.running(at) < self.compiled.min_age:
            bounds.why = "young"
            if comparison.goal:
                return
        lower, upper = intersect((bounds.running_lower, bounds.running_upper), bounds.lower, bounds.upper)
        bounds.running_lower, bounds.running_upper = lower, upper
        p = always_valid_p(estimate, se, bounds.n, comparison.rho2)
        bounds.p = p if bounds.p is None or p < bounds.p else bounds.p
        bounds.small, bounds.lost = upper < comparison.fail_below, upper < 0
        bounds.invalid = bounds.invalid or lower > comparison.scale_above > upper

    def _own_floor(
        self, comparison: Comparison, bounds: RunningBounds, c: Arm, t: Arm, states: tuple[Sums, Sums]
    ) -> Why:
        policy = self.compiled.policy
        if min(bounds.arms) < policy.min_units:
            return "units"
        if c.v <= 0 or t.v <= 0:
            return "spread"
        noise = 0.0
        if comparison.gate.effect == "relative":
            noise = max(relative_se(c.m, c.v, c.n), relative_se(t.m, t.v, t.n))
        if comparison.kpi.kind == "ratio":
            for state in states:
                noise = max(noise, relative_se(state[3], state[4] / (state[0] - 1), state[0]))
        bounds.noise = noise
        return "noisy" if noise > policy.max_relative_se else ""

    def verdict_of(self, comparison: Comparison, bounds: RunningBounds) -> Verdict:
        if bounds.invalid:
            return "invalid"
        if bounds.why in ("missing", "unreadable"):
            return "no_data"
        lower, upper = bounds.running_lower, bounds.running_upper
        if not bounds.floor or lower is None or upper is None or (comparison.goal and bounds.why == "young"):
            return "inconclusive"
        if lower > comparison.scale_above:
            return "pass"
        return "fail" if upper < comparison.fail_below else "inconclusive"


def _arm(comparison: Comparison, state: Sums) -> Arm:
    if comparison.kpi.kind == "proportion":
        n, mean = int(state[0]), state[1]
        return Arm(mean, mean * (1.0 - mean), n)
    return arm_of(comparison.kpi, state)
