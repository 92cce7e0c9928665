"""Columns of values as the arrays PostgreSQL reads in binary form, made by numpy in one go.

psycopg makes an array value by value in Python, which took longer for 1,000 rows than the database takes to store them.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
from django.db import connection
from numpy.typing import NDArray
from psycopg import Cursor, pq
from psycopg.adapt import Dumper

_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
EPOCH_US = 946_684_800_000_000
"""What PostgreSQL counts from, in microseconds since 1970."""


class Array:
    """One array as PostgreSQL reads it: a header, then each value with its length before it, -1 for NULL."""

    oid, element, form = 0, 0, ""
    """The array's type, its elements' type, and how numpy writes one of them."""

    def __init__(self, values: NDArray[Any] | Sequence[Any]) -> None:
        nulls = 0 if isinstance(values, np.ndarray) else values.count(None)
        cells = np.empty(len(values), dtype=[("length", ">i4"), ("value", self.form)])
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
        self.data = np.array([1, nulls > 0, self.element, len(values), 1], ">i4").tobytes() + data


class _Int4s(Array):
    oid, element, form = 1007, 23, ">i4"


class _Int8s(Array):
    oid, element, form = 1016, 20, ">i8"


class _Float8s(Array):
    oid, element, form = 1022, 701, ">f8"


class _Instants(Array):
    oid, element, form = 1185, 1184, ">i8"


class _Byteas(Array):
    oid, element = 1001, 17

    def __init__(self, values: Sequence[bytes | None]) -> None:
        cells = [_NULL if value is None else len(value).to_bytes(4) + value for value in values]
        self.data = np.array([1, None in values, self.element, len(values), 1], ">i4").tobytes() + b"".join(cells)


class _Texts(_Byteas):
    oid, element = 1009, 25


_NULL = (-1).to_bytes(4, signed=True)


def int4s(values: Sequence[int | None]) -> Array | None:
    """Integers of 32 bits; None when all are NULL, which `unnest` reads the same."""
    return _unless_empty(_Int4s, values)


def int8s(values: Sequence[int | None]) -> Array | None:
    return _unless_empty(_Int8s, values)


def float8s(values: Sequence[float | None]) -> Array | None:
    return _unless_empty(_Float8s, values)


def byteas(values: Sequence[bytes | None]) -> Array:
    return _Byteas(values)


def texts(values: Sequence[bytes | None]) -> Array:
    """Texts that are encoded already."""
    return _Texts(values)


def instants(counted: NDArray[np.int64]) -> Array:
    """Times that `microseconds` has counted, as timestamptz."""
    return _Instants(counted)


def numbers(places: NDArray[np.int32]) -> Array:
    """What `places` has found, as integers of 32 bits."""
    return _Int4s(places)


def microseconds(values: Sequence[dt.datetime]) -> NDArray[np.int64]:
    """Times with an offset as PostgreSQL counts them: microseconds since 2000."""
    since = [value - _EPOCH for value in values]
    return np.array([(s.days * 86_400 + s.seconds) * 1_000_000 + s.microseconds for s in since], np.int64)


def places(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """The distinct texts in order, and for each text its place among them, from 1: rows repeat a few names many times."""
    names = sorted(set(texts))
    place = {name: number for number, name in enumerate(names, 1)}
    return names, np.array([place[text] for text in texts], np.int32)


def cursor() -> Cursor[Any]:
    """A cursor of Django's connection that sends parameters apart from the statement, as binary values have to be."""
    connection.ensure_connection()
    made: Cursor[Any] = Cursor(connection.connection)
    for kind, sender in _SENDERS.items():
        made.adapters.register_dumper(kind, sender)
    return made


def _unless_empty(kind: type[Array], values: Sequence[Any]) -> Array | None:
    return None if values.count(None) == len(values) else kind(values)


class _Sender(Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


_SENDERS: dict[type[Array], type[Dumper]] = {
    kind: type(f"{kind.__name__}Sender", (_Sender,), {"oid": kind.oid})
    for kind in (_Int4s, _Int8s, _Float8s, _Instants, _Byteas, _Texts)
}
