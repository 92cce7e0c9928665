"""What a source may be: every fault of one as somebody describes it."""

import os
import re
import zoneinfo
from collections.abc import Iterator

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from decisioning.access.quotas import refuse_one_more
from decisioning.refusals import Fault
from experiments.models import Metric
from telemetry.columns import COLUMNS
from telemetry.lineage import LONGEST_JOB, kept_name, names_in
from telemetry.models import Source, SourcePlace
from telemetry.sources import dialects, folders, places, query
from telemetry.sources.refusals import SourceFailed, SourceRefused

LONGEST_S = 240
_OWN_NAMES = re.compile(r"DATABASE|DECISIONING(?!_SOURCE)|REDIS|POSTGRES|PG|DJANGO|CELERY")


def check(source: Source) -> None:
    """Raises SourceRefused with every fault of a source as somebody describes it."""
    faults = list(_faults(source))
    if faults:
        raise SourceRefused.of(*faults)


def check_new(source: Source) -> None:
    """As `check`, and that its columns hold what it says. Raises SourceRefused."""
    check(source)
    try:
        source.clean_fields(exclude=["metrics"])
    except ValidationError as refusal:
        told = refusal.message_dict.items()
        raise SourceRefused.of(*(Fault(f"/{name}", "invalid", texts[0]) for name, texts in told)) from refusal


def create(source: Source) -> None:
    """Keep a new source. Raises SourceRefused: 422 `invalid`, 409 `key_taken`; QuotaExceeded."""
    check_new(source)
    refuse_one_more(source.team, "sources", has=Source.objects.filter(team=source.team).count())
    try:
        with transaction.atomic():
            source.save(force_insert=True)
    except IntegrityError as error:
        detail = f"There is a source {source.key!r} already. Choose another key."
        raise SourceRefused.of(Fault("/key", "key_taken", detail), code="key_taken", status=409) from error


def _faults(source: Source) -> Iterator[Fault]:
    yield from _place_faults(source)
    for name, least, most in (
        ("schedule_s", 30, 31 * 86_400),
        ("overlap_s", 0, 31 * 86_400),
        ("time_limit_s", 1, LONGEST_S),
    ):
        value = getattr(source, name)
        if not least <= value <= most:
            yield Fault(f"/{name}", "invalid_number", f"{name} is {value}, must be {least} to {most} seconds.")
    if not source.metrics:
        yield Fault("/metrics", "missing_field", "metrics must name what this source feeds.")
    known = set(Metric.objects.filter(key__in=source.metrics).values_list("key", flat=True))
    for index, key in enumerate(source.metrics):
        if key not in known:
            yield Fault(f"/metrics/{index}", "unknown_metric", f"No metric {key!r:.80} is registered.")
    yield from _time_faults(source)
    yield from _option_faults(source)
    if not all("/" in name.strip("*") for name in names_in(source.lineage_job)):
        yield Fault(
            "/lineage_job",
            "invalid",
            "lineage_job must be namespace/name, or several with commas between them; * stands for anything.",
        )
    elif source.lineage_job != kept_name(source.lineage_job):
        yield Fault(
            "/lineage_job",
            "invalid_text",
            f"lineage_job is longer than the {LONGEST_JOB:,} characters kept of a job's name.",
        )


def _place_faults(source: Source) -> Iterator[Fault]:
    if source.kind not in Source.Kind.values:
        yield Fault("/kind", "invalid", f"kind is {source.kind!r}, must be {', '.join(Source.Kind.values)}.")
    elif source.kind == Source.Kind.FILE:
        yield from _file_faults(source)
    else:
        yield from _variable_faults(source, "url_env", such_as="WAREHOUSE_URL")
        if source.path and source.kind != Source.Kind.HTTP:
            yield Fault("/path", "invalid", "A database has no path, and no Prometheus.")
    if source.kind in CALLED:
        if source.token_env:
            yield from _variable_faults(source, "token_env", such_as="METRICS_TOKEN")
    elif source.token_env:
        yield Fault("/token_env", "invalid", "Only what is called over HTTP has a token.")
    yield from _kind_faults(source)


CALLED = (Source.Kind.HTTP, Source.Kind.PROMETHEUS)
"""Kinds that are called over HTTP."""


def _variable_faults(source: Source, name: str, *, such_as: str) -> Iterator[Fault]:
    """Of a field that names an environment variable, which has to be bound to the source's team."""
    variable: str = getattr(source, name)
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", variable):
        yield Fault(f"/{name}", "missing_field", f"{name} must name an environment variable, such as {such_as}.")
    elif _OWN_NAMES.match(variable):
        yield Fault(f"/{name}", "invalid", f"{variable} is the portal's own. Use another, or DECISIONING_SOURCE_...")
    elif name == "url_env" and source.kind == Source.Kind.SQL and (problem := _database_problem(variable)):
        yield Fault(f"/{name}", "invalid", problem)
    elif not places.may_read(source, SourcePlace.Kind.VARIABLE, variable):
        yield Fault(
            f"/{name}", "not_bound", places.not_bound(source, f"The variable {variable}", "--variable", variable)
        )


def _database_problem(variable: str) -> str:
    url = os.environ.get(variable, "")
    if dialects.named(url) in dialects.IN_FILES:
        try:
            places.database_path(url.partition("://")[2].partition("/")[2].partition("?")[0])
        except SourceFailed as failure:
            return f"{variable}: {failure}"
    return ""


def _file_faults(source: Source) -> Iterator[Fault]:
    if source.url_env:
        yield Fault("/url_env", "invalid", "A file has no url_env.")
    try:
        if folders.is_many(source):
            refused = folders.problem(source)
        else:
            refused = places.refused_path(source, places.file_of(source.path))
    except SourceFailed as failure:
        yield Fault("/path", "invalid", str(failure))
    else:
        if refused:
            yield Fault("/path", "not_bound" if "bind_source" in refused else "invalid", refused)


_LONGEST_STEP_S = 86_400


def _kind_faults(source: Source) -> Iterator[Fault]:
    """What only one kind of source has."""
    match source.kind:
        case Source.Kind.HTTP:
            if source.query:
                yield Fault(
                    "/query",
                    "invalid",
                    "An address has no query: its rows are filtered by {since} and {until} in its path.",
                )
            if source.rows_pointer and not source.rows_pointer.startswith("/"):
                yield Fault("/rows_pointer", "invalid", "rows_pointer must be a JSON pointer, such as /data/rows.")
        case Source.Kind.PROMETHEUS:
            if not source.query.strip():
                yield Fault("/query", "missing_field", "query must be an expression of PromQL.")
            if not 1 <= source.step_s <= _LONGEST_STEP_S:
                yield Fault(
                    "/step_s",
                    "invalid_number",
                    f"step_s is {source.step_s}, must be 1 to {_LONGEST_STEP_S} seconds.",
                )
        case _:
            yield from query.faults(source.query)
    if source.rows_pointer and source.kind != Source.Kind.HTTP:
        yield Fault("/rows_pointer", "invalid", "Only an address has a rows_pointer.")


def _time_faults(source: Source) -> Iterator[Fault]:
    if source.time_format not in Source.TimeFormat.values:
        yield Fault("/time_format", "invalid", f"time_format is {source.time_format!r}, must be epoch_s or epoch_ms.")
    elif source.time_format and source.date_format:
        yield Fault("/date_format", "invalid", "Times that are numbers have no date_format. Name one of the two.")
    if source.time_zone:
        if source.kind in (Source.Kind.SQL, Source.Kind.PROMETHEUS):
            yield Fault(
                "/time_zone",
                "invalid",
                "Only files and addresses have one; a query says it itself, such as ts AT TIME ZONE 'Europe/Berlin'.",
            )
        elif source.time_zone not in zoneinfo.available_timezones():
            yield Fault(
                "/time_zone",
                "invalid",
                f"time_zone is {source.time_zone!r}, must be a name such as UTC or Europe/Berlin.",
            )
    elif source.date_format and "%z" not in source.date_format and not _format_problem(source.date_format):
        yield Fault(
            "/time_zone",
            "missing_field",
            "Times of this date_format have no offset. Say in time_zone where they are meant, such as UTC.",
        )
    if source.date_format and (problem := _format_problem(source.date_format)):
        yield Fault("/date_format", "invalid", f"date_format {source.date_format!r} {problem}.")


_DELIMITERS = ",;|\t"


def _option_faults(source: Source) -> Iterator[Fault]:
    if source.encoding not in Source.Encoding.values:
        yield Fault(
            "/encoding",
            "invalid",
            f"encoding is {source.encoding!r}, must be latin-1 or utf-16; without one it is UTF-8.",
        )
    if source.delimiter and source.delimiter not in _DELIMITERS:
        yield Fault("/delimiter", "invalid", f"delimiter is {source.delimiter!r}, must be one of , ; | and tab.")
    if source.delimiter == "," and source.decimal_comma:
        yield Fault("/delimiter", "invalid", "A comma cannot stand between cells and in numbers too.")
    names = source.columns if isinstance(source.columns, dict) else {"": ""}
    for own in names.values():
        if own not in COLUMNS:
            yield Fault("/columns", "invalid", f"columns names {own!r:.80}, which is none of {', '.join(COLUMNS)}.")
    if len({*names.values()}) < len(names):
        yield Fault("/columns", "invalid", "columns gives two columns the same name.")


def own_name(source: Source, name: str) -> str:
    """What a column is called here: ours in lower case, whatever its case there."""
    plain = name.strip()
    named = {theirs.lower(): own for theirs, own in source.columns.items()}
    own = named.get(plain.lower(), plain.lower())
    return str(own) if own in COLUMNS else plain


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
