"""How many units and days a decision takes: before the start from a baseline, and while running from what was measured."""

from __future__ import annotations

import math
from statistics import NormalDist

from gates.engine.statistics.sequences import half_width

Z_TWO_SIDED = NormalDist().inv_cdf(0.975)
Z_POWER = NormalDist().inv_cdf(0.8)
MOST_UNITS = 10**15


def planned_units(stddev: float, effect: float) -> float:
    """Units per arm of the classical plan: (z_.975 + z_.8)^2 * 2 sigma^2 / delta^2, both in the KPI's unit; from 0 to infinity,
    where they leave a float.

    Raises ValueError when the effect is 0 or the deviation is not positive.

    >>> round(planned_units(1.0, 0.1))
    1570
    """
    if effect == 0 or stddev <= 0:
        raise ValueError(f"effect == {effect}, stddev == {stddev}, must not be 0 and be above 0")
    squared = effect * effect
    return (Z_TWO_SIDED + Z_POWER) ** 2 * 2.0 * stddev * stddev / squared if squared else math.inf


def units_for_half(half: float, se: float, n: int, rho2: float, alpha: float) -> int | None:
    """Units of both arms at which the always-valid interval has half width `half`, if variances and split stay.

    half, se: in one unit, se measured at `n` units, so se(N) = se sqrt(n/N). At least `n`; None when `half` <= 0 or out
    of reach (more than 10^15 units).

    >>> n = units_for_half(0.01, 0.01, 10_000, 1e-4, 0.05)
    >>> half_width(0.01 * math.sqrt(10_000 / n), n, 1e-4, 0.05) <= 0.01
    True
    >>> half_width(0.01 * math.sqrt(10_000 / (n - 1)), n - 1, 1e-4, 0.05) <= 0.01
    False
    """
    if half <= 0 or n < 1:
        return None

    def decided(units: int) -> bool:
        return bool(half_width(se * math.sqrt(n / units), units, rho2, alpha) <= half)

    if n > MOST_UNITS:
        return n if decided(n) else None
    if decided(n):
        return n
    farthest = n << (MOST_UNITS // n).bit_length() - 1
    if not decided(farthest):
        return None
    units = min(max(_near(half, se, n, rho2, alpha), n + 1), farthest)
    low, high, stride = n, farthest, 1  # undecided and decided, closing in around the estimate
    while high - low > 1:
        if decided(units):
            high, units = units, max(units - stride, (low + units) // 2)
        else:
            low, units = units, min(units + stride, (units + high + 1) // 2)
        stride *= 2
    return high


def _near(half: float, se: float, n: int, rho2: float, alpha: float) -> int:
    """About how many units that is: the fixed point of N = n (se/half)^2 (r + 1)/r (ln(r + 1) - 2 ln a), r = N rho^2."""
    scale, units = n * (se / half) ** 2, float(n)
    for _ in range(30):
        r = units * rho2
        before, units = units, scale * (r + 1.0) / r * (math.log(r + 1.0) - 2.0 * math.log(alpha))
        if not units < MOST_UNITS:
            return MOST_UNITS
        if abs(units - before) < 0.25:
            break
    return math.ceil(units)


def smallest_effect(units: float, stddev: float, rho2: float, alpha: float, *, share: float = 0.5) -> float:
    """The smallest gap between scale and delete that `units` of both arms surely decide: two half widths. share: of one arm.

    Result in the unit of `stddev` (relative: give stddev/|mean|).

    >>> round(smallest_effect(100_000, 1.0, 1e-4, 0.05), 4)
    0.0384
    """
    return 2.0 * float(half_width(stddev * math.sqrt((1 / share + 1 / (1 - share)) / units), units, rho2, alpha))
