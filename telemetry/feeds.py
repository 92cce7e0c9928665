"""Which schedule the rows of a metric show, beside the one it is configured to have: proposed here, taken by a person."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from django.db import connection
from numpy.typing import NDArray

from experiments import expected as words
from experiments import feeds, inference
from experiments.expected import Expected
from experiments.inference import Finding, Fit
from experiments.models import Metric, MetricSchedule
from experiments.schedule import Schedule, schedule_of
from telemetry.models import Source
from telemetry.outages import windows

type State = Literal["as_configured", "differs", "mixed", "irregular", "not_enough_rows"]
"""What rows say of what is configured: it explains them; another schedule does; experiments get them by different ones; none explains them."""

WINDOW = dt.timedelta(days=14)
LEAST_LOOKED_AT = 12
"""So many rows are looked at where two weeks have fewer: a weekly feed has two in them."""
MOST_ROWS, MOST_EXPERIMENTS = 20_500, 4
"""Two weeks of minutes; of more experiments the newest that run are looked at."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_ROWS = """
WITH fed AS MATERIALIZED (
  SELECT e.id, e.key, e.team_id, e.status = 'running' AS runs, e.started_at FROM metadata.target_kpis t JOIN metadata.experiments e ON e.id = t.experiment_id
  WHERE t.metric_id = %(id)s AND e.started_at IS NOT NULL
  ORDER BY e.status = 'running' DESC, e.started_at DESC, e.id DESC LIMIT %(experiments)s)
SELECT f.key, f.team_id, r.ts, r.received
FROM fed f
CROSS JOIN LATERAL (
  SELECT v.key FROM metadata.variants v
  WHERE v.experiment_id = f.id AND v.dropped_at IS NULL
    AND EXISTS (SELECT FROM metrics.experiment_kpis k WHERE k.experiment_id = f.id AND k.metric = %(key)s AND k.variant = v.key)
  ORDER BY v.position LIMIT 1) AS v
CROSS JOIN LATERAL (
  SELECT array_agg(newest.ts ORDER BY newest.ts) AS ts, array_agg(newest.received ORDER BY newest.ts) AS received
  FROM (
    SELECT (extract(epoch FROM k.ts) * 1000000)::bigint AS ts, (extract(epoch FROM k.first_received_at) * 1000000)::bigint AS received
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = f.id AND k.metric = %(key)s AND k.variant = v.key AND k.ts <= %(now)s AND k.n IS DISTINCT FROM 0
    ORDER BY k.ts DESC LIMIT %(rows)s) AS newest) AS r
WHERE r.ts IS NOT NULL
ORDER BY f.runs DESC, f.started_at DESC, f.id DESC
"""  # each series newest first, by the index of the partitions it is in, and no further back than it takes


@dataclass(frozen=True)
class Proposal:
    """configured: what holds now, and how it explains the rows that were looked at, if there are any. finding: what they show. experiment: whose
    rows they are; the newest that runs and has some. arrive_within_s: of nine rows of ten, after the due instant that they answer; None where they
    were brought in afterwards. apart: by experiment, the schedules of a `mixed` feed in words."""

    metric: str
    state: State
    configured: Expected
    configured_fit: Fit | None
    finding: Finding
    experiment: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    arrive_within_s: int | None = None
    apart: Mapping[str, str] | None = None

    @property
    def expected(self) -> dict[str, Any] | None:
        """What may be taken in place of what is configured; None: nothing."""
        return self.finding.expected if self.state == "differs" else None

    @property
    def detail(self) -> str:
        """What rows show, in a sentence, and what follows."""
        return _told(self)


def proposal(metric: Metric, *, now: dt.datetime) -> Proposal:
    """What the rows that the reader may see show of one metric's feed. Two queries, of at most MOST_ROWS rows an experiment."""
    configured = feeds.expected_of(metric, now=now)
    with connection.cursor() as db:
        bounds = {"rows": MOST_ROWS, "experiments": MOST_EXPERIMENTS}
        db.execute(_ROWS, {"id": metric.pk, "key": metric.key, "now": now, **bounds})
        series = [_Series(key, team, np.array(ts), np.array(received)) for key, team, ts, received in db.fetchall()]
    if not series:
        return Proposal(metric.key, "not_enough_rows", configured, None, Finding("not_enough_rows"))
    zones = _zones(metric, configured)
    outages = windows({one.team for one in series}, since=_at(min(int(one.recent[0]) for one in series)))
    off = [[(_us(o.begins_at), _us(o.ends_at)) for o in outages.get((one.team, metric.key), ())] for one in series]
    found = [
        inference.infer(one.recent, older=one.older, zones=zones, outages=its)
        for one, its in zip(series, off, strict=True)
    ]
    first = next((n for n, finding in enumerate(found) if finding.state == "found"), 0)
    read, finding = series[first], found[first]
    given = _fit(configured, read, off[first])
    state = _state(configured, given, finding, metric)
    apart = None
    if finding.state == "found" and not _one_feed(series, found, off, first):
        state = "mixed"
        apart = {one.experiment: its.words for one, its in zip(series, found, strict=True) if its.state == "found"}
    return Proposal(
        metric.key, state, configured, given, finding, read.experiment, _at(int(read.recent[0])), _at(int(read.recent[-1])),
        _arrive_within_s(read, finding), apart,
    )  # fmt: skip


@dataclass(frozen=True)
class _Series:
    experiment: str
    team: int
    ts: NDArray[np.int64]
    received: NDArray[np.int64]

    @property
    def _begins(self) -> int:
        """Where those begin that are looked at."""
        of_window = int(np.searchsorted(self.ts, self.ts[-1] - WINDOW // dt.timedelta(microseconds=1)))
        return max(0, min(of_window, len(self.ts) - LEAST_LOOKED_AT))

    @property
    def recent(self) -> NDArray[np.int64]:
        return self.ts[self._begins :]

    @property
    def older(self) -> NDArray[np.int64]:
        return self.ts[: self._begins]


def _zones(metric: Metric, configured: Expected) -> list[str]:
    """Whose clocks it may follow: what is configured, then what the team's other feeds follow, the most used first."""
    used: Counter[str] = Counter()
    team = metric.team_id
    for expected in MetricSchedule.objects.filter(team=team).values_list("expected", flat=True)[:500]:
        used[expected.get("timezone", "")] += 1
    for zone, metrics in Source.objects.filter(team=team).values_list("time_zone", "metrics")[:500]:
        used[zone] += 1_000 if metric.key in metrics else 1
    named = [configured.get("timezone", ""), *(zone for zone, _ in used.most_common())]
    return [zone for zone in dict.fromkeys(named) if zone and zone != "UTC"][:5]


def _schedule(expected: Expected, around: int) -> Schedule:
    part = words.part(expected, since=None, around=around)
    return schedule_of((part,), 0)


def _fit(expected: Expected, series: _Series, outages: Sequence[tuple[int, int]]) -> Fit:
    holds = _schedule(expected, int(series.recent[0]))
    return inference.fit(holds, series.recent, period_s=words.nominal_s(expected), outages=outages)


def _state(configured: Expected, given: Fit, finding: Finding, metric: Metric) -> State:
    if finding.state == "not_enough_rows":
        return finding.state
    if finding.fit is None:
        return "as_configured" if inference.is_regular(given) else "irregular"
    tolerance_s = min(metric.freshness_target_s / 2, words.nominal_s(configured) / 8)
    return "as_configured" if inference.explains(given, finding.fit, tolerance_s=tolerance_s) else "differs"


def _one_feed(
    series: Sequence[_Series], found: Sequence[Finding], off: Sequence[Sequence[tuple[int, int]]], first: int
) -> bool:
    """Whether what the first shows explains the others that show anything."""
    finding = found[first]
    if finding.expected is None:
        return True
    near_s = words.nominal_s(finding.expected) / inference.NEAR
    return all(
        inference.explains(_fit(finding.expected, one, outages), its.fit, tolerance_s=near_s)
        for one, its, outages in zip(series, found, off, strict=True)
        if its.fit is not None
    )


def _arrive_within_s(series: _Series, finding: Finding) -> int | None:
    if finding.expected is None:
        return None
    recent = series.recent
    after = series.received[-len(recent) :] - _schedule(finding.expected, int(recent[0])).answered(recent)
    within_s = max(0, int(np.quantile(after, 0.9))) // 1_000_000
    return within_s if within_s <= words.nominal_s(finding.expected) else None


def _told(of: Proposal) -> str:
    fit, finding, given = of.finding.fit, of.finding, of.configured_fit
    now = words.in_words(of.configured)
    if of.state == "not_enough_rows":
        rows = 0 if given is None else given.rows
        return (
            f"{rows} rows at different times are too few to see a schedule: {inference.LEAST_ROWS} are needed, "
            f"{inference.LEAST_SELDOM} of a feed that comes once a week or less often. Configured: {now}."
        )
    if of.state == "irregular" or given is None:
        rows = 0 if given is None else given.rows
        return f"No schedule explains these {rows} rows: they come at irregular times. Configured: {now}."
    if of.state == "mixed":
        each = "; ".join(f"{key} {told}" for key, told in (of.apart or {}).items())
        return f"Experiments get its rows by different schedules: {each}. Give each feed a metric of its own."
    if of.state == "as_configured" or fit is None:
        return f"Rows come as configured, {now}: {_answered(given)}."
    told = f"Rows come {finding.words}: {_answered(fit)}. Configured, {now}: {_answered(given)}."
    if finding.told_by == "assumed" and finding.others:
        told += f" Whose clocks it follows they do not tell: as well {words.in_words(finding.others[0])}."
    elif finding.told_by == "team":
        told += " Its clocks are those of the team's other feeds."
    return told


def _answered(fit: Fit) -> str:
    return f"{fit.due - fit.missing} of {fit.due} due instants answered, {fit.explained} of {fit.rows} rows near theirs"


def _us(at: dt.datetime) -> int:
    return (at - _EPOCH) // dt.timedelta(microseconds=1)


def _at(us: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=us)
