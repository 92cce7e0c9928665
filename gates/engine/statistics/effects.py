"""How a treatment arm differs from control: a point estimate and its standard error.

Arms may hold floats or numpy arrays of one shape (looks, experiments); results have that shape.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gates.engine.statistics.moments import Arm


def difference(treatment: Arm, control: Arm, *, xp: Any = math) -> tuple[Any, Any]:
    """(d, se) with d = m_t - m_c and se^2 = v_t/n_t + v_c/n_c, in the KPI's unit.

    >>> difference(Arm(3.0, 4.0, 100), Arm(2.0, 5.0, 100))
    (1.0, 0.3)
    """
    return treatment.m - control.m, xp.sqrt(treatment.v / treatment.n + control.v / control.n)


def relative_uplift(treatment: Arm, control: Arm, *, xp: Any = math) -> tuple[Any, Any]:
    """(u, se) with u = (m_t - m_c)/|m_c|, se^2 = v_t/(n_t m_c^2) + v_c m_t^2/(n_c m_c^4) (delta method); fractions.

    Raises ZeroDivisionError when control's mean is 0.

    >>> u, se = relative_uplift(Arm(2.2, 4.0, 400), Arm(2.0, 4.0, 400))
    >>> round(u, 6), round(se, 6)
    (0.1, 0.07433)
    """
    square = control.m * control.m
    estimate = (treatment.m - control.m) / abs(control.m)
    variance = (treatment.v / treatment.n + control.v / control.n * (treatment.m * treatment.m / square)) / square
    return estimate, xp.sqrt(variance)


def relative_interval(treatment: Arm, control: Arm, reach: Any, *, xp: Any = math) -> tuple[Any, Any]:
    """(lower, upper) of the relative uplift u: every b of which the contrast m_t - m_c - b |m_c| is within `reach` of its standard
    errors of 0, its se^2 = v_t/n_t + (1 + b)^2 v_c/n_c. So a bound b lies outside just when its contrast says so.

    reach: half the interval in standard errors, as `half_width(1.0, ...)`. Infinite where nothing bounds u: above while control's mean
    is not told from 0, below as well while treatment's is not either. Source: Fieller 1954.

    >>> [round(end, 4) for end in relative_interval(Arm(2.2, 4.0, 400), Arm(2.0, 4.0, 400), 1.96)]
    [-0.0361, 0.2574]
    >>> relative_interval(Arm(0.05, 0.0475, 2000), Arm(0.0, 0.0005, 2000), 4.0)[1]
    inf
    """
    if xp is np:
        return _relative_intervals(treatment, control, reach)
    (m_t, v_t, n_t), (m_c, v_c, n_c) = treatment, control
    size_t, size_c = abs(m_t), abs(m_c)
    size = size_t if size_t > size_c else size_c
    if size == 0:
        return -math.inf, math.inf
    scale = reach / size
    c, t = size_c / size, (m_t if m_c >= 0 else -m_t) / size
    square = t * t
    s_c, s_t = v_c / n_c * scale * scale, v_t / n_t * scale * scale
    a, b = c * c - s_c, square - s_t  # above 0: the mean is told from 0
    within = s_t * a + s_c * square
    root = math.sqrt(within) if within > 0 else 0.0
    if t >= 0:
        q = t * c + root
        low = (b / q if q else 0.0) if a > 0 or b > 0 else -math.inf
        high = q / a if a > 0 else math.inf
    else:
        q = t * c - root
        low = q / a if a > 0 else -math.inf
        high = b / q if a > 0 or b > 0 else math.inf
    return (low - 1.0, high - 1.0) if m_c >= 0 else (1.0 - high, 1.0 - low)


def _relative_intervals(treatment: Arm, control: Arm, reach: Any) -> tuple[Any, Any]:
    """`relative_interval` of arrays, which decide nothing."""
    size = np.maximum(np.abs(treatment.m), np.abs(control.m))
    sign = np.where(control.m < 0, -1.0, 1.0)
    c, t = np.abs(control.m) / size, treatment.m * sign / size
    scale = (reach / size) ** 2
    s_c, s_t = control.v * scale / control.n, treatment.v * scale / treatment.n
    a, b = c * c - s_c, t * t - s_t
    side = np.where(t >= 0, 1.0, -1.0)
    q = t * c + side * np.sqrt(np.maximum(s_t * a + s_c * (t * t), 0.0))
    far = np.where(a > 0, q / a, side * np.inf)
    near = np.where((a > 0) | (b > 0), np.where(q == 0, 0.0, b / q), side * -np.inf)
    low, high = np.where(side > 0, near, far), np.where(side > 0, far, near)
    return np.where(sign > 0, low - 1.0, 1.0 - high), np.where(sign > 0, high - 1.0, 1.0 - low)


def with_spread(arm: Arm, other: Arm, *, xp: Any = math) -> Arm:
    """An arm of which every unit has the same value, with the spread of the other arm: what it shows itself is that its units are too
    few to tell, or that all it had is gone.

    >>> with_spread(Arm(0.0, 0.0, 50), Arm(3.0, 9.0, 60))
    Arm(m=0.0, v=9.0, n=50)
    """
    if xp is math:
        return arm if arm.v > 0 else arm._replace(v=max(other.v, 0.0))
    return Arm(arm.m, np.where(arm.v > 0, arm.v, np.maximum(other.v, 0.0)), arm.n)  # type: ignore[arg-type]


def relative_se(m: Any, v: Any, n: Any, *, xp: Any = math) -> Any:
    """se(mean)/|mean| of one arm; infinite for a mean of 0.

    >>> relative_se(2.0, 4.0, 100), relative_se(0.0, 1.0, 9)
    (0.1, inf)
    """
    if xp is math and m == 0:
        return math.inf
    return xp.sqrt(v / n) / abs(m)
