"""How the buckets of metrics are due, as it is kept: the schedules of a metric, each from an instant on, and their due instants laid out.

What SQL asks about due instants it reads from `metrics.due_instants`; both come from `experiments.schedule`.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from experiments import expected as words
from experiments.models import Metric, MetricSchedule
from experiments.schedule import Part, Schedule, schedule_of

AHEAD = dt.timedelta(days=60)
MOST_BEHIND = 40_000
"""So many due instants are kept that lie in the past; older ones are taken to be as far apart as they mostly are."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def expected_of(metric: Metric, *, now: dt.datetime) -> dict[str, Any]:
    """What a metric says of its buckets now, as it is told and taken."""
    holding = [s for s in metric.schedules.all() if s.since is None or s.since <= now]
    return dict(holding[-1].expected) if holding else {"every_s": metric.expected_every_s}


def schedules_of(metrics: Iterable[int]) -> dict[int, list[MetricSchedule]]:
    """By metric, in the order in which they hold; those that are due every `expected_every_s` are not among them."""
    found: dict[int, list[MetricSchedule]] = defaultdict(list)
    for schedule in MetricSchedule.objects.filter(metric__in=set(metrics)):
        found[schedule.metric_id].append(schedule)
    return dict(found)


def parts_of(schedules: Sequence[MetricSchedule], *, around: dt.datetime) -> tuple[Part, ...]:
    """Schedules as the engine reads them; a zone's offsets are told of the years around an instant."""
    return tuple(
        words.part(s.expected, since=None if s.since is None else _us(s.since), around=_us(around)) for s in schedules
    )


def schedule(metric: Metric, *, around: dt.datetime) -> Schedule:
    """The due instants of a metric, whenever they hold."""
    return schedule_of(parts_of(list(metric.schedules.all()), around=around), metric.expected_every_s)


def set_out(metric: Metric, expected: Mapping[str, Any], *, since: dt.datetime | None, now: dt.datetime) -> None:
    """Let a metric be due like this from `since` on, None: always; what was to hold later is given up. Saves the metric.

    expected: without faults, and normal.
    """
    with transaction.atomic():
        Metric.objects.select_for_update(no_key=True).get(pk=metric.pk)
        before = list(metric.schedules.all())
        kept = [] if since is None else [s for s in before if s.since is None or s.since < since]
        if since is not None and not before:
            first = {"every_s": metric.expected_every_s}
            kept = [MetricSchedule(metric=metric, team_id=metric.team_id, expected=first, every_s=first["every_s"])]
        if kept and kept[-1].expected == expected:
            written = kept
        else:
            one = MetricSchedule(
                metric=metric, team_id=metric.team_id, since=since, expected=expected, every_s=expected.get("every_s")
            )
            written = [*kept, one]
        if len(written) == 1 and written[0].every_s is not None:
            written = []  # seconds from the beginning need no more than the metric itself
        metric.schedules.exclude(pk__in=[s.pk for s in written if s.pk]).delete()
        MetricSchedule.objects.bulk_create([s for s in written if s.pk is None])
        metric.expected_every_s = words.nominal_s(expected)
        metric.save(update_fields=["expected_every_s"])
        _lay_out(metric.pk, written, now)


def lay_out(*, now: dt.datetime) -> int:
    """Lay out anew the due instants of every metric that follows a calendar; returns of how many."""
    found = schedules_of(MetricSchedule.objects.filter(every_s=None).values_list("metric_id", flat=True))
    for metric, schedules in found.items():
        with transaction.atomic():
            _lay_out(metric, schedules, now)
    return len(found)


def _lay_out(metric: int, schedules: Sequence[MetricSchedule], now: dt.datetime) -> None:
    """Only what differs is written: most days that is a day more, and a day less."""
    dues = _dues(schedules, now)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH wanted AS MATERIALIZED (SELECT DISTINCT at FROM unnest(%(dues)s::timestamptz[]) AS at),
            gone AS (DELETE FROM metrics.due_instants d WHERE d.metric_id = %(metric)s AND NOT EXISTS (SELECT FROM wanted w WHERE w.at = d.at))
            INSERT INTO metrics.due_instants (metric_id, at) SELECT %(metric)s, at FROM wanted ON CONFLICT DO NOTHING
            """,
            {"metric": metric, "dues": dues},
        )


def _dues(schedules: Sequence[MetricSchedule], now: dt.datetime) -> list[dt.datetime]:
    """Of calendars, each within the time in which it holds: as far back as rows are kept, and one at least beyond what lies ahead."""
    parts = parts_of(schedules, around=now)
    found: list[dt.datetime] = []
    for kept, part, until in zip(schedules, parts, [*(p.since for p in parts), None][1:], strict=True):
        if kept.every_s is not None:
            continue
        behind = dt.timedelta(seconds=MOST_BEHIND * words.nominal_s(kept.expected))
        first = max(_us(now - min(dt.timedelta(days=settings.RETENTION_DAYS + 31), behind)), part.since or 0)
        holds = schedule_of((part,), 0)
        last = _us(now + AHEAD)
        last = max(last, holds.after(max(last, first))) if until is None else min(last, until)
        if last > first:
            dues = [*([holds.before(first)] if part.since is None else []), *holds.between(first, last)]
            found += [_EPOCH + dt.timedelta(microseconds=due) for due in dues]
    return found


def _us(at: dt.datetime) -> int:
    return (at - _EPOCH) // dt.timedelta(microseconds=1) if at > _EPOCH else 0
