"""Doubt: rows that cannot be as they say. How buckets scatter, read along with the rows of a look; whether what they come to is doubted,
and by what cause. Pure; docs/gates.md section 3 says what it asks.

Late, changed and withdrawn rows need nothing here: they send the fold back to before them, and its sums with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from gates.engine.checkpoint import Progress
from gates.engine.compiled import CompiledPlan
from gates.engine.plan import DAY
from gates.engine.reader import SeriesReader
from gates.engine.state import ExperimentState
from gates.engine.statistics.scatter import Scattered

Cause = Literal[
    "", "bucket", "no_spread", "percent", "squared_error", "standard_error", "stddev", "totals", "twice", "unknown"
]
"""What the rows look like; "": as they should."""

WIDE_S = 6 * 3_600
ONE_BUCKET = 0.3
"""A bucket that has so large a part in the scatter is named, if all would be well without it."""
NEAR_CAUSE = 1.25
"""How near the ratio is to what a cause gives."""
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

    def at_look(self, m: int, look: int, at: int) -> None:
        """The buckets that readers took at one look. m: place of the metric among those compared; at: its common instant."""
        compiled, progress = self.compiled, self.progress
        metric, width = compiled.compared[m], len(compiled.judged_variants)
        readers = self.by_metric[metric]
        control = readers.get(compiled.control or "")
        if control is not None and control.taken:
            taken = control.taken
            for v, variant in enumerate(compiled.judged_variants):
                if variant not in readers:
                    continue
                running, beside = progress.scatter[m * width + v], readers[variant].taken
                if len(taken) == len(beside) == 1 and taken[0][0] == beside[0][0]:
                    running.add(*taken[0], beside[0][1])
                    continue
                of_control = dict(taken)
                for place, bucket in beside:
                    if place in of_control:
                        running.add(place, of_control[place], bucket)
        for reader in readers.values():
            if reader.taken:
                reader.taken = []
        day = compiled.clock.running(at) // DAY
        if day > progress.checked[m] or look == compiled.final_slot:
            progress.checked[m] = max(day, progress.checked[m])
            self.checks.append((look, metric))
            ratio = compiled.kpis[metric].kind == "ratio"
            for v, variant in enumerate(compiled.judged_variants):
                if variant in readers and (told := progress.scatter[m * width + v].told(ratio=ratio)) is not None:
                    self.facts.append((look, f"{metric}/{variant}", told))

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
            told = progress.scatter[m * width + v].add_many(shared, of_control, of_treatment, upto.tolist())
            self.facts += [
                (looks[k], f"{metric}/{variant}", found)
                for k, found in zip(where, told, strict=True)
                if found is not None
            ]


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
    return cause if off < NEAR_CAUSE else "unknown"


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
