"""How old data may be: asked of the database by every door, in the words below. The gates, which are pure, count by the same clock.

With w = how long the next row is awaited (until the next due instant that is expected; docs/gates.md, Freshness), t = freshness_target_s and
age = the time the experiment has run since the data watermark: `fresh` (age <= w), `due` (<= w + t/2), `late` (<= w + t), `stale` (beyond),
`unknown` (no row). The watermark of a KPI is the least over its variants of the newest ts that brought something new.
"""

from datetime import timedelta
from typing import Literal

State = Literal["fresh", "due", "late", "unknown", "stale"]
WORST_LAST: tuple[State, ...] = ("fresh", "due", "late", "unknown", "stale")
"""From best to worst: an experiment is as fresh as its worst KPI."""

FAILURES_OVER = timedelta(days=7)


def failure_share(*, due: int, succeeded: int, failed: int) -> float | None:
    """Failed and missed runs, as a share of those that should have been; None when none should.

    due: runs the schedule asked for. A run that was due and left no trace is missed, so that a schedule that has stopped counts as failing.

    >>> failure_share(due=100, succeeded=97, failed=1), failure_share(due=4, succeeded=4, failed=4), failure_share(due=0, succeeded=0, failed=0)
    (0.03, 0.5, None)
    """
    missed = max(0, due - succeeded - failed)
    counted = succeeded + failed + missed
    return (failed + missed) / counted if counted else None


WATERMARK_SQL = (
    "CASE WHEN {sparse} THEN metrics.watermark_beside({experiment}, {metric}, {variant}) "
    "ELSE metrics.watermark({experiment}, {metric}, {variant}, {temporality}) END"
)
"""ts of the newest row of one series that said something new: rows with n = 0 do not, nor do those that repeat a cumulative row. Where the
KPI is sparse, of its goal's rows too: they tell that nothing happened."""
WATERMARK_BESIDE_SQL = (
    "CASE WHEN {row}.n IS DISTINCT FROM 0 AND {temporality} <> 'cumulative' AND NOT {sparse} THEN {row}.ts "
    f"ELSE {WATERMARK_SQL} END"
)
"""The same where the newest row of any kind is at hand as {row}: most are what is looked for. Null where there is none."""

FRESHNESS_SQL = "metrics.freshness({experiment}, {metric}, {watermark}, {every_s}, {target_s}, {at})"
"""(state, age_s, due_at, stale_at, overdue) of the series of one KPI by the experiment's own clock, for a LATERAL; age_s in seconds of
running time. The gates say the same of the same instant (`gates.engine.verdicts.freshness`)."""

RANK_SQL = "array_position('{{fresh,due,late,unknown,stale}}'::text[], {state})"
"""The place of a state in WORST_LAST, from 1."""

LATENCIES_SQL = (
    "SELECT l AS latency_s FROM metrics.latencies({experiment}, {metric}, {variant}, {every_s}, "
    "CASE WHEN {sparse} THEN 2147483647 ELSE {target_s} END, {began}, {since}, {now}) AS l"
)
"""One latency, in seconds, for each bucket of one series that ended in (since, now], and for the oldest that is missing since its newest
row or since `began`: first_received_at - ts of one that is there, its age so far of one that is missing for longer than the target.
Buckets that end while the experiment is paused, or in an outage of the team, are not expected. Of a sparse KPI none is missing: whether
silence is late, its goal's rows say."""
