"""What Django looks for in a backend."""

from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg import IsolationLevel

from decisioning.database.liveness import PRIMARY, REPLICA, Silent, Watched

_CLASSES = {pulse: Watched.of(pulse) for pulse in (PRIMARY, REPLICA)}


class DatabaseWrapper(base.DatabaseWrapper):
    """PostgreSQL as Django knows it; the alias `replica` is the replica, every other one the primary."""

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        self.pulse = REPLICA if alias == "replica" else PRIMARY

    def get_new_connection(self, conn_params: dict[str, Any]) -> psycopg.Connection[Any]:
        """Raises OperationalError at once while the server is known to be away."""
        self.isolation_level = IsolationLevel.READ_COMMITTED  # Django asks for it; no installation sets another
        self.pulse.parameters = {name: conn_params[name] for name in conn_params if name not in _NOT_FOR_PROBES}
        try:
            self.pulse.check()
            return _CLASSES[self.pulse].connect(**conn_params)
        except Silent:
            raise psycopg.OperationalError("the server does not answer") from None
        except psycopg.OperationalError as problem:
            if "unsupported startup parameter" in str(problem):
                raise psycopg.OperationalError(
                    "Here is a pooler. Write ?pool_mode=transaction at the end of its URL (docs/operations.md)."
                ) from problem
            self.pulse.ask()
            raise

    def init_connection_state(self) -> None:
        """Raises OperationalError where a pooler's role has not the settings that a session of its own would be given."""
        super().init_connection_state()
        if self.settings_dict.get("POOLED"):
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


_NOT_FOR_PROBES = frozenset({"context", "cursor_factory", "prepare_threshold", "autocommit"})
