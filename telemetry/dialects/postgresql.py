"""PostgreSQL, by the driver that the portal itself has. Tried by us."""

from typing import Any

from sqlalchemy import URL, Connection

from telemetry.dialects import Dialect
from telemetry.sources import SourceFailed

_STRONG = """
SELECT string_agg(what, ', ') FROM (
  SELECT 'superuser' AS what FROM pg_roles WHERE rolname = current_user AND rolsuper
  UNION ALL
  SELECT rolname FROM pg_roles WHERE rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
    AND pg_has_role(current_user, oid, 'MEMBER')) AS held
"""


def _connecting(_url: URL, limit_s: float) -> dict[str, Any]:
    asked = f"-c default_transaction_read_only=on -c statement_timeout={max(1, int(limit_s * 1000))} -c lock_timeout=5s"
    return {"connect_args": {"connect_timeout": 5, "options": f"{asked} -c timezone=UTC"}}


def _begin(connection: Connection, _limit_s: float) -> None:
    if held := connection.exec_driver_sql(_STRONG).scalar_one():
        kind = "a superuser" if held.startswith("superuser") else f"a member of {held}"
        raise SourceFailed(f"Its login is {kind}. Use one that may only read.")


DIALECT = Dialect(driver="postgresql+psycopg", connecting=_connecting, begin=_begin)
