"""SQL Server, by pymssql. It takes no WITH inside of a table and has no read-only session: give the login db_datareader alone.

Not tried by us.
"""

from typing import Any

from sqlalchemy import URL, Connection

from telemetry.sources.dialects import Dialect


def _connecting(_url: URL, limit_s: float) -> dict[str, Any]:
    return {"connect_args": {"login_timeout": 5, "timeout": max(1, int(limit_s))}}


def _begin(connection: Connection, _limit_s: float) -> None:
    connection.exec_driver_sql("SET LOCK_TIMEOUT 5000")


DIALECT = Dialect(driver="mssql+pymssql", extra="mssql", connecting=_connecting, begin=_begin, wraps_with=False)
