"""Rows of one series - one (experiment, metric, variant) - as columns, in ts order. Pure values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Maybe = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """Rows of one series, one list a column, all as long as `ts`, sorted by `ts` ascending, each ts once.

    ts, first_received_at: microseconds since the epoch. n: units, None where the row has none. The three ratio columns may be
    left empty for other kinds. Lists come straight out of `array_agg(... ORDER BY ts)`: nothing is converted.
    """

    ts: Sequence[int]
    value: Maybe
    n: Sequence[int | None]
    variance: Maybe
    first_received_at: Sequence[int]
    denominator_value: Maybe = field(default=())
    denominator_variance: Maybe = field(default=())
    covariance: Maybe = field(default=())


SeriesKey = tuple[str, str]
"""(metric, variant)."""

Rows = Mapping[SeriesKey, Series]
"""A series without rows may be absent."""

EMPTY = Series(ts=(), value=(), n=(), variance=(), first_received_at=())
