"""Databricks SQL, by its own driver. It has no read-only session: give the token's owner SELECT alone. Not tried by us."""

from typing import Any

from sqlalchemy import URL, Connection

from telemetry.sources.dialects import Dialect


def _connecting(_url: URL, limit_s: float) -> dict[str, Any]:
    """By itself it goes on trying for a quarter of an hour."""
    patience = {"_retry_stop_after_attempts_count": 3, "_retry_stop_after_attempts_duration": 10.0}
    return {"connect_args": patience | {"_socket_timeout": int(limit_s) + 5}}


def _begin(connection: Connection, limit_s: float) -> None:
    connection.exec_driver_sql("SET TIME ZONE 'UTC'")
    connection.exec_driver_sql(f"SET STATEMENT_TIMEOUT = {max(1, int(limit_s))}")


DIALECT = Dialect(driver="databricks", extra="databricks", connecting=_connecting, begin=_begin)
