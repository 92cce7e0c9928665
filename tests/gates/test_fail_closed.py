"""Whatever one series a scale reads does - dies, freezes, empties, breaks, is restated - the scale is not proposed any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gates.engine.fold import fold
from gates.engine.plan import Kpi, Plan
from gates.engine.series import Series, SeriesKey
from tests.examples import examples
from tests.gates.histories import DENSITY, GOAL, GUARD, HOUR, START, plan, policy, rows_of, without
from tests.gates.test_rules import cumulative

PROPOSED_BY, BEFORE, AFTER, END = 31, 20, 35, 43
"""Hours: the healthy scale is proposed by the first; series are spoilt before or after that; judged to the last."""

EVERY: dict[str, Any] = {"expected_every_s": 3600, "freshness_target_s": 3600}
KPIS = (
    Kpi("value", "goal", "mean", "increase", **EVERY),
    Kpi("orders", "goal", "mean", "increase", "cumulative", **EVERY),
    Kpi("speed", "guardrail", "mean", "increase", max_harm=0.05, **EVERY),
    Kpi("share", "guardrail", "proportion", "increase", max_harm=0.2, **EVERY),
    Kpi("error_rate", "shown", "proportion", "decrease", **EVERY),
    Kpi("seen", "exposure", "mean", counts_assignment=True, **EVERY),
)
POLICY = policy(
    GOAL, GUARD, DENSITY, {"name": "cap", "kind": "threshold", "metric": "error_rate", "at_most": 0.5, "times": 2}
)
SERIES = [(kpi.metric, variant) for kpi in KPIS for variant in ("control", "t1")]


def healthy() -> tuple[Plan, dict[SeriesKey, Series]]:
    p = plan(*KPIS)
    rows = rows_of(p, hours=END, effect=0.1, units=1000)
    for variant in ("control", "t1"):
        rows["orders", variant] = cumulative(rows["orders", variant])
    return p, rows


def spoilt(series: Series, hour: float, **cells: Callable[[int], Any]) -> Series:
    columns = {name: list(getattr(series, name)) for name in cells}
    for name, cell in cells.items():
        columns[name] = [
            cell(i) if ts > START + hour * HOUR else old
            for i, (ts, old) in enumerate(zip(series.ts, columns[name], strict=True))
        ]
    return replace(series, **columns)


def die(series: Series, hour: float, _kpi: Kpi) -> Series:
    return without(series, lambda i: series.ts[i] <= START + hour * HOUR)


def freeze(series: Series, hour: float, kpi: Kpi) -> Series | None:
    if kpi.temporality != "cumulative":
        return None
    last = max(i for i, ts in enumerate(series.ts) if ts <= START + hour * HOUR)
    return spoilt(series, hour, value=lambda _: series.value[last], n=lambda _: series.n[last])


def empty(series: Series, hour: float, _kpi: Kpi) -> Series:
    return spoilt(series, hour, n=lambda _: 0, value=lambda _: 0.0)


def lose_values(series: Series, hour: float, kpi: Kpi) -> Series | None:
    return None if kpi.role == "exposure" else spoilt(series, hour, value=lambda _: None)


def be_no_number(series: Series, hour: float, kpi: Kpi) -> Series | None:
    return None if kpi.role == "exposure" else spoilt(series, hour, value=lambda _: float("nan"))


def lose_variance(series: Series, hour: float, kpi: Kpi) -> Series | None:
    return spoilt(series, hour, variance=lambda _: None) if kpi.kind == "mean" and kpi.role != "exposure" else None


def lose_n(series: Series, hour: float, kpi: Kpi) -> Series | None:
    return spoilt(series, hour, n=lambda _: None) if kpi.role in ("goal", "guardrail") else None


def count_one(series: Series, hour: float, kpi: Kpi) -> Series | None:
    return spoilt(series, hour, n=lambda _: 1) if kpi.role != "shown" else None


def restate(series: Series, hour: float, kpi: Kpi) -> Series | None:
    if kpi.temporality != "cumulative":
        return None
    return spoilt(
        series, hour, n=lambda i: (series.n[i] or 0) - 3000 if series.ts[i] > START + (END - 3) * HOUR else series.n[i]
    )


WAYS = [die, freeze, empty, lose_values, be_no_number, lose_variance, lose_n, count_one, restate]


def test_the_healthy_experiment_is_scaled() -> None:
    p, rows = healthy()

    evaluations = fold(POLICY, p, rows, to=START + END * HOUR).evaluations
    scaled = next(e.slot for e in evaluations if e.recommendation.action == "scale")
    assert START + BEFORE * HOUR < scaled <= START + PROPOSED_BY * HOUR
    assert evaluations[-1].recommendation.state == "proposed"


@pytest.mark.parametrize("way", [way for way in WAYS if way is not restate], ids=lambda way: way.__name__)
def test_no_series_can_do_that_before_and_be_scaled(way: Callable[[Series, float, Kpi], Series | None]) -> None:
    p, rows = healthy()
    tried = 0
    for key in SERIES:
        broken = way(rows[key], BEFORE, kpi_of(p, key))
        if broken is None:
            continue
        tried += 1
        evaluations = fold(POLICY, p, {**rows, key: broken}, to=START + END * HOUR).evaluations
        assert [e.slot for e in evaluations if e.recommendation.action == "scale"] == [], key
    assert tried


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_series_can_do_that_afterwards_and_stay_proposed(way: Callable[[Series, float, Kpi], Series | None]) -> None:
    p, rows = healthy()
    tried = 0
    for key in SERIES:
        broken = way(rows[key], AFTER, kpi_of(p, key))
        if broken is None:
            continue
        tried += 1
        last = fold(POLICY, p, {**rows, key: broken}, to=START + END * HOUR).evaluations[-1].recommendation
        assert (last.action, last.state) != ("scale", "proposed"), key
    assert tried


@examples(25)
@given(st.sampled_from(WAYS), st.sampled_from(SERIES), st.floats(1, AFTER + 2))
def test_whatever_breaks_whenever_is_not_proposed_to_be_scaled_some_hours_later(
    way: Callable[[Series, float, Kpi], Series | None], key: SeriesKey, hour: float
) -> None:
    p, rows = healthy()
    broken = way(rows[key], hour, kpi_of(p, key))
    assume(broken is not None)
    assert broken is not None

    evaluations = fold(POLICY, p, {**rows, key: broken}, to=START + END * HOUR).evaluations

    last = evaluations[-1].recommendation
    assert (last.action, last.state) != ("scale", "proposed")
    if hour <= BEFORE and way is not restate:
        assert [e.slot for e in evaluations if e.recommendation.action == "scale"] == []


@pytest.mark.parametrize("key", SERIES, ids="/".join)
def test_without_any_one_series_nothing_is_scaled(key: SeriesKey) -> None:
    p, rows = healthy()
    del rows[key]

    evaluations = fold(POLICY, p, rows, to=START + END * HOUR).evaluations
    assert [e.slot for e in evaluations if e.recommendation.action == "scale"] == []


def test_a_freeze_within_the_allowed_age_neither_scales() -> None:
    """A feed that is allowed to be four hours old is frozen for four looks: the same state four times is one look."""
    p, rows = healthy()
    slow = tuple(msgspec.structs.replace(kpi, freshness_target_s=6 * 3600) for kpi in KPIS)
    p = msgspec.structs.replace(p, kpis=slow)
    for variant in ("control", "t1"):
        frozen = freeze(rows["orders", variant], 24.5, KPIS[1])
        assert frozen is not None
        rows["orders", variant] = frozen

    evaluations = fold(POLICY, p, rows, to=START + END * HOUR).evaluations
    assert [e.slot for e in evaluations if e.recommendation.action == "scale"] == []


def kpi_of(p: Plan, key: SeriesKey) -> Kpi:
    kpi = p.kpi(key[0])
    assert kpi is not None
    return kpi
