"""Whether buckets scatter as much as the spread inside them allows. Two arms side by side, bucket after bucket.

D is the difference between treatment and control in one bucket: what moves both arms alike cancels. Neighbouring D differ by as much as
their own units allow, `Scattered.ratio` (phi) is 1; where rows say another spread than their units have, it is not. A bucket that both
arms have with `LEAST_UNITS` counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

LEAST_UNITS = 10
LEAST_PAIRS = 23
"""Pairs of neighbours before anything is said."""
SWING = 0.01
"""An effect may swing by this share of the control's mean from one bucket to the next: hours differ, and with many units in each it shows."""
FREEDOM = 2 / 3
"""Squares of neighbouring differences share a bucket, so that K of them tell as much as 2K/3 that do not."""
TAIL = 3.719016485455709
"""Normal quantile of 1 - 1e-4."""
ROOM_ABOVE, ROOM_BELOW = 1.1, 0.8
WIDE_RATIO = 4.0
"""Of buckets wider than six hours, in which days and weekends show."""
GROWING = 0.9
"""In so many of the neighbouring buckets n grows where rows are running totals."""


class Scattered(msgspec.Struct, frozen=True, array_like=True):
    """What one treatment's buckets beside the control's came to, up to an instant.

    pairs: K, of neighbouring buckets. squares: sum of their squared differences, each weighed by 1/(1/h + 1/h') of its two buckets.
    allowed: what the spread inside the buckets lets expect of it; swings: what an effect that swings by `SWING` adds.
    grown: at how many pairs n grew in both arms. variance: per unit, as the rows have it. units: in a bucket of one arm, on average.
    worst, worst_at: the most that one bucket has part in, and which.
    """

    pairs: int
    squares: float
    allowed: float
    swings: float
    grown: int
    variance: float
    units: float
    worst: float
    worst_at: int

    @property
    def ratio(self) -> float | None:
        """phi; None where rows have no spread at all."""
        return self.squares / self.allowed if self.allowed > 0 else None

    def too_much(self, *, wide: bool) -> bool:
        """Whether buckets scatter more than can be. wide: they are wider than six hours."""
        k, expected = FREEDOM * self.pairs, self.allowed + self.swings
        if self.pairs < LEAST_PAIRS or not self.squares * k > ROOM_ABOVE * chi_square_end(k, TAIL) * expected:
            return False
        return not wide or self.squares > WIDE_RATIO * expected

    @property
    def too_little(self) -> bool:
        k = FREEDOM * self.pairs
        return self.pairs >= LEAST_PAIRS and self.squares * k < ROOM_BELOW * chi_square_end(k, -TAIL) * self.allowed

    @property
    def is_running_total(self) -> bool:
        """Too little scatter while n only grows: each row holds the ones before it."""
        return self.too_little and self.grown >= GROWING * self.pairs


def chi_square_end(k: float, z: float) -> float:
    """The quantile of chi-square with k degrees of freedom at the normal quantile z (Wilson and Hilferty 1931), within 2% from k = 15 on
    at 1e-4.

    >>> round(chi_square_end(100, 1.6448536269514722), 1)
    124.3
    """
    c = 2.0 / (9.0 * k)
    root = 1.0 - c + z * math.sqrt(c)
    return k * root * root * root


class Sums(NamedTuple):
    """The sums behind `Scattered`, of all buckets so far. By arm: units, their sum, that of denominators, squares inside buckets.

    of_control: which part of what is expected is the control's; the rest of `pairs` is the treatment's. last: the newest bucket, of its
    units 1/n.
    """

    pairs: float = 0.0
    squares: float = 0.0
    of_control: float = 0.0
    weight: float = 0.0
    grown: float = 0.0
    n_c: float = 0.0
    n_t: float = 0.0
    x_c: float = 0.0
    x_t: float = 0.0
    d_c: float = 0.0
    d_t: float = 0.0
    m2_c: float = 0.0
    m2_t: float = 0.0
    last_c: float = 0.0
    last_t: float = 0.0
    last_gap: float = 0.0
    last_term: float = 0.0
    last_at: float = 0.0
    worst: float = 0.0
    worst_at: float = 0.0


type Running = list[float]
"""`Sums` without their names, whole numbers too as floats: every look takes them out of the state and puts them back, and this is the
fastest way. Never changed in place."""

NO_BUCKETS: Running = list(Sums())


def added(sums: Running, at: int, c: Sequence[Any], t: Sequence[Any]) -> Running:
    """With one more bucket of both arms: (n, mean, M2), of a ratio (n, mean, M2, mean_d, M2_d, co-moment)."""
    n, m = c[0], t[0]
    if n < LEAST_UNITS or m < LEAST_UNITS:
        return sums
    (pairs, squares, of_control, weight, grown, n_c, n_t, x_c, x_t, d_c, d_t, m2_c, m2_t,
     last_c, last_t, last_gap, last_term, last_at, worst, worst_at) = sums  # fmt: skip
    mean_c, spread_c, mean_t, spread_t = c[1], c[2], t[1], t[2]
    n_c, n_t = n_c + n, n_t + m
    x_c, x_t = x_c + n * mean_c, x_t + m * mean_t
    if len(c) > 3:
        d_c, d_t = d_c + n * c[3], d_t + m * t[3]
        if d_c == 0.0 or d_t == 0.0:
            return sums
        mean_c, spread_c = _residual(c, x_c / d_c, d_c / n_c)
        mean_t, spread_t = _residual(t, x_t / d_t, d_t / n_t)
    gap, by_c, by_t = mean_t - mean_c, 1.0 / n, 1.0 / m
    if last_c:
        its = by_c + last_c
        weigh = 1.0 / (its + (by_t + last_t))
        moved = gap - last_gap
        term = moved * moved * weigh
        pairs, squares, of_control, weight = pairs + 1.0, squares + term, of_control + weigh * its, weight + weigh
        if by_c < last_c and by_t < last_t:
            grown += 1.0
        if term + last_term > worst:
            worst, worst_at = term + last_term, last_at
        last_term = term
    return [pairs, squares, of_control, weight, grown, n_c, n_t, x_c, x_t, d_c, d_t, m2_c + spread_c, m2_t + spread_t,
            by_c, by_t, gap, last_term, float(at), worst, worst_at]  # fmt: skip


def added_many(
    sums: Running, at: Any, c: Sequence[Any], t: Sequence[Any], upto: Sequence[int]
) -> tuple[Running, list[Running]]:
    """The same with many buckets by arrays, to the last bit, and what it is after so many of them. at, and each column of c and t:
    shape (k,). upto: rising."""
    counts = (c[0] >= LEAST_UNITS) & (t[0] >= LEAST_UNITS)
    ends = np.searchsorted(np.flatnonzero(counts), upto).tolist()
    if not counts.all():
        at, c, t = at[counts], [column[counts] for column in c], [column[counts] for column in t]
    told: list[Running] = []
    begin = 0
    if len(c) > 3 or not len(at):  # of a ratio each bucket needs the ratio so far
        rows = [zip(*(column.tolist() for column in arm), strict=True) for arm in (c, t)]
        each = list(zip(at.tolist(), *rows, strict=True))
        for end in [*ends, len(at)]:
            for bucket in each[begin:end]:
                sums = added(sums, *bucket)
            begin = end
            told.append(sums)
        return sums, told[:-1]
    before = Sums._make(sums)
    n, m = c[0], t[0]
    by_c, by_t = 1.0 / n, 1.0 / m
    last_c, last_t = (
        np.concatenate(([last], column[:-1])) for last, column in ((before.last_c, by_c), (before.last_t, by_t))
    )
    gap = t[1] - c[1]
    moved = gap - np.concatenate(([before.last_gap], gap[:-1]))
    first = int(not before.last_c)
    its = by_c + last_c
    weigh = 1.0 / (its + (by_t + last_t))
    term = moved * moved * weigh
    grown = (by_c < last_c) & (by_t < last_t)
    for column in (weigh, term, grown):
        column[:first] = 0
    part = term + np.concatenate(([before.last_term], term[:-1]))
    part[:first] = 0.0
    of = np.concatenate(([before.last_at], at[:-1]))
    terms = (np.concatenate((np.zeros(first), np.ones(len(at) - first))), term, weigh * its, weigh, grown,
             n, m, n * c[1], m * t[1], np.zeros(len(at)), np.zeros(len(at)), c[2], t[2])  # fmt: skip
    columns = np.add.accumulate(np.vstack((sums[: len(terms)], np.vstack(terms).T)))  # one by one, as a loop adds
    worst, worst_at = before.worst, before.worst_at
    for end in [*ends, len(at)]:
        if end > begin:
            most = begin + int(part[begin:end].argmax())
            if part[most] > worst:
                worst, worst_at = part[most].item(), float(of[most])
            begin = end
        if end:
            newest = [float(column[end - 1]) for column in (by_c, by_t, gap, term, at)]
            sums = [*columns[end].tolist(), *newest, worst, worst_at]
        told.append(sums)
    return sums, told[:-1]


def told(sums: Running, *, ratio: bool) -> Scattered | None:
    """What sums come to; None before `LEAST_PAIRS`."""
    if sums[0] < LEAST_PAIRS:
        return None
    of = Sums._make(sums)
    buckets = of.pairs + 1
    free_c, free_t = of.n_c - buckets, of.n_t - buckets
    v_c, v_t = of.m2_c / free_c, of.m2_t / free_t
    swing = SWING * of.x_c / (of.d_c if ratio else of.n_c)
    return Scattered(
        pairs=int(of.pairs),
        squares=of.squares,
        allowed=v_c * of.of_control + v_t * (of.pairs - of.of_control),
        swings=2.0 * swing * swing * of.weight,
        grown=int(of.grown),
        variance=(of.m2_c + of.m2_t) / (free_c + free_t),
        units=(of.n_c + of.n_t) / (2.0 * buckets),
        worst=of.worst,
        worst_at=int(of.worst_at),
    )


def _residual(bucket: Sequence[Any], ratio: float, size: float) -> tuple[float, float]:
    """Mean and M2 of a bucket's units about their arm's ratio so far: x - R d over the mean denominator, which is defined in a bucket
    without denominators too."""
    _, mean, m2, mean_d, m2_d, co = bucket
    spread = (m2 - 2.0 * ratio * co + ratio * ratio * m2_d) / (size * size)
    return (mean - ratio * mean_d) / size, max(spread, 0.0)
