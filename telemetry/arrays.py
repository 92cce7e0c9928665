"""Columns of values as the arrays PostgreSQL reads in binary form, made by numpy in one go.

psycopg makes an array value by value in Python, which took longer for 1,000 rows than the database takes to store them.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from django.db import connection
from psycopg import Cursor, pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper

_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class _Type(NamedTuple):
    """A type by its oid and its array's, and how numpy writes one value."""

    oid: int
    array_oid: int
    form: str


_INT4, _INT8, _FLOAT8, _TIMESTAMPTZ = (
    _Type(23, 1007, ">i4"),
    _Type(20, 1016, ">i8"),
    _Type(701, 1022, ">f8"),
    _Type(1184, 1185, ">i8"),
)


@dataclass(frozen=True, slots=True)
class Array:
    """One array as PostgreSQL reads it: a header, then each value with its length before it, -1 for NULL."""

    oid: int
    data: bytes


def int4s(values: Sequence[int | None]) -> Array | None:
    """Integers of 32 bits; None when all are NULL, which `unnest` reads the same."""
    return _array(_INT4, values)


def int8s(values: Sequence[int | None]) -> Array | None:
    return _array(_INT8, values)


def float8s(values: Sequence[float | None]) -> Array | None:
    return _array(_FLOAT8, values)


def instants(values: Sequence[dt.datetime]) -> Array | None:
    """Times with an offset, as timestamptz."""
    return _array(_TIMESTAMPTZ, [(value - _EPOCH) // _MICROSECOND for value in values])


def coded(texts: Sequence[str]) -> tuple[list[str], Array | None]:
    """The distinct texts, and for each text its place among them, from 1: rows repeat a few names many times."""
    places: dict[str, int] = {}
    coded = [places.setdefault(text, len(places) + 1) for text in texts]
    return list(places), int4s(coded)


def _array(kind: _Type, values: Sequence[Any]) -> Array | None:
    nulls = values.count(None)
    if nulls == len(values):
        return None
    cells = np.empty(len(values), dtype=[("length", ">i4"), ("value", kind.form)])
    cells["length"] = cells["value"].itemsize
    if not nulls:
        cells["value"] = values
        data = cells.tobytes()
    else:
        absent = np.array([value is None for value in values])
        cells["value"] = [0 if value is None else value for value in values]
        cells["length"][absent] = -1
        raw = cells.view(np.uint8).reshape(len(values), -1)
        sent = np.ones(raw.shape, dtype=bool)
        sent[absent, 4:] = False
        data = raw[sent].tobytes()
    header = np.array([1, nulls > 0, kind.oid, len(values), 1], ">i4")
    return Array(kind.array_oid, header.tobytes() + data)


def cursor() -> Cursor[Any]:
    """A cursor of Django's connection that sends parameters apart from the statement, as binary values have to be."""
    connection.ensure_connection()
    made: Cursor[Any] = Cursor(connection.connection)
    made.adapters.register_dumper(Array, _Sender)
    return made


class _Sender(Dumper):
    format = pq.Format.BINARY

    def __init__(self, cls: type, context: AdaptContext | None = None, oid: int = 0) -> None:
        super().__init__(cls, context)
        self.oid = oid

    def get_key(self, obj: Array, format: Any) -> tuple[type, int]:  # type: ignore[override]  # noqa: A002
        return self.cls, obj.oid

    def upgrade(self, obj: Array, format: Any) -> "_Sender":  # noqa: A002
        return _Sender(self.cls, None, obj.oid)

    def dump(self, obj: Array) -> bytes:
        return obj.data
