"""Published reference cases: what this package answers to each, beside what its source says.

A case is `{id, kind, inputs, expected, tolerance}`; kinds are those of `ANSWERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gates.engine.statistics.effects import difference, relative_se, relative_uplift
from gates.engine.statistics.moments import Arm, PairMoments, ratio_arm
from gates.engine.statistics.planning import Z_TWO_SIDED, planned_units
from gates.engine.statistics.sequences import always_valid_p, half_width, intersect, tuning
from gates.engine.statistics.srm import srm_log_e

Inputs = Mapping[str, Any]


class Difference(NamedTuple):
    """One expected number of a case: ours beside theirs. `within`: |ours - expected| <= tolerance (relative above 1)."""

    case: str
    name: str
    expected: float
    ours: float
    tolerance: float

    @property
    def within(self) -> bool:
        return abs(self.ours - self.expected) <= self.tolerance * max(1.0, abs(self.expected))


def check(case: Mapping[str, Any]) -> list[Difference]:
    """Ours against every expected number. Raises ValueError for a kind or number nobody here computes."""
    kind = case["kind"]
    if kind not in ANSWERS:
        raise ValueError(f"case {case['id']}: kind == {kind!r}, must be one of {', '.join(sorted(ANSWERS))}")
    ours = ANSWERS[kind](case["inputs"])
    unknown = set(case["expected"]) - set(ours)
    if unknown:
        raise ValueError(f"case {case['id']}: nothing computes {', '.join(sorted(unknown))} of kind {kind}")
    return [
        Difference(case["id"], name, expected, ours[name], case["tolerance"])
        for name, expected in case["expected"].items()
    ]


def arm(given: Inputs) -> Arm:
    """An arm given as successes, as sum and sum of squares, as mean and var (or stddev), or as numerator, denominator and cov.

    >>> arm({"n": 4, "successes": 1}), arm({"n": 2, "sum": 3.0, "sumsq": 5.0})
    (Arm(m=0.25, v=0.1875, n=4), Arm(m=1.5, v=0.5, n=2))
    """
    if "num" in given:
        x, d, k = given["num"], given["den"], given["num"]["n"] - 1
        return ratio_arm(PairMoments(k + 1, x["mean"], x["var"] * k, d["mean"], d["var"] * k, given["cov"] * k))
    n = given["n"]
    if "successes" in given:
        p = given["successes"] / n
        return Arm(p, p * (1.0 - p), n)
    if "sum" in given:
        mean = given["sum"] / n
        return Arm(mean, (given["sumsq"] - given["sum"] * mean) / (n - 1), n)
    return Arm(given["mean"], given["stddev"] ** 2 if "stddev" in given else given["var"], n)


def _relative(inputs: Inputs) -> dict[str, float]:
    estimate, se = relative_uplift(arm(inputs["b"]), arm(inputs["a"]))
    return {"estimate": estimate, "se": se}


def _difference(inputs: Inputs) -> dict[str, float]:
    estimate, se = difference(arm(inputs["b"]), arm(inputs["a"]))
    half = se * Z_TWO_SIDED
    return {"estimate": estimate, "se": se, "lower": estimate - half, "upper": estimate + half}


def _sequential(inputs: Inputs) -> dict[str, float]:
    a, b = arm(inputs["a"]), arm(inputs["b"])
    effect = relative_uplift if inputs.get("effect", "relative") == "relative" else difference
    estimate, se = effect(b, a)
    n, rho2 = a.n + b.n, tuning(inputs["t_opt"], inputs["alpha"])
    half = half_width(se, n, rho2, inputs["alpha"])
    p = always_valid_p(estimate, se, n, rho2)
    return {"estimate": estimate, "se": se, "lower": estimate - half, "upper": estimate + half, "p": p}


def _tuning(inputs: Inputs) -> dict[str, float]:
    rho2 = tuning(inputs["v_opt"], inputs["alpha"])
    return {"rho": 1.0 / rho2, "rho2": rho2}


def _bound(inputs: Inputs) -> dict[str, float]:
    v, rho2 = inputs["v"], tuning(inputs["v_opt"], inputs["alpha"])
    return {"bound": v * half_width(1.0 / math.sqrt(v), v, rho2, inputs["alpha"])}


def _ratio(inputs: Inputs) -> dict[str, float]:
    a, b = arm(inputs["a"]), arm(inputs["b"])
    estimate, se = relative_uplift(b, a)
    gap, gap_se = difference(b, a)
    return {"estimate": estimate, "se": se, "difference": gap, "difference_se": gap_se}


def _srm(inputs: Inputs) -> dict[str, float]:
    prior = inputs.get("dirichlet")
    concentration = inputs.get("concentration", 1_000.0)
    return {"log_e": srm_log_e(inputs["counts"], inputs["weights"], prior=prior, concentration=concentration)}


def _noise(inputs: Inputs) -> dict[str, float]:
    mean, v, n = arm(inputs)
    return {"relative_se": relative_se(mean, v, n)}


def _intersection(inputs: Inputs) -> dict[str, float]:
    running: tuple[float | None, float | None] = (None, None)
    for lower, upper in inputs["intervals"]:
        running = intersect(running, lower, upper)
    return {"lower": running[0], "upper": running[1]}  # type: ignore[dict-item] # None for no interval at all


def _planned(inputs: Inputs) -> dict[str, float]:
    return {"units_per_arm": planned_units(inputs["stddev"], inputs["effect"])}


ANSWERS: dict[str, Callable[[Inputs], dict[str, float]]] = {
    "relative_uplift": _relative,
    "difference": _difference,
    "proportion_diff": _difference,
    "sequential_ci": _sequential,
    "mixture_tuning": _tuning,
    "mixture_bound": _bound,
    "ratio_of_means": _ratio,
    "srm_sequential": _srm,
    "planned_units": _planned,
    "relative_se": _noise,
    "running_intersection": _intersection,
}
