"""A row as flat columns, as files, queries and forms have it. How it becomes a row is written here once."""

import re
from collections.abc import Collection, Mapping

from decisioning.refusals import Fault
from telemetry import row, spread
from telemetry.row import Row

NEEDED = ("experiment", "metric", "ts", "value")
"""In place of `value` there may be `sum` and `sum_squares`."""
MOMENTS = {"denominator_value": "value", "denominator_variance": "variance", "covariance": "covariance"}
"""Columns of a ratio's denominator, and what they are called in it."""
STORED = ("value", "n", "variance", *MOMENTS, "revision", "window_s")
"""What is kept of a row beside its key."""
COLUMNS = (*NEEDED, "variant", *STORED[1:], *spread.BY_NAME)
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


def missing_in(names: Collection[str]) -> list[str]:
    """Columns without which no row can be read, of a table's.

    >>> missing_in(["experiment", "metric", "ts", "n"]), missing_in(["experiment", "metric", "ts", "n", "sum", "sum_squares"])
    (['value'], [])
    """
    summed = {"sum", "sum_squares"} <= {*names}
    return [name for name in NEEDED if name not in names and not (name == "value" and summed)]


def misnamed(name: str) -> bool:
    """Whether a column that is none of ours looks like one of them.

    >>> [misnamed(name) for name in ("std", "denominator_std", "stddev", "region")]
    [True, True, False, False]
    """
    return name not in COLUMNS and spread.meant(name.removeprefix("denominator_")) is not None


def row_of(said: Mapping[str, object]) -> Row | list[Fault]:
    """The row that columns say, without `experiment`; else everything that is wrong with it."""
    flat = {name: value for name, value in said.items() if not name.startswith("denominator_") and name not in MOMENTS}
    moments = {
        MOMENTS.get(name, name.removeprefix("denominator_")): said[name] for name in said if name not in flat
    }  # fmt: skip
    if moments:
        flat["denominator"] = moments
    return row.row_faults(flat) or row.row_of(flat)
