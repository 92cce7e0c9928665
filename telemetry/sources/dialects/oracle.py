"""Oracle, by python-oracledb, which needs no client of Oracle's. A table takes no AS. VARIANCE of one row is 0 there. Not tried by us."""

from typing import Any

from sqlalchemy import Connection

from telemetry.sources.dialects import Dialect


def _begin(connection: Connection, limit_s: float) -> None:
    raw: Any = connection.connection.dbapi_connection
    raw.call_timeout = max(1, int(limit_s * 1000))
    connection.exec_driver_sql("ALTER SESSION SET TIME_ZONE = 'UTC'")
    connection.commit()
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")  # has to be its transaction's first statement


DIALECT = Dialect(
    driver="oracle+oracledb",
    extra="oracle",
    connecting=lambda _url, _limit_s: {"connect_args": {"tcp_connect_timeout": 5}},
    begin=_begin,
    wrapped="SELECT * FROM ({query}\n) q",
)
