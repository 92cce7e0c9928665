"""A row as flat columns, as files, queries and forms have it. How it becomes a row is written here once."""

import re
from collections.abc import Mapping

from decisioning.refusals import Fault
from telemetry import ingest
from telemetry.ingest import Row

NEEDED = ("experiment", "metric", "ts", "value")
MOMENTS = {"denominator_value": "value", "denominator_variance": "variance", "covariance": "covariance"}
"""Columns of a ratio's denominator, and what they are called in it."""
COLUMNS = (*NEEDED, "variant", "n", "variance", *MOMENTS, "revision", "window_s")
DECIMAL = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def number_in(text: str) -> object:
    """The number that a text is, else the text, which is then told to be none.

    >>> [number_in(text) for text in ("17", "1.5", "1_000", "1,5", "1" * 30)]
    [17, 1.5, '1_000', '1,5', 1.111111111111111e+29]
    """
    if re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII):
        return int(text)
    if re.fullmatch(DECIMAL, text, re.ASCII) or text.lower() == "nan":
        return float(text)
    return text


def row_of(said: Mapping[str, object]) -> Row | list[Fault]:
    """The row that columns say, without `experiment`; else everything that is wrong with it."""
    flat = {name: value for name, value in said.items() if name not in MOMENTS}
    if moments := {inner: said[name] for name, inner in MOMENTS.items() if name in said}:
        flat["denominator"] = moments
    return list(ingest.row_faults(flat)) or ingest.row_of(flat)
