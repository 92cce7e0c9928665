"""Policies: what is refused and how it is mended, what is derived, how a gate reads aloud."""

from __future__ import annotations

from typing import Any

import pytest

from gates.engine.plan import Kpi, Plan, Target, Variant
from gates.engine.policy import DEFAULT_BODY, QUICK_BODY, canonical, completed, derive, sentence
from gates.engine.policy_checks import InvalidPolicy, MetricSpec, lint, lint_plan, parse, plan_warnings, warnings
from tests.gates.histories import CAP, DENSITY, GOAL, GUARD, plan

METRICS = {
    "value": MetricSpec("mean", "increase"),
    "error_rate": MetricSpec("gauge", "decrease"),
    "visits": MetricSpec("mean", None),
}
BOUND = {"name": "g", "kind": "uplift", "metric": "value", "delete_below": 0.02}


@pytest.mark.parametrize("body", [DEFAULT_BODY, QUICK_BODY])
def test_the_shipped_policies_have_nothing_to_refuse(body: dict[str, Any]) -> None:
    assert lint(body, METRICS) == []


def test_quick_looks_sooner_than_default() -> None:
    quick = parse(QUICK_BODY)

    assert (quick.min_days, quick.look_s, quick.closed_after_s, quick.max_days) == (1, 900, 300, 28)


@pytest.mark.parametrize(
    ("body", "code", "gate", "mend"),
    [
        ({"gates": []}, "no_gates", None, "Add at least one"),
        ({}, "no_gates", None, "Add at least one"),
        ({"gates": [GUARD, DENSITY]}, "nothing_decides", None, "Add one of them"),
        ({"gates": [{**BOUND, "metric": "vrps"}]}, "unknown_metric", "g", "Create the metric"),
        ({"gates": [GOAL], "patience": 4}, "unknown_key", None, "Known are"),
        ({"gates": [{**GOAL, "max_harm": 0.1}]}, "unknown_key", "{metric}_uplift", "It may have"),
        ({"gates": [CAP, CAP]}, "duplicate_name", "cap", "a name of its own"),
        ({"gates": [GOAL], "alpha": float("nan")}, "not_finite", None, "finite number"),
        ({"gates": [{**CAP, "at_most": float("inf")}]}, "not_finite", "cap", "finite number"),
        ({"gates": [GOAL], "alpha": 0.5}, "alpha_range", None, "below 0.5"),
        ({"gates": [GOAL], "alpha": 0}, "alpha_range", None, "above 0"),
        ({"gates": [GOAL], "max_days": 3}, "days_order", None, "Raise max_days"),
        ({"gates": [GOAL, {**GUARD, "max_harm": 0}]}, "max_harm_not_positive", "{metric}_guard", "above 0"),
        (
            {"gates": [{**GOAL, "scale_above": 0.1, "delete_below": 0.05}]},
            "delete_below_scale_above",
            None,
            "Raise delete_below",
        ),
        ({"gates": [{**CAP, "at_least": 1.0}]}, "min_over_max", "cap", "Swap them"),
        ({"gates": [GOAL, {**DENSITY, "at_least": 1.5}]}, "over_one", "density", "0 to 1"),
        ({"gates": [{**GOAL, "scale_above": 2, "delete_below": 5}]}, "over_one", None, "0.05 is 5%"),
        ({"gates": [{**GOAL, "delete_below": 1.01}]}, "over_one", None, "effect difference"),
        ({"gates": [{**GOAL, "scale_above": -2}]}, "over_one", None, "0.05 is 5%"),
        ({"gates": [GOAL, {**GUARD, "max_harm": 5}]}, "over_one", "{metric}_guard", "500%"),
        (
            {"gates": [GOAL, {**GUARD, "for": None, "metric": "value", "max_harm": 1}]},
            "over_one",
            "{metric}_guard",
            "never fail",
        ),
        ({"gates": [{**BOUND, "metric": "error_rate"}]}, "gauge_goal", "g", "threshold or target"),
        (
            {"gates": [GOAL, {**GUARD, "for": None, "metric": "error_rate"}]},
            "gauge_guard",
            "{metric}_guard",
            "threshold",
        ),
        ({"gates": [{**BOUND, "metric": "visits"}]}, "no_direction", "g", "increase or decrease"),
        ({"gates": [{"name": "g", "kind": "uplift", "for": "goal"}]}, "no_delete_below", "g", "Add delete_below"),
        ({"gates": [GOAL, {**GUARD, "for": "goal"}]}, "guard_on_goal", "{metric}_guard", "Remove the guard"),
        ({"gates": [GOAL], "look_s": 1000}, "grid", None, "Looks must fall on slots"),
        ({"gates": [GOAL], "persist": 0}, "too_small", None, "at least 1"),
        ({"gates": [GOAL], "persist": "4"}, "wrong_type", None, "whole number"),
        ({"gates": [GOAL], "persist": True}, "wrong_type", None, "whole number"),
        ({"gates": [GOAL], "require": "most"}, "unknown_choice", None, "all, any"),
        ({"gates": [{"kind": "srm", "name": "s"}, GOAL]}, "unknown_kind", "s", "always on"),
        ({"gates": [{"kind": "magic", "name": "s"}, GOAL]}, "unknown_kind", "s", "Known are"),
        ({"gates": [{"kind": "threshold", "name": "t", "metric": "error_rate"}]}, "no_limit", "t", "Add at_most"),
        ({"gates": [{"kind": "uplift", "name": "u", "delete_below": 0.1}]}, "no_binding", "u", "Add for"),
        ({"gates": [{**BOUND, "for": "goal"}]}, "two_bindings", "g", "Keep one"),
        ({"gates": [GOAL, 7]}, "wrong_type", None, "no object"),
        ({"gates": [{"kind": "uplift", "for": "goal", "delete_below": 0.1}]}, "missing_key", "gate 1", "Give it one"),
    ],
)
def test_what_cannot_work_is_refused_naming_gate_and_mend(
    body: dict[str, Any], code: str, gate: str | None, mend: str
) -> None:
    problems = {problem.code: problem for problem in lint(body, METRICS)}

    assert code in problems
    assert mend in problems[code].message
    if gate is not None:
        assert problems[code].gate == gate
        assert gate in problems[code].message or gate.capitalize() in problems[code].message


def test_parse_raises_every_reason_at_once() -> None:
    with pytest.raises(InvalidPolicy) as refused:
        parse({"gates": [GOAL], "alpha": 0.7, "max_days": 1})

    assert {problem.code for problem in refused.value.problems} == {"alpha_range", "days_order"}


def test_a_whole_number_that_is_written_as_7_0_is_one() -> None:
    cap = {"name": "cap", "kind": "threshold", "metric": "value", "at_most": 1, "times": 2.0}
    body = {"min_days": 7.0, "gates": [GOAL, cap]}
    assert lint(body, METRICS) == []
    policy = parse(body)
    assert [repr(number) for number in (policy.min_days, policy.gates[1].times)] == ["7", "2"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_days", 1e12), ("max_days", 3_651), ("min_days", 10**18), ("snooze_days", 10**9), ("look_s", 2 * 31 * 86_400), ("slot_s", 10**12),
     ("closed_after_s", 10**15), ("persist", 10**6), ("min_units", 10**16), ("planned_units", 1e300), ("planned_units", 1e-300),
     ("max_relative_se", 1e300), ("max_relative_se", 1e-200), ("alpha", 1e-300)],
)  # fmt: skip
def test_numbers_that_nobody_means_are_refused_and_judged_by_where_they_are_stored(setting: str, value: float) -> None:
    body = {"gates": [GOAL], setting: value, **({"max_days": 10**19} if setting == "min_days" else {})}
    assert "too_large" in {problem.code for problem in lint(body, METRICS)}
    assert "too_large" not in {problem.code for problem in lint(body, METRICS, stored=True)}


def test_gates_have_a_number_a_name_and_limits_that_can_be_computed_with() -> None:
    for gates in (
        [{**CAP, "name": f"cap {n}"} for n in range(101)],
        [{**CAP, "name": "x" * 201}],
        [{**CAP, "at_most": 1e300}],
        [{**CAP, "at_least": -1e300}],
        [{**CAP, "at_most": 1e-300}],
        [{**CAP, "times": 10**9}],
    ):
        assert [problem.code for problem in lint({"gates": [GOAL, *gates]}, METRICS)] == ["too_large"], gates[0]


def test_lint_survives_any_shape_of_body() -> None:
    shapes: list[Any] = [None, 3, "x", [None], [{"kind": []}], [{"name": [], "kind": "uplift", "for": {}}], {"a": 1}]
    for gates in shapes:
        assert lint({"gates": gates, "alpha": [], "require": []}, METRICS)


def test_a_fraction_over_one_that_was_saved_before_judges_on_and_one_in_the_metrics_unit_may_be_saved() -> None:
    before = {"gates": [{**GOAL, "delete_below": 3.0}, {**GUARD, "max_harm": 5}]}
    assert parse(before).gates[1].max_harm == 5
    assert lint({"gates": [{**GOAL, "effect": "difference", "delete_below": 3.0}]}, METRICS) == []
    assert lint({"gates": [{**GOAL, "delete_below": 1.0}, {**GUARD, "max_harm": 1}]}, METRICS) == []


def test_a_fraction_over_one_half_is_warned_of() -> None:
    body = {
        "gates": [
            {**GOAL, "scale_above": 0.5, "delete_below": 0.51},
            {**GUARD, "max_harm": 0.6, "effect": "difference"},
        ]
    }
    (warning,) = warnings(body)
    assert "delete_below is 0.51, which is 51%. It is a fraction of control: 0.05 is 5%." in warning
    assert warnings(DEFAULT_BODY) == []


@pytest.mark.parametrize(
    ("kpi", "said"),
    [
        (Kpi("m", minimum_effect=2.0, direction="increase"), ("m", "minimum_effect")),
        (Kpi("m", minimum_effect=1.0, direction="increase"), None),
        (Kpi("m", "guardrail", max_harm=1.0, direction="increase"), ("m", "max_harm")),
        (Kpi("m", "guardrail", max_harm=1.0, direction="decrease"), None),
        (Kpi("m", "guardrail", max_harm=1.5, direction="decrease"), ("m", "max_harm")),
        (Kpi("m", "shown", max_harm=5.0, minimum_effect=5.0, direction="increase"), None),
    ],
)
def test_a_plans_fractions_are_those_of_its_gates(kpi: Kpi, said: tuple[str, str] | None) -> None:
    arms = (Variant("control", control=True), Variant("treatment", position=1))
    plan = Plan(started_at=0, created_at=0, variants=arms, kpis=(kpi,))
    found = lint_plan(parse(DEFAULT_BODY), plan)
    assert [(p.code, p.metric, p.key) for p in found] == ([("over_one", *said)] if said else [])
    in_its_unit = parse({"gates": [{**rule, "effect": "difference"} for rule in DEFAULT_BODY["gates"][:2]]})
    assert lint_plan(in_its_unit, plan) == []


def test_a_guard_that_could_never_fail_is_refused_though_its_policy_was_saved_before() -> None:
    arms = (Variant("control", control=True), Variant("treatment", position=1))
    grows, shrinks = (
        Plan(started_at=0, created_at=0, variants=arms, kpis=(Kpi("m", "guardrail", direction=way),))
        for way in ("increase", "decrease")
    )
    before = parse({"gates": [GOAL, {**GUARD, "max_harm": 5}]})
    assert [p.code for p in lint_plan(before, grows)] == ["over_one"]
    assert lint_plan(before, shrinks) == []
    assert "max_harm is 5, which is 500%" in plan_warnings(before, shrinks)[0]


def test_equal_bodies_have_one_canonical_form_which_parses_to_the_same_policy() -> None:
    short = {"gates": [{"name": "u", "kind": "uplift", "for": "goal", "delete_below": "plan"}]}
    long = {**DEFAULT_BODY, "gates": [{**DEFAULT_BODY["gates"][0], "name": "u"}]}

    assert canonical(parse(completed(short))) == canonical(parse(long))
    assert parse(canonical(parse(long))) == parse(long)
    assert lint(canonical(parse(DEFAULT_BODY)), METRICS) == []


def test_gates_are_derived_from_policy_and_kpis() -> None:
    kpis = (
        Kpi("value", "goal", minimum_effect=0.03),
        Kpi("orders", "goal"),
        Kpi("speed", "guardrail", max_harm=0.04),
        Kpi("error_rate", "shown", "gauge"),
    )
    gates = derive(parse({"gates": [GOAL, GUARD, DENSITY, CAP]}), plan(*kpis))

    assert [gate.name for gate in gates] == [
        "value_uplift", "orders_uplift", "speed_guard", "density", "cap", "freshness", "srm", "doubt",
    ]  # fmt: skip
    assert (gates[0].delete_below, gates[1].delete_below, gates[2].max_harm) == (0.03, 0.02, 0.04)


def test_a_gate_on_a_metric_the_plan_does_not_name_is_left_out() -> None:
    gates = derive(parse({"gates": [GOAL, CAP]}), plan(Kpi("value", "goal")))

    assert "cap" not in [gate.name for gate in gates]


def test_without_treatments_a_kpi_with_a_target_gets_a_target_gate_and_no_srm() -> None:
    kpis = (Kpi("value", "goal", target=Target(at_least=3.0)), Kpi("orders", "goal"))
    gates = derive(parse({"gates": [GOAL, DENSITY]}), plan(*kpis, treatments=0))

    assert [(gate.name, gate.kind) for gate in gates] == [
        ("density", "density"), ("value_target", "target"), ("freshness", "freshness"),
    ]  # fmt: skip
    assert gates[1].at_least == 3.0


def test_nothing_that_counts_assignment_units_means_no_srm_gate() -> None:
    gates = derive(parse({"gates": [GOAL]}), plan(Kpi("value", "goal", counts_assignment=False)))

    assert "srm" not in [gate.kind for gate in gates]


@pytest.mark.parametrize(
    ("kpis", "code"),
    [
        ((Kpi("value", "goal", "gauge", "increase"),), "gauge_goal"),
        ((Kpi("value", "goal", "mean", None),), "no_direction"),
        ((Kpi("value", "goal", "mean", "increase", minimum_effect=-0.1),), "delete_below_scale_above"),
        ((Kpi("value", "goal", "mean", "increase"), Kpi("speed", "guardrail", "mean", "increase", max_harm=0.0)), "max_harm_not_positive"),
    ],
)  # fmt: skip
def test_what_only_policy_and_plan_together_get_wrong_is_refused_too(kpis: tuple[Kpi, ...], code: str) -> None:
    assert code in [problem.code for problem in lint_plan(parse({"gates": [GOAL, GUARD]}), plan(*kpis))]


def test_a_guard_stricter_than_a_non_inferiority_goal_on_its_metric_is_allowed() -> None:
    goal = {**BOUND, "scale_above": -0.05}
    guard = {"name": "h", "kind": "guard", "metric": "value", "max_harm": 0.01}

    assert lint({"gates": [goal, guard]}, METRICS) == []
    assert [p.code for p in lint({"gates": [{**goal, "scale_above": 0.0}, guard]}, METRICS)] == ["guard_on_goal"]


def test_every_kind_reads_aloud() -> None:
    assert sentence({**GUARD, "max_harm": 0.05}) == (
        "Every guardrail must be proved not to lose more than 5% against control; a proved larger loss deletes."
    )
    goal = sentence({"name": "g", "kind": "uplift", "metric": "value"})
    assert "value passes when it is proved above 0% against control and fails" in goal
    assert "with any, one must pass to scale and all must fail to delete" in goal
    assert "1 observation outside deletes" in sentence({**CAP, "times": 1})
    assert "deletes the whole experiment" in sentence({**CAP, "times": 1, "scope": "experiment"})
    assert "descriptive, not causal" in sentence({"name": "t", "kind": "target"})
    assert "newest closed value of coverage" in sentence(
        {"name": "d", "kind": "density", "metric": "coverage", "at_least": 5}
    )
