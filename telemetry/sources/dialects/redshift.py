"""Amazon Redshift, by PostgreSQL's protocol and driver; it takes no options while connecting. Not tried by us."""

from sqlalchemy import Connection

from telemetry.sources.dialects import Dialect


def _begin(connection: Connection, limit_s: float) -> None:
    connection.exec_driver_sql(f"SET statement_timeout TO {max(1, int(limit_s * 1000))}")
    connection.exec_driver_sql("SET timezone TO 'UTC'")
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


DIALECT = Dialect(
    driver="postgresql+psycopg",
    connecting=lambda _url, _limit_s: {"connect_args": {"connect_timeout": 5}},
    begin=_begin,
)
