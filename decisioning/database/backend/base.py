"""What Django looks for in a backend."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

import psycopg
from django.conf import settings
from django.db.backends.postgresql import base
from psycopg import IsolationLevel
from psycopg.pq import Format

from decisioning.database.liveness import PRIMARY, REPLICA, GuardedConnection, ServerSilent
from decisioning.database.schema import REFUSAL, NewerDatabase

_CLASSES = {server: GuardedConnection.of(server) for server in (PRIMARY, REPLICA)}


class DatabaseWrapper(base.DatabaseWrapper):
    """PostgreSQL as Django knows it; the alias `replica` is the replica, every other one the primary."""

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        self.server = REPLICA if alias == "replica" else PRIMARY

    def get_new_connection(self, conn_params: dict[str, Any]) -> psycopg.Connection[Any]:
        """Raises OperationalError at once while the server is known to be away."""
        self.isolation_level = IsolationLevel.READ_COMMITTED  # Django asks for it; no installation sets another
        self.server.parameters = {name: conn_params[name] for name in conn_params if name not in _NOT_FOR_PROBES}
        try:
            self.server.check()
            made = _CLASSES[self.server].connect(**self.server.first_the_last(conn_params))
            self.server.host = made.info.host
            made.add_notice_handler(made.hear)
            REFUSAL.check(made)
            made.adapters.register_loader("timestamptz", _in_range(made.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT)))
        except ServerSilent:
            raise psycopg.OperationalError("the server does not answer") from None
        except NewerDatabase:
            raise
        except psycopg.OperationalError as problem:
            if "unsupported startup parameter" in str(problem):
                said = "Here is a pooler. Set DECISIONING_POOL_MODE=transaction (docs/operations.md)."
                raise psycopg.OperationalError(said) from problem
            self.server.ask()
            raise
        return made

    def init_connection_state(self) -> None:
        """Raises OperationalError where a pooler's role has not the settings that a session of its own would be given."""
        super().init_connection_state()
        if settings.POOLED:
            with self.cursor() as cursor:
                cursor.execute(
                    "SELECT current_user, current_setting('search_path'), current_setting('statement_timeout')"
                )
                role, path, limit = cursor.fetchone()
            if "metadata" not in path or limit == "0":
                raise psycopg.OperationalError(
                    f"Through a pooler the settings of {role} hold, and it has none. Run docker/roles.sh, or "
                    "decisioning/roles.sql as a superuser, and connect anew."
                )


_TIMESTAMPTZ = 1184
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)


@cache
def _in_range(loader: type[Any]) -> type[Any]:
    """The same loader, to which no time is too far: PostgreSQL has years that Python has not, and `infinity`, which ends a whole query."""

    class InRange(loader):  # type: ignore[misc]
        def load(self, data: Any) -> datetime:
            try:
                return super().load(data)  # type: ignore[no-any-return]
            except (psycopg.DataError, OverflowError):
                said = bytes(data)
                return EARLIEST if said.startswith(b"-") or said.endswith(b"BC") else LATEST

    return InRange


_NOT_FOR_PROBES = frozenset({"context", "cursor_factory", "prepare_threshold", "autocommit"})
