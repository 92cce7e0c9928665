"""Harm is seen the sooner the larger it is: whatever direction is better, down to nothing left and up from nothing at all."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gates.engine.plan import Kpi
from tests.gates.histories import DENSITY, GOAL, GUARD, HOUR, START, VALUE
from tests.gates.test_rules import Walk, always, gate, walk

CHECKOUT = Kpi(
    "checkout", "guardrail", "proportion", "increase", expected_every_s=3600, freshness_target_s=3600, max_harm=0.1
)
CRASHES = msgspec.structs.replace(CHECKOUT, metric="crashes", direction="decrease")
SPENT = msgspec.structs.replace(CHECKOUT, metric="spent", kind="mean")


def guarded(kpi: Kpi, control: float, treatment: float, hours: int = 200, **given: Any) -> Walk:
    """200 units an arm an hour; the guard's figures stand still."""
    w = walk(VALUE, kpi, hours=hours, effect=0.0, units=200, min_days=7, max_days=28, **given)
    for variant, value in (("control", control), ("t1", treatment)):
        w.spoil(kpi.metric, variant, 0, value=always(value), n=always(200))
    return w


def hours_until_harm(w: Walk) -> float | None:
    found = next((e for e in w.folded().evaluations if e.recommendation.code == "harm"), None)
    return None if found is None else (found.slot - START) / HOUR


@pytest.mark.parametrize(
    ("kpi", "control", "treatments"),
    [
        (CHECKOUT, 0.03, (0.015, 0.009, 0.003, 0.0006, 0.0)),
        (CHECKOUT, 0.95, (0.5, 0.1, 0.0)),
        (CRASHES, 0.03, (0.06, 0.15, 0.6, 1.0)),
        (CRASHES, 0.001, (0.02, 0.1, 0.5, 1.0)),
    ],
)
def test_a_larger_harm_is_never_seen_later_than_a_smaller_one(
    kpi: Kpi, control: float, treatments: tuple[float, ...]
) -> None:
    hours = [hours_until_harm(guarded(kpi, control, treatment)) for treatment in treatments]

    assert None not in hours
    assert hours == sorted(hours, reverse=True)  # type: ignore[type-var]
    assert hours[-1] <= 20  # type: ignore[operator]


def test_a_guard_that_loses_everything_is_deleted_with_the_loss_in_figures() -> None:
    w = guarded(CHECKOUT, 0.03, 0.0, hours=30)

    assert w.said() == ("delete", "harm", "proposed")
    assert w.rationale()[0].startswith("checkout of t1 is proved to lose more than 10% (at best −")
    state = gate(w.at(), "checkout_guard")
    assert state.reading is not None
    assert (state.reading.estimate, state.reading.upper) == (-1.0, state.reading.running_upper)


def test_a_mean_of_which_nothing_is_left_is_deleted_though_it_has_no_spread_any_more() -> None:
    w = guarded(SPENT, 10.0, 0.0, hours=30)
    w.spoil("spent", "t1", 0, variance=always(0.0))

    assert w.said() == ("delete", "harm", "proposed")


def test_two_arms_without_any_spread_are_not_judged() -> None:
    w = guarded(SPENT, 10.0, 0.0, hours=30)
    for variant in ("control", "t1"):
        w.spoil("spent", variant, 0, variance=always(0.0))

    assert gate(w.at(), "spent_guard").verdict == "inconclusive"
    assert "no spread to judge by" in " ".join(w.blockers())


@pytest.mark.parametrize("kpi", [CRASHES, msgspec.structs.replace(SPENT, metric="lost", direction="decrease")])
def test_a_guard_whose_control_is_zero_can_fail(kpi: Kpi) -> None:
    w = guarded(kpi, 0.0, 0.05, hours=30)
    if kpi.kind == "mean":
        w.spoil(kpi.metric, "control", 0, variance=always(0.0))
        w.spoil(kpi.metric, "t1", 0, variance=always(0.05))

    assert w.said() == ("delete", "harm", "proposed")
    assert gate(w.at(), f"{kpi.metric}_guard").reading is None, "there is no relative effect to show"


def test_a_guard_that_fails_against_a_control_of_zero_says_how_far_it_is() -> None:
    w = guarded(CRASHES, 0.0, 0.05, hours=30)
    said = w.reason("crashes_guard")

    assert gate(w.at(), "crashes_guard").verdict == "fail"
    assert re.search(r"control is still 0, so .* t1 is proved to be at best −[\d,.]+%", said), said


def test_a_ratio_whose_denominator_is_gone_says_so_and_not_that_units_are_lacking() -> None:
    per_user = msgspec.structs.replace(SPENT, metric="per_user", kind="ratio")
    w = guarded(per_user, 5.0, 0.0, hours=30)
    for variant, mean in (("control", 2.0), ("t1", 0.0)):
        rows = w.rows["per_user", variant]
        column = [mean] * len(rows.ts)
        w.rows["per_user", variant] = replace(
            rows, denominator_value=column, denominator_variance=column, covariance=[0.0] * len(column)
        )

    state = gate(w.at(), "per_user_guard")
    assert (state.verdict, state.extra["why"]) == ("inconclusive", "denominator")
    said = w.reason("per_user_guard")
    assert "denominator of control or t1 is 0" in said
    assert said in w.blockers()


@pytest.mark.parametrize("kpi", [CHECKOUT, CRASHES])
@pytest.mark.parametrize("treatment", [0.0, 0.05])
def test_a_guard_whose_control_is_zero_never_passes(kpi: Kpi, treatment: float) -> None:
    w = guarded(kpi, 0.0, treatment, hours=60)

    assert "pass" not in {gate(e, f"{kpi.metric}_guard").verdict for e in w.folded().evaluations}


def test_a_goal_whose_control_is_zero_says_to_use_the_difference() -> None:
    orders = msgspec.structs.replace(CHECKOUT, metric="orders", role="goal")
    w = walk(orders, gates=(GOAL, DENSITY), hours=40)
    w.spoil("orders", "control", 0, value=always(0.0))

    assert w.said()[:2] == ("hold", "collecting")
    assert "use effect difference" in " ".join(w.blockers())
    w = walk(orders, gates=({**GOAL, "effect": "difference"}, DENSITY), hours=40)
    w.spoil("orders", "control", 0, value=always(0.0))
    assert w.said()[:2] == ("scale", "wins")


def test_a_goal_that_should_fall_and_rises_from_nothing_is_harmful() -> None:
    refunds = msgspec.structs.replace(CRASHES, metric="refunds", role="goal")
    w = walk(refunds, gates=(GOAL, DENSITY), hours=40)
    w.spoil("refunds", "control", 0, value=always(0.0))
    w.spoil("refunds", "t1", 0, value=always(0.05))

    assert w.said() == ("delete", "harmful", "proposed")


@pytest.mark.parametrize(("treatment", "said"), [(-12.0, "fail"), (-9.9, "pass")])
def test_a_mean_below_zero_is_judged_by_its_size(treatment: float, said: str) -> None:
    profit = msgspec.structs.replace(SPENT, metric="profit")
    w = guarded(profit, -10.0, treatment, hours=60)

    assert gate(w.at(), "profit_guard").verdict == said


def test_a_proportion_of_one_in_both_arms_is_proved_harmless() -> None:
    assert gate(guarded(CHECKOUT, 1.0, 1.0, hours=60).at(), "checkout_guard").verdict == "pass"


def test_one_crash_in_control_does_not_take_back_a_harm_that_is_plain() -> None:
    w = guarded(CRASHES, 0.0, 0.3, hours=30)
    w.spoil("crashes", "control", 5, value=lambda i: 1 / 200 if i == 5 else 0.0)

    verdicts = [gate(e, "crashes_guard").verdict for e in w.folded().evaluations if e.slot >= START + 8 * HOUR]
    assert set(verdicts) == {"fail"}
    assert w.said() == ("delete", "harm", "proposed")


def test_the_arrays_stop_where_the_harm_is_seen_look_by_look() -> None:
    """A long fold glides over looks by arrays; judging one look after the other gives the same."""
    from gates.engine.checkpoint import Checkpoint
    from gates.engine.fold import fold

    for kpi, control, treatment in ((CHECKOUT, 0.03, 0.0), (CRASHES, 0.0, 0.05), (CRASHES, 0.001, 0.02)):
        w = guarded(kpi, control, treatment, hours=60, gates=(GOAL, GUARD, DENSITY))
        at_once, told, state = w.folded(), [], None
        for hour in range(1, 61):
            folded = fold(w.policy, w.plan, w.rows, to=START + hour * HOUR, checkpoint=state)
            told += [t.evaluation for t in folded.evaluated_slots if t.changed]
            state = Checkpoint.from_bytes(folded.checkpoint.to_bytes())
        assert [e for e in told if e.slot > START] == [t.evaluation for t in at_once.evaluated_slots if t.changed]
