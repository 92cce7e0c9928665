"""Snowflake, by its own driver. It has no read-only session: give the login a role that may only SELECT. Not tried by us."""

from sqlalchemy import Connection

from telemetry.sources.dialects import Dialect


def _begin(connection: Connection, limit_s: float) -> None:
    connection.exec_driver_sql(
        f"ALTER SESSION SET TIMEZONE = 'UTC', STATEMENT_TIMEOUT_IN_SECONDS = {max(1, int(limit_s))}"
    )


DIALECT = Dialect(
    driver="snowflake",
    extra="snowflake",
    connecting=lambda _url, _limit_s: {"connect_args": {"login_timeout": 10}},
    begin=_begin,
)
