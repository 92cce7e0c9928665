"""Where sources are read: databases through SQLAlchemy, files (telemetry.sources.files) through DuckDB, what is called over HTTP by
telemetry.sources.calls. Nothing here can write to where it reads.

The engines cost half a second and tens of megabytes to load, so only a process that reads a source imports this.
"""

import datetime as dt
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import duckdb
import sqlalchemy
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from telemetry.models import Source
from telemetry.sources import calls, dialects, files
from telemetry.sources.definition import own_name
from telemetry.sources.query import code_of, with_parameters
from telemetry.sources.refusals import SourceFailed
from telemetry.sources.rows import CHUNK, PER_SECOND


def read(source: Source, *, since: dt.datetime, until: dt.datetime, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of what the query yields between since and until, as column -> value. Raises SourceFailed."""
    deadline = time.monotonic() + limit_s
    try:
        for chunk in _READERS[source.kind](source, {"since": since, "until": until}, limit_s):
            if time.monotonic() > deadline:
                raise SourceFailed(f"It took longer than {limit_s:g} s.")
            yield chunk
    except (SQLAlchemyError, duckdb.Error, sqlite3.Error, OSError) as failure:
        raise SourceFailed(_said_of_query(failure, source)) from None


def _from_database(source: Source, bounds: Mapping[str, dt.datetime], limit_s: float) -> Iterator[list[dict[str, Any]]]:
    name, url = _url(source)
    if name == "duckdb":
        yield from files.read_database(source, url.database or "", _bound(source, bounds), limit_s)
        return
    dialect = dialects.of(name)
    with _connected(source, dialect, url, limit_s) as connection:
        query = sqlalchemy.text(wrapped(dialect, source.query))
        bound = _bound(source, bounds, dialect.bound)
        with closing(connection.execute(query, bound).mappings()) as found:
            for chunk in found.partitions(CHUNK):
                yield [
                    {own_name(source, str(name)): _in_zone(value, dialect) for name, value in row.items()}
                    for row in chunk
                ]


_READERS: dict[str, Callable[[Source, Mapping[str, dt.datetime], float], Iterator[list[dict[str, Any]]]]] = {
    Source.Kind.SQL: _from_database,
    Source.Kind.FILE: files.read,
    Source.Kind.HTTP: calls.read,
    Source.Kind.PROMETHEUS: calls.read_prometheus,
}


def _in_zone(value: object, dialect: dialects.Dialect) -> object:
    naive = dialect.means_utc and isinstance(value, dt.datetime) and value.tzinfo is None
    return value.replace(tzinfo=dt.UTC) if naive else value  # type: ignore[attr-defined]


def _bound(
    source: Source, bounds: Mapping[str, dt.datetime], own: Callable[[dt.datetime], object] = lambda instant: instant
) -> dict[str, object]:
    """:since and :until as the source compares them."""
    if not source.time_format:
        return {name: own(instant) for name, instant in bounds.items()}
    return {name: int(instant.timestamp() * PER_SECOND[source.time_format]) for name, instant in bounds.items()}


def wrapped(dialect: dialects.Dialect, query: str) -> str:
    """The query as the database takes it: as a table of its own, so that it can be nothing but one SELECT. Raises SourceFailed."""
    asked = with_parameters(query.strip().removesuffix(";"), parameter=r":\1", colon=r"\:")
    if dialect.wraps_with or query.strip()[:4].lower() != "with":
        return dialect.wrapped.format(query=asked)
    if written := re.search(r"\b(insert|update|delete|merge|into|exec|execute)\b", code_of(query), re.IGNORECASE):
        raise SourceFailed(f"A query that begins with WITH may not have {written[0].upper()} here.")
    return asked


def _url(source: Source) -> tuple[str, sqlalchemy.URL]:
    """(name of the dialect, URL) in the source's environment variable."""
    text = os.environ.get(source.url_env, "").strip()
    if not text:
        raise SourceFailed(f"The environment variable {source.url_env} is not set where this runs.")
    name = dialects.named(text)
    if "://" in text and name not in dialects.KNOWN:
        raise SourceFailed(f"{source.url_env} names no database that can be read: {', '.join(dialects.KNOWN)}.")
    try:
        url = sqlalchemy.make_url(name + text[text.index("://") :])
        well_formed = (url.host or "").count("@") == 0 and (url.port or 1) > 0
    except (SQLAlchemyError, ValueError):
        well_formed = False
    if not well_formed:
        raise SourceFailed(
            f"The environment variable {source.url_env} holds no database URL. Write it as name://user:password@host/database, "
            "with : / @ ? # and % in a password as %3A %2F %40 %3F %23 %25."
        )
    return name, url


@contextmanager
def _connected(
    source: Source, dialect: dialects.Dialect, url: sqlalchemy.URL, limit_s: float
) -> Iterator[sqlalchemy.Connection]:
    """A session that may read, for so long. What a driver says while connecting may hold parts of the URL, so it is not handed on."""
    try:
        url = url.set(drivername=dialect.driver)
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, **dialect.connecting(url, limit_s))
        options: dict[str, Any] = {"stream_results": True, "yield_per": CHUNK}
        if url.get_backend_name() == "postgresql":
            options["postgresql_readonly"] = True
        connection = engine.connect().execution_options(**options)
        if dialect.connects_late:
            connection.exec_driver_sql("SELECT 1")
    except (ImportError, NoSuchModuleError):
        raise SourceFailed(
            f"The driver for {dialects.named(url.drivername)} is not installed here. Run: uv sync --locked --extra {dialect.extra} "
            f'(in a project of your own: uv add "decisioning[{dialect.extra}]").'
        ) from None
    except SourceFailed:
        raise
    except Exception as failure:  # each driver has exceptions of its own
        raise SourceFailed(f"{source.url_env}: {_said_of_connecting(failure)}") from None
    try:
        dialect.begin(connection, limit_s)
        yield connection
    finally:
        with suppress(SQLAlchemyError):
            connection.rollback()
        connection.close()


_NO_CONNECTION = (
    (r"default credentials",
     "There are no credentials. Set GOOGLE_APPLICATION_CREDENTIALS where the worker runs to the file of a service account."),
    (r"password|authenti|access denied|login failed|logon denied|role .* does not exist|unauthori[sz]ed|\b28P01\b|\b1045\b",
     "The login was refused. Check the user and the password in the URL."),
    (r"translate host|name or service|getaddrinfo|nodename|name resolution|unknown host|resolve",
     "The host is unknown here. Check the host in the URL."),
    (r"database .* does not exist|unknown database|no such database|cannot open database|\b3D000\b|\b1049\b",
     "There is no such database. Check the name at the end of the URL."),
    (r"ssl|tls|certificate", "The encrypted connection failed. Check what the server asks for, such as ?sslmode=require."),
    (r"refused|time.?d? ?out|unreachable|error during request to server|can't connect|no route|reset|closed", "Nothing answers at the host and port of the URL."),
)  # fmt: skip


def _said_of_connecting(failure: BaseException) -> str:
    text = str(getattr(failure, "orig", None) or failure)
    for pattern, said in _NO_CONNECTION:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return said
    return f"No connection ({type(failure).__name__}). Try the URL with the database's own client."


_POINTING = re.compile(r"\n+LINE \d+: [^\n]*(\n *\^+)?")
"""Lines by which a database points into the statement, which is not the query as it was written."""


def _said_of_query(failure: BaseException, source: Source) -> str:
    """What the database says of the query, and what to do. It has not seen the URL, of which only the whole is looked for."""
    cause = getattr(failure, "orig", None) or failure
    text = " ".join(_POINTING.sub("\n", str(cause).replace("\x00", "")).split())
    if url := os.environ.get(source.url_env or "-", ""):
        text = text.replace(url, "***")
    told = f"{type(cause).__name__}: {text}"
    if getattr(cause, "sqlstate", "") == "42501" or re.search(
        r"permission denied|command denied|insufficient priv", text, re.IGNORECASE
    ):
        told = f"The login may not read what the query asks for: grant it SELECT. {told}"
    return told[:2_000]
