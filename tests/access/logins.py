"""Connections of our own, logged in as any role: what psql would see. Only committed rows are visible to them."""

from typing import Any

import psycopg
from django.conf import settings
from django.db import connection

Psql = psycopg.Connection[tuple[Any, ...]]


def dsn(role: str) -> str:
    """The test database's URL for web, worker, owner or superuser."""
    import os

    url = os.environ["DATABASE_SUPERUSER_URL"] if role == "superuser" else settings.ROLE_URLS[role]
    return f"{url.rpartition('/')[0]}/{connection.settings_dict['NAME']}"


def psql(role: str, **options: Any) -> Psql:
    """A connection that commits every statement, logged in as this role; use it as a context manager."""
    return psycopg.connect(dsn(role), **{"autocommit": True, "connect_timeout": 5, **options})


def bound(db: Psql, *, teams: list[int], admin: bool = False, name: str = "tester") -> None:
    """Bind the open transaction as the middleware would."""
    db.execute("SELECT access.bind('user', 1, %s, %s, %s, 'req-1')", (name, teams, admin))
