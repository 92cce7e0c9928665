"""Sources: what somebody's database or file yields as KPI rows. Nothing here can write to where it reads.

A query is one SELECT. It runs inside `SELECT ... FROM (query)`, in a read-only transaction of a login that is no superuser, under a
deadline; a file is opened by an engine that may touch that file alone.
"""

import datetime as dt
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from experiments.models import Metric
from telemetry import ingest
from telemetry.ingest import Ingested, Row
from telemetry.models import Source

CHUNK = 5_000
SHOWN = 20
PREVIEW_S = 10
LONGEST_S = 240
COLUMNS = (
    "experiment", "metric", "variant", "ts", "value", "n", "variance", "denominator_value", "denominator_variance",
    "covariance", "revision", "window_s",
)  # fmt: skip
_OWN_NAMES = re.compile(r"DATABASE|DECISIONING(?!_SOURCE)|REDIS|POSTGRES|PG|DJANGO|CELERY")

_UNGUARDED = frozenset({"duckdb"})
"""Dialects whose databases open files of the machine they run on, which is this one."""

Fault = tuple[str, str, str]
"""(JSON pointer, code, detail)."""


class SourceRefused(Exception):
    """A source that cannot be, or cannot be asked now."""

    def __init__(self, code: str, message: str, *, status: int = 422, errors: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.code, self.status, self.errors = code, status, tuple(errors)


class SourceFailed(Exception):
    """The source did not yield rows: unreachable, too slow, a query it does not take. The message holds no secret."""


# What a source may be -----------------------------------------------------------------------------------------------------


def check(source: Source) -> None:
    """Raises SourceRefused with every fault of a source as somebody describes it."""
    faults = list(_faults(source))
    if faults:
        raise SourceRefused("invalid", faults[0][2], errors=faults)


def _faults(source: Source) -> Iterator[Fault]:
    if source.kind == Source.Kind.SQL:
        yield from _url_faults(source.url_env)
        if source.path:
            yield "/path", "invalid", "A database has no path."
    elif source.kind == Source.Kind.FILE:
        if source.url_env:
            yield "/url_env", "invalid", "A file has no url_env."
        try:
            file_of(source.path)
        except SourceFailed as failure:
            yield "/path", "invalid", str(failure)
    else:
        yield "/kind", "invalid", f"kind is {source.kind!r}, must be sql or file."
    yield from _query_faults(source.query)
    for name, least, most in (
        ("schedule_s", 30, 31 * 86_400),
        ("overlap_s", 0, 31 * 86_400),
        ("time_limit_s", 1, LONGEST_S),
    ):
        value = getattr(source, name)
        if not least <= value <= most:
            yield f"/{name}", "invalid_number", f"{name} is {value}, must be {least} to {most} seconds."
    if not source.metrics:
        yield "/metrics", "missing_field", "metrics must name what this source feeds."
    known = set(Metric.objects.filter(key__in=source.metrics).values_list("key", flat=True))
    for index, key in enumerate(source.metrics):
        if key not in known:
            yield f"/metrics/{index}", "unknown_metric", f"No metric {key!r:.80} is registered."
    if source.lineage_job and "/" not in source.lineage_job:
        yield "/lineage_job", "invalid", "lineage_job must be namespace/name."


def _url_faults(url_env: str) -> Iterator[Fault]:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", url_env):
        yield "/url_env", "missing_field", "url_env must name an environment variable, such as WAREHOUSE_URL."
    elif _OWN_NAMES.match(url_env):
        yield "/url_env", "invalid", f"{url_env} is the portal's own. Use another, or DECISIONING_SOURCE_..."
    elif (named := dialect(os.environ.get(url_env, ""))) in _UNGUARDED:
        detail = (
            f"{url_env} holds a {named}: URL, and {named} could read every file here. Export the rows as "
            "Parquet or CSV below DECISIONING_FILES and use kind file."
        )
        yield "/url_env", "unsupported_dialect", detail


def dialect(url: str) -> str:
    """The kind of database that a URL names, whatever its driver and case.

    >>> dialect("DuckDB+any_driver:///a.db"), dialect("no url")
    ('duckdb', 'no url')
    """
    return re.split(r"[+:]", url.strip(), maxsplit=1)[0].lower()


def file_of(path: str) -> Path:
    """A source's file, which must lie below the folder of files. Raises SourceFailed."""
    root = Path(settings.SOURCES_DIR).resolve()
    found = (root / path).resolve()
    if not path or not found.is_relative_to(root) or "\x00" in path:
        raise SourceFailed(f"{path[:80]!r} is not below the folder of files, DECISIONING_FILES.")
    if found.suffix.lower() not in (".csv", ".parquet"):
        raise SourceFailed(f"{path[:80]!r} must end with .csv or .parquet.")
    return found


_QUIET = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$", re.DOTALL)
PARAMETER = re.compile(r"(?<![:\w]):(since|until)\b")


def _query_faults(query: str) -> Iterator[Fault]:
    said = _QUIET.sub(" ", query).strip().removesuffix(";").rstrip()
    if not re.match(r"(select|with)\b", said, re.IGNORECASE):
        yield "/query", "invalid", "The query must be one SELECT."
    elif ";" in said:
        yield "/query", "invalid", "The query must be one statement."
    missing = {"since", "until"} - set(PARAMETER.findall(said))
    if missing:
        yield "/query", "missing_field", f"The query must be bounded by :since and :until; it has no :{min(missing)}."


# Reading ------------------------------------------------------------------------------------------------------------------


def read(source: Source, *, since: dt.datetime, until: dt.datetime, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of what the query yields between since and until, as column -> value. Raises SourceFailed."""
    from telemetry import engines  # the web and most workers never read a source

    return engines.read(source, since=since, until=until, limit_s=limit_s)


# Rows ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """What became of one chunk. `problems`: why rows were refused, the first ones."""

    accepted: int
    changed: int
    duplicates: int
    refused: int
    problems: tuple[str, ...]
    newest: dt.datetime | None


def store(source: Source, chunk: Sequence[Mapping[str, Any]], *, now: dt.datetime) -> Stored:
    """Ingest one chunk in the caller's transaction: good rows are stored, each bad one is told."""
    good: dict[str | int, list[Row]] = {}
    problems: list[str] = []
    for raw in chunk:
        ref, row, problem = _understood(source, raw)
        if row is None:
            problems.append(f"{problem} Row: {_told(raw)}")
        else:
            good.setdefault(ref, []).append(row)
    targets = ingest.targets(good, team_id=source.team_id)
    done: list[Ingested] = []
    by_experiment: dict[int, list[Row]] = {}
    for ref, rows in good.items():
        if ref in targets:
            by_experiment.setdefault(targets[ref].experiment_id, []).extend(rows)
        else:
            problems += [f"{source.team.key} has no experiment {ref!r}."] * len(rows)
    for pk, rows in sorted(by_experiment.items()):
        ingested = ingest.ingest(targets[pk], list(enumerate(rows)), now=now, atomic=False)
        problems += [f"{fault.detail} Row: {rows[fault.index]}"[:300] for fault in ingested.refused]
        done.append(ingested)
    return Stored(
        accepted=sum(d.accepted for d in done),
        changed=sum(d.changed for d in done),
        duplicates=sum(d.duplicates for d in done),
        refused=len(problems),
        problems=tuple(problems[:SHOWN]),
        newest=max((d.last_ts for d in done if d.last_ts), default=None),
    )


def _understood(source: Source, raw: Mapping[str, Any]) -> tuple[str | int, Row | None, str]:
    """(experiment, row, what is wrong)."""
    said = {name: _plain(value) for name, value in raw.items() if name in COLUMNS and value is not None}
    ref = said.pop("experiment", None)
    if isinstance(ref, str) and ref.isascii() and ref.isdigit() and len(ref) < 19:
        ref = int(ref)
    if not isinstance(ref, (str, int)) or isinstance(ref, bool):
        return "", None, "experiment is missing."
    if "metric" not in said and len(source.metrics) == 1:
        said["metric"] = source.metrics[0]
    if said.get("metric") not in source.metrics:
        return ref, None, f"The source feeds {', '.join(source.metrics)}, not {said.get('metric')!r:.80}."
    moments = {
        name: said.pop(column)
        for name, column in (
            ("value", "denominator_value"),
            ("variance", "denominator_variance"),
            ("covariance", "covariance"),
        )
        if column in said
    }
    if moments:
        said["denominator"] = moments
    faults = list(ingest.row_faults(said))
    return (ref, None, faults[0][2]) if faults else (ref, ingest.row_of(said), "")


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def _told(raw: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in raw.items())[:200]


# Dry run ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """What a run would do with the first chunk: the counts it would report and the first rows as the query yields them."""

    since: dt.datetime
    until: dt.datetime
    stored: Stored
    rows: tuple[Mapping[str, Any], ...]
    more: bool


def window(source: Source, *, now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """(since, until) of a run: from what the last good run has read, less the overlap; at first, all that may be stored."""
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    read_to = source.read_to - dt.timedelta(seconds=source.overlap_s) if source.read_to else oldest
    return max(read_to, oldest), now


def preview(source: Source, *, now: dt.datetime) -> Preview:
    """Run the query and ingest its first chunk, then undo that. Raises SourceRefused, SourceFailed."""
    check(source)
    since, until = window(source, now=now)
    chunks = read(source, since=since, until=until, limit_s=min(PREVIEW_S, source.time_limit_s))
    chunk = next(chunks, [])
    chunks.close()  # type: ignore[attr-defined]
    with transaction.atomic():
        stored = store(source, chunk, now=now)
        transaction.set_rollback(True)
    return Preview(since, until, stored, tuple(chunk[:SHOWN]), more=len(chunk) == CHUNK)
