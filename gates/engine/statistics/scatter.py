"""Whether buckets scatter as much as the spread inside them allows. Two arms side by side, bucket after bucket.

D is the difference between treatment and control in one bucket: what moves both arms alike cancels. Neighbouring D differ by as much as
their own units allow, `Scattered.ratio` (phi) is 1; where rows say another spread than their units have, it is not. A bucket that both
arms have with `LEAST_UNITS` counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

LEAST_UNITS = 10
LEAST_PAIRS = 23
"""Pairs of neighbours before anything is said."""
SWING = 0.02
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


class Scattered(msgspec.Struct, frozen=True):
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


class RunningScatter(msgspec.Struct, array_like=True):
    """The sums behind `Scattered`, of all buckets so far. By arm: units, their sum, that of denominators, squares inside buckets.

    of_control: which part of what is expected is the control's; the rest of `pairs` is the treatment's.
    """

    pairs: int = 0
    squares: float = 0.0
    of_control: float = 0.0
    weight: float = 0.0
    grown: int = 0
    n_c: int = 0
    n_t: int = 0
    x_c: float = 0.0
    x_t: float = 0.0
    d_c: float = 0.0
    d_t: float = 0.0
    m2_c: float = 0.0
    m2_t: float = 0.0
    last_n_c: int = 0
    last_n_t: int = 0
    last_gap: float = 0.0
    last_term: float = 0.0
    last_at: int = 0
    worst: float = 0.0
    worst_at: int = 0

    def add(self, at: int, c: Sequence[Any], t: Sequence[Any]) -> None:
        """One bucket of both arms: (n, mean, M2), of a ratio (n, mean, M2, mean_d, M2_d, co-moment)."""
        n_c, n_t = c[0], t[0]
        if n_c < LEAST_UNITS or n_t < LEAST_UNITS:
            return
        mean_c, m2_c, mean_t, m2_t = c[1], c[2], t[1], t[2]
        x_c, x_t = self.x_c + n_c * mean_c, self.x_t + n_t * mean_t
        if len(c) > 3:
            d_c, d_t = self.d_c + n_c * c[3], self.d_t + n_t * t[3]
            if d_c == 0.0 or d_t == 0.0:
                return
            mean_c, m2_c = _residual(c, x_c / d_c, d_c / (self.n_c + n_c))
            mean_t, m2_t = _residual(t, x_t / d_t, d_t / (self.n_t + n_t))
            self.d_c, self.d_t = d_c, d_t
        self.n_c += n_c
        self.n_t += n_t
        self.x_c, self.x_t = x_c, x_t
        self.m2_c += m2_c
        self.m2_t += m2_t
        gap, last_c, last_t = mean_t - mean_c, self.last_n_c, self.last_n_t
        if last_c:
            of_control = 1 / n_c + 1 / last_c
            weight = 1.0 / (of_control + (1 / n_t + 1 / last_t))
            moved = gap - self.last_gap
            term = moved * moved * weight
            self.pairs += 1
            self.squares += term
            self.of_control += weight * of_control
            self.weight += weight
            if n_c > last_c and n_t > last_t:
                self.grown += 1
            part = term + self.last_term
            if part > self.worst:
                self.worst, self.worst_at = part, self.last_at
            self.last_term = term
        self.last_n_c, self.last_n_t, self.last_gap, self.last_at = n_c, n_t, gap, at

    def add_many(self, at: Any, c: Sequence[Any], t: Sequence[Any], upto: Sequence[int]) -> list[Scattered | None]:
        """The same of many buckets by arrays, to the last bit. at, and each column of c and t: shape (k,). upto: rising; after so many of
        the buckets what they came to is told."""
        counts = (c[0] >= LEAST_UNITS) & (t[0] >= LEAST_UNITS)
        ends = np.searchsorted(np.flatnonzero(counts), upto).tolist()
        at, c, t = at[counts], [column[counts] for column in c], [column[counts] for column in t]
        n_c, n_t = c[0], t[0]
        told: list[Scattered | None] = []
        ratio = len(c) > 3
        begin = 0
        if ratio or not len(at):  # of a ratio each bucket needs the ratio so far
            for end in [*ends, len(at)]:
                for i in range(begin, end):
                    self.add(int(at[i]), [column[i].item() for column in c], [column[i].item() for column in t])
                begin = end
                told.append(self.told(ratio=ratio))
            return told[:-1]
        gap = t[1] - c[1]
        before_c = np.concatenate(([self.last_n_c], n_c[:-1]))
        before_t = np.concatenate(([self.last_n_t], n_t[:-1]))
        moved = gap - np.concatenate(([self.last_gap], gap[:-1]))
        first = int(not self.last_n_c)
        before_c[:first] = before_t[:first] = 1
        of_control = 1 / n_c + 1 / before_c
        weight = 1.0 / (of_control + (1 / n_t + 1 / before_t))
        term = moved * moved * weight
        grown = (n_c > before_c) & (n_t > before_t)
        for column in (weight, term, grown):
            column[:first] = 0
        pairs = self.pairs + np.arange(1 - first, len(at) + 1 - first)
        part = term + np.concatenate(([self.last_term], term[:-1]))
        part[:first] = 0.0
        of = np.concatenate(([self.last_at], at[:-1]))
        columns = {
            "squares": _running(self.squares, term),
            "of_control": _running(self.of_control, weight * of_control),
            "weight": _running(self.weight, weight),
            "grown": _running(self.grown, grown.astype(np.int64)),
            "n_c": _running(self.n_c, n_c), "x_c": _running(self.x_c, n_c * c[1]),
            "n_t": _running(self.n_t, n_t), "x_t": _running(self.x_t, n_t * t[1]),
            "m2_c": _running(self.m2_c, c[2]), "m2_t": _running(self.m2_t, t[2]),
        }  # fmt: skip
        for end in [*ends, len(at)]:
            if end > begin:
                most = begin + int(part[begin:end].argmax())
                if part[most] > self.worst:
                    self.worst, self.worst_at = part[most].item(), int(of[most])
                for name, column in columns.items():
                    setattr(self, name, column[end - 1].item())
                self.pairs = int(pairs[end - 1])
                begin = end
            told.append(self.told())
        self.last_n_c, self.last_n_t = int(n_c[-1]), int(n_t[-1])
        self.last_gap, self.last_term, self.last_at = gap[-1].item(), term[-1].item(), int(at[-1])
        return told[:-1]

    def told(self, *, ratio: bool = False) -> Scattered | None:
        """What it comes to; None before `LEAST_PAIRS`."""
        if self.pairs < LEAST_PAIRS:
            return None
        buckets = self.pairs + 1
        free_c, free_t = self.n_c - buckets, self.n_t - buckets
        v_c, v_t = self.m2_c / free_c, self.m2_t / free_t
        mean = self.x_c / (self.d_c if ratio else self.n_c)
        return Scattered(
            pairs=self.pairs,
            squares=self.squares,
            allowed=v_c * self.of_control + v_t * (self.pairs - self.of_control),
            swings=2.0 * (SWING * mean) * (SWING * mean) * self.weight,
            grown=self.grown,
            variance=(self.m2_c + self.m2_t) / (free_c + free_t),
            units=(self.n_c + self.n_t) / (2.0 * buckets),
            worst=self.worst,
            worst_at=self.worst_at,
        )


def _running(start: Any, terms: Any) -> Any:
    """Sums after each term, added one after the other as a loop would."""
    return np.add.accumulate(np.concatenate(([start], terms)))[1:]


def _residual(bucket: Sequence[Any], ratio: float, size: float) -> tuple[float, float]:
    """Mean and M2 of a bucket's units about their arm's ratio so far: x - R d over the mean denominator, which is defined in a bucket
    without denominators too."""
    _, mean, m2, mean_d, m2_d, co = bucket
    spread = (m2 - 2.0 * ratio * co + ratio * ratio * m2_d) / (size * size)
    return (mean - ratio * mean_d) / size, max(spread, 0.0)
