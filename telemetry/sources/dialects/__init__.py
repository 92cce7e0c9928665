"""The databases that a source may read, each by its name: its driver, how it is made read-only and put to UTC, how long it may take.

A module a database, imported when one is read: `DIALECT` says it all, except for DuckDB, which is no server and read by `telemetry.sources.files`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

KNOWN = (
    "bigquery", "clickhouse", "databricks", "duckdb", "mariadb", "mssql", "mysql", "oracle", "postgresql", "redshift", "snowflake",
    "sqlite", "trino",
)  # fmt: skip
IN_FILES = ("duckdb", "sqlite")
"""Those whose database is a file on this machine, which must lie below the folder of files."""
_OTHER_NAMES = {"postgres": "postgresql", "clickhousedb": "clickhouse"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one kind of database is read.

    driver: SQLAlchemy's name for it. extra: of ours, which brings the driver; empty where it comes with the portal. bound: :since and :until as the
    database compares them. connecting: arguments of
    `create_engine`, by URL and seconds that a statement may take. begin: makes the session read-only, in UTC and limited in time, and raises
    SourceFailed for a login that may do more than read. wrapped: `{query}` as a table of its own. wraps_with: also one that begins with WITH.
    means_utc: it knows no times with a zone, and one without is in that of the session, which is UTC. connects_late: its driver connects by its first
    statement, so that what goes wrong then is of the connection.
    """

    driver: str
    extra: str = ""
    bound: Callable[[datetime], object] = lambda instant: instant
    connecting: Callable[["URL", float], dict[str, Any]] = lambda _url, _limit_s: {}
    begin: Callable[["Connection", float], None] = lambda _connection, _limit_s: None
    wrapped: str = "SELECT * FROM ({query}\n) AS q"
    wraps_with: bool = True
    means_utc: bool = False
    connects_late: bool = False


def named(url: str) -> str:
    """The kind of database that a URL names, whatever its driver and case.

    >>> named("MariaDB+pymysql://host/db"), named("postgres://host/db"), named("no url")
    ('mariadb', 'postgresql', 'no url')
    """
    name = url.strip().partition(":")[0].partition("+")[0].lower()
    return _OTHER_NAMES.get(name, name)


def of(name: str) -> Dialect:
    """The dialect with a name that is KNOWN and not DuckDB's."""
    found: Dialect = import_module(f"{__name__}.{name}").DIALECT
    return found
