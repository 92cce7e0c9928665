"""The rows of an experiment as they are stored, or summed by hour and day; built as JSON or CSV by PostgreSQL."""

# ruff: noqa: S608 - every statement is made of constants of this file

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.http import HttpResponse
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView, json_response
from decisioning.api.document import instant
from decisioning.api.lists import limit_of
from decisioning.api.problems import bad_parameter
from decisioning.api.serializers import timestamp
from decisioning.api.telemetry import TakesRows
from experiments.models import Experiment
from telemetry.hours import LARGEST_VARIANCE, MOST_COUNTED, in_range

COLUMNS = ("metric", "variant", "ts", "value", "n", "variance", "revision", "received_at")
DEFAULT_LIMIT, MAX_LIMIT = 1_000, 10_000

_RAW = """
SELECT r.metric, r.variant, r.ts, r.value, r.n, r.variance, r.revision, r.received_at
FROM metrics.experiment_kpis r WHERE r.experiment_id = %(experiment)s
"""
# What hours hold from before rows had a range is brought into it first, so that no sum of them can fail.
# Of an exposure KPI what counts is n: its rows repeat it as their value, and a mean of counts is the count of nothing.
_SUMS = f"""
SELECT h.metric, h.variant, h.hour, h.rows, h.n, CASE WHEN x.counts THEN h.n ELSE {in_range("h.value")} END AS value,
       CASE WHEN x.counts THEN 0 ELSE {in_range("h.variance", most=LARGEST_VARIANCE)} END AS variance, x.counts,
       m.temporality = 'cumulative' AS last
FROM metrics.kpi_hours h JOIN metadata.metrics m ON m.key = h.metric
CROSS JOIN LATERAL (
  SELECT h.n IS NOT NULL AND EXISTS (
    SELECT FROM metadata.target_kpis k WHERE k.experiment_id = h.experiment_id AND k.metric_id = m.id AND k.role = 'exposure') AS counts) AS x
WHERE h.experiment_id = %(experiment)s
"""
_HOURS = f"""
SELECT h.metric, h.variant, h.hour + interval '1 hour' AS ts, h.value, h.n, h.variance, NULL::bigint AS revision,
       NULL::timestamptz AS received_at
FROM ({_SUMS}) AS h
"""
# A cumulative series is what its last hour says. Others are merged by units, as far as every hour knows them, else by rows.
_DAYS = f"""
SELECT s.metric, s.variant, s.day + interval '1 day' AS ts,
       CASE WHEN s.last THEN s.last_value WHEN s.counts THEN s.n WHEN s.counted THEN s.weighted ELSE s.by_rows END AS value,
       CASE WHEN s.last THEN s.last_n WHEN s.counted THEN least(s.n, {MOST_COUNTED}) END::bigint AS n,
       CASE WHEN s.last THEN s.last_variance WHEN s.counts THEN 0 WHEN s.counted AND s.n > 1 THEN (s.within + s.squares - s.n * s.weighted ^ 2) / (s.n - 1)
       END AS variance,
       NULL::bigint AS revision, NULL::timestamptz AS received_at
FROM (
  SELECT h.metric, h.variant, date_trunc('day', h.hour, 'UTC') AS day, h.last, bool_and(h.counts) AS counts,
         bool_and(h.n IS NOT NULL) AND sum(h.n) > 0 AS counted, sum(h.n) AS n,
         (array_agg(h.value ORDER BY h.hour DESC))[1] AS last_value, (array_agg(h.n ORDER BY h.hour DESC))[1] AS last_n,
         (array_agg(h.variance ORDER BY h.hour DESC))[1] AS last_variance,
         sum(h.value * h.n) / nullif(sum(h.n), 0) AS weighted, sum(h.value * h.rows) / sum(h.rows) AS by_rows,
         CASE WHEN bool_and(h.variance IS NOT NULL OR h.n <= 1) THEN sum(coalesce(h.variance, 0) * greatest(h.n - 1, 0)) END AS within,
         sum(h.n * h.value ^ 2) AS squares
  FROM ({_SUMS}) AS h GROUP BY 1, 2, 3, 4) AS s
"""
_CONDITIONS = {
    "metric": "metric = %(metric)s",
    "variant": "variant = %(variant)s",
    "since": "ts >= %(since)s",
    "until": "ts <= %(until)s",
    "after_ts": "(ts, metric, variant) > (%(after_ts)s::timestamptz, %(after_metric)s, %(after_variant)s)",
}
_SOURCES = {"raw": _RAW, "hour": _HOURS, "day": _DAYS}


class Csv(BaseRenderer):
    """`Accept: text/csv`; the view itself writes the body."""

    media_type = "text/csv"
    format = "csv"
    charset = "utf-8"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Wanted:
    """What a reader asks for; both ends of the range belong to it."""

    resolution: str = "raw"
    metric: str | None = None
    variant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: tuple[str, str, str] | None = None


class ReadsRows(PortalView):
    """GET .../kpis, ordered by ts, metric, variant."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": frozenset({"metric", "variant", "from", "to", "resolution", "limit", "cursor"})}
    renderer_classes = (JSONRenderer, Csv)

    def get(self, request: Request, ref: str) -> HttpResponse:
        """Rows of the experiment; as CSV all of the range."""
        experiment = self.experiment(ref, Scope.READ)
        wanted, limit = _wanted(request), limit_of(request, default=DEFAULT_LIMIT, most=MAX_LIMIT)
        if request.accepted_renderer.format == "csv":
            return HttpResponse(
                csv(experiment, wanted),
                content_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": f'attachment; filename="{experiment.key}.csv"'},
            )
        return json_response(_page(request, experiment, wanted, limit))


class Kpis(ReadsRows, TakesRows):
    """The rows of an experiment: out by GET, in by POST."""

    scopes = {**ReadsRows.scopes, **TakesRows.scopes}
    parameters = {**ReadsRows.parameters, **TakesRows.parameters}


def csv(experiment: Experiment, wanted: Wanted) -> bytes:
    """A header and every row of the range."""
    sql, parameters = _query(experiment, wanted)
    columns = ", ".join(f"{instant(name)} AS {name}" if name in ("ts", "received_at") else name for name in COLUMNS)
    connection.ensure_connection()
    with connection.cursor() as cursor:
        # mogrify: COPY takes no parameters
        bound = cursor.cursor.mogrify(
            f"SELECT {columns} FROM ({sql}) AS r ORDER BY r.ts, r.metric, r.variant", parameters
        )
        with cursor.cursor.copy(f"COPY ({bound}) TO STDOUT WITH (FORMAT csv, HEADER)") as copy:
            return b"".join(copy)


def _page(request: Request, experiment: Experiment, wanted: Wanted, limit: int) -> str:
    sql, parameters = _query(experiment, wanted)
    fields = ", ".join(f"'{name}', {instant(name) if name in ('ts', 'received_at') else name}" for name in COLUMNS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT coalesce(json_agg(json_build_object({fields}) ORDER BY ts, metric, variant) FILTER (WHERE place <= %(limit)s), '[]')::text,
                   max(place) > %(limit)s, max(ARRAY[{instant("ts")}, metric, variant]) FILTER (WHERE place = %(limit)s)
            FROM (SELECT *, row_number() OVER (ORDER BY ts, metric, variant) AS place
                  FROM ({sql}) AS q ORDER BY ts, metric, variant LIMIT %(limit)s + 1) AS r
            """,
            {**parameters, "limit": limit},
        )
        results, more, last = cursor.fetchone() or ("[]", False, [])
    following = "null"
    if more:
        mark = base64.urlsafe_b64encode("|".join(last).encode()).decode()
        following = f'"{replace_query_param(request.build_absolute_uri(), "cursor", mark)}"'
    return f'{{"results": {results}, "next": {following}}}'


def _query(experiment: Experiment, wanted: Wanted) -> tuple[str, dict[str, Any]]:
    after = dict(zip(("after_ts", "after_metric", "after_variant"), wanted.after or (), strict=False))
    given: dict[str, Any] = {
        "metric": wanted.metric,
        "variant": wanted.variant,
        "since": wanted.since,
        "until": wanted.until,
        **after,
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    conditions = [_CONDITIONS[name] for name in parameters if name in _CONDITIONS]
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT * FROM ({_SOURCES[wanted.resolution]}) AS w {where}", {**parameters, "experiment": experiment.pk}


def _wanted(request: Request) -> Wanted:
    asked = request.query_params
    resolution = asked.get("resolution", "raw")
    if resolution not in _SOURCES:
        raise bad_parameter("resolution", f"{resolution[:60]!r} must be one of {', '.join(_SOURCES)}")
    return Wanted(
        resolution=resolution,
        metric=asked.get("metric"),
        variant=asked.get("variant"),
        since=instant_of(request, "from"),
        until=instant_of(request, "to"),
        after=_mark(asked.get("cursor")),
    )


def instant_of(request: Request, name: str) -> datetime | None:
    """A time in the query; a plus that was not escaped arrives as a space."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return timestamp(text.strip().replace(" ", "+"))
    except ValueError as error:
        raise bad_parameter(name, error.args[1]) from error


def _mark(cursor: str | None) -> tuple[str, str, str] | None:
    if cursor is None:
        return None
    try:
        ts, metric, variant = base64.urlsafe_b64decode(cursor.encode()).decode().split("|")
        timestamp(ts)
    except (binascii.Error, ValueError) as error:
        raise bad_parameter("cursor", "it was not made by this list. Leave it out to begin again") from error
    if "\x00" in metric + variant:
        raise bad_parameter("cursor", "it was not made by this list. Leave it out to begin again")
    return ts, metric, variant
