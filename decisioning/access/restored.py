"""A database that was restored from a backup is a copy: it tells nobody and takes no key made before, until a person says that it is live.

The one it was copied from may still run: both would tell the same receivers, and programs would write to whichever they reach.
"""

from datetime import datetime
from typing import Any

import psycopg
from django.db import connection

MADE = """
CREATE TABLE IF NOT EXISTS access.restored (at timestamptz PRIMARY KEY, one boolean NOT NULL DEFAULT true UNIQUE CHECK (one));
"""
"""The mark, which `restore` also sets in a database from before there was one."""


def since() -> datetime | None:
    """When this database was restored; None for one that is live."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT at FROM access.restored")
        row = cursor.fetchone()
    return row[0] if row else None


def mark(db: "psycopg.Connection[Any]") -> None:
    """Make a copy of it, as a superuser or the owner, in the caller's transaction."""
    db.execute("SET LOCAL ROLE decisioning_owner")
    db.execute("SELECT access.bind('job', NULL, 'restore', '{}', false, '')")
    db.execute(MADE)
    db.execute(
        "INSERT INTO access.restored (at) VALUES (clock_timestamp()) ON CONFLICT (one) DO UPDATE SET at = excluded.at"
    )


def go_live(db: "psycopg.Connection[Any]") -> bool:
    """From now on it tells receivers and takes keys made before. False when it is live already."""
    if db.execute("SELECT to_regclass('access.restored')").fetchone() == (None,):
        return False  # from before there was a mark
    db.execute("SELECT access.bind('job', NULL, 'restore --live', '{}', false, '')")
    return bool(db.execute("DELETE FROM access.restored").rowcount)
