"""Doubt: rows that cannot be as they say. How buckets scatter, read along with the rows of a look; whether what they come to is doubted,
and by what cause. Pure; docs/gates.md section 3 says what it asks.

Late, changed and withdrawn rows need nothing here: they send the fold back to before them, and its sums with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from gates.engine.checkpoint import Progress
from gates.engine.compiled import CompiledPlan
from gates.engine.plan import DAY, rfc3339
from gates.engine.reader import NEVER, SeriesReader, Taken
from gates.engine.results import Reason, rounded, rounded_end
from gates.engine.state import ExperimentState
from gates.engine.statistics.scatter import FREEDOM, Scattered, added, added_many, told

Cause = Literal[
    "", "bucket", "no_spread", "percent", "squared_error", "standard_error", "stddev", "totals", "twice", "unknown"
]
"""What the rows look like; "": as they should."""

WIDE_S = 6 * 3_600
ONE_BUCKET = 0.3
"""A bucket that has so large a part in the scatter is named, if all would be well without it."""
NEAR_CAUSE, NEAR_ERRORS = 1.15, 1.5
"""How near the ratio is to what a cause gives: a factor, and so many of its own standard errors more."""
MORE_THAN_EXPOSED = 1.05


class ScatterReader:
    """How buckets of the compared metrics scatter over a range of slots. Leaves its sums in the progress.

    facts: (look, "metric/variant", what it came to) at the first look of each whole day of age, and at the last of all.
    checks: (look, metric) of these looks.
    """

    def __init__(
        self, compiled: CompiledPlan, progress: Progress, by_metric: Mapping[str, Mapping[str, SeriesReader]]
    ) -> None:
        self.compiled, self.progress, self.by_metric = compiled, progress, by_metric
        self.facts: list[tuple[int, str, Scattered]] = []
        self.checks: list[tuple[int, str]] = []

    def at_look(self, m: int, taken: Mapping[str, list[Taken]], look: int, at: int) -> None:
        """The buckets taken of each variant at one look. m: place of the metric among those compared; at: its common instant."""
        compiled, progress = self.compiled, self.progress
        if mine := taken.get(compiled.control or ""):
            variants = compiled.judged_variants
            place = m * len(variants)
            for variant in variants:
                if beside := taken.get(variant):
                    at_c, c = mine[0]
                    at_t, t = beside[0]
                    if at_c == at_t and len(mine) == len(beside) == 1:  # as most looks are
                        progress.scatter[place] = added(progress.scatter[place], at_c, c, t)
                    else:
                        self._add_shared(place, dict(mine), beside)
                place += 1
        if at - compiled.plan.started_at >= (progress.checked[m] + 1) * DAY or look == compiled.final_slot:
            self._check(m, look, compiled.clock.running(at) // DAY)

    def _add_shared(self, place: int, of_control: Mapping[int, Any], beside: Sequence[tuple[int, Any]]) -> None:
        scatter = self.progress.scatter
        for at, bucket in beside:
            if at in of_control:
                scatter[place] = added(scatter[place], at, of_control[at], bucket)

    def _check(self, m: int, look: int, day: int) -> None:
        compiled, progress, variants = self.compiled, self.progress, self.compiled.judged_variants
        if day <= progress.checked[m] and look != compiled.final_slot:
            return
        metric = compiled.compared[m]
        progress.checked[m] = max(day, progress.checked[m])
        self.checks.append((look, metric))
        ratio = compiled.kpis[metric].kind == "ratio"
        for place, variant in enumerate(variants, m * len(variants)):
            if variant in self.by_metric[metric] and (found := told(progress.scatter[place], ratio=ratio)) is not None:
                self.facts.append((look, f"{metric}/{variant}", found))

    def at_looks(
        self, m: int, looks: Sequence[int], at: Any, common: Any, buckets: Mapping[str, tuple[Any, Any]]
    ) -> None:
        """The same over many looks. looks, at, common: of each its common instant, and as a place. buckets: by variant places and columns
        of what is read up to the last of them; none of a cumulative series."""
        compiled, progress = self.compiled, self.progress
        metric, clock, width = compiled.compared[m], compiled.clock, len(compiled.judged_variants)
        days = (at - clock.started_at) // DAY
        if clock.pauses:
            days = np.array([clock.running(instant) // DAY for instant in at.tolist()])
        newest = np.maximum.accumulate(np.concatenate(([progress.checked[m]], days)))
        where = np.flatnonzero((newest[1:] > newest[:-1]) | (np.array(looks) == compiled.final_slot)).tolist()
        progress.checked[m] = int(newest[-1])
        self.checks += [(looks[k], metric) for k in where]
        if (compiled.control or "") not in buckets:
            return
        places, columns = buckets[compiled.control or ""]
        for v, variant in enumerate(compiled.judged_variants):
            if variant not in buckets:
                continue
            beside, of_treatment = buckets[variant]
            of_control, shared = columns, places
            if not np.array_equal(places, beside):
                shared, mine, its = np.intersect1d(places, beside, assume_unique=True, return_indices=True)
                of_control, of_treatment = [c[mine] for c in columns], [c[its] for c in of_treatment]
            upto = np.searchsorted(shared, common[where], side="right")
            place = m * width + v
            progress.scatter[place], at_checks = added_many(
                progress.scatter[place], shared, of_control, of_treatment, upto.tolist()
            )
            for k, sums in zip(where, at_checks, strict=True):
                if (found := told(sums, ratio=compiled.kpis[metric].kind == "ratio")) is not None:
                    self.facts.append((looks[k], f"{metric}/{variant}", found))


def doubt_facts(
    read: ScatterReader,
    common: Callable[[str, int], int | None],
    units_at: Callable[[str, int], dict[str, int] | None],
) -> Iterator[tuple[int, str, str, Any]]:
    """(look, "scatter", series, how it scatters), and (look, "exposed", goal, (units, exposed) of each variant that has more) where that
    changes or goes on.

    common: up to where a metric is read at a horizon. units_at: its units by variant at a slot. Exposures count that reach as far as the goal.
    """
    for look, name, scattered in read.facts:
        yield look, "scatter", name, scattered
    compiled, over = read.compiled, read.progress.over
    for look, metric in read.checks if compiled.exposures else ():
        horizon, units = compiled.horizon(look), units_at(metric, look)
        at = common(metric, horizon) or 0
        reach = [m for m in compiled.exposures if (common(m, horizon) or NEVER) >= at]
        exposed = [of for m in reach if (of := units_at(m, look)) is not None]
        if units is None or not exposed or metric not in compiled.over_exposures:
            continue
        most = {variant: max(of.get(variant, 0) for of in exposed) for variant in units}
        found = {v: (n, most[v]) for v, n in units.items() if n > MORE_THAN_EXPOSED * most[v]}
        if found or metric in over:
            yield look, "exposed", metric, found
            over[:] = sorted({*over, metric} if found else {*over} - {metric})


def cause_of(found: Scattered, *, wide: bool) -> Cause:
    """Why rows are doubted; "" when they are not."""
    if found.is_running_total:
        return "totals"
    if not found.too_much(wide=wide):
        return ""
    without = replace(found, squares=found.squares - found.worst)
    if found.worst >= ONE_BUCKET * found.squares and not without.too_much(wide=wide):
        return "bucket"
    ratio = found.ratio
    if ratio is None:
        return "no_spread"
    causes: list[tuple[float, Cause]] = [
        (2.0, "twice"),
        (found.variance, "stddev"),
        (found.units, "squared_error"),
        (found.variance * found.units, "standard_error"),
        (1e4, "percent"),
    ]
    off, cause = min((max(ratio / given, given / ratio), cause) for given, cause in causes if given > 0)
    return cause if off < NEAR_CAUSE + NEAR_ERRORS * math.sqrt(2 / (FREEDOM * found.pairs)) else "unknown"


def is_wide(compiled: CompiledPlan, metric: str) -> bool:
    return compiled.kpis[metric].expected_every_s > WIDE_S


def is_trusted(compiled: CompiledPlan, metric: str, slot: int) -> bool:
    """Whether a person has set the doubt aside by a slot."""
    return any(begin <= slot and (end is None or slot < end) for begin, end, _ in compiled.kpis[metric].trusted)


def doubted(compiled: CompiledPlan, state: ExperimentState, variants: Sequence[str]) -> list[str]:
    """Series ("metric/variant") of judged variants, and of control beside them, that are doubted at the slot the state stands at and not
    set aside; in the plan's order."""
    arms = (compiled.control, *variants)
    return [
        f"{metric}/{variant}"
        for metric, variant in compiled.series
        if variant in arms
        and (f"{metric}/{variant}" in state.doubts or variant in state.exposed.get(metric, ()))
        and not is_trusted(compiled, metric, state.slot)
    ]


# As reasons -------------------------------------------------------------------------------------------------------------


def doubts_of(compiled: CompiledPlan, state: ExperimentState, variants: Sequence[str]) -> list[Reason]:
    """Why the rows that judged variants rest on are doubted."""
    return _reasons(compiled, state, doubted(compiled, state, variants))


def set_aside(compiled: CompiledPlan, slot: int) -> list[Reason]:
    """What a person has said of doubt in the rows of a KPI, as of a slot."""
    return [
        {"code": "doubt_set_aside", "metric": metric, "since": rfc3339(begin), "because": why}
        for metric in compiled.compared
        for begin, end, why in compiled.kpis[metric].trusted
        if begin <= slot and (end is None or slot < end)
    ]


def doubt_gate(
    compiled: CompiledPlan, state: ExperimentState, arms: Sequence[str]
) -> tuple[list[Reason], dict[str, Any]]:
    """What the gate says: every series whose rows are doubted, set aside or not, and those that scatter less than they say. Besides phi of each."""
    names = [f"{metric}/{variant}" for metric, variant in compiled.series if variant in arms]
    reasons, extra = _reasons(compiled, state, names), {}
    for name in names:
        if (its := state.scatter.get(name)) is None:
            continue
        extra[name] = {"ratio": rounded_end(its.ratio), "pairs": its.pairs}
        if name not in state.doubts:
            reasons.append({"code": "scatters_less", **_about(compiled, name), **extra[name]})
    return [*reasons, *set_aside(compiled, state.slot)] or [{"code": "not_doubted"}], extra


def _reasons(compiled: CompiledPlan, state: ExperimentState, names: Sequence[str]) -> list[Reason]:
    found: list[Reason] = []
    for name in names:
        about = _about(compiled, name)
        if name in state.doubts:
            its = state.scatter[name]
            found.append(
                {
                    "code": "rows_doubted",
                    **about,
                    "cause": state.doubts[name],
                    "ratio": rounded_end(its.ratio),
                    "pairs": its.pairs,
                    "bucket": rfc3339(its.worst_at),
                    "share": rounded(min(its.worst / its.squares, 1.0)) if its.squares else None,
                }
            )
        if (over := state.exposed.get(about["metric"], {}).get(about["variant"])) is not None:
            found.append({"code": "more_than_exposed", **about, "units": over[0], "exposed": over[1]})
    return found


def _about(compiled: CompiledPlan, name: str) -> Reason:
    metric, _, variant = name.partition("/")
    return {"metric": metric, "variant": variant, "control": compiled.control}
