"""What happened to the feeds of an experiment's KPIs: planned outages and changed schedules, for its timeline, charts and rationale."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Q

from decisioning.board import words
from decisioning.board.presenters.experiment.context import ExperimentContext, Stretch
from decisioning.ledger.models import Entry
from experiments.expected import in_words
from experiments.models import Metric
from telemetry.models import Outage, Source

LONGEST = 60
_AFTERWARDS = timedelta(minutes=5)
"""What holds from longer ago than this was entered afterwards."""

type Event = tuple[datetime, dict[str, str]]


def because(context: ExperimentContext) -> list[dict[str, str]]:
    """What planned outages mean for what is recommended: one line each, the newest three."""
    merged: dict[Stretch, list[str]] = defaultdict(list)
    for kpi in context.kpis:
        for stretch in context.stretches.get(kpi.metric, ()):
            merged[stretch].append(kpi.name or kpi.metric)
    newest = sorted(merged, reverse=True)[:3]
    return [
        {
            "icon": "clock",
            "tone": "",
            "text": f"Planned outage of {', '.join(merged[s])}, {said(s, context.now)}. What was due then is not expected.",
        }
        for s in newest
    ]


def said(stretch: Stretch, now: datetime) -> str:
    return f"{words.instant(stretch.begins_at, now)} to {words.instant(stretch.ends_at, now)}: {stretch.reason}"


def hatched(stretches: Sequence[Stretch], now: datetime) -> list[str]:
    """What is hatched in a picture, the newest first."""
    return [f"Hatched: planned outage {said(stretch, now)}" for stretch in sorted(stretches, reverse=True)[:5]]


def shaded(stretches: Sequence[Stretch], days: Sequence[date]) -> list[tuple[float, float]]:
    """Where they lie on an axis of these days, by index; between two days where nothing came.

    >>> from datetime import UTC
    >>> at = [datetime(2026, 11, day, 12, tzinfo=UTC) for day in (3, 4)]
    >>> shaded([Stretch(*at, "")], [date(2026, 11, day) for day in (1, 2, 3, 4, 5)])
    [(1.5, 3.5)]
    >>> shaded([Stretch(*at, "")], [date(2026, 11, day) for day in (1, 2, 5, 6)])
    [(1.3, 1.7)]
    """
    found = []
    for stretch in stretches:
        first = sum(day < stretch.begins_at.date() for day in days)
        last = sum(day <= stretch.ends_at.date() for day in days)
        if last == first and 0 < first < len(days):
            found.append((first - 0.7, first - 0.3))
        elif last > first:
            found.append((first - 0.5, last - 0.5))
    return found


# The timeline ---------------------------------------------------------------------------------------------------------


def events(context: ExperimentContext) -> list[Event]:
    """Planned outages when they began and when somebody entered, changed or took one back; schedules that were changed."""
    return [*_outages(context), *_schedules(context)]


def _time(context: ExperimentContext) -> tuple[datetime, datetime]:
    experiment = context.experiment
    return experiment.started_at or experiment.created_at, experiment.ended_at or context.now


def _event(at: datetime, what: str, detail: str) -> Event:
    return at, {"icon": "clock", "tone": "late", "what": what, "detail": detail}


def _outages(context: ExperimentContext) -> Iterator[Event]:
    began, ended = _time(context)
    mine = {kpi.metric for kpi in context.kpis}
    of_source = dict(Source.objects.filter(team=context.experiment.team_id).values_list("key", "metrics"))

    def touched(outage: Mapping[str, Any]) -> list[str]:
        fed = {metric for key in outage.get("sources") or () for metric in of_source.get(key, ())}
        return sorted(mine & {*(outage.get("metrics") or ()), *fed})

    planned = Outage.objects.filter(team=context.experiment.team_id, begins_at__range=(began, ended))
    for outage in planned.order_by("-begins_at")[:LONGEST]:
        if of := touched({"metrics": outage.metrics, "sources": outage.sources}):
            detail = f"Until {words.instant(outage.ends_at, context.now)}: {outage.reason}"
            yield _event(outage.begins_at, f"Planned outage of {', '.join(of)}", detail)
    known: dict[int, dict[str, Any]] = {}
    entries = Entry.objects.filter(
        team_id=context.experiment.team_id, content_type__app_label="telemetry", content_type__model="outage"
    )
    for entry in reversed(entries.order_by("-id")[: 4 * LONGEST]):
        changes = {field: pair for field, pair in (entry.changes or {}).items() if isinstance(pair, list)}
        side = 0 if entry.action == Entry.Action.DELETE else 1
        before = known.get(entry.object_id, {})
        outage_now = before | {field: pair[side] for field, pair in changes.items()}
        known[entry.object_id] = outage_now
        of = touched(outage_now) or touched(before)
        if of and "begins_at" in outage_now and context.experiment.created_at <= entry.timestamp <= ended:
            begins, ends = (datetime.fromisoformat(outage_now[name]) for name in ("begins_at", "ends_at"))
            if ends >= began:
                yield _event(entry.timestamp, *_answered(entry, of, begins, ends, outage_now, context.now))


def _answered(
    entry: Entry, of: Sequence[str], begins: datetime, ends: datetime, outage: Mapping[str, Any], now: datetime
) -> tuple[str, str]:
    """What somebody did about an outage, in words."""
    what = {Entry.Action.CREATE: "planned", Entry.Action.DELETE: "taken back"}.get(entry.action, "changed")
    over = begins < entry.timestamp - _AFTERWARDS
    judged = " What it reaches back to was judged anew." if over else ""
    said = "entered afterwards" if over and entry.action == Entry.Action.CREATE else what
    when = f"{words.instant(begins, now)} to {words.instant(ends, now)}: {outage.get('reason', '')}"
    return f"Outage of {', '.join(of)} {said}", f"{when}. By {entry.actor_name}.{judged}"


def _schedules(context: ExperimentContext) -> Iterator[Event]:
    """Every change of a schedule, when somebody made it: what was written in one request together."""
    began, ended = context.experiment.created_at, context.experiment.ended_at or context.now
    metrics = {m.pk: m for m in Metric.objects.filter(key__in=[kpi.metric for kpi in context.kpis])}
    of_schedule = Q(content_type__model="metricschedule", changes__metric_id__isnull=False)
    of_metric = Q(content_type__model="metric", object_id__in=metrics)
    together: dict[tuple[str | None, int], list[Entry]] = defaultdict(list)
    found = Entry.objects.select_related("content_type").filter(
        of_schedule | of_metric, content_type__app_label="experiments"
    )
    for entry in found.filter(timestamp__range=(began, ended)).order_by("-id")[: 8 * LONGEST]:
        pair = (entry.changes or {}).get("metric_id") or [None, None]
        pk = entry.object_id if entry.content_type.model == "metric" else pair[1] or pair[0]
        if pk in metrics:
            together[entry.cid, pk].append(entry)
    for (_, pk), entries in together.items():
        if (said := _changed(metrics[pk], entries, context.now)) is not None:
            yield _event(entries[0].timestamp, *said)


def _changed(metric: Metric, entries: Sequence[Entry], now: datetime) -> tuple[str, str] | None:
    """A change of a schedule in words; None: these entries are of none, or the metric was made with it."""
    if any(e.content_type.model == "metric" and e.action == Entry.Action.CREATE for e in entries):
        return None
    changes = [(e, e.changes or {}) for e in entries]
    made = [c for e, c in changes if e.content_type.model == "metricschedule" and e.action == Entry.Action.CREATE]
    gone = [c for e, c in changes if e.content_type.model == "metricschedule" and e.action == Entry.Action.DELETE]
    seconds = next((c["expected_every_s"] for _, c in changes if "expected_every_s" in c), None)
    if not made and not gone and seconds is None:
        return None
    by, since = f"By {entries[0].actor_name}.", "from the beginning"
    if made:
        newest = max(made, key=lambda change: (change.get("since") or [None, None])[1] or "")
        expected, at = newest["expected"][1], (newest.get("since") or [None, None])[1]
        if at is not None:
            instant = datetime.fromisoformat(at)
            since = f"from {words.instant(instant, now)} on"
            by += " What it reaches back to was judged anew." if instant < entries[0].timestamp - _AFTERWARDS else ""
    else:
        expected = {"every_s": seconds[1] if seconds else metric.expected_every_s}
    before = f" Before: {in_words({'every_s': seconds[0]})}." if seconds and not gone and len(made) < 2 else ""
    if len(made) > 1:
        before = (
            f" Before: {in_words(min(made, key=lambda c: (c.get('since') or [None, None])[1] or '')['expected'][1])}."
        )
    elif gone:
        before = f" Before: {in_words(gone[-1]['expected'][0])}."
    return f"{metric.name or metric.key} is due {in_words(expected)}, {since}", f"{by}{before}"
