"""Databricks SQL, by its own driver. It has no read-only session: give the token's owner SELECT alone. Not tried by us."""

from sqlalchemy import Connection

from telemetry.sources.dialects import Dialect


def _begin(connection: Connection, limit_s: float) -> None:
    connection.exec_driver_sql("SET TIME ZONE 'UTC'")
    connection.exec_driver_sql(f"SET STATEMENT_TIMEOUT = {max(1, int(limit_s))}")


DIALECT = Dialect(driver="databricks", extra="databricks", begin=_begin)
