"""ClickHouse, by clickhouse-connect. An aggregate of no rows is nan there, which is null here. Not tried by us."""

from sqlalchemy import Connection

from telemetry.sources.dialects import Dialect


def _begin(connection: Connection, limit_s: float) -> None:
    connection.exec_driver_sql(f"SET session_timezone = 'UTC', max_execution_time = {limit_s:g}")
    connection.exec_driver_sql("SET readonly = 1")  # after it nothing can be set


DIALECT = Dialect(driver="clickhousedb+connect", extra="clickhouse", begin=_begin, means_utc=True)
