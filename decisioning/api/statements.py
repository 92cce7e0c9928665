"""Statements that are planned once a connection: planning the document costs ten times what running it does."""

from collections.abc import Mapping
from typing import Any

import psycopg
from django.db import connection


def fetch(sql: str, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
    """All rows of a prepared statement, under the row security of the current transaction.

    Django's own cursors put the parameters into the text, so that PostgreSQL would plan each one anew.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        # One plan for all parameters: what differs between them is decided while it runs (partitions are pruned then).
        cursor.execute("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)", prepare=True)
        cursor.execute(sql, parameters, prepare=True)
        return cursor.fetchall()
