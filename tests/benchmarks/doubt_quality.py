"""How often doubt is right: docs/gates.md section 3, with fixed seeds. A part of `tests.benchmarks.gate_quality`.

Each world is a draw of hourly (or daily) buckets of two arms in many runs; `found` reads each run by the engine's own sums, at the end of each
whole day. Honest worlds are those that look strange and say what they have; faults are honest rows that were sent wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gates.engine.doubt import Cause, cause_of
from gates.engine.statistics.scatter import NO_BUCKETS, added_many, told

Floats = Any
HOURS, MEAN, STDDEV, UNITS = 672, 3.0, 6.0, 110
Draw = np.random.Generator


class Arms(NamedTuple):
    """(n, mean, variance) of control and treatment, of a ratio besides (mean_d, variance_d, covariance): each of shape (runs, buckets)."""

    control: tuple[Floats, ...]
    treatment: tuple[Floats, ...]


def found(arms: Arms, *, a_day: int = 24) -> list[list[Cause]]:
    """Of each run the cause by which it is doubted at the end of each day; "": it is not.

    a_day: buckets a day; of fewer than four they are wide."""
    runs, buckets = arms.control[0].shape
    ends = list(range(a_day, buckets + 1, a_day))
    causes = []
    for run in range(runs):
        columns = [_moments([column[run] for column in arm]) for arm in arms]
        _, sums = added_many(NO_BUCKETS, np.arange(buckets), columns[0], columns[1], ends)
        looks = (told(each, ratio=len(columns[0]) > 3) for each in sums)
        causes.append([cause_of(look, wide=a_day < 4) if look else "" for look in looks])
    return causes


def _moments(arm: list[Floats]) -> list[Floats]:
    n, mean, variance, *pair = arm
    squares = [n.astype(np.int64), mean, variance * (n - 1)]
    return squares if not pair else [*squares, pair[0], pair[1] * (n - 1), pair[2] * (n - 1)]


# Honest worlds ----------------------------------------------------------------------------------------------------------


def gauss(
    draw: Draw,
    runs: int,
    *,
    units: float | Floats = UNITS,
    lift: float = 0.1,
    hours: int = HOURS,
    level: Floats = 1.0,
    share: tuple[float, float] = (1.0, 1.0),
    spread: tuple[float, float] = (1.0, 1.0),
) -> Arms:
    """The 28-day world of `gate_quality`: days and weekends in traffic, level and effect, novelty that fades."""
    hour = np.arange(hours)
    weekend = (hour // 24) % 7 < 2
    traffic = units * (1 + 0.4 * np.sin(2 * np.pi * (hour - 8) / 24)) * np.where(weekend, 0.7, 1.05)
    base = MEAN * np.where(weekend, 0.9, 1.04) * level
    better = base * (1 + lift * np.where(weekend, 0.6, 1.1) + 0.04 * np.exp(-hour / 36))
    return Arms(
        *(_arm(draw, runs, traffic * s, m, STDDEV * v) for s, m, v in zip(share, (base, better), spread, strict=True))
    )


def _arm(draw: Draw, runs: int, traffic: Floats, mean: Floats, stddev: float) -> tuple[Floats, ...]:
    n = np.maximum(draw.poisson(traffic, size=(runs, np.shape(traffic)[-1])), 2)
    return n, mean + draw.standard_normal(n.shape) * stddev / np.sqrt(n), stddev**2 * draw.chisquare(n - 1) / (n - 1)


def swinging(draw: Draw, runs: int, units: int) -> Arms:
    """Hours whose level swings by 14%, each like the one before it, in both arms."""
    step, level = draw.standard_normal((runs, HOURS)) * 0.1, np.zeros((runs, HOURS))
    for hour in range(1, HOURS):
        level[:, hour] = 0.7 * level[:, hour - 1] + step[:, hour]
    return gauss(draw, runs, units=units, level=np.exp(level))


def of_units(draw: Draw, runs: int, units: int, values: Callable[[Draw, tuple[int, ...]], Floats]) -> Arms:
    """The same number of units in each bucket, one value each."""
    arms = []
    for _ in range(2):
        parts = [values(draw, (min(50, runs - first), HOURS, units)) for first in range(0, runs, 50)]
        mean, variance = (np.concatenate([of(part) for part in parts]) for of in (_mean, _variance))
        arms.append((np.full((runs, HOURS), units), mean, variance))
    return Arms(*arms)


def _mean(values: Floats) -> Floats:
    return values.mean(axis=2)


def _variance(values: Floats) -> Floats:
    return values.var(axis=2, ddof=1)


def share(draw: Draw, runs: int, units: int, p: float) -> Arms:
    arms = []
    for _ in range(2):
        n = np.maximum(draw.poisson(units, size=(runs, HOURS)), 10)
        x = draw.binomial(n, p) / n
        arms.append((n, x, n * x * (1 - x) / (n - 1)))
    return Arms(*arms)


def revenue_a_session(draw: Draw, runs: int, units: int) -> Arms:
    """A ratio: revenue over sessions of a user, both of them rare; nearly the same in each hour."""
    arms = []
    for _ in range(2):
        d = draw.poisson(0.5, size=(runs, HOURS, units)).astype(float)
        x = d * np.where(draw.random(d.shape) < 0.3, draw.lognormal(1.0, 1.0, d.shape), 0.0)
        both = ((x - x.mean(axis=2, keepdims=True)) * (d - d.mean(axis=2, keepdims=True))).sum(axis=2) / (units - 1)
        arms.append((np.full((runs, HOURS), units), _mean(x), _variance(x), _mean(d), _variance(d), both))
    return Arms(*arms)


HONEST: dict[str, Callable[[Draw, int], tuple[Arms, int]]] = {
    "days and weekends, +10%": lambda draw, runs: (gauss(draw, runs), 24),
    "the same, 100,000 units an hour": lambda draw, runs: (gauss(draw, runs, units=1e5), 24),
    "the same, 20 units an hour": lambda draw, runs: (gauss(draw, runs, units=20), 24),
    "the same, 12 units an hour": lambda draw, runs: (gauss(draw, runs, units=12), 24),
    "90 to 10, treatment of twice the deviation": lambda draw, runs: (
        gauss(draw, runs, share=(1.8, 0.2), spread=(1.0, 2.0)), 24),
    "level swings by 14%, 110 units": lambda draw, runs: (swinging(draw, runs, 110), 24),
    "level swings by 14%, 100,000 units": lambda draw, runs: (swinging(draw, runs, 100_000), 24),
    "traffic from 20 to 400": lambda draw, runs: (gauss(draw, runs, units=np.linspace(20, 400, HOURS)), 24),
    "traffic grows by 1% an hour": lambda draw, runs: (gauss(draw, runs, units=20 * 1.01 ** np.arange(HOURS)), 24),
    "lognormal, sigma 1.5": lambda draw, runs: (of_units(draw, runs, 50, lambda d, s: d.lognormal(0, 1.5, s)), 24),
    "Pareto, alpha 2.2": lambda draw, runs: (of_units(draw, runs, 50, lambda d, s: d.pareto(2.2, s)), 24),
    "revenue, 98% zeros, 12 units": lambda draw, runs: (
        of_units(draw, runs, 12, lambda d, s: np.where(d.random(s) < 0.02, d.lognormal(3, 1.5, s), 0.0)), 24),
    "share of 0.1% of 100": lambda draw, runs: (share(draw, runs, 100, 0.001), 24),
    "share of 3% of 20": lambda draw, runs: (share(draw, runs, 20, 0.03), 24),
    "ratio, few sessions": lambda draw, runs: (revenue_a_session(draw, runs, 20), 24),
    "daily rows of 100,000, 90 days": lambda draw, runs: (gauss(draw, runs, units=1e5, hours=90), 1),
}  # fmt: skip


# Faults -----------------------------------------------------------------------------------------------------------------


def _each(arms: Arms, sent: Callable[..., tuple[Floats, ...]]) -> Arms:
    return Arms(sent(*arms.control), sent(*arms.treatment))


def running_totals(n: Floats, mean: Floats, variance: Floats) -> tuple[Floats, ...]:
    total = np.cumsum(n, axis=1)
    average = np.cumsum(n * mean, axis=1) / total
    squares = np.cumsum(variance * (n - 1) + n * mean**2, axis=1) - total * average**2
    return total, average, squares / (total - 1)


def with_bots(arms: Arms, hour: int, *, bots: int = 200, each: float = 10 * MEAN) -> Arms:
    """An hour in which as many more came to the treatment, all of one value."""
    n, mean, variance = (column.copy() for column in arms.treatment)
    n0, mean0, squares0 = n[:, hour], mean[:, hour], (variance * (n - 1))[:, hour]
    more = n0 + bots
    average = (n0 * mean0 + bots * each) / more
    squares = squares0 + n0 * mean0**2 + bots * each**2 - more * average**2
    n[:, hour], mean[:, hour], variance[:, hour] = more, average, squares / (more - 1)
    return Arms(arms.control, (n, mean, variance))


FAULTS: dict[str, tuple[int, float, str, Callable[[Draw, int], Arms]]] = {
    "standard deviation as variance": (7, 0.99, "stddev", lambda draw, runs: _each(gauss(draw, runs), lambda n, m, v: (n, m, np.sqrt(v)))),
    "standard error as variance": (7, 0.99, "standard_error", lambda draw, runs: _each(gauss(draw, runs), lambda n, m, v: (n, m, np.sqrt(v / n)))),
    "its square as variance": (7, 0.99, "squared_error", lambda draw, runs: _each(gauss(draw, runs), lambda n, m, v: (n, m, v / n))),
    "percent, a fraction's variance": (7, 0.99, "percent", lambda draw, runs: _each(share(draw, runs, 110, 0.03), lambda n, m, v: (n, 100 * m, v))),
    "running totals as delta": (7, 0.99, "totals", lambda draw, runs: _each(gauss(draw, runs), running_totals)),
    "an hour of bots on day 2": (7, 0.99, "bucket", lambda draw, runs: with_bots(gauss(draw, runs), 30)),
    "an hour of bots on day 7": (7, 0.99, "bucket", lambda draw, runs: with_bots(gauss(draw, runs), 160)),
    "each unit twice": (14, 0.95, "twice", lambda draw, runs: _each(gauss(draw, runs), lambda n, m, v: (2 * n, m, v * (2 * n - 2) / (2 * n - 1)))),
}  # fmt: skip
"""By what day, in which share of runs at least, and by which cause each is to be doubted. Nothing is proposed before day 7."""


def honest(name: str, runs: int, seed: int) -> float:
    """The share of runs of an honest world that are doubted on any day."""
    draw = np.random.default_rng([seed, sum(name.encode())])
    arms, a_day = HONEST[name](draw, runs)
    return float(np.mean([any(causes) for causes in found(arms, a_day=a_day)]))


def caught(name: str, runs: int, seed: int) -> tuple[float, float]:
    """Shares of the runs of a fault that are doubted by its day, and that are told its cause on that day."""
    draw = np.random.default_rng([seed, sum(name.encode())])
    day, _, cause, sent = FAULTS[name]
    of = found(sent(draw, runs))
    return float(np.mean([any(its[:day]) for its in of])), float(np.mean([its[day - 1] == cause for its in of]))
