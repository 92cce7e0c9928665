"""PostgreSQL, by the driver that the portal itself has. Tried by us."""

from typing import Any

from django.db import connection as own
from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from telemetry.sources.dialects import Dialect
from telemetry.sources.refusals import SourceFailed

_STRONG = """
SELECT string_agg(what, ', ') FROM (
  SELECT 'superuser' AS what FROM pg_roles WHERE rolname = current_user AND rolsuper
  UNION ALL
  SELECT rolname FROM pg_roles WHERE rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
    AND pg_has_role(current_user, oid, 'MEMBER')) AS held
"""


def _connecting(_url: URL, _limit_s: float) -> dict[str, Any]:
    """Nothing is asked for while connecting and nothing prepared: a pooler refuses the one and mixes up the other."""
    return {"connect_args": {"connect_timeout": 5, "prepare_threshold": None}}


def _begin(connection: Connection, limit_s: float) -> None:
    """Of its one transaction, which is read-only from its first word."""
    limit_ms = max(1, int(limit_s * 1000))
    settings = {"statement_timeout": str(limit_ms), "lock_timeout": "5s", "timezone": "UTC"}
    asked = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
    connection.exec_driver_sql(f"SELECT {asked}").one()
    if held := connection.exec_driver_sql(_STRONG).scalar_one():
        kind = "a superuser" if held.startswith("superuser") else f"a member of {held}"
        raise SourceFailed(f"Its login is {kind}. Use one that may only read.")
    _refuse_ourselves(connection)


_HERE = """
SELECT s.system_identifier::text, current_database()::text, bool_or(pg_has_role(session_user, r.oid, 'MEMBER'))
FROM pg_control_system() AS s LEFT JOIN pg_roles AS r ON r.rolname = ANY (
  '{decisioning_owner,decisioning_web,decisioning_worker,decisioning_backup,decisioning_reader}'::text[]) GROUP BY 1, 2
"""


def _refuse_ourselves(source: Connection) -> None:
    """The portal's own database and roles are no source, by whatever name, address, socket or service the URL leads there.

    A server is known by the number that initdb gave it, which its replicas have as well. Raises SourceFailed.
    """
    try:
        server, database, ours = source.exec_driver_sql(_HERE).one()
    except SQLAlchemyError as failure:
        raise SourceFailed(f"It cannot be told from the portal's own database: {failure}") from None
    with own.cursor() as cursor:
        cursor.execute(_HERE)
        own_server, own_database, _ = cursor.fetchone() or ("", "", None)
    if server == own_server and (database == own_database or ours):
        raise SourceFailed("It is the portal's own database, or a login of the portal's. Neither is a source.")


DIALECT = Dialect(driver="postgresql+psycopg", connecting=_connecting, begin=_begin)
