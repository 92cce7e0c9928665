"""What a goal or guard reads of two arms, as docs/gates.md section 3 says. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from gates.engine.compiled import Comparison
from gates.engine.facts import Sums
from gates.engine.plan import Kpi
from gates.engine.statistics.effects import relative_interval, relative_se, relative_uplift, with_spread
from gates.engine.statistics.moments import Arm, PairMoments, mean_arm, proportion_arm, ratio_arm
from gates.engine.statistics.sequences import half_width

NEAR = 1e-9
"""Relative distance within which arrays leave the verdict to the scalar path; they differ from it by about 1e-15."""


def arm_of(kpi: Kpi, state: Sums) -> Arm:
    """What an effect needs of a stored state with n >= 2."""
    if kpi.kind == "ratio":
        return ratio_arm(PairMoments(int(state[0]), *state[1:]))
    return (proportion_arm if kpi.kind == "proportion" else mean_arm)(state)  # type: ignore[arg-type] # these are Moments


class Measured(NamedTuple):
    """What a goal or guard reads of two states. Up is good.

    estimate, se: the effect; 0 and the difference's where there is no relative one. lower, upper: its always-valid interval,
    infinite where nothing bounds it. control: its point estimate. gap, gap_se: the difference, against which no effect is tested.
    noise: the larger standard error as a share of the larger mean; noise_of_control: of control in itself.
    """

    estimate: float
    se: float
    lower: float
    upper: float
    control: float
    gap: float
    gap_se: float
    noise: float
    noise_of_control: float


def measure(comparison: Comparison, control: Sums, treatment: Sums) -> Measured | None:
    """Two states as a gate reads them; None when they have too few units, or no denominator, for any spread."""
    kpi, noise, noise_of_control = comparison.kpi, 0.0, 0.0
    if control[0] < 2 or treatment[0] < 2 or (kpi.kind == "ratio" and (control[3] == 0 or treatment[3] == 0)):
        return None
    c, t = arm_of(kpi, control), arm_of(kpi, treatment)
    if c.v <= 0 or t.v <= 0:
        c, t = with_spread(c, t), with_spread(t, c)
    (m_c, v_c, n_c), (m_t, v_t, n_t) = c, t
    error_c, error_t = v_c / n_c, v_t / n_t
    estimate = gap = m_t - m_c
    se = gap_se = math.sqrt(error_t + error_c)
    reach = half_width(1.0, n_c + n_t, comparison.rho2, comparison.alpha)
    if comparison.gate.effect == "relative":
        estimate, se = relative_uplift(t, c) if m_c else (0.0, gap_se)
        lower, upper = relative_interval(t, c, reach)
        size, of_treatment = abs(m_c), abs(m_t)
        noise_of_control = math.sqrt(error_c) / size if size else math.inf
        larger = size if size > of_treatment else of_treatment
        noise = math.sqrt(error_c if error_c > error_t else error_t) / larger if larger else math.inf
    else:
        lower, upper = estimate - reach * se, estimate + reach * se
    if kpi.kind == "ratio":
        for state in (control, treatment):
            noise = max(noise, relative_se(state[3], state[4] / (state[0] - 1), state[0]))
    if kpi.direction == "decrease":
        estimate, lower, upper = -estimate, -upper, -lower
    return Measured(estimate, se, lower, upper, m_c, gap, gap_se, noise, noise_of_control)
