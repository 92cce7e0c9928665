"""A dry run: what a run would do with the first chunk, and what looks wrong in it."""

import datetime as dt
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from telemetry.columns import COLUMNS
from telemetry.models import Source
from telemetry.row import FUTURE, Row
from telemetry.sources import folders, rows
from telemetry.sources.definition import check
from telemetry.sources.rows import CHUNK, SHOWN, Stored, Unread
from telemetry.sources.window import reading

PREVIEW_S = 10


@dataclass(frozen=True)
class Summary:
    """Of the rows of one metric that a dry run has understood: their number, units, the mean and standard deviation of the values, the
    newest time."""

    metric: str
    rows: int
    n: int | None
    mean: float
    sd: float | None
    newest: dt.datetime


@dataclass(frozen=True)
class Preview:
    """What a run would do with the first chunk: the counts it would report and the first rows as they are understood.

    summaries: of the rows as they are understood, by metric. ignored_columns: what the query yields besides. warnings: what looks wrong.
    """

    since: dt.datetime
    until: dt.datetime
    stored: Stored
    rows: tuple[Mapping[str, Any], ...]
    more: bool
    summaries: tuple[Summary, ...]
    ignored_columns: tuple[str, ...]
    warnings: tuple[str, ...]


def preview(source: Source, *, now: dt.datetime) -> Preview:
    """Read the first chunk, of many files that of the newest, ingest it and undo that. Raises SourceRefused, SourceFailed."""
    from telemetry.sources import engines  # the web and most workers never read a source

    check(source)
    asked = reading(source, now=now)
    if folders.is_many(source):
        source = folders.found(source)[0].alone(source)
    chunks = engines.read(source, since=asked.since, until=asked.until, limit_s=min(PREVIEW_S, source.time_limit_s))
    chunk = next(chunks, [])
    if chunk and isinstance(chunk[0], Unread):  # what could not be read comes first, and rows after it
        chunk = [*chunk, *next(chunks, [])][:CHUNK]
    chunks.close()  # type: ignore[attr-defined]
    with transaction.atomic():
        stored = rows.store(source, chunk, reading=asked, now=now)
        transaction.set_rollback(True)
    understood = [(raw.get("experiment"), row) for raw in chunk if (row := rows.understood(source, raw, known=True)[0])]
    read = [row for _, row in understood]
    return Preview(
        asked.since,
        asked.until,
        stored,
        tuple(_shown(row) for row in understood[:SHOWN]),
        more=len(chunk) == CHUNK,
        summaries=tuple(_summaries(read)),
        ignored_columns=tuple(
            sorted({name for raw in chunk if not isinstance(raw, Unread) for name in raw} - {*COLUMNS, "line"})
        ),
        warnings=tuple(_warnings(read, now=now)),
    )


def _shown(row: tuple[Any, Row]) -> dict[str, Any]:
    """A row as it is understood, by the names of our columns; without those that say nothing."""
    experiment, said = row
    moments = said.denominator
    values = {
        "experiment": experiment,
        "metric": said.metric,
        "variant": said.variant,
        "ts": said.ts.astimezone(dt.UTC),
        "value": said.value,
        "n": said.n,
        "variance": said.variance,
        "stddev": None if said.variance is None else math.sqrt(said.variance),
        "denominator_value": moments and moments.value,
        "denominator_variance": moments and moments.variance,
        "covariance": moments and moments.covariance,
        "revision": said.revision,
        "window_s": said.window_s,
    }
    return {name: value for name, value in values.items() if value is not None}


def _summaries(rows: Sequence[Row]) -> Iterator[Summary]:
    for metric in sorted({row.metric for row in rows}):
        mine = [row for row in rows if row.metric == metric]
        values = [row.value for row in mine]
        units = [row.n for row in mine if row.n is not None]
        yield Summary(
            metric,
            rows=len(mine),
            n=sum(units) if units else None,
            mean=statistics.fmean(values),
            sd=statistics.stdev(values) if len(values) > 1 else None,
            newest=max(row.ts for row in mine),
        )


_FARTHEST_ZONE = dt.timedelta(hours=14)


def _warnings(rows: Sequence[Row], *, now: dt.datetime) -> Iterator[str]:
    newest = max((row.ts for row in rows), default=None)
    if newest is not None and FUTURE < newest - now <= _FARTHEST_ZONE:
        yield f"Times look local: the newest, {newest:%Y-%m-%d %H:%MZ}, is {(newest - now) / dt.timedelta(hours=1):.1f} h ahead of now. Yield them in UTC."
    single = [row for row in rows if row.n == 1 and row.variance == 0]
    shares = [row for row in rows if row.n and row.n < 10**6 and row.variance and 0 < row.value < 1]
    populations = [row for row in shares if math.isclose(row.variance or 0, row.value * (1 - row.value), rel_tol=1e-12)]
    if single or len(populations) > len(shares) / 2:
        yield "Variances look like a population's: divide by n - 1, as VAR_SAMP does, and yield null for one unit."
