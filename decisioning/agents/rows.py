"""KPI rows out of CSV with a header or JSON lines, one after the other, however long the file is."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain

from decisioning.agents.client import Json

_NEEDED = ("metric", "ts")
_WHOLE = ("n", "window_s", "revision")
_SPREADS = ("variance", "stddev", "standard_error", "sum", "sum_squares")
_REAL = ("value", *_SPREADS, "denominator_value", "denominator_variance", "covariance")
_MOMENTS = {"denominator_value": "value", "denominator_variance": "variance", "covariance": "covariance"}


class Unreadable(ValueError):
    """What is wrong, in which line."""


def rows_of(lines: Iterable[bytes]) -> Iterator[tuple[int, Json]]:
    """Rows as POST .../kpis takes them, each with the number of the line it stands in. Empty cells are left out. Raises Unreadable.

    >>> list(rows_of([b"metric,ts,value,n\\n", b"vrps,2026-11-24T06:00:00Z,3.5,\\n", b"vrps,2026-11-24T07:00:00Z,3,1800.0\\n"]))
    [(2, {'metric': 'vrps', 'ts': '2026-11-24T06:00:00Z', 'value': 3.5}), \
(3, {'metric': 'vrps', 'ts': '2026-11-24T07:00:00Z', 'value': 3.0, 'n': 1800})]
    >>> list(rows_of([b'{"metric": "vrps", "value": 3.5}\\n', b"\\n"]))
    [(1, {'metric': 'vrps', 'value': 3.5})]
    """
    texts = _decoded(lines)
    first = next(texts, "")
    if first.lstrip().startswith("{"):
        return _from_json(chain([first], texts))
    return _from_csv(chain([first], texts)) if first.strip() else iter(())


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise Unreadable(f"line {number} is no UTF-8: {problem.reason}") from problem


def _from_json(texts: Iterable[str]) -> Iterator[tuple[int, Json]]:
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                row = json.loads(text, parse_constant=_finite, parse_float=_finite)
            except (ValueError, RecursionError) as problem:
                raise Unreadable(f"line {number} is no JSON: {problem}") from problem
            if not isinstance(row, dict):
                raise Unreadable(f"line {number} is no JSON object")
            yield number, row


def _from_csv(texts: Iterable[str]) -> Iterator[tuple[int, Json]]:
    reader = csv.reader(texts, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader)]
        needed = _NEEDED if "sum" in names else (*_NEEDED, "value")
        if missing := [name for name in needed if name not in names]:
            raise Unreadable(f"line 1 must name the columns; there is no {', '.join(missing)}")
        if twice := [name for name in (*_NEEDED, *_REAL, *_WHOLE, "variant") if names.count(name) > 1]:
            raise Unreadable(f"line 1 names {twice[0]} twice")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise Unreadable(f"line {reader.line_num} has {len(cells)} cells, the header has {len(names)} names")
            said = {name: text.strip() for name, text in zip(names, cells, strict=True) if text.strip()}
            try:
                yield reader.line_num, _row(said)
            except ValueError as problem:
                raise Unreadable(f"line {reader.line_num}: {problem}") from None
    except csv.Error as problem:
        raise Unreadable(f"line {reader.line_num} is no CSV: {problem}") from problem


def _row(said: dict[str, str]) -> Json:
    row: Json = dict(said)
    for name in (*_REAL, *_WHOLE):
        if name in said:
            row[name] = _number(name, said[name])
    if moments := {inner: row.pop(name) for name, inner in _MOMENTS.items() if name in row}:
        row["denominator"] = moments
    return row


def _number(name: str, text: str) -> float:
    """Counts may be written as `1800.0`, which is what a column of numbers becomes as soon as one of them is missing."""
    try:
        number = _finite(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, no number") from None
    if name not in _WHOLE:
        return number
    if not number.is_integer():
        raise ValueError(f"{name} is {text!r}, no whole number")
    return int(text) if text.lstrip("+-").isdecimal() else int(number)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or "_" in text:
        raise ValueError(f"{text} is no number that JSON has")
    return number
