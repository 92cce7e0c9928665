"""Small plans and histories for the engine's tests."""

from __future__ import annotations

import random
from typing import Any

from gates.engine.plan import DAY, SECOND, Kpi, Plan, Variant
from gates.engine.policy import Policy
from gates.engine.policy_checks import parse
from gates.engine.series import Series, SeriesKey

HOUR = 3600 * SECOND
START = 20_000 * DAY

GOAL = {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}
GUARD = {"name": "{metric}_guard", "kind": "guard", "for": "guardrail"}
DENSITY = {"name": "density", "kind": "density", "at_least": 0.9}
CAP = {"name": "cap", "kind": "threshold", "metric": "error_rate", "at_most": 0.05, "times": 2}

VALUE = Kpi(metric="value", role="goal", direction="increase", expected_every_s=3600, freshness_target_s=3600)
SPEED = Kpi(metric="speed", role="guardrail", direction="increase", expected_every_s=3600, freshness_target_s=3600)
ERRORS = Kpi(
    metric="error_rate",
    role="shown",
    kind="gauge",
    direction="decrease",
    expected_every_s=3600,
    freshness_target_s=3600,
)


def policy(*gates: dict[str, Any], **settings: Any) -> Policy:
    body: dict[str, Any] = {
        "gates": list(gates or (GOAL, GUARD, DENSITY)),
        "min_days": 1,
        "max_days": 4,
        "planned_units": 20_000,
    }
    return parse({**body, **settings}, name="test", version=1)


def plan(*kpis: Kpi, treatments: int = 1, **facts: Any) -> Plan:
    arms = [Variant("control", control=True)] + [Variant(f"t{i}", position=i) for i in range(1, treatments + 1)]
    return Plan(
        **{
            "started_at": START,
            "created_at": START,
            "variants": tuple(arms) if treatments else (Variant("all"),),
            "kpis": kpis or (VALUE, SPEED),
            **facts,
        }
    )


def rows_of(
    plan: Plan,
    *,
    hours: int,
    effect: float = 0.0,
    effects: dict[SeriesKey, float] | None = None,
    units: int = 400,
    mean: float = 10.0,
    sd: float = 4.0,
    delay: int = 5 * 60 * SECOND,
    seed: int = 1,
) -> dict[SeriesKey, Series]:
    """Hourly rows of every KPI and variant: treatments of goals are `effect` better, other series as `effects` says."""
    draw = random.Random(seed)
    rows = {}
    for kpi in plan.kpis:
        for variant in plan.variants:
            lift = (effects or {}).get((kpi.metric, variant.key), 0.0)
            if kpi.role == "goal" and not variant.control and (kpi.metric, variant.key) not in (effects or {}):
                lift = effect
            rows[kpi.metric, variant.key] = _series(
                kpi, plan.started_at, hours, units, mean * (1 + lift), sd, delay, draw
            )
    return rows


def _series(
    kpi: Kpi, start: int, hours: int, units: int, mean: float, sd: float, delay: int, draw: random.Random
) -> Series:
    ts = [start + (hour + 1) * HOUR for hour in range(hours)]
    received = [at + delay for at in ts]
    if kpi.kind == "gauge":
        return Series(ts, [0.01 for _ in ts], [None] * hours, [None] * hours, received)
    spread = min(20, units // 5)
    n = [units + draw.randrange(-spread, spread + 1) for _ in ts]
    if kpi.kind == "proportion":
        p = mean / 100
        return Series(
            ts,
            [min(1.0, max(0.0, draw.gauss(p, (p * (1 - p) / k) ** 0.5))) for k in n],
            list(n),
            [None] * hours,
            received,
        )
    value = [draw.gauss(mean, sd / k**0.5) for k in n]
    return Series(ts, value, list(n), [sd * sd] * hours, received)


def without(series: Series, keep: Any) -> Series:
    """The rows of a series whose position `keep` says yes to."""
    where = [i for i in range(len(series.ts)) if keep(i)]
    columns = {name: [column[i] for i in where] if column else column for name, column in columns_of(series).items()}
    return Series(**columns)


def columns_of(series: Series) -> dict[str, list[Any]]:
    return {name: list(getattr(series, name)) for name in Series.__slots__}
