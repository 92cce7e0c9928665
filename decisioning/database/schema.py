"""Which migrations a database has, and that code from before them leaves it alone.

A process that runs goes on beside the schema of the next version (docs/operations.md); one that starts is refused. What it would
write in the belief that a column means what it meant nobody could undo.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

APPS = {
    "access": "decisioning.access",
    "ledger": "decisioning.ledger",
    "experiments": "experiments",
    "telemetry": "telemetry",
    "gates": "gates",
}
"""Our apps that have migrations, by label."""


class NewerDatabase(psycopg.OperationalError):
    """The database has been migrated by a later version. The message names the first migration that is not known here."""


class Refusal:
    """Looks once a process, on its first connection; again until the database is one that it knows."""

    def __init__(self) -> None:
        self._known_good = False

    def check(self, connection: "psycopg.Connection[Any]") -> None:
        """Raises NewerDatabase, with the connection closed."""
        if self._known_good:
            return
        readable = "SELECT has_table_privilege(to_regclass('public.django_migrations'), 'SELECT')"
        if connection.execute(readable).fetchone() == (True,):
            applied = connection.execute(
                "SELECT app, name FROM django_migrations WHERE app = ANY (%s) ORDER BY id", [list(APPS)]
            )
            unknown = [f"{app}.{name}" for app, name in applied.fetchall() if name not in _names(app)]
            if unknown:
                connection.close()
                raise NewerDatabase(
                    f"The database is newer than this code, which does not know {unknown[0]}. Start the version that it was upgraded "
                    "to, or restore the backup from before the upgrade."
                )
            self._known_good = True
        connection.rollback()


REFUSAL = Refusal()


def _names(app: str) -> frozenset[str]:
    """The migrations that this code has."""
    spec = find_spec(APPS[app])
    folder = Path(spec.origin or "").parent if spec else Path()
    return frozenset(file.stem for file in (folder / "migrations").glob("[0-9]*.py"))
