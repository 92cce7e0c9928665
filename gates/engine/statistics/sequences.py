"""Intervals and p-values that hold at every look: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy
and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", arXiv 2103.06476.

n is the units of both arms together; rho2 tunes at which n the interval is tightest.
"""

from __future__ import annotations

import math
from typing import Any


def tuning(t_opt: float, alpha: float) -> float:
    """rho^2 = (-2 ln a + ln(1 - 2 ln a)) / t_opt, tightest near n = t_opt > 0. (confseq's rho is 1/rho^2.)

    >>> round(1 / tuning(100, 0.05), 5)
    12.60056
    """
    if t_opt <= 0 or not 0 < alpha < 1:
        raise ValueError(f"t_opt == {t_opt}, alpha == {alpha}, must be above 0 and inside (0, 1)")
    log_alpha = math.log(alpha)
    return (-2.0 * log_alpha + math.log(1.0 - 2.0 * log_alpha)) / t_opt


def half_width(se: Any, n: Any, rho2: float, alpha: float, *, xp: Any = math) -> Any:
    """se sqrt((r + 1)/r * 2 ln(sqrt(r + 1)/a)), r = n rho^2: half the always-valid interval, in the unit of `se`.

    se, n: one number, or arrays of one shape with xp=numpy.

    >>> round(100 * half_width(1 / 10, 100, tuning(100, 0.05), 0.05), 4)
    30.3521
    """
    r = n * rho2
    return se * xp.sqrt((r + 1.0) / r * (xp.log(r + 1.0) - 2.0 * math.log(alpha)))


def log_p(estimate: Any, se: Any, n: Any, rho2: float, *, xp: Any = math) -> Any:
    """ln of sqrt(r + 1) exp(-z^2 r / (2 (r + 1))), z = estimate/se, r = n rho^2; above 0 it says nothing."""
    r = n * rho2
    z = estimate / se
    return 0.5 * xp.log(r + 1.0) - z * z * r / (2.0 * (r + 1.0))


def always_valid_p(estimate: float, se: float, n: int, rho2: float) -> float:
    """min(1, sqrt(r + 1) exp(-z^2 r / (2 (r + 1)))) for no effect; take the minimum over looks.

    >>> always_valid_p(0.0, 1.0, 100, 0.08)
    1.0
    >>> always_valid_p(5.0, 1.0, 100, 0.08) < 0.001
    True
    """
    return math.exp(min(0.0, log_p(estimate, se, n, rho2)))


def intersect(running: tuple[float | None, float | None], lower: float, upper: float) -> tuple[float, float]:
    """The running intersection (L, U) = (max lower, min upper) after one more look; None before the first.

    >>> intersect(intersect((None, None), -1.0, 2.0), -0.5, 3.0)
    (-0.5, 2.0)
    """
    before_lower, before_upper = running
    return (
        lower if before_lower is None or lower > before_lower else before_lower,
        upper if before_upper is None or upper < before_upper else before_upper,
    )
