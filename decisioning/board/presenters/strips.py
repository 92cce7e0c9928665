"""The calendar of a feed: what was due last, what came of it, and what is due next."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from django.db import connection
from django.utils.safestring import SafeString

from decisioning.board import charts, words
from decisioning.board.presenters.freshness import Age
from decisioning.board.presenters.gates import svg
from experiments import feeds
from experiments.models import Experiment, Metric, Pause, TargetKpi
from experiments.schedule import Schedule, schedule_of
from telemetry import outages

PAST, NEXT = 14, 3
"""So many due instants are shown on either side of now."""
WORDS = {
    "arrived": "arrived",
    "late": "arrived late",
    "missing": "missing",
    "awaited": "awaited, still in time",
    "outage": "planned outage",
    "paused": "paused then",
    "quiet": "no row: nothing may have happened",
    "next": "due",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

# Of each series the first arrival in each of its buckets: bucket i is (lows[i], lows[i + 1]], counted from 1.
_CAME = """
SELECT w.place, v.key, b.bucket, b.first
FROM unnest(%(ids)s::bigint[], %(metrics)s::text[], %(lows)s::text[]) WITH ORDINALITY AS w(experiment_id, metric, lows, place)
JOIN metadata.variants v ON v.experiment_id = w.experiment_id AND v.dropped_at IS NULL
LEFT JOIN LATERAL (
  SELECT width_bucket(k.ts - interval '1 microsecond', w.lows::timestamptz[]) AS bucket, min(k.first_received_at) AS first
  FROM experiment_kpis k
  WHERE k.experiment_id = w.experiment_id AND k.metric = w.metric AND k.variant = v.key
    AND k.ts > (w.lows::timestamptz[])[1] AND k.ts <= (w.lows::timestamptz[])[array_length(w.lows::timestamptz[], 1)]
  GROUP BY 1) AS b ON true
"""


class Due(NamedTuple):
    """One due instant and what came of it, a word of WORDS; came: of how many variants a row did, of how many."""

    at: datetime
    state: str
    came: tuple[int, int] = (0, 0)


def dues(found: Sequence[Age], *, now: datetime) -> list[list[Due]]:
    """Of each KPI its newest due instants, oldest first, and its next."""
    if not found:
        return []
    metrics = {m.key: m for m in Metric.objects.filter(key__in={age.metric for age in found})}
    kept = feeds.schedules_of(m.pk for m in metrics.values())
    schedules = {
        key: schedule_of(feeds.parts_of(kept.get(m.pk, ()), around=now), m.expected_every_s)
        for key, m in metrics.items()
    }
    started = dict(Experiment.objects.filter(pk__in={a.experiment_id for a in found}).values_list("pk", "started_at"))
    made = dict(Experiment.objects.filter(pk__in={a.experiment_id for a in found}).values_list("pk", "created_at"))
    instants = [_instants(schedules[age.metric], now) for age in found]
    came = _came(found, [_lows(schedules[age.metric], shown) for age, shown in zip(found, instants, strict=True)])
    windows = outages.windows({age.team_id for age in found}, since=_at(min(shown[0] for shown in instants)))
    pauses: dict[int, list[Pause]] = defaultdict(list)
    for pause in Pause.objects.filter(experiment__in=started):
        pauses[pause.experiment_id].append(pause)
    sparse = set(
        TargetKpi.objects.filter(experiment__in=started, sparse=True).values_list("experiment_id", "metric__key")
    )
    told = []
    for place, (age, shown) in enumerate(zip(found, instants, strict=True), start=1):
        began = schedules[age.metric].answered(_us(started[age.experiment_id] or now))
        line = []
        for bucket, due in enumerate(shown, start=1):
            if due <= began:
                continue
            at = _at(due)
            rows = came[place]
            firsts = [arrivals[bucket] for arrivals in rows.values() if bucket in arrivals]
            away = any(o.begins_at <= at <= o.ends_at for o in windows.get((age.team_id, age.metric), ()))
            rests = any(
                p.paused_at < at and (p.resumed_at is None or p.resumed_at >= at) for p in pauses[age.experiment_id]
            )
            whole = bool(rows) and len(firsts) == len(rows)
            by = max(at, made[age.experiment_id]) + timedelta(seconds=age.freshness_target_s)
            line.append(
                Due(
                    at,
                    ("late" if max(firsts) > by else "arrived") if whole
                    else "outage" if away
                    else "next" if at > now
                    else "paused" if rests
                    else "awaited" if now <= at + timedelta(seconds=age.freshness_target_s)
                    else "quiet" if (age.experiment_id, age.metric) in sparse
                    else "missing",
                    (len(firsts), len(rows)),
                )
            )  # fmt: skip
        told.append(line)
    return told


def _instants(schedule: Schedule, now: datetime) -> list[int]:
    """PAST up to now and NEXT after it."""
    found = [schedule.before(_us(now))]
    while len(found) < PAST:
        found.append(schedule.before(found[-1] - 1))
    found.reverse()
    for _ in range(NEXT):
        found.append(schedule.after(found[-1]))
    return found


def _lows(schedule: Schedule, instants: Sequence[int]) -> list[datetime]:
    """Where the rows end that answer the due instant before each of these; and those that answer the last."""
    around = [schedule.before(instants[0] - 1), *instants, schedule.after(instants[-1])]
    return [_at((before + after) // 2) for before, after in pairwise(around)]


def _came(found: Sequence[Age], lows: Sequence[Sequence[datetime]]) -> Mapping[int, dict[str, dict[int, datetime]]]:
    """By place and variant: the first arrival in each bucket."""
    asked: dict[str, Any] = {
        "ids": [age.experiment_id for age in found],
        "metrics": [age.metric for age in found],
        "lows": ["{" + ",".join(low.isoformat() for low in line) + "}" for line in lows],
    }
    came: dict[int, dict[str, dict[int, datetime]]] = defaultdict(dict)
    with connection.cursor() as cursor:
        cursor.execute(_CAME, asked)
        for place, variant, bucket, first in cursor.fetchall():
            arrivals = came[place].setdefault(variant, {})
            if bucket is not None:
                arrivals[bucket] = first
    return came


def _us(at: datetime) -> int:
    return (at - _EPOCH) // _US


def _at(us: int) -> datetime:
    return _EPOCH + us * _US


# As pages show it -------------------------------------------------------------------------------------------------------


def strip(name: str, line: Sequence[Due], *, uid: str, now: datetime) -> dict[str, Any]:
    """The picture, what it says in a sentence, and each instant in words."""
    summary = _summary(line, now)
    return {
        "svg": svg(
            charts.due_strip(
                [due.state for due in line], past=sum(due.at <= now for due in line), uid=uid, first=words.stamp(line[0].at) if line else "", title=f"{name}: {summary}", desc=_desc(line)
            )
        ),
        "summary": summary,
        "dues": [
            {"at": due.at.isoformat(), "when": words.stamp(due.at), "word": _word(due), "state": due.state} for due in reversed(line)
        ],
    }  # fmt: skip


def legend(lines: Sequence[Sequence[Due]]) -> list[dict[str, str | SafeString]]:
    """What the marks mean, of those that are on the page."""
    seen = {due.state for line in lines for due in line}
    return [{"svg": svg(charts.due_key(state)), "text": text} for state, text in WORDS.items() if state in seen]


def _word(due: Due) -> str:
    there, whole = due.came
    partly = f", {there} of {whole} variants came" if due.state in ("missing", "awaited") and 0 < there < whole else ""
    return f"{WORDS[due.state]}{partly}"


def _summary(line: Sequence[Due], now: datetime) -> str:
    past = [due for due in line if due.at <= now]
    if not past:
        return f"the first is due {words.instant(line[0].at, now)}" if line else "nothing is due yet"
    there = sum(due.state in ("arrived", "late") for due in past)
    expected = sum(due.state not in ("outage", "paused", "quiet") for due in past)
    counted = [
        (sum(due.state == "late" for due in past), "late"),
        (sum(due.state == "missing" for due in past), "missing"),
        (sum(due.state == "awaited" for due in past), "awaited"),
        (sum(due.state == "outage" for due in past), "in a planned outage"),
    ]
    said = [f"{there} of {expected} came", *(f"{number} {word}" for number, word in counted if number)]
    ahead = next((due for due in line if due.at > now and due.state == "next"), None)
    return ", ".join(said) + (
        f"; next due {words.instant(ahead.at, now)}" if ahead else "; the next are in a planned outage"
    )


def _desc(line: Sequence[Due]) -> str:
    return "; ".join(f"{words.stamp(due.at)} {_word(due)}" for due in line)
