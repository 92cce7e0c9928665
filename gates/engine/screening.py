"""Readings of many looks at once: where may a verdict change? Pure, vectorised; it proposes, the scalar path decides.

Over weeks of hourly looks a gate's verdict changes a handful of times. `Screen` finds those looks with the formulas of
`gates.engine.statistics` over arrays, marks every look so near to a boundary that the last bit could matter, and says which
looks hold the extremes, so that the rules compute only these by the scalar path - and get what all of them would give.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gates.engine.compiled import Comparison, CompiledPlan
from gates.engine.facts import SlotFacts
from gates.engine.machine import StateMachine
from gates.engine.measuring import NEAR
from gates.engine.plan import DAY
from gates.engine.recommendations import is_newer
from gates.engine.state import RunningBounds, sample_rate
from gates.engine.statistics.effects import difference, relative_interval, relative_se, relative_uplift, with_spread
from gates.engine.statistics.moments import Arm, ratio_of, smoothed_spread
from gates.engine.statistics.sequences import half_width, log_p
from gates.engine.tracks import MetricTrack
from gates.engine.verdicts import Verdicts

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

YOUNG, ZERO, UNITS, SPREAD, NOISY = range(1, 6)
"""Why a gate is not judged; 0: it is."""
INCONCLUSIVE, PASS, FAIL, INVALID = range(4)


class Screen:
    """One goal or guard gate of one treatment over a run.

    status: an integer per look, equal while verdict, reason and the signs of U are. must_stop: looks the machine must stop at.
    """

    def __init__(
        self, compiled: CompiledPlan, comparison: Comparison, track: MetricTrack, place: int, bounds: RunningBounds
    ) -> None:
        self.comparison, self.track, self.bounds = comparison, track, bounds
        self.place, self.variant = place, compiled.judged_variants[place]
        self.read_to = self.computed_to = -1
        control = compiled.control or ""
        c, t = track.arrays[control], track.arrays[self.variant]
        self.units = (c[0] + t[0]).astype(np.int64)
        self.unit = 1.0 if comparison.gate.effect == "relative" else 0.0  # such ends are differences from 1
        with np.errstate(all="ignore"):
            self._read(compiled, comparison, c, t)
            self._find_stops(comparison, bounds)

    def move_to(self, k: int) -> None:
        """Stand at a look, with what it was read from; numbers are computed when they are asked for."""
        self.bounds.at, self.bounds.arrived = self.track.at[k], self.track.arrived[k]
        self.read_to = k

    def compute_pending(self, verdicts: Verdicts, control: str) -> None:
        """Bring the gate's numbers to the look it stands at, by the scalar path at those looks that can matter."""
        k, bounds, track = self.read_to, self.bounds, self.track
        if k <= self.computed_to:
            return
        for j in (*self.extremes(k), k):
            verdicts.take_reading(
                self.comparison, bounds, track.at[j], track.state(control, j), track.state(self.variant, j)
            )
        self._sample_rate(self.computed_to + 1, k)
        bounds.reasons = []
        self.computed_to = k

    def _sample_rate(self, first: int, last: int) -> None:
        at, bounds, k = self.track.at, self.bounds, first
        while True:
            if bounds.rate_samples:
                k = max(k, bisect_left(at, bounds.rate_samples[-2] + DAY))
            while k <= last and not self.readable[k]:
                k += 1
            if k > last:
                return
            sample_rate(bounds, at[k], int(self.units[k]))
            k += 1

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
        small, lost, beyond = upper < below, upper < 0, lower > comparison.plausible_to
        self.status = (((verdict * 8 + why) * 2 + small) * 2 + lost) * 2 + beyond
        known = np.where(np.isfinite(lower), np.abs(lower), 0.0) + np.where(np.isfinite(upper), np.abs(upper), 0.0)
        scale = NEAR * (known + self.unit + abs(above) + abs(below))
        self.ambiguous |= np.abs(lower - above) <= scale
        if np.isfinite(comparison.plausible_to):
            self.ambiguous |= np.abs(lower - comparison.plausible_to) <= scale
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


class FastForward:
    """Takes a machine over looks whose compared metrics are given as tracks, and stops only where something may change.

    What it leaves is what `StateMachine.advance` would have left, slot by slot.
    """

    def __init__(self, machine: StateMachine, looks: Sequence[int], tracks: Mapping[str, MetricTrack]) -> None:
        self.machine, self.looks = machine, looks
        compiled, state = machine.compiled, machine.state
        arms, width = compiled.arms(looks[0] if looks else state.slot), len(compiled.judged_variants)
        self.screens: list[Screen] = []
        self.reached: dict[str, Sequence[int]] = {
            metric: range(1, len(looks) + 1)
            if len(track.looks) == len(looks)
            else np.searchsorted(track.looks, looks, side="right").tolist()
            for metric, track in tracks.items()
        }
        """By metric, how many looks of its track lie at or before each look."""
        self.must_stop: set[int] = set()
        for g, comparison in enumerate(compiled.comparisons):
            track = tracks[comparison.kpi.metric]
            for v, variant in enumerate(compiled.judged_variants):
                if variant in arms and track.looks:
                    screen = Screen(compiled, comparison, track, v, state.bounds[g * width + v])
                    self.screens.append(screen)
                    self.must_stop.update(track.looks[k] for k in np.flatnonzero(screen.must_stop).tolist())

    def stops(self, facts: Mapping[int, SlotFacts]) -> Iterator[tuple[int, bool]]:
        """(slot, changed) after each stop. facts: all that slots have beside tracks. Whoever reads numbers at a stop calls
        `compute_pending` first."""
        recommender, looks, position = self.machine.recommender, self.looks, 0
        recommender.measure_pending = self.compute_pending
        for stop in sorted({*facts, *self.must_stop}):
            ahead = bisect_left(looks, stop, position)
            while position < ahead and recommender.is_counting():
                yield self._stop(position, SlotFacts(slot=looks[position], look=True))
                position += 1
            self._skip(position, ahead)
            position = ahead
            yield self._stop(position, facts.get(stop) or SlotFacts(slot=stop, look=True))
            position += position < len(looks) and looks[position] == stop
        while position < len(looks) and recommender.is_counting():
            yield self._stop(position, SlotFacts(slot=looks[position], look=True))
            position += 1
        self._skip(position, len(looks))
        self.compute_pending()
        recommender.measure_pending = None

    def compute_pending(self) -> None:
        """Bring the numbers of every gate to the look they stand at."""
        for screen in self.screens:
            self._compute(screen)

    def _compute(self, screen: Screen) -> None:
        screen.compute_pending(self.machine.verdicts, self.machine.compiled.control or "")

    def _stop(self, position: int, facts: SlotFacts) -> tuple[int, bool]:
        """One slot; `position` is its look's, when it is one."""
        return facts.slot, self.machine.advance(facts, lambda: self._apply_look(position))

    def _apply_look(self, position: int) -> None:
        verdicts = self.machine.verdicts
        for screen in self.screens:
            k = self.reached[screen.comparison.kpi.metric][position] - 1
            if k == screen.read_to:
                continue
            screen.move_to(k)
            if screen.must_stop[k]:
                self._compute(screen)
                verdicts.update_verdict(screen.comparison, screen.bounds)
            if not screen.comparison.goal:
                verdicts.count_fails(screen.comparison, screen.bounds, screen.variant, 1)

    def _skip(self, begin: int, end: int) -> None:
        """Looks at which nothing changes: only what they add to the counts."""
        if begin >= end:
            return
        machine = self.machine
        arms = machine.compiled.arms(self.looks[begin])
        for v, variant in enumerate(machine.compiled.judged_variants):
            screens = [screen for screen in self.screens if screen.place == v]
            if screens and variant in arms:
                self._count_over(v, screens, begin, end)
        for screen in self.screens:
            k = self.reached[screen.comparison.kpi.metric][end - 1] - 1
            newer = k - screen.read_to
            if newer:
                screen.move_to(k)
                if not screen.comparison.goal:
                    machine.verdicts.count_fails(screen.comparison, screen.bounds, screen.variant, newer)

    def _count_over(self, v: int, screens: list[Screen], begin: int, end: int) -> None:
        """Which of the looks skipped was the last to count for a treatment."""
        variant_state = self.machine.state.variant_states[v]
        counted = variant_state.counted
        if len(screens) < len(counted):
            return
        tracks = [(screen.track.at, self.reached[screen.comparison.kpi.metric]) for screen in screens]
        last = [at[reached[end - 1] - 1] if reached[end - 1] else None for at, reached in tracks]
        metrics = {screen.comparison.kpi.metric for screen in screens}
        together = len({tuple(self.reached[m][begin:end]) for m in metrics}) == 1
        if together and counted == [screen.bounds.at for screen in screens]:
            if is_newer(last, counted):
                variant_state.counted = last
            return
        for position in range(begin, end):
            instants = [at[reached[position] - 1] if reached[position] else None for at, reached in tracks]
            if is_newer(instants, counted):
                counted = instants
        variant_state.counted = list(counted)


def _arms(kind: str, columns: tuple[Floats, ...]) -> Arm:
    n, mean, m2 = columns[:3]
    if kind == "proportion":
        spread = np.where((mean > 0) & (mean < 1), mean * (1.0 - mean), smoothed_spread(n))
        return Arm(mean, spread, n)  # type: ignore[arg-type]
    if kind == "ratio":
        ratio, v = ratio_of(mean, m2, columns[3], columns[4], columns[5], n - 1)
        return Arm(ratio, np.maximum(v, 0.0), n)  # type: ignore[arg-type]
    return Arm(mean, m2 / (n - 1), n)  # type: ignore[arg-type]
