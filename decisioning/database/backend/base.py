"""What Django looks for in a backend."""

from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg import IsolationLevel

from decisioning.database.liveness import PRIMARY, REPLICA, GuardedConnection, ServerSilent

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
            return _CLASSES[self.server].connect(**conn_params)
        except ServerSilent:
            raise psycopg.OperationalError("the server does not answer") from None
        except psycopg.OperationalError:
            self.server.ask()
            raise


_NOT_FOR_PROBES = frozenset({"context", "cursor_factory", "prepare_threshold", "autocommit"})
