"""Sources: what somebody's database or file yields as KPI rows. Nothing here can write to where it reads.

A query is one SELECT. It runs inside `SELECT ... FROM (query)`, in a read-only transaction of a login that is no superuser, under a
deadline; a file is opened by an engine that may touch that file alone.
"""

import datetime as dt
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet

from experiments.models import Metric
from telemetry import dialects, ingest
from telemetry.ingest import Ingested, Row
from telemetry.lineage import LONGEST_JOB, kept_name
from telemetry.models import Source, SourcePlace

CHUNK = 5_000
SHOWN = 20
PREVIEW_S = 10
LONGEST_S = 240
COLUMNS = (
    "experiment", "metric", "variant", "ts", "value", "n", "variance", "denominator_value", "denominator_variance",
    "covariance", "revision", "window_s",
)  # fmt: skip
MOMENTS = {"denominator_value": "value", "denominator_variance": "variance", "covariance": "covariance"}
"""Columns of a ratio's denominator, and their names in it."""
_OWN_NAMES = re.compile(r"DATABASE|DECISIONING(?!_SOURCE)|REDIS|POSTGRES|PG|DJANGO|CELERY")

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
    yield from _place_faults(source)
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
    yield from _time_faults(source)
    yield from _option_faults(source)
    if source.lineage_job and "/" not in source.lineage_job:
        yield "/lineage_job", "invalid", "lineage_job must be namespace/name."
    elif source.lineage_job != kept_name(source.lineage_job):
        yield (
            "/lineage_job",
            "invalid_text",
            f"lineage_job is longer than the {LONGEST_JOB:,} characters kept of a job's name.",
        )


def _place_faults(source: Source) -> Iterator[Fault]:
    if source.kind == Source.Kind.SQL:
        faults = list(_url_faults(source.url_env))
        yield from faults
        if not faults and not _may_read(source, SourcePlace.Kind.VARIABLE, source.url_env):
            yield (
                "/url_env",
                "not_bound",
                _not_bound(source, f"The variable {source.url_env}", "--variable", source.url_env),
            )
        if source.path:
            yield "/path", "invalid", "A database has no path."
    elif source.kind == Source.Kind.FILE:
        if source.url_env:
            yield "/url_env", "invalid", "A file has no url_env."
        try:
            file = file_of(source.path)
        except SourceFailed as failure:
            yield "/path", "invalid", str(failure)
        else:
            place = str(file.relative_to(Path(settings.SOURCES_DIR).resolve()))
            own = any(file.is_relative_to(folder) for folder in _folders(source))
            if not own and not _may_read(source, SourcePlace.Kind.FOLDER, place):
                yield "/path", "not_bound", _not_bound(source, f"The file {source.path[:80]!r}", "--folder", "...")
    else:
        yield "/kind", "invalid", f"kind is {source.kind!r}, must be sql or file."


def _may_read(source: Source, kind: SourcePlace.Kind, place: str) -> bool:
    """Whether a place is bound to the source's team or, being nobody's, free: what lies in the root of DECISIONING_FILES is
    everybody's, and where there is one team, the demo's aside, nothing needs binding."""
    if _places(source, kind).filter(name=place).exists():
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT metadata.place_is_free(%s, %s, %s)", [source.team_id, kind, place])
        (free,) = cursor.fetchone() or (False,)
        return bool(free)


def _places(source: Source, kind: SourcePlace.Kind) -> QuerySet[SourcePlace]:
    return SourcePlace.objects.filter(team=source.team_id, kind=kind)


def _folders(source: Source) -> list[Path]:
    """Where the files of a source's team lie. Links are followed, so that none leads into another team's folder."""
    root = Path(settings.SOURCES_DIR).resolve()
    bound = _places(source, SourcePlace.Kind.FOLDER).values_list("name", flat=True)
    return [(root / name).resolve() for name in (source.team.key, *bound)]


def _not_bound(source: Source, what: str, option: str, name: str) -> str:
    key = source.team.key
    return (
        f"{what} is not bound to team {key}. The operator binds it: in the admin under Source places, or by "
        f"manage.py bind_source --team {key} {option} {name}."
        + (f" Files in the folder {key}/ and in the root need no binding." if option == "--folder" else "")
    )


def _time_faults(source: Source) -> Iterator[Fault]:
    if source.time_format not in Source.TimeFormat.values:
        yield "/time_format", "invalid", f"time_format is {source.time_format!r}, must be epoch_s or epoch_ms."
    elif source.time_format and source.date_format:
        yield "/date_format", "invalid", "Times that are numbers have no date_format. Name one of the two."
    if source.date_format and (problem := _format_problem(source.date_format)):
        yield "/date_format", "invalid", f"date_format {source.date_format!r} {problem}."


_DELIMITERS = ",;|\t"


def _option_faults(source: Source) -> Iterator[Fault]:
    if source.encoding not in Source.Encoding.values:
        yield (
            "/encoding",
            "invalid",
            f"encoding is {source.encoding!r}, must be latin-1 or utf-16; without one it is UTF-8.",
        )
    if source.delimiter and source.delimiter not in _DELIMITERS:
        yield "/delimiter", "invalid", f"delimiter is {source.delimiter!r}, must be one of , ; | and tab."
    if source.delimiter == "," and source.decimal_comma:
        yield "/delimiter", "invalid", "A comma cannot stand between cells and in numbers too."
    names = source.columns if isinstance(source.columns, dict) else {"": ""}
    for own in names.values():
        if own not in COLUMNS:
            yield "/columns", "invalid", f"columns names {own!r:.80}, which is none of {', '.join(COLUMNS)}."
    if len({*names.values()}) < len(names):
        yield "/columns", "invalid", "columns gives two columns the same name."


def own_name(source: Source, name: str) -> str:
    """What a column is called here: ours in lower case, whatever its case there."""
    plain = name.strip()
    named = {theirs.lower(): own for theirs, own in source.columns.items()}
    own = named.get(plain.lower(), plain.lower())
    return str(own) if own in COLUMNS else plain


def _url_faults(url_env: str) -> Iterator[Fault]:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", url_env):
        yield "/url_env", "missing_field", "url_env must name an environment variable, such as WAREHOUSE_URL."
    elif _OWN_NAMES.match(url_env):
        yield "/url_env", "invalid", f"{url_env} is the portal's own. Use another, or DECISIONING_SOURCE_..."
    elif (url := os.environ.get(url_env, "")) and dialects.named(url) in dialects.IN_FILES:
        try:
            _database_path(url.partition("://")[2].partition("/")[2].partition("?")[0])
        except SourceFailed as failure:
            yield "/url_env", "invalid", f"{url_env}: {failure}"


def _format_problem(date_format: str) -> str:
    """What is wrong with a date_format.

    >>> _format_problem("%d.%m.%Y %H:%M"), _format_problem("%H:%M"), _format_problem("%Y-%q")
    ('', 'names no year, month and day, such as %m/%d/%Y', 'has %q; %Y %y %m %b %B %d %H %I %p %M %S %f and %z are known')
    """
    found = set(re.findall(r"%(.?)", date_format))
    if strange := sorted(found - set("YymbBdHIpMSfz")):
        return f"has %{strange[0]}; %Y %y %m %b %B %d %H %I %p %M %S %f and %z are known"
    if "d" not in found or len(found & set("Yy")) != 1 or len(found & set("mbB")) != 1:
        return "names no year, month and day, such as %m/%d/%Y"
    if ("I" in found) != ("p" in found) or {"I", "H"} <= found:
        return "must have %I with %p, or %H alone"
    return ""


def file_of(path: str) -> Path:
    """A source's file, which must lie below the folder of files. Raises SourceFailed."""
    found = _below(path)
    if not found.name.lower().endswith((".csv", ".csv.gz", ".parquet")):
        raise SourceFailed(f"{path[:80]!r} must end with .csv, .csv.gz or .parquet.")
    return found


def database_file(path: str) -> Path:
    """The file of a database that is read here, which must lie below the folder of files and be there. Raises SourceFailed."""
    found = _database_path(path)
    if not found.is_file():  # an engine might make it
        raise SourceFailed("There is no such database file in the folder of files, DECISIONING_FILES.")
    return found


def _database_path(path: str) -> Path:
    if not path or path.startswith(":") or path.lower().startswith(("file:", "md:", "motherduck:")):
        raise SourceFailed("A database of this kind must be a file below the folder of files, DECISIONING_FILES.")
    return _below(path)


def _below(path: str) -> Path:
    """Where a path leads, links followed. Raises SourceFailed."""
    root = Path(settings.SOURCES_DIR).resolve()
    found = None if "\x00" in path else (root / path).resolve()
    if not path or found is None or not found.is_relative_to(root):
        raise SourceFailed(f"{path[:80]!r} is not below the folder of files, DECISIONING_FILES.")
    return found


_QUIET = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$", re.DOTALL)
PARAMETER = re.compile(r"(?<![:\w]):(since|until)\b")


def code_of(query: str) -> str:
    """A query without its texts, quoted names and comments."""
    return _QUIET.sub(" ", query)


def with_parameters(query: str, *, parameter: str, colon: str) -> str:
    r"""The query as an engine takes it: `parameter` in place of :since and :until, `colon` of all others, in texts and comments too.

    >>> with_parameters("SELECT '12:30 :since', a::int WHERE ts > :since", parameter=r"$\1", colon=":")
    "SELECT '12:30 :since', a::int WHERE ts > $since"
    """

    def said(text: str) -> str:
        return re.sub(rf"{PARAMETER.pattern}|:", lambda found: found.expand(parameter) if found[1] else colon, text)

    parts, at = list[str](), 0
    for quiet in _QUIET.finditer(query):
        parts += [said(query[at : quiet.start()]), quiet[0].replace(":", colon)]
        at = quiet.end()
    return "".join([*parts, said(query[at:])])


def _query_faults(query: str) -> Iterator[Fault]:
    said = code_of(query).strip().removesuffix(";").rstrip()
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

KEYS, WHOLE = ("experiment", "metric", "variant"), ("n", "revision", "window_s")
ISO = (
    r"\d{4}(?:-\d{1,2}-|/\d{1,2}/)\d{1,2}"
    r"(?:[T ](?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:Z| UTC|[+-][01]\d(?::?[0-5]\d)?)?)?"
)
"""A time that can be read in one way only, in capitals: the year first. As Python and DuckDB both understand it."""
DECIMAL = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_DAY_OR_MONTH = r"\d{1,2}[-./]\d{1,2}[-./]\d{2,4}(?:\D.*)?"


class Unread(dict[str, Any]):
    """A line of a file as text, of which a cell that is ours could not be read. summed: the query adds lines up. problem: what is wrong
    with it, where no cell says so."""

    def __init__(self, cells: Any, *, summed: bool = False, problem: str = "It cannot be read.") -> None:
        super().__init__(cells)
        self.summed, self.problem = summed, problem


@dataclass(frozen=True)
class Stored:
    """What became of one chunk. `ignored`: rows of `strangers`, experiments that are not here. `skipped`: had been read before.

    problems: why rows were refused, the first ones. refused_from: the oldest time that a refused row has, the start of the reading where
    one has none.
    """

    accepted: int
    changed: int
    duplicates: int
    refused: int
    ignored: int
    skipped: int
    problems: tuple[str, ...]
    strangers: tuple[str, ...]
    newest: dt.datetime | None
    refused_from: dt.datetime | None


def store(
    source: Source, chunk: Sequence[Mapping[str, Any]], *, reading: "Reading", now: dt.datetime, first: int = 1
) -> Stored:
    """Ingest one chunk in the caller's transaction: good rows are stored, each bad one is told, those of other experiments are counted.

    first: the number of the chunk's first row among those that the query yields. Raises SourceFailed.
    """
    refs = [_ref(raw) for raw in chunk]
    targets = ingest.targets({ref for ref in refs if ref is not None}, team_id=source.team_id)
    good: dict[int, list[tuple[str, Row]]] = {}
    problems: list[str] = []
    refused_at: list[dt.datetime] = []
    strangers: Counter[str] = Counter()
    skipped = 0
    for number, (raw, ref) in enumerate(zip(chunk, refs, strict=True), start=first):
        if ref is not None and ref not in targets:
            strangers[str(ref)] += 1
            continue
        place = _place(source, raw, number)
        row, problem, at = _understood(source, raw, known=ref is not None)
        if row is None:
            if isinstance(raw, Unread) and raw.summed:
                raise SourceFailed(
                    f"{place}: {problem} The query adds lines up, and without this one a sum would be wrong."
                )
            problems.append(f"{place}: {problem} Row: {_told(raw)}")
            refused_at.append(at or reading.since)
        elif reading.has_read(targets[ref], row):  # type: ignore[index]
            skipped += 1
        else:
            good.setdefault(targets[ref].experiment_id, []).append((place, row))  # type: ignore[index]
    by_number = {target.experiment_id: target for target in targets.values()}
    done: list[Ingested] = []
    for pk, rows in sorted(good.items()):
        ingested = ingest.ingest(by_number[pk], list(enumerate(row for _, row in rows)), now=now, atomic=False)
        for fault in ingested.refused:
            place, row = rows[fault.index]
            problems.append(f"{place}: {fault.detail} Row: {row}"[:300])
            refused_at.append(row.ts)
        done.append(ingested)
    return Stored(
        accepted=sum(d.accepted for d in done),
        changed=sum(d.changed for d in done),
        duplicates=sum(d.duplicates for d in done),
        refused=len(problems),
        ignored=strangers.total(),
        skipped=skipped,
        problems=tuple(problems[:SHOWN]),
        strangers=tuple(name for name, _ in strangers.most_common(SHOWN)),
        newest=max((d.last_ts for d in done if d.last_ts), default=None),
        refused_from=min(refused_at, default=None),
    )


def _ref(raw: Mapping[str, Any]) -> str | int | None:
    """The experiment that a row is of, by number or key."""
    ref = _plain(raw.get("experiment"))
    if isinstance(ref, str):
        ref = ref.strip()
        return int(ref) if ref.isascii() and ref.isdigit() and len(ref) < 19 else ref or None
    if isinstance(ref, float) and ref.is_integer():
        return int(ref)
    return ref if isinstance(ref, int) and not isinstance(ref, bool) else None


def _place(source: Source, raw: Mapping[str, Any], number: int) -> str:
    in_file = raw.get("line") if source.kind == Source.Kind.FILE else None
    if isinstance(in_file, int):
        return f"{'Row' if source.path.lower().endswith('.parquet') else 'Line'} {in_file}"
    return f"Row {number} of the query"


def _understood(source: Source, raw: Mapping[str, Any], *, known: bool) -> tuple[Row | None, str, dt.datetime | None]:
    """(row, what is wrong, when it is of). known: its experiment is here."""
    said: dict[str, Any] = {}
    faults: list[Fault] = []
    for name in COLUMNS[1:]:
        try:
            if (value := _value(source, name, raw.get(name))) is not None:
                said[name] = value
        except _Unfit as unfit:
            faults.append(("", unfit.code, str(unfit)))
    at = said.get("ts")
    at = at if isinstance(at, dt.datetime) and at.tzinfo else None
    if isinstance(raw, Unread):
        fitting = ingest.row_faults({"metric": "", "ts": "1970-01-01T00:00:00Z", "value": 0} | said)
        wrong = [*faults, *fitting] or [("", "invalid", raw.problem)]
        return None, _in_words(wrong), at
    if "metric" not in said and len(source.metrics) == 1:
        said["metric"] = source.metrics[0]
    if not known:
        faults.append(("", "missing_field", "experiment is missing."))
    elif said.get("metric") not in source.metrics:
        detail = f"The source feeds {', '.join(source.metrics)}, not {said.get('metric')!r:.80}."
        faults.append(("", "unknown_metric", detail))
    moments = {inner: said.pop(column) for column, inner in MOMENTS.items() if column in said}
    if moments:
        said["denominator"] = moments
    faults = faults or list(ingest.row_faults(said))
    return (None, _in_words(faults), at) if faults else (ingest.row_of(said), "", at)


def _in_words(faults: Sequence[Fault]) -> str:
    return " ".join(f"{detail} ({code})" for _, code, detail in faults)


class _Unfit(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _value(source: Source, name: str, value: object) -> object:
    """The value of one column: a text says what it is by itself, and what is not there or not defined is None. Raises _Unfit."""
    value = _plain(value)
    if name == "ts" and source.time_format and value is not None:
        return _since_1970(source, value)
    if isinstance(value, str):
        value = value.strip()
        if value in source.null_words:
            return None
        if name not in KEYS:
            value = _moment(source, value) if name == "ts" else _number(_pointed(source, value))
    if isinstance(value, float) and math.isnan(value) and name not in ("ts", "value"):
        return None
    return None if value == "" else value


EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)
PER_SECOND = {Source.TimeFormat.SECONDS.value: 1, Source.TimeFormat.MILLISECONDS.value: 1_000}


def _since_1970(source: Source, value: object) -> dt.datetime:
    if isinstance(value, dt.datetime) and value.tzinfo:  # a file's, which its engine has read
        return value
    number = _number(value.strip()) if isinstance(value, str) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        with suppress(OverflowError, ValueError):
            return EPOCH + dt.timedelta(seconds=number / PER_SECOND[source.time_format])
    detail = (
        f"ts {value!r:.60} is no number of {Source.TimeFormat(source.time_format).label}, the source's time_format."
    )
    raise _Unfit("invalid_timestamp", detail)


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def _pointed(source: Source, text: str) -> str:
    """A number with a decimal point. One with both signs stays as it is, and is then none."""
    return text.replace(",", ".") if source.decimal_comma and "." not in text else text


def _number(text: str) -> object:
    """The number that a text is, else the text, which is then told to be none."""
    if re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII):
        return int(text)
    if re.fullmatch(DECIMAL, text, re.ASCII) or text.lower() == "nan":
        return float(text)
    return text


def _moment(source: Source, text: str) -> object:
    """The time that a text is, else the text. A file's time without offset is UTC, and so is any that `date_format` reads."""
    if source.date_format and text:
        try:
            found = dt.datetime.strptime(text, source.date_format)  # noqa: DTZ007 - it may have %z
        except ValueError:
            detail = f"ts {text!r:.60} is no time of the source's date_format, {source.date_format}."
            raise _Unfit("invalid_timestamp", detail) from None
        return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
    if re.fullmatch(_DAY_OR_MONTH, text, re.ASCII | re.DOTALL):
        detail = (
            f"ts {text!r:.60} may have the day or the month first. Say which by the source's date_format, such as "
            "%d/%m/%Y or %m/%d/%Y, or export it as 2026-11-24T06:00:00Z."
        )
        raise _Unfit("ambiguous_date", detail)
    if source.kind != Source.Kind.FILE or not re.fullmatch(ISO, text.upper(), re.ASCII):
        return text
    date, _, clock = re.sub(" UTC$", "Z", text.upper().replace("/", "-")).replace("T", " ").partition(" ")
    year, month, day = map(int, date.split("-"))
    time = clock if clock[1:2] != ":" else f"0{clock}"
    try:
        found = dt.datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}T{time or '00:00'}")
    except ValueError:
        return text
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _told(raw: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in raw.items() if name != "line" and value is not None)[:200]


# What is read -------------------------------------------------------------------------------------------------------------

LATE = dt.timedelta(days=7)
"""How far behind the others a series is waited for, and how long what was refused is read again."""


@dataclass(frozen=True)
class Reading:
    """What a run asks for: rows of (since, until]; of those up to `floor` only those of series that are behind, `late`.

    late: (number of the experiment, metric, variant).
    """

    since: dt.datetime
    until: dt.datetime
    floor: dt.datetime
    late: frozenset[tuple[int, str, str]]

    def has_read(self, target: ingest.Target, row: Row) -> bool:
        """Whether an earlier run has read this row."""
        return row.ts <= self.floor and (target.experiment_id, row.metric, row.variant) not in self.late


def window(source: Source, *, now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """(since, until) of a run: from what was read, or from where it is to be read again, less the overlap; at first, all that may be stored."""
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    if source.read_to is None:
        return oldest, now
    overlap = dt.timedelta(seconds=source.overlap_s)
    since = source.read_to - overlap
    if source.again_from is not None:  # a row of that very time is read
        since = min(since, source.again_from - max(overlap, dt.timedelta.resolution))
    return max(since, oldest), now


_LATE = """
SELECT f.experiment_id, f.metric, f.variant,
       CASE WHEN f.is_new OR f.newest IS NOT NULL THEN f.reached ELSE greatest(f.reached, %(waited_for)s) END
FROM (
  SELECT e.id AS experiment_id, m.key AS metric, v.key AS variant, r.ts AS newest, coalesce(r.ts, e.started_at, e.created_at) AS reached,
         e.created_at > coalesce(
           (SELECT max(l.started_at) FROM metadata.refresh_log l
            WHERE l.team_id = %(team)s AND l.source = %(source)s AND l.heartbeat_at IS NOT NULL AND l.status IN ('succeeded', 'partial')),
           '-infinity') AS is_new
  FROM metadata.experiments e
  JOIN metadata.target_kpis k ON k.experiment_id = e.id
  JOIN metadata.metrics m ON m.id = k.metric_id AND m.key = ANY (%(metrics)s)
  JOIN metadata.variants v ON v.experiment_id = e.id AND v.dropped_at IS NULL
  LEFT JOIN LATERAL (SELECT ts FROM metrics.experiment_kpis
    WHERE experiment_id = e.id AND metric = m.key AND variant = v.key ORDER BY ts DESC LIMIT 1) AS r ON true
  WHERE e.team_id = %(team)s AND e.ended_at IS NULL) AS f
WHERE f.reached < %(floor)s + make_interval(secs => %(overlap_s)s) AND (f.reached >= %(waited_for)s OR f.is_new OR f.newest IS NULL)
"""


def reading(source: Source, *, now: dt.datetime) -> Reading:
    """What a run is to read: its window, and further back what series have missed that are behind the others.

    A series counts as behind for LATE, one that has never come for as long as its experiment runs, over the last LATE; and at the first
    run after its experiment was made from that experiment's start on.
    """
    floor, until = window(source, now=now)
    if source.read_to is None:
        return Reading(floor, until, floor, frozenset())
    overlap = dt.timedelta(seconds=source.overlap_s)
    with connection.cursor() as cursor:
        cursor.execute(
            _LATE,
            {"metrics": source.metrics, "team": source.team_id, "source": source.key, "floor": floor, "overlap_s": source.overlap_s,
             "waited_for": source.read_to - max(LATE, overlap)},
        )  # fmt: skip
        behind = cursor.fetchall()
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    since = min([floor, *(max(reached - overlap, oldest) for *_, reached in behind)])
    return Reading(since, until, floor, frozenset((pk, metric, variant) for pk, metric, variant, _ in behind))


# Dry run ------------------------------------------------------------------------------------------------------------------


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
    """What a run would do with the first chunk: the counts it would report and the first rows as the query yields them.

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
    """Run the query and ingest its first chunk, then undo that. Raises SourceRefused, SourceFailed."""
    check(source)
    asked = reading(source, now=now)
    chunks = read(source, since=asked.since, until=asked.until, limit_s=min(PREVIEW_S, source.time_limit_s))
    chunk = next(chunks, [])
    if chunk and isinstance(chunk[0], Unread):  # what could not be read comes first, and rows after it
        chunk = [*chunk, *next(chunks, [])][:CHUNK]
    chunks.close()  # type: ignore[attr-defined]
    with transaction.atomic():
        stored = store(source, chunk, reading=asked, now=now)
        transaction.set_rollback(True)
    understood = [row for raw in chunk if (row := _understood(source, raw, known=True)[0]) is not None]
    return Preview(
        asked.since,
        asked.until,
        stored,
        tuple(_shown(raw) for raw in chunk[:SHOWN]),
        more=len(chunk) == CHUNK,
        summaries=tuple(_summaries(understood)),
        ignored_columns=tuple(
            sorted({name for raw in chunk if not isinstance(raw, Unread) for name in raw} - {*COLUMNS, "line"})
        ),
        warnings=tuple(_warnings(understood, now=now)),
    )


def _shown(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the columns of a file of which only the name was asked for."""
    return {name: value for name, value in raw.items() if value is not None or name in COLUMNS}


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
    if newest is not None and ingest.FUTURE < newest - now <= _FARTHEST_ZONE:
        yield f"Times look local: the newest, {newest:%Y-%m-%d %H:%MZ}, is {(newest - now) / dt.timedelta(hours=1):.1f} h ahead of now. Yield them in UTC."
    single = [row for row in rows if row.n == 1 and row.variance == 0]
    shares = [row for row in rows if row.n and row.n < 10**6 and row.variance and 0 < row.value < 1]
    populations = [row for row in shares if math.isclose(row.variance or 0, row.value * (1 - row.value), rel_tol=1e-12)]
    if single or len(populations) > len(shares) / 2:
        yield "Variances look like a population's: divide by n - 1, as VAR_SAMP does, and yield null for one unit."
