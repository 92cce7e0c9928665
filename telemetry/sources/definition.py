"""What a source may be: every fault of one as somebody describes it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from decisioning.refusals import Fault
from experiments.models import Metric
from telemetry.lineage import LONGEST_JOB, kept_name
from telemetry.models import Source, SourcePlace
from telemetry.sources import dialects, places, query
from telemetry.sources.refusals import SourceFailed, SourceRefused

LONGEST_S = 240
COLUMNS = (
    "experiment", "metric", "variant", "ts", "value", "n", "variance", "denominator_value", "denominator_variance",
    "covariance", "revision", "window_s",
)  # fmt: skip
_OWN_NAMES = re.compile(r"DATABASE|DECISIONING(?!_SOURCE)|REDIS|POSTGRES|PG|DJANGO|CELERY")


def check(source: Source) -> None:
    """Raises SourceRefused with every fault of a source as somebody describes it."""
    faults = list(_faults(source))
    if faults:
        raise SourceRefused.of(*faults)


def _faults(source: Source) -> Iterator[Fault]:
    yield from _place_faults(source)
    yield from query.faults(source.query)
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
    if source.lineage_job and "/" not in source.lineage_job:
        yield Fault("/lineage_job", "invalid", "lineage_job must be namespace/name.")
    elif source.lineage_job != kept_name(source.lineage_job):
        yield Fault(
            "/lineage_job",
            "invalid_text",
            f"lineage_job is longer than the {LONGEST_JOB:,} characters kept of a job's name.",
        )


def _place_faults(source: Source) -> Iterator[Fault]:
    if source.kind == Source.Kind.SQL:
        faults = list(_url_faults(source.url_env))
        yield from faults
        if not faults and not places.may_read(source, SourcePlace.Kind.VARIABLE, source.url_env):
            yield Fault(
                "/url_env",
                "not_bound",
                places.not_bound(source, f"The variable {source.url_env}", "--variable", source.url_env),
            )
        if source.path:
            yield Fault("/path", "invalid", "A database has no path.")
    elif source.kind == Source.Kind.FILE:
        if source.url_env:
            yield Fault("/url_env", "invalid", "A file has no url_env.")
        try:
            file = places.file_of(source.path)
        except SourceFailed as failure:
            yield Fault("/path", "invalid", str(failure))
        else:
            place = str(file.relative_to(Path(settings.SOURCES_DIR).resolve()))
            own = any(file.is_relative_to(folder) for folder in places.folders(source))
            if not own and not places.may_read(source, SourcePlace.Kind.FOLDER, place):
                yield Fault(
                    "/path",
                    "not_bound",
                    places.not_bound(source, f"The file {source.path[:80]!r}", "--folder", "..."),
                )
    else:
        yield Fault("/kind", "invalid", f"kind is {source.kind!r}, must be sql or file.")


def _time_faults(source: Source) -> Iterator[Fault]:
    if source.time_format not in Source.TimeFormat.values:
        yield Fault("/time_format", "invalid", f"time_format is {source.time_format!r}, must be epoch_s or epoch_ms.")
    elif source.time_format and source.date_format:
        yield Fault("/date_format", "invalid", "Times that are numbers have no date_format. Name one of the two.")
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


def _url_faults(url_env: str) -> Iterator[Fault]:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", url_env):
        yield Fault("/url_env", "missing_field", "url_env must name an environment variable, such as WAREHOUSE_URL.")
    elif _OWN_NAMES.match(url_env):
        yield Fault("/url_env", "invalid", f"{url_env} is the portal's own. Use another, or DECISIONING_SOURCE_...")
    elif (url := os.environ.get(url_env, "")) and dialects.named(url) in dialects.IN_FILES:
        try:
            places.database_path(url.partition("://")[2].partition("/")[2].partition("?")[0])
        except SourceFailed as failure:
            yield Fault("/url_env", "invalid", f"{url_env}: {failure}")


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
