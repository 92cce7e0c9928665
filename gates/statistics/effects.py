"""How a treatment arm differs from control: a point estimate and its standard error.

Arms may hold floats or numpy arrays of one shape (looks, experiments); results have that shape.
"""

from __future__ import annotations

import math
from typing import Any

from gates.statistics.moments import Arm


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


def relative_se(m: Any, v: Any, n: Any, *, xp: Any = math) -> Any:
    """se(mean)/|mean| of one arm; infinite for a mean of 0.

    >>> relative_se(2.0, 4.0, 100), relative_se(0.0, 1.0, 9)
    (0.1, inf)
    """
    if xp is math and m == 0:
        return math.inf
    return xp.sqrt(v / n) / abs(m)
