"""SQLite: a file below the folder of files, opened read-only by its own means; a query can do nothing but read it. Tried by us."""

import sqlite3
import time
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection

from telemetry.sources.dialects import Dialect
from telemetry.sources.places import database_file

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def _connecting(url: URL, _limit_s: float) -> dict[str, Any]:
    """The file is named here: what else the URL says (other names of files, modes, extensions) is not looked at."""
    place = f"file:{quote(str(database_file(url.database or '')))}?mode=ro"
    return {"creator": lambda: sqlite3.connect(place, uri=True, timeout=5, check_same_thread=False)}


def _begin(connection: Connection, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    raw: Any = connection.connection.dbapi_connection
    raw.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    raw.set_authorizer(lambda action, _a, function, _c, _d: int(action not in _READS or function == "load_extension"))


# Times are texts here, which compare with datetime(ts): a T in the place of the blank would be later than any time of its day.
DIALECT = Dialect(
    driver="sqlite+pysqlite", bound=lambda instant: f"{instant:%Y-%m-%d %H:%M:%S}", connecting=_connecting, begin=_begin
)
