"""Readings of many looks at once: where may a verdict change? Pure, vectorised; it proposes, the scalar path decides.

Over weeks of hourly looks a gate's verdict changes a handful of times. `Screen` finds those looks with the formulas of
`gates.engine.statistics` over arrays, marks every look so near to a boundary that the last bit could matter, and says which
looks hold the extremes, so that the rules compute only these by the scalar path - and get what all of them would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gates.engine.facts import MetricLook, Sums
from gates.engine.statistics.effects import difference, relative_interval, relative_se, relative_uplift, with_spread
from gates.engine.statistics.moments import Arm, ratio_of, smoothed_spread
from gates.engine.statistics.sequences import half_width, log_p

if TYPE_CHECKING:
    from gates.engine.machine import Comparison, CompiledPlan, RunningBounds

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

YOUNG, ZERO, UNITS, SPREAD, NOISY = range(1, 6)
"""Why a gate is not judged; 0: it is."""
INCONCLUSIVE, PASS, FAIL, INVALID = range(4)
NEAR = 1e-9
"""Relative distance within which arrays leave the verdict to the scalar path; they differ from it by about 1e-15."""


class MetricTrack:
    """A compared metric over the looks of a range at which its common instant moved; every arm readable at each.

    looks, at, arrived: shape (k,). columns: per variant its state's columns (n, mean, M2, ...), each of shape (k,).
    """

    def __init__(self, looks: Sequence[int], at: Ints, arrived: Ints, columns: dict[str, tuple[Any, ...]]) -> None:
        self.looks = looks
        self.at: list[int] = at.tolist()
        self.instants = at
        self.arrived: list[int] = arrived.tolist()
        self.columns = columns
        self.arrays = {v: tuple(column.astype(np.float64) for column in c) for v, c in columns.items()}

    def state(self, variant: str, k: int) -> Sums:
        return tuple([column.item(k) for column in self.columns[variant]])

    def look(self, k: int) -> MetricLook:
        return MetricLook(self.at[k], {variant: self.state(variant, k) for variant in self.columns}, self.arrived[k])


class Screen:
    """One goal or guard gate of one treatment over a run.

    status: an integer per look, equal while verdict, reason and the signs of U are. must_stop: looks the machine must stop at.
    """

    def __init__(
        self, compiled: CompiledPlan, comparison: Comparison, track: MetricTrack, variant: str, bounds: RunningBounds
    ) -> None:
        self.track, self.variant = track, variant
        self.computed_to = -1
        control = compiled.control or ""
        c, t = track.arrays[control], track.arrays[variant]
        self.units = (c[0] + t[0]).astype(np.int64)
        self.unit = 1.0 if comparison.gate.effect == "relative" else 0.0  # such ends are differences from 1
        with np.errstate(all="ignore"):
            self._read(compiled, comparison, c, t)
            self._find_stops(comparison, bounds)

    def _read(
        self, compiled: CompiledPlan, comparison: Comparison, c: tuple[Floats, ...], t: tuple[Floats, ...]
    ) -> None:
        kpi, policy = comparison.kpi, compiled.policy
        relative = comparison.gate.effect == "relative"
        control, treatment = _arms(kpi.kind, c), _arms(kpi.kind, t)
        control, treatment = with_spread(control, treatment, xp=np), with_spread(treatment, control, xp=np)
        few, n = np.minimum(c[0], t[0]), c[0] + t[0]
        gap, gap_se = difference(treatment, control, xp=np)
        estimate, se = relative_uplift(treatment, control, xp=np) if relative else (gap, gap_se)
        reach = half_width(1.0, n, comparison.rho2, comparison.alpha, xp=np)
        noise, own = np.zeros_like(gap), np.zeros_like(gap)
        self.lower, self.upper = gap - reach * gap_se, gap + reach * gap_se
        if relative:
            self.lower, self.upper = relative_interval(treatment, control, reach, xp=np)
            larger = np.maximum(np.abs(control.m), np.abs(treatment.m))
            noise = np.maximum(*(relative_se(larger, arm.v, arm.n, xp=np) for arm in (control, treatment)))
            own = relative_se(*control, xp=np)
        if kpi.direction == "decrease":
            self.lower, self.upper = -self.upper, -self.lower
        self.log_p = log_p(gap, gap_se, n, comparison.rho2, xp=np)
        if kpi.kind == "ratio":
            for s in (c, t):
                noise = np.maximum(noise, relative_se(s[3], s[4] / (s[0] - 1), s[0], xp=np))
        self.young = self._young(compiled)
        tiny = few < 2
        if kpi.kind == "ratio":
            tiny = tiny | (c[3] == 0) | (t[3] == 0)
        zero = (control.m == 0) if relative else np.zeros(len(few), dtype=bool)
        broken = ~np.isfinite(np.where(zero, gap_se, se)) | ~np.isfinite(np.where(zero, gap, estimate))
        self.readable = ~(tiny | zero | broken)
        why = np.where(self.young, YOUNG, 0)
        why = np.where(np.maximum(noise, own) > policy.max_relative_se, NOISY, why)
        why = np.where(zero, ZERO, why)
        why = np.where(gap_se <= 0, SPREAD, why)
        why = np.where(few < policy.min_units, UNITS, why)
        why = np.where(broken, SPREAD, why)
        self.why = np.where(tiny, UNITS, why)
        lost = (self.why == UNITS) | (self.why == SPREAD) | ~((self.why <= YOUNG) | (noise <= policy.max_relative_se))
        self.counts = ~lost & ~self.young if comparison.goal else ~lost
        self.raises = self.counts & (self.why <= YOUNG)
        self.ambiguous = np.abs(noise - policy.max_relative_se) <= NEAR * policy.max_relative_se
        self.ambiguous |= np.abs(own - policy.max_relative_se) <= NEAR * policy.max_relative_se

    def _young(self, compiled: CompiledPlan) -> Flags:
        """Running time only grows, so one instant divides the young looks from the others."""
        reached = compiled.clock.wall(compiled.min_age)
        if reached is None:
            return np.ones(len(self.track.at), dtype=bool)
        return self.track.instants < reached

    def _find_stops(self, comparison: Comparison, bounds: RunningBounds) -> None:
        first_lower = -np.inf if bounds.running_lower is None else bounds.running_lower
        first_upper = np.inf if bounds.running_upper is None else bounds.running_upper
        lower = np.maximum(np.maximum.accumulate(np.where(self.raises, self.lower, -np.inf)), first_lower)
        upper = np.minimum(np.minimum.accumulate(np.where(self.counts, self.upper, np.inf)), first_upper)
        above, below = comparison.scale_above, comparison.fail_below
        contradicted = np.logical_or.accumulate(self.counts & (lower > above) & (upper < above)) | bounds.invalid
        proved = self.counts & (upper < below)
        why = np.where(proved & (self.why > YOUNG), np.where(self.young, YOUNG, 0), self.why)
        verdict = np.where(proved, FAIL, INCONCLUSIVE)
        verdict = np.where(self.counts & (why <= YOUNG) & (lower > above), PASS, verdict)
        verdict = np.where(contradicted, INVALID, verdict)
        small, lost = upper < below, upper < 0
        self.status = ((verdict * 8 + why) * 2 + small) * 2 + lost
        known = np.where(np.isfinite(lower), np.abs(lower), 0.0) + np.where(np.isfinite(upper), np.abs(upper), 0.0)
        scale = NEAR * (known + self.unit + abs(above) + abs(below))
        self.ambiguous |= np.abs(lower - above) <= scale
        for limit in (above, below, 0.0):
            self.ambiguous |= np.abs(upper - limit) <= scale
        before = np.concatenate(([-1], self.status[:-1]))
        self.must_stop = (self.status != before) | self.ambiguous

    def extremes(self, upto: int) -> list[int]:
        """Looks after the last `extremes` up to `upto` that may hold the highest lower, lowest upper or least p."""
        first = self.computed_to + 1
        found: set[int] = set()
        for values, sign, counts in (
            (self.lower, -1.0, self.raises),
            (self.upper, 1.0, self.counts),
            (self.log_p, 1.0, self.counts),
        ):
            where = np.flatnonzero(counts[first : upto + 1]) + first
            if not len(where):
                continue
            signed = sign * values[where]
            least = signed.min()
            if least < np.inf:
                found.update(where[signed <= least + NEAR * (self.unit + abs(least))].tolist())
        return sorted(found)


def _arms(kind: str, columns: tuple[Floats, ...]) -> Arm:
    n, mean, m2 = columns[:3]
    if kind == "proportion":
        spread = np.where((mean > 0) & (mean < 1), mean * (1.0 - mean), smoothed_spread(n))
        return Arm(mean, spread, n)  # type: ignore[arg-type]
    if kind == "ratio":
        ratio, v = ratio_of(mean, m2, columns[3], columns[4], columns[5], n - 1)
        return Arm(ratio, np.maximum(v, 0.0), n)  # type: ignore[arg-type]
    return Arm(mean, m2 / (n - 1), n)  # type: ignore[arg-type]
