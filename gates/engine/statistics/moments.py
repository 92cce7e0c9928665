"""Sufficient statistics of one arm: how buckets merge into what is known up to an instant."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


class Moments(NamedTuple):
    """n units, their mean, and M2 = the sum of squared deviations from it (unit squared)."""

    n: int
    mean: float
    m2: float


class PairMoments(NamedTuple):
    """n units with a numerator x (mean, m2) and a denominator d (mean_d, m2_d), and co = sum of (x - mean)(d - mean_d)."""

    n: int
    mean: float
    m2: float
    mean_d: float
    m2_d: float
    co: float


class Arm(NamedTuple):
    """What an effect needs of an arm: its point estimate, the variance per unit, and n. Unit of the KPI, unit squared."""

    m: float
    v: float
    n: int


NOTHING = Moments(0, 0.0, 0.0)
NO_PAIRS = PairMoments(0, 0.0, 0.0, 0.0, 0.0, 0.0)


def of_mean(n: int, value: float, variance: float) -> Moments:
    """A bucket of a mean: `value` of `n` >= 0 units with their sample variance (n - 1; not read for n < 2).

    >>> of_mean(5, 3.0, 2.5)
    Moments(n=5, mean=3.0, m2=10.0)
    """
    return Moments(n, value, variance * (n - 1)) if n > 1 else Moments(n, value, 0.0)


def of_proportion(n: int, value: float) -> Moments:
    """A bucket of a proportion: `value` in [0, 1] of `n` units; M2 = n p (1 - p).

    >>> of_proportion(8, 0.25)
    Moments(n=8, mean=0.25, m2=1.5)
    """
    return Moments(n, value, n * value * (1.0 - value))


def of_ratio(
    n: int, value: float, variance: float, value_d: float, variance_d: float, covariance: float
) -> PairMoments:
    """A bucket of a ratio: per unit, means of numerator and denominator, sample variances and covariance (n - 1).

    >>> of_ratio(3, 2.0, 1.0, 4.0, 3.0, 0.5)
    PairMoments(n=3, mean=2.0, m2=2.0, mean_d=4.0, m2_d=6.0, co=1.0)
    """
    k = n - 1 if n > 1 else 0
    return PairMoments(n, value, variance * k, value_d, variance_d * k, covariance * k)


def merge(a: Moments, b: Moments) -> Moments:
    """Both together, `b` after `a`; order matters in the last bits, so buckets merge in ts order.

    Source: Chan, Golub and LeVeque 1979.

    >>> merge(of_mean(2, 1.5, 0.5), of_mean(2, 3.5, 0.5))  # 1, 2 and 3, 4
    Moments(n=4, mean=2.5, m2=5.0)
    """
    n_a, mean_a, m2_a = a
    n_b, mean_b, m2_b = b
    if not n_a:
        return b
    if not n_b:
        return a
    n = n_a + n_b
    delta = mean_b - mean_a
    share = n_b / n
    return Moments(n, mean_a + delta * share, m2_a + m2_b + delta * delta * (n_a * share))


def merge_pairs(a: PairMoments, b: PairMoments) -> PairMoments:
    """Both together, `b` after `a`: `merge` for numerator, denominator and their co-moment.

    >>> merge_pairs(of_ratio(1, 1.0, 0, 2.0, 0, 0), of_ratio(1, 3.0, 0, 4.0, 0, 0))
    PairMoments(n=2, mean=2.0, m2=2.0, mean_d=3.0, m2_d=2.0, co=2.0)
    """
    if not a.n:
        return b
    if not b.n:
        return a
    n = a.n + b.n
    dx, dd = b.mean - a.mean, b.mean_d - a.mean_d
    share = b.n / n
    weight = a.n * share
    return PairMoments(
        n,
        a.mean + dx * share,
        a.m2 + b.m2 + dx * dx * weight,
        a.mean_d + dd * share,
        a.m2_d + b.m2_d + dd * dd * weight,
        a.co + b.co + dx * dd * weight,
    )


def mean_arm(state: Moments) -> Arm:
    """Mean and sample variance. Raises ValueError for n < 2, which has none.

    >>> mean_arm(Moments(5, 3.0, 10.0))
    Arm(m=3.0, v=2.5, n=5)
    """
    n, mean, m2 = state
    if n < 2:
        raise ValueError(f"n == {n}, must be at least 2 for a variance")
    return Arm(mean, m2 / (n - 1), n)


def proportion_arm(state: Moments) -> Arm:
    """p and p(1 - p); of a proportion of exactly 0 or 1 the variance of (x + 1/2)/(n + 1), since no units at all, or all of them,
    do not prove that there is no spread. Raises ValueError without units.

    >>> proportion_arm(Moments(8, 0.25, 1.5))
    Arm(m=0.25, v=0.1875, n=8)
    >>> proportion_arm(Moments(4, 0.0, 0.0)), proportion_arm(Moments(4, 1.0, 0.0))
    (Arm(m=0.0, v=0.09, n=4), Arm(m=1.0, v=0.09, n=4))
    """
    n, mean, _ = state
    if n < 1:
        raise ValueError(f"n == {n}, must be at least 1")
    return Arm(mean, mean * (1.0 - mean) if 0.0 < mean < 1.0 else smoothed_spread(n), n)


def smoothed_spread(n: Any) -> Any:
    """p~(1 - p~) of p~ = (x + 1/2)/(n + 1) at x = 0 or n: a number or an array."""
    return 0.5 * (n + 0.5) / ((n + 1.0) * (n + 1.0))


def ratio_arm(state: PairMoments) -> Arm:
    """R = mean / mean_d and its variance per unit by the delta method: (v_x - 2 R cov + R^2 v_d) / mean_d^2.

    Raises ValueError for n < 2 or a denominator of mean 0.

    >>> ratio_arm(PairMoments(3, 2.0, 2.0, 4.0, 6.0, 1.0))
    Arm(m=0.5, v=0.078125, n=3)
    """
    if state.n < 2 or state.mean_d == 0:
        raise ValueError(f"n == {state.n}, mean_d == {state.mean_d}, must be at least 2 and not 0")
    ratio, v = ratio_of(*state[1:], state.n - 1)
    return Arm(ratio, v if v > 0.0 else 0.0, state.n)


def ratio_of(mean: Any, m2: Any, mean_d: Any, m2_d: Any, co: Any, k: Any) -> tuple[Any, Any]:
    """(R, v) of `ratio_arm` from a state's columns and k = n - 1: numbers, or arrays of one shape."""
    ratio = mean / mean_d
    return ratio, (m2 / k - 2.0 * ratio * (co / k) + ratio * ratio * (m2_d / k)) / (mean_d * mean_d)


def chain(start: Moments, n: Ints, mean: Floats, m2: Floats) -> tuple[Ints, Floats, Floats]:
    """`merge` of one bucket after the other, to the same last bit: only the means need a loop.

    n, mean, m2: the buckets, shape (k,), n up to 2^53. Columns n, mean, M2 of the state before the first and after each: shape (k + 1,).

    >>> [column.tolist() for column in chain(NOTHING, np.array([2, 0, 2]), np.array([1.5, 9.0, 3.5]), np.array([0.5, 0.0, 0.5]))]
    [[0, 2, 2, 4], [0.0, 1.5, 1.5, 2.5], [0.0, 0.5, 0.5, 5.0]]
    """
    links = _Links(start.n, n)
    means, delta = links.means(start.mean, mean)
    return links.totals, means, links.squares(start.m2, m2, delta * delta)


def chain_pairs(
    start: PairMoments, n: Ints, mean: Floats, m2: Floats, mean_d: Floats, m2_d: Floats, co: Floats
) -> tuple[Any, ...]:
    """The same for `merge_pairs`.

    >>> two, three = of_ratio(1, 1.0, 0, 2.0, 0, 0), of_ratio(1, 3.0, 0, 4.0, 0, 0)
    >>> columns = chain_pairs(NO_PAIRS, *(np.array(column) for column in zip(two, three)))
    >>> PairMoments(*(column[-1].item() for column in columns)) == merge_pairs(two, three)
    True
    """
    links = _Links(start.n, n)
    means, dx = links.means(start.mean, mean)
    means_d, dd = links.means(start.mean_d, mean_d)
    return (
        links.totals,
        means,
        links.squares(start.m2, m2, dx * dx),
        means_d,
        links.squares(start.m2_d, m2_d, dd * dd),
        links.squares(start.co, co, dx * dd),
    )


class _Links:
    """What every column of a chain shares: units before and after each bucket, and which buckets count."""

    def __init__(self, start: int, n: Ints) -> None:
        self.totals = np.concatenate(([start], start + np.cumsum(n)))
        self.counts = np.flatnonzero(n)
        self.place = None if len(self.counts) == len(n) else np.concatenate(([0], np.cumsum(n != 0)))
        self.first = int(start == 0)
        after = self.totals[1:][self.counts]
        self.share = n[self.counts] / after
        self.weight = (after - n[self.counts]) * self.share

    def means(self, start: float, mean: Floats) -> tuple[Floats, Floats]:
        """The mean before and after each bucket, and how far each counting bucket was from the mean before it."""
        column = mean if self.place is None else mean[self.counts]
        values: list[float] = column.tolist()
        average, found = start, [start]
        if self.first and len(values):
            average = values[0]
            found.append(average)
        shares = self.share[self.first :].tolist()
        found += [
            average := average + (value - average) * share
            for value, share in zip(values[self.first :], shares, strict=True)
        ]
        means = np.array(found)
        return self._placed(means), column - means[:-1]

    def squares(self, start: float, squares: Floats, moved: Floats) -> Floats:
        """The second moment before and after each bucket."""
        terms = np.zeros(2 * len(self.counts) + 1)
        terms[0], terms[1::2], terms[2::2] = start, squares[self.counts], moved * self.weight
        if self.first:
            terms[2:3] = 0.0
        return self._placed(np.add.accumulate(terms)[::2])

    def _placed(self, column: Floats) -> Floats:
        return column if self.place is None else column[self.place]
