"""Statements that are planned once a connection: planning the document costs ten times what running it does."""

import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from django.conf import settings
from django.db import connection

_prepared: WeakKeyDictionary[psycopg.Connection[Any], set[str]] = WeakKeyDictionary()


def fetch(sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """All rows of a prepared statement, under the row security of the current transaction.

    sql: with parameters as `%(name)s::type`. Prepared in SQL, because Django's cursors put parameters into the text, so that
    PostgreSQL would plan each anew, and psycopg forgets what it has prepared at every rollback. Through a pooler nothing is prepared.
    """
    if settings.POOLED:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found
    name, text, order = _statement(sql)
    connection.ensure_connection()
    known = _prepared.setdefault(connection.connection, set())
    with connection.cursor() as cursor:
        if name not in known:
            cursor.execute(f"PREPARE {name} AS {text}")
            known.add(name)
        # One plan for all parameters: what differs between them is decided while it runs (partitions are pruned then).
        cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        places = ", ".join(["%s"] * len(order))
        cursor.execute(f"EXECUTE {name} ({places})", [parameters[parameter] for parameter in order])
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


@functools.cache
def _statement(sql: str) -> tuple[str, str, tuple[str, ...]]:
    """(name, text with $1, $2, ..., the parameters in that order)."""
    order = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    text = re.sub(r"%\((\w+)\)s", lambda found: f"${order.index(found[1]) + 1}", sql)
    return f"q_{hashlib.sha256(sql.encode()).hexdigest()[:16]}", text, order
