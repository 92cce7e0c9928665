"""Where sources are read: databases through SQLAlchemy, files (telemetry.files) through DuckDB. Nothing here can write to where it reads.

Both cost half a second and tens of megabytes to load, so only a process that reads a source imports this.
"""

import datetime as dt
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import duckdb
import sqlalchemy
from django.db import connection as own
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from telemetry import files
from telemetry.models import Source
from telemetry.sources import CHUNK, SourceFailed


def read(source: Source, *, since: dt.datetime, until: dt.datetime, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of what the query yields between since and until, as column -> value. Raises SourceFailed."""
    deadline = time.monotonic() + limit_s
    chunks = files.read if source.kind == Source.Kind.FILE else _from_database
    try:
        for chunk in chunks(source, {"since": since, "until": until}, limit_s):
            if time.monotonic() > deadline:
                raise SourceFailed(f"It took longer than {limit_s:g} s.")
            yield chunk
    except (SQLAlchemyError, duckdb.Error, sqlite3.Error, OSError) as failure:
        raise SourceFailed(_without_secrets(failure, source)) from None


def _one(query: str) -> str:
    """The query without the semicolon that may end it."""
    return query.strip().removesuffix(";")


def _from_database(source: Source, bounds: Mapping[str, dt.datetime], limit_s: float) -> Iterator[list[dict[str, Any]]]:
    url = _url(source)
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, **_connecting(url, limit_s))
    options: dict[str, Any] = {"stream_results": True, "yield_per": CHUNK}
    if url.get_backend_name() == "postgresql":
        options["postgresql_readonly"] = True
    with engine.connect().execution_options(**options) as connection:
        try:
            _guard(connection, url, limit_s)
            query = sqlalchemy.text(f"SELECT * FROM ({_one(source.query)}\n) AS q")  # noqa: S608 - one SELECT, read-only
            with closing(connection.execute(query, dict(bounds)).mappings()) as found:
                for chunk in found.partitions(CHUNK):
                    yield [dict(row) for row in chunk]
        finally:
            connection.rollback()


def _url(source: Source) -> sqlalchemy.URL:
    text = os.environ.get(source.url_env, "")
    if not text:
        raise SourceFailed(f"The environment variable {source.url_env} is not set where this runs.")
    try:
        url = sqlalchemy.make_url(text)
    except (SQLAlchemyError, ValueError):
        raise SourceFailed(f"The environment variable {source.url_env} holds no database URL.") from None
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _connecting(url: sqlalchemy.URL, limit_s: float) -> dict[str, Any]:
    milliseconds = max(1, int(limit_s * 1000))
    match url.get_backend_name():
        case "postgresql":
            asked = f"-c default_transaction_read_only=on -c statement_timeout={milliseconds} -c lock_timeout=5s"
            return {"connect_args": {"connect_timeout": 5, "options": f"{asked} -c timezone=UTC"}}
        case "sqlite":
            return {"connect_args": {"timeout": 5}}
        case _:
            return {}


def _guard(connection: sqlalchemy.Connection, url: sqlalchemy.URL, limit_s: float) -> None:
    """Read-only by every means the database has. A database with none is still asked one SELECT only, and rolled back."""
    match url.get_backend_name():
        case "postgresql":
            strong = connection.exec_driver_sql(
                "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
            ).scalar_one()
            if strong:
                raise SourceFailed("Its login is a superuser. Use one that may only read.")
            _refuse_ourselves(connection)
        case "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
            deadline = time.monotonic() + limit_s
            raw: Any = connection.connection.dbapi_connection
            raw.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
        case "mysql" | "mariadb":
            connection.exec_driver_sql(f"SET SESSION max_execution_time = {int(limit_s * 1000)}")
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")


_HERE = """
SELECT s.system_identifier::text, current_database()::text, bool_or(pg_has_role(session_user, r.oid, 'MEMBER'))
FROM pg_control_system() AS s LEFT JOIN pg_roles AS r ON r.rolname = ANY (
  '{decisioning_owner,decisioning_web,decisioning_worker,decisioning_backup,decisioning_reader}'::text[]) GROUP BY 1, 2
"""


def _refuse_ourselves(source: sqlalchemy.Connection) -> None:
    """The portal's own database and roles are no source, by whatever name, address, socket or service the URL leads there.

    A server is known by the number that initdb gave it, which its replicas have as well. Raises SourceFailed.
    """
    try:
        server, database, ours = source.exec_driver_sql(_HERE).one()
    except SQLAlchemyError as failure:
        raise SourceFailed(f"It cannot be told from the portal's own database: {failure}") from None
    with own.cursor() as cursor:
        cursor.execute(_HERE)
        own_server, own_database, _ = cursor.fetchone() or ("", "", None)
    if server == own_server and (database == own_database or ours):
        raise SourceFailed("It is the portal's own database, or a login of the portal's. Neither is a source.")


def _without_secrets(failure: BaseException, source: Source) -> str:
    cause = getattr(failure, "orig", None) or failure
    text = f"{type(cause).__name__}: {cause}".strip().replace("\x00", "")
    secret = os.environ.get(source.url_env, "") if source.url_env else ""
    parts = [secret]
    if secret:
        try:
            parts.append(str(sqlalchemy.make_url(secret).password or ""))
        except (SQLAlchemyError, ValueError):
            parts += re.findall(r":([^:/@]+)@", secret)
    for part in filter(None, parts):
        text = text.replace(part, "***")
    return text[:2_000]
