"""KPI rows out of CSV with a header or JSON lines, one after the other, however long the file is."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain

from decisioning.agents.client import Json

_NUMBERS = {"value": float, "variance": float, "n": int, "window_s": int, "revision": int}


class Unreadable(ValueError):
    """What is wrong, in which line."""


def rows_of(lines: Iterable[bytes]) -> Iterator[Json]:
    """Rows as POST .../kpis takes them. Empty cells are left out. Raises Unreadable.

    >>> list(rows_of([b"metric,ts,value,n\\n", b"vrps,2026-11-24T06:00:00Z,3.5,\\n"]))
    [{'metric': 'vrps', 'ts': '2026-11-24T06:00:00Z', 'value': 3.5}]
    >>> list(rows_of([b'{"metric": "vrps", "value": 3.5}\\n', b"\\n"]))
    [{'metric': 'vrps', 'value': 3.5}]
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


def _from_json(texts: Iterable[str]) -> Iterator[Json]:
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                row = json.loads(text)
            except ValueError as problem:
                raise Unreadable(f"line {number} is no JSON: {problem}") from problem
            if not isinstance(row, dict):
                raise Unreadable(f"line {number} is no JSON object")
            yield row


def _from_csv(texts: Iterable[str]) -> Iterator[Json]:
    reader = csv.DictReader(texts)
    for cells in reader:
        if None in cells:
            raise Unreadable(f"line {reader.line_num} has more cells than the header has names")
        row: Json = {name: text.strip() for name, text in cells.items() if text and text.strip()}
        for name, kind in _NUMBERS.items():
            if name in row:
                try:
                    row[name] = kind(row[name])
                except ValueError:
                    raise Unreadable(f"line {reader.line_num}: {name} is {row[name]!r}, no number") from None
        yield row
